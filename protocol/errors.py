"""Typed errors. The error that a server sends and the exception that a client catches are one thing.

PSError
├── WireError            the peer's bytes are not this protocol; the connection is closed
│   ├── BadFrame             wrong magic, flags or lengths
│   ├── FrameTooLarge        a frame above the receiver's limit
│   └── VersionMismatch      no protocol version that both ends speak
├── RequestError         this request is wrong; nothing changed, the connection stays usable
│   ├── BadRequest           a field is missing, unknown, of the wrong type or out of range
│   ├── UnknownJob           no such job on this cluster
│   ├── JobDropped           the job on which this worker worked was dropped
│   ├── UnknownTensor        no such tensor in this job
│   ├── SpecMismatch         the tensor exists with another dtype, shape or optimizer
│   ├── BadTensor            dtype or size differ from what the server holds
│   ├── UnknownKeys          a list of keys is named that the server does not remember: send it
│   ├── NotFinite            NaN or infinity among the values
│   ├── HasDiverged          the job has diverged, and cannot go back to a checkpoint
│   ├── JobMismatch          the job exists with other settings
│   ├── NotAMember           only workers that have joined may do this
│   ├── Fenced               this incarnation of the worker is out: dead, replaced, or it has left
│   ├── OutOfOrder           a push before this one is missing, or this one is too old to be remembered
│   └── Conflict             the same sequence number came with another content
├── AccessError          the peer may not do this, whoever it says it is
│   ├── Unauthenticated      it has not proven that it knows a token, or not shown the right certificate
│   └── Forbidden            its role does not include this request
└── ClusterError         the request may be right, the cluster cannot carry it out
    ├── ConnectionLost       the connection ended before the reply (raised at the client only)
    ├── Unreachable          no server answered at the address (raised at the client only)
    ├── ShuttingDown         the server is stopping
    ├── LogUnwritable        the update cannot be made durable now, and was refused
    ├── CheckpointFailed     no checkpoint was taken; the training goes on
    ├── NotReady             the server is taking up its state; ask again
    ├── CheckpointUnusable   a checkpoint or an update log is damaged or incomplete
    └── InternalError        a defect of the server; its log has the traceback
"""

from __future__ import annotations

import reprlib
from typing import ClassVar, Final

__all__ = [
    "AccessError",
    "BadFrame",
    "BadRequest",
    "BadTensor",
    "CheckpointFailed",
    "CheckpointUnusable",
    "ClusterError",
    "Conflict",
    "ConnectionLost",
    "Fenced",
    "Forbidden",
    "FrameTooLarge",
    "HasDiverged",
    "InternalError",
    "JobDropped",
    "JobMismatch",
    "LogUnwritable",
    "NotAMember",
    "NotFinite",
    "NotReady",
    "OutOfOrder",
    "PSError",
    "RequestError",
    "ShuttingDown",
    "SpecMismatch",
    "Unauthenticated",
    "UnknownJob",
    "UnknownKeys",
    "UnknownTensor",
    "Unreachable",
    "VersionMismatch",
    "WireError",
    "error_from_wire",
    "shorten",
]

_LONGEST_VALUE: Final = 120

_SHORT: Final = reprlib.Repr()  # a peer's value may be nested deeper than repr() can follow
_SHORT.maxlist = _SHORT.maxtuple = _SHORT.maxdict = 32
_SHORT.maxstring = _SHORT.maxlong = _SHORT.maxother = _LONGEST_VALUE


def shorten(value: object) -> str:
    """Return a printable form of ``value`` that is safe to log: escaped, at most 120 characters."""
    text = value if isinstance(value, str) else _SHORT.repr(value)
    text = text.encode("unicode_escape").decode("ascii")
    return text if len(text) <= _LONGEST_VALUE else text[: _LONGEST_VALUE - 3] + "..."


class PSError(Exception):
    """Base of all errors of this project that may cross the wire.

    Attributes:
        code: the error's name on the wire.
        message: what is wrong, what was expected, and the remedy where there is one.
        field: the field of the request that is wrong, or ``""``.
        value: the offending value, escaped and shortened, or ``""``.
    """

    code: ClassVar[str] = "ERROR"

    def __init__(self, message: str, *, field: str = "", value: object = "") -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        self.value = shorten(value)

    def __str__(self) -> str:
        where = f"{self.field}={self.value}: " if self.field else ""
        return f"{where}{self.message}"


class WireError(PSError):
    """The peer's bytes are not this protocol."""

    code = "WIRE_ERROR"


class BadFrame(WireError):
    """Wrong magic, flags or lengths."""

    code = "BAD_FRAME"


class FrameTooLarge(WireError):
    """A frame is larger than its receiver allows."""

    code = "FRAME_TOO_LARGE"


class VersionMismatch(WireError):
    """The two ends have no protocol version in common."""

    code = "VERSION_MISMATCH"


class RequestError(PSError):
    """The request is wrong; nothing was changed."""

    code = "REQUEST_ERROR"


class BadRequest(RequestError):
    """A field is missing, unknown, of the wrong type or out of range."""

    code = "BAD_REQUEST"


class UnknownJob(RequestError):
    """The cluster has no job of that name."""

    code = "UNKNOWN_JOB"


class JobDropped(RequestError):
    """The job on which the worker that asks worked was dropped: nothing of it is left."""

    code = "JOB_DROPPED"


class UnknownTensor(RequestError):
    """The job has no tensor of that name."""

    code = "UNKNOWN_TENSOR"


class SpecMismatch(RequestError):
    """The tensor exists already with another dtype, shape or optimizer."""

    code = "SPEC_MISMATCH"


class BadTensor(RequestError):
    """A tensor's dtype or number of elements is not what the server holds."""

    code = "BAD_TENSOR"


class UnknownKeys(RequestError):
    """A list of keys was named that the server does not, or no longer, remember; send the keys."""

    code = "UNKNOWN_KEYS"


class NotFinite(RequestError):
    """A gradient or an initial value contains NaN or infinity."""

    code = "NOT_FINITE"


class HasDiverged(RequestError):
    """The job has diverged, and cannot go back: there is no checkpoint, or it has gone back often enough."""

    code = "HAS_DIVERGED"


class JobMismatch(RequestError):
    """The job exists already with other settings."""

    code = "JOB_MISMATCH"


class NotAMember(RequestError):
    """The request is for workers that have joined the job."""

    code = "NOT_A_MEMBER"


class Fenced(RequestError):
    """The incarnation of the worker that asks is out: it was declared dead, was replaced, or has left."""

    code = "FENCED"


class OutOfOrder(RequestError):
    """A sequence number that is not the next one, nor one that is still remembered."""

    code = "OUT_OF_ORDER"


class Conflict(RequestError):
    """A sequence number that was used before, for another content."""

    code = "CONFLICT"


class AccessError(PSError):
    """The peer may not do this, or cannot be believed to be who it says it is."""

    code = "ACCESS_ERROR"


class Unauthenticated(AccessError):
    """One end has not proven to the other who it is; the connection is closed."""

    code = "UNAUTHENTICATED"


class Forbidden(AccessError):
    """The request is for another role than that of the token which the peer has proven."""

    code = "FORBIDDEN"


class ClusterError(PSError):
    """The cluster cannot carry the request out."""

    code = "CLUSTER_ERROR"


class ConnectionLost(ClusterError):
    """The connection ended before the reply came; the request may or may not have been applied."""

    code = "CONNECTION_LOST"


class Unreachable(ClusterError):
    """No server answered at the address."""

    code = "UNREACHABLE"


class ShuttingDown(ClusterError):
    """The server is stopping and takes no more requests."""

    code = "SHUTTING_DOWN"


class LogUnwritable(ClusterError):
    """The update log cannot be written; the update was refused, and changed nothing."""

    code = "LOG_UNWRITABLE"


class CheckpointFailed(ClusterError):
    """A checkpoint was asked for, and not taken; what there was before is as it was."""

    code = "CHECKPOINT_FAILED"


class NotReady(ClusterError):
    """The server is taking up its state, or waits for other servers; ask again."""

    code = "NOT_READY"


class CheckpointUnusable(ClusterError):
    """A checkpoint or an update log is damaged or incomplete."""

    code = "CHECKPOINT_UNUSABLE"


class InternalError(ClusterError):
    """The server failed on a request that it should have handled."""

    code = "INTERNAL"


def _leaves(root: type[PSError]) -> dict[str, type[PSError]]:
    found = {root.code: root}
    for child in root.__subclasses__():
        found |= _leaves(child)
    return found


_BY_CODE = _leaves(PSError)


def error_from_wire(code: str, message: str, field: str, value: str) -> PSError:
    """Return the exception for an error reply; an unknown ``code`` becomes a ``RequestError``."""
    error = _BY_CODE.get(code, RequestError)(message, field=field)
    error.value = value  # escaped and shortened by the sender already
    return error

"""TLS: which certificates an end shows and believes. Nothing below TLS 1.3.

The server's certificate must be signed by a CA that the client is told, and name the host that was dialled. A
server that is told a CA takes only clients with a certificate of that CA.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Final

from protocol.errors import BadRequest, Unauthenticated

__all__ = [
    "TLS",
    "Serving",
    "channel_of",
    "client_context",
    "reason_of",
    "server_context",
    "unauthenticated",
]

_BEGIN: Final = "-----BEGIN CERTIFICATE-----"
_END: Final = "-----END CERTIFICATE-----"

StrPath = str | os.PathLike[str]


@dataclass(frozen=True, slots=True)
class TLS:
    """PEM files. A client needs ``ca``, a server ``cert`` and ``key``; with all three both show who they are.

    ``ca`` is what the other end's certificate must be signed by, ``cert`` this end's own with what is between
    it and its CA, and ``key`` the key of that.
    """

    ca: StrPath | None = None
    cert: StrPath | None = None
    key: StrPath | None = None

    def files(self) -> tuple[Path, ...]:
        """Return those that there are."""
        return tuple(Path(file) for file in (self.ca, self.cert, self.key) if file is not None)


@dataclass(frozen=True, slots=True)
class Serving:
    """What a server shows to those who connect from now on; ``channel`` is the binding of its certificate."""

    context: ssl.SSLContext
    channel: bytes


def server_context(files: TLS) -> Serving:
    """Return what a server speaks TLS with.

    Raises:
        BadRequest: a file is missing, cannot be read, or is not what it should be.
    """
    if files.cert is None or files.key is None:
        raise BadRequest("a server that speaks TLS needs --tls-cert and --tls-key", field="tls", value=files)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.num_tickets = 0  # a session that is taken up again would outlive the CA that vouched for it
    _load_own(context, files)
    if files.ca is not None:
        _load_ca(context, files.ca)
        context.verify_mode = ssl.CERT_REQUIRED
    return Serving(context, channel_of(_first_certificate(Path(files.cert))))


def client_context(files: TLS) -> ssl.SSLContext:
    """Return what a client speaks TLS with; without a ``ca`` it believes those that the system does.

    Raises:
        BadRequest: a file is missing, cannot be read, or is not what it should be.
    """
    if (files.cert is None) != (files.key is None):
        raise BadRequest("--tls-cert and --tls-key go together", field="tls", value=files)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    if files.ca is None:
        context.load_default_certs(ssl.Purpose.SERVER_AUTH)
    else:
        _load_ca(context, files.ca)
    if files.cert is not None:
        _load_own(context, files)
    return context


def channel_of(certificate: bytes) -> bytes:
    """Return the channel binding of a server's certificate, which is given as DER."""
    return sha256(certificate).digest()


def _load_own(context: ssl.SSLContext, files: TLS) -> None:
    assert files.cert is not None and files.key is not None  # noqa: S101, PT018 (the callers look)
    for flag, file in (("tls-cert", files.cert), ("tls-key", files.key)):
        _read(Path(file), flag)
    _load(
        # A key with a password would have OpenSSL ask for it on the terminal.
        lambda: context.load_cert_chain(os.fspath(files.cert), os.fspath(files.key), password=""),  # type: ignore[arg-type]
        "tls-cert",
        os.fspath(files.cert),
        f"it and --tls-key {files.key} are not a certificate and its key, in PEM and without a password",
    )


def _load_ca(context: ssl.SSLContext, ca: StrPath) -> None:
    _read(Path(ca), "tls-ca")
    _load(
        lambda: context.load_verify_locations(cafile=os.fspath(ca)),
        "tls-ca",
        os.fspath(ca),
        "it holds no certificate in PEM",
    )


def _load(load: Callable[[], None], flag: str, value: str, problem: str) -> None:
    try:
        load()
    except (OSError, ValueError) as error:
        raise BadRequest(f"{problem}: {error}", field=flag, value=value) from error


def _read(file: Path, flag: str) -> str:
    try:
        return file.read_text("ascii", errors="replace")
    except OSError as error:
        raise BadRequest(
            f"it cannot be read: {error.strerror or error}", field=flag, value=str(file)
        ) from error


def _first_certificate(file: Path) -> bytes:
    """Return the certificate that is shown, which comes first in its file, as DER."""
    text = _read(file, "tls-cert")
    begin = text.index(_BEGIN)
    return ssl.PEM_cert_to_DER_cert(text[begin : text.index(_END, begin) + len(_END)])


# --- what went wrong

_NOT_TLS: Final = ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG")
_ABOUT_CERTIFICATES: Final = ("CERTIFICATE", "UNKNOWN_CA", "ACCESS_DENIED", "BAD_SIGNATURE", "DECRYPT_ERROR")


def reason_of(error: ssl.SSLError) -> str:
    """Return why there is no connection: ``certificate``, ``plain`` (the peer speaks no TLS) or ``tls``."""
    reason = error.reason or ""
    if any(word in reason for word in _ABOUT_CERTIFICATES):
        return "certificate"
    return "plain" if reason in _NOT_TLS else "tls"


def unauthenticated(error: ssl.SSLError, *, server: bool, host: str = "") -> Unauthenticated:
    """Return what a TLS handshake that failed means for this end, and what can be done.

    Args:
        error: OpenSSL's.
        server: this end is the server.
        host: the host that was dialled.
    """
    reason = reason_of(error)
    said = getattr(error, "verify_message", "") or (error.reason or str(error)).replace("_", " ").lower()
    ours = isinstance(error, ssl.SSLCertVerificationError)
    theirs = "give a --tls-cert, with its --tls-key, that its --tls-ca has signed"
    if reason == "plain" and not server:
        text = (
            "the server does not speak TLS: is it psserver, and not its metrics port? Start it with "
            "--tls-cert and --tls-key, or leave --tls-ca away"
        )
    elif reason == "certificate" and server:
        text = (
            f"the client's certificate is not one of --tls-ca ({said})"
            if ours or "PEER_DID_NOT_RETURN" in (error.reason or "")
            else f"the client refuses this server's certificate ({said}); is its --tls-ca the right one?"
        )
    elif reason == "certificate":
        text = (
            f"the server's certificate is refused ({said}); --tls-ca has to be the CA that signed it, and it "
            f"has to name the host {host}"
            if ours
            else f"the server refuses this end's certificate ({said}); {theirs}"
        )
    else:
        text = f"no TLS 1.3 with this peer ({said})"
    return Unauthenticated(text, field="tls", value=reason)

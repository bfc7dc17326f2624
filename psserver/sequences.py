"""What a worker's numbered requests came to, so that a retry counts once. No sockets.

Rules, for one worker's incarnation and one stream of requests numbered 1, 2, 3, ...:
- Number ``last + 1`` is new, and admitted.
- A number at or below ``last`` is a retry. If the first try is still being answered, its answer goes to the
  retry; if it has been, it is given again. Nothing is done a second time.
- A number above ``last + 1`` is refused: one before it is missing.
- A retry with another content than the first try is refused: somebody numbers wrongly.
- What is remembered is bounded: a number ``WINDOW`` or more below ``last`` is refused. A client has fewer
  requests under way than that, so it never asks.
"""

from __future__ import annotations

from collections import deque

from protocol.errors import Conflict, OutOfOrder, PSError, error_from_wire
from protocol.messages import Reply
from protocol.sequences import WINDOW
from psserver.call import Call

__all__ = ["Outcome", "Sequence"]

Outcome = Reply | PSError | None
"""What a request was answered with; None where the answer is made anew from the state as it is then."""


class _Entry:
    """A request that was admitted; ``call`` is to be answered, None once it has been."""

    __slots__ = ("call", "fingerprint", "outcome")

    def __init__(self, fingerprint: int, call: Call | None, outcome: Outcome = None) -> None:
        self.fingerprint = fingerprint
        self.call = call
        self.outcome = outcome


class Sequence:
    """The numbered requests of one worker's incarnation.

    Attributes:
        last: the highest number admitted.
        duplicates: retries that were not done again.
    """

    __slots__ = ("_recent", "duplicates", "last")

    def __init__(self) -> None:
        self.last = 0
        self.duplicates = 0
        self._recent: deque[_Entry] = deque(maxlen=WINDOW)  # of the numbers up to ``last``

    def is_new(self, seq: int) -> bool:
        """Return whether ``seq`` is the next number; False: it is a retry.

        Raises:
            OutOfOrder: it is neither.
        """
        if seq == self.last + 1:
            return True
        if seq > self.last:
            raise OutOfOrder(f"the next number of this worker is {self.last + 1}", field="seq", value=seq)
        if seq <= self.last - len(self._recent):
            raise OutOfOrder(f"at most {WINDOW} requests are remembered", field="seq", value=seq)
        return False

    def admit(self, fingerprint: int, call: Call) -> None:
        """Take the next number's request; ``answered`` must follow."""
        self.last += 1
        self._recent.append(_Entry(fingerprint, call))

    def refuse(self, error: PSError) -> None:
        """Take the next number's request as answered with ``error``, before its content was known."""
        self.last += 1
        self._recent.append(_Entry(0, None, _bare(error)))

    def answered(self, seq: int, outcome: Outcome) -> None:
        """Remember what number ``seq`` was answered with."""
        behind = self.last - seq
        if behind < len(self._recent):
            entry = self._recent[-1 - behind]
            entry.call = None
            entry.outcome = _bare(outcome) if isinstance(outcome, PSError) else outcome

    def refused(self, seq: int) -> PSError | None:
        """Return the error that a number which is no longer new was answered with, if it was one."""
        outcome = self._recent[-1 - (self.last - seq)].outcome
        return _bare(outcome) if isinstance(outcome, PSError) else None

    def retry(self, seq: int, fingerprint: int, call: Call) -> tuple[bool, Outcome]:
        """Return whether a retry is to be answered now, and with what.

        If not, the first try's answer, when it comes, goes to ``call``.

        Raises:
            Conflict: the first try had another content.
        """
        entry = self._recent[-1 - (self.last - seq)]
        if entry.fingerprint != fingerprint:
            raise Conflict("this number was used before, for another content", field="seq", value=seq)
        self.duplicates += 1
        if entry.call is None:
            return True, entry.outcome
        entry.call.redirect(call)
        return False, None


def _bare(error: PSError) -> PSError:
    """Return a copy without a traceback, which would keep the frames that it names, and their gradients."""
    return error_from_wire(error.code, error.message, error.field, error.value)

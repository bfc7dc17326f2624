"""What a worker's numbered requests came to, so that a retry counts once. No sockets.

Rules, for one worker's incarnation and one stream of requests numbered 1, 2, 3, ...:
- Number ``last + 1`` is new, and admitted.
- A number at or below ``last`` is a retry. If the first try is still being answered, its answer goes to the
  retry; if it has been, it is given again. Nothing is done a second time.
- A number above ``last + 1`` is refused: one before it is missing.
- A retry with another content than the first try is refused: somebody numbers wrongly.
- What is remembered is bounded: a number ``WINDOW`` or more below ``last`` is refused. A client has fewer
  requests under way than that, so it never asks.

After a restart:
- A number at or below ``last`` of which nothing was done is open: it is new when it comes. There are such
  numbers because requests are answered out of order.
- The first number above ``last`` may be any, and those after it may leave some out as long as the client can
  have had them under way together. Those left out were refused, which is not kept, or are still to come: they
  are open, too.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from itertools import repeat
from typing import Any, Final

from protocol.errors import Conflict, OutOfOrder, PSError, error_from_wire
from protocol.messages import Empty, Leased, Pulled, Pushed, Reply
from protocol.sequences import UNDER_WAY, WINDOW
from psserver.call import Call
from psserver.saved_state import SavedState, check_saved

__all__ = ["Outcome", "SavedSequence", "Sequence"]

Outcome = Reply | PSError | None
"""What a request was answered with; None where the answer is made anew from the state as it is then."""


class _Entry:
    """A request that was admitted; ``call`` is to be answered, None once it has been.

    ``done`` says that its effect is part of the state, answered or not.
    """

    __slots__ = ("call", "done", "fingerprint", "outcome")

    def __init__(self, fingerprint: int, call: Call | None, outcome: Outcome = None) -> None:
        self.fingerprint = fingerprint
        self.call = call
        self.outcome = outcome
        self.done = call is None


@dataclass(frozen=True, slots=True)
class SavedError:
    """An error that was the answer."""

    code: str
    message: str
    field: str
    value: str


@dataclass(frozen=True, slots=True)
class SavedAnswer:
    """The answer is one of these; ``Empty`` if it is none."""

    pushed: Pushed | None = None
    leased: Leased | None = None
    pulled: Pulled | None = None
    error: SavedError | None = None


@dataclass(frozen=True, slots=True)
class SavedEntry:
    """A request that was done. Without an ``answer`` it is made anew."""

    fingerprint: int
    answer: SavedAnswer | None


@dataclass(frozen=True, slots=True)
class SavedSequence:
    """What is saved of a sequence: the numbers up to ``last``, where None is open."""

    last: int
    recent: tuple[SavedEntry | None, ...]


_SAVED: Final = SavedState(SavedSequence)


class Sequence:
    """The numbered requests of one worker's incarnation.

    Attributes:
        last: the highest number admitted.
        duplicates: retries that were not done again.
    """

    __slots__ = ("_recent", "_resumed", "duplicates", "last")

    def __init__(self) -> None:
        self.last = 0
        self.duplicates = 0
        self._recent: deque[_Entry | None] = deque(maxlen=WINDOW)  # of the numbers up to ``last``; None: open
        self._resumed: int | None = None  # above it numbers may have been used before a restart

    def is_new(self, seq: int) -> bool:
        """Return whether ``seq`` is the next number, or open; False: it is a retry.

        Raises:
            OutOfOrder: it is none of these.
        """
        if seq == self.last + 1:
            return True
        if seq > self.last:
            if self._may_skip_to(seq):
                return True
            raise OutOfOrder(f"the next number of this worker is {self.last + 1}", field="seq", value=seq)
        if seq <= self.last - len(self._recent):
            raise OutOfOrder(f"at most {WINDOW} requests are remembered", field="seq", value=seq)
        return self._recent[-1 - (self.last - seq)] is None

    def _may_skip_to(self, seq: int) -> bool:
        resumed = self._resumed
        return resumed is not None and (resumed == self.last or seq <= resumed + UNDER_WAY + 1)

    def admit(self, seq: int, fingerprint: int, call: Call) -> None:
        """Take a request whose number is new; ``answered`` must follow."""
        entry = _Entry(fingerprint, call)
        if seq == self.last + 1:
            self.last = seq
            self._recent.append(entry)
        else:
            self._fill(seq, entry)

    def refuse(self, seq: int, error: PSError) -> None:
        """Take a new number's request as answered with ``error``, before its content was known."""
        self._fill(seq, _Entry(0, None, _bare(error)))

    def _fill(self, seq: int, entry: _Entry) -> None:
        """Put in an entry; those that it leaves out are open."""
        if seq > self.last:
            if self._resumed == self.last:
                self._resumed = seq - 1
            self._recent.extend(repeat(None, min(seq - self.last - 1, WINDOW)))
            self._recent.append(entry)
            self.last = seq
        else:
            self._recent[-1 - (self.last - seq)] = entry

    def applied(self, seq: int, outcome: Outcome = None) -> None:
        """Note that the effect of number ``seq``, which is yet to be answered, is part of the state."""
        behind = self.last - seq
        entry = self._recent[-1 - behind] if behind < len(self._recent) else None
        if entry is not None and entry.call is not None:
            entry.done, entry.outcome = True, outcome

    def effect(self, seq: int) -> tuple[bool, Outcome]:
        """Return whether the effect of an admitted number is part of the state, and its answer."""
        behind = self.last - seq
        entry = self._recent[-1 - behind] if behind < len(self._recent) else None
        return (False, None) if entry is None else (entry.done, entry.outcome)

    def answered(self, seq: int, outcome: Outcome) -> None:
        """Remember what number ``seq`` was answered with."""
        behind = self.last - seq
        entry = self._recent[-1 - behind] if behind < len(self._recent) else None
        if entry is not None:
            entry.call, entry.done = None, True
            entry.outcome = _bare(outcome) if isinstance(outcome, PSError) else outcome

    def refused(self, seq: int) -> PSError | None:
        """Return the error that a number which is no longer new was answered with, if it was one."""
        outcome = self._known(seq).outcome
        return _bare(outcome) if isinstance(outcome, PSError) else None

    def retry(self, seq: int, fingerprint: int, call: Call) -> tuple[bool, Outcome]:
        """Return whether a retry is to be answered now, and with what.

        If not, the first try's answer, when it comes, goes to ``call``.

        Raises:
            Conflict: the first try had another content.
        """
        entry = self._known(seq)
        if entry.fingerprint != fingerprint:
            raise Conflict("this number was used before, for another content", field="seq", value=seq)
        self.duplicates += 1
        if entry.call is None:
            return True, entry.outcome
        entry.call.redirect(call)
        return False, None

    def _known(self, seq: int) -> _Entry:
        entry = self._recent[-1 - (self.last - seq)]
        assert entry is not None  # noqa: S101 (``is_new`` has said that it is not open)
        return entry

    # --- to a disk and back

    def completed(self, seq: int, fingerprint: int, outcome: Outcome) -> None:
        """Take what a log says: the effect of number ``seq`` is part of the state, and this is its answer."""
        self.complete_open(seq, fingerprint, outcome)
        self.resume()

    def complete_open(self, seq: int, fingerprint: int, outcome: Outcome = None) -> None:
        """As ``applied``, for a number that was taken before a restart, if nobody has asked for it since."""
        behind = self.last - seq
        if behind < 0 or (behind < len(self._recent) and self._recent[-1 - behind] is None):
            self._fill(seq, _Entry(fingerprint, None, outcome))

    def resume(self) -> None:
        """Go on after a restart: numbers above ``last`` may have been used, of which nothing is known."""
        self._resumed = self.last

    def saved(self) -> SavedSequence:
        """Return what has to be known after a restart; what is admitted and not done is open."""
        return SavedSequence(self.last, tuple([_saved(entry) for entry in self._recent]))

    @classmethod
    def from_saved(cls, saved: SavedSequence) -> Sequence:
        """Return the requests that ``saved`` tells of.

        Raises:
            BadRequest: there cannot be such.
        """
        check_saved(
            len(saved.recent) <= min(saved.last, WINDOW), "no more numbers than that", "last", saved.last
        )
        found = cls()
        found.last = saved.last
        found._recent.extend(_entry(one) for one in saved.recent)
        found.resume()
        return found

    def state(self) -> dict[str, Any]:
        """Return what has to be known after a restart, as plain data."""
        return _SAVED.plain(self.saved())

    @classmethod
    def restored(cls, state: object) -> Sequence:
        """Return the requests whose ``state`` this is.

        Raises:
            BadRequest: it is not whole.
        """
        return cls.from_saved(_SAVED.checked(state))


def _bare(error: PSError) -> PSError:
    """Return a copy without a traceback, which would keep the frames that it names, and their gradients."""
    return error_from_wire(error.code, error.message, error.field, error.value)


def _saved(entry: _Entry | None) -> SavedEntry | None:
    return None if entry is None or not entry.done else SavedEntry(entry.fingerprint, _answer(entry.outcome))


def _answer(outcome: Outcome) -> SavedAnswer | None:
    match outcome:
        case None:
            return None
        case Empty():
            return SavedAnswer()
        case Pushed():
            return SavedAnswer(pushed=outcome)
        case Leased():
            return SavedAnswer(leased=outcome)
        case Pulled():  # of nothing, or it were made anew
            return SavedAnswer(pulled=outcome)
        case PSError():
            return SavedAnswer(error=SavedError(outcome.code, outcome.message, outcome.field, outcome.value))
        case _:
            raise AssertionError(f"no numbered request is answered with {outcome}")


def _entry(saved: SavedEntry | None) -> _Entry | None:
    return None if saved is None else _Entry(saved.fingerprint, None, _outcome(saved.answer))


def _outcome(answer: SavedAnswer | None) -> Outcome:
    if answer is None:
        return None
    error = answer.error
    found = [one for one in (answer.pushed, answer.leased, answer.pulled, error) if one is not None]
    check_saved(len(found) <= 1, "at most one answer", "answer", answer)
    if error is not None:
        return error_from_wire(error.code, error.message, error.field, error.value)
    return answer.pushed or answer.leased or answer.pulled or Empty()

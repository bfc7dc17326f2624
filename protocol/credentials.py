"""What an end proves who it is with: a token file and TLS files, read again when they change.

Where a file has become unusable, what was read before stays in use, and that is logged once: what is half
written now may be whole a second later.
"""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from ssl import SSLContext
from typing import Generic, TypeVar

from protocol.auth import Role, Token, parse_tokens
from protocol.errors import BadRequest
from protocol.tls import TLS, Serving, StrPath, client_context, server_context

__all__ = ["Access", "Credentials", "Fresh"]

_log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Access:
    """The files that an end was told of."""

    token_file: StrPath | None = None
    tls: TLS | None = None

    @property
    def authenticates(self) -> bool:
        """Whether a server with these files asks those who connect to prove who they are."""
        return self.token_file is not None or (self.tls is not None and self.tls.ca is not None)


class Fresh(Generic[T]):
    """What is made of some files, and made anew when they have changed.

    Args:
        files: which ones.
        make: reads them; raises ``BadRequest``.
    """

    def __init__(self, files: Sequence[Path], make: Callable[[], T]) -> None:
        self._files = files
        self._make = make
        self._seen = self._signature()
        self.value = make()

    def look(self, *, anyway: bool = False) -> bool:
        """Read the files again if they have changed, or ``anyway``; return whether that was of use."""
        signature = self._signature()
        if signature == self._seen and not anyway:
            return False
        self._seen = signature
        try:
            self.value = self._make()
        except BadRequest as error:
            _log.error("what was read before stays in use: %s", error)
            return False
        _log.info("read again: %s", ", ".join(map(str, self._files)))
        return True

    def _signature(self) -> tuple[tuple[int, int, int] | None, ...]:
        return tuple(map(_signature, self._files))


def _signature(file: Path) -> tuple[int, int, int] | None:
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


class Credentials:
    """What this end proves who it is with.

    Args:
        access: which files.
        serving: it is a server, which others connect to.

    Raises:
        BadRequest: a file cannot be used.
    """

    def __init__(self, access: Access = Access(), *, serving: bool = False) -> None:
        self._tokens: Fresh[tuple[Token, ...]] | None = None
        self._dialling: Fresh[SSLContext] | None = None
        self._serving: Fresh[Serving] | None = None
        if access.token_file is not None:
            file = Path(access.token_file)
            self._tokens = Fresh([file], lambda: _tokens_of(file))
        if access.tls is not None:
            tls = access.tls
            self._dialling = Fresh(tls.files(), lambda: client_context(tls))
            if serving:
                self._serving = Fresh(tls.files(), lambda: server_context(tls))

    def look(self, *, anyway: bool = False) -> None:
        """Read again what has changed, or all of it."""
        for fresh in (self._tokens, self._dialling, self._serving):
            if fresh is not None:
                fresh.look(anyway=anyway)

    @property
    def tokens(self) -> tuple[Token, ...]:
        """Those that a server takes; none: it asks for none."""
        return () if self._tokens is None else self._tokens.value

    @property
    def token(self) -> Token | None:
        """The one that a client proves to know: the first."""
        return self.tokens[0] if self.tokens else None

    @property
    def servers_token(self) -> Token | None:
        """The one that a server shows the coordinator: the first that is an admin's, if there is one."""
        admins = [token for token in self.tokens if token.role is Role.ADMIN]
        return admins[0] if admins else self.token

    @property
    def dialling(self) -> SSLContext | None:
        """What this end speaks TLS with when it connects; None: no TLS."""
        return None if self._dialling is None else self._dialling.value

    @property
    def serving(self) -> Serving | None:
        """What a server shows to those who connect; None: no TLS."""
        return None if self._serving is None else self._serving.value


def _tokens_of(file: Path) -> tuple[Token, ...]:
    try:
        with file.open(encoding="utf-8") as opened:
            mode = os.fstat(opened.fileno()).st_mode
            text = opened.read()
    except (OSError, UnicodeDecodeError) as error:
        problem = f"it cannot be read: {error}; psctl token writes one"
        raise BadRequest(problem, field="token-file", value=str(file)) from error
    if stat.S_ISREG(mode) and mode & stat.S_IROTH:
        _log.warning("others may read --token-file %s; say: chmod o-r %s", file, file)
    try:
        return parse_tokens(text)
    except BadRequest as error:
        raise BadRequest(str(error), field="token-file", value=str(file)) from error

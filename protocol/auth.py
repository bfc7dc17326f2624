"""Tokens, how two ends prove to each other that they know the same one, and what it allows. Sans-I/O.

A token is a secret that never travels. The client draws a nonce and asks for the server's (``auth``). Its
``hello`` then carries the client's proof, and the server's ``Welcome`` the server's:

    proof = HMAC-SHA256(token, pack([label, role, client's nonce, server's nonce, channel, identity]))

``label`` is ``asyncps client`` or ``asyncps server``, so that one end's proof is never the other's; nonces
are those of this connection, so that none is worth anything on another one; ``channel`` is the SHA-256 of the
server's certificate where there is TLS (``tls-server-end-point`` of RFC 5929), so that nobody who has
another certificate can pass proofs on; ``identity`` is all that the hello says, so that nothing of it can be
changed on the way. ``pack`` is msgpack in its shortest form.
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from hashlib import sha256
from typing import Any, Final

import msgpack

from protocol.errors import BadRequest, Unauthenticated
from protocol.messages import (
    REQUESTS,
    Announce,
    Attach,
    Auth,
    Challenge,
    Checkpoint,
    Completed,
    Create,
    Cut,
    Decide,
    Describe,
    Diverged,
    Drift,
    Drop,
    Ended,
    Finish,
    Heartbeat,
    Hello,
    Hold,
    Init,
    Initialised,
    Install,
    Join,
    JoinShard,
    Keep,
    Lease,
    Leave,
    Load,
    Mark,
    Marker,
    Ping,
    Prepared,
    Pull,
    Push,
    PushPull,
    Release,
    Request,
    Reset,
    Restore,
    Saved,
    Set,
    ShardBeat,
    Status,
    Welcome,
)

__all__ = [
    "LEAST_ROLE",
    "MAY",
    "NONCE",
    "Examiner",
    "Prover",
    "Role",
    "Token",
    "fresh_token_advice",
    "parse_tokens",
]

NONCE: Final = 32
"""Bytes of a nonce."""

_SHORTEST: Final = 16  # characters; with 64 different ones, that is 96 bits
_LONGEST: Final = 1024
_MOST_TOKENS: Final = 1000  # a proof is compared with each


class Role(StrEnum):
    """What the bearer of a token may do; an admin may do all that a worker may."""

    WORKER = "worker"
    ADMIN = "admin"


LEAST_ROLE: Final[dict[type[Request], Role]] = {
    # said by anybody who is greeted at all
    Auth: Role.WORKER,
    Hello: Role.WORKER,
    Ping: Role.WORKER,
    Status: Role.WORKER,
    # a worker's work
    Init: Role.WORKER,
    Pull: Role.WORKER,
    Push: Role.WORKER,
    PushPull: Role.WORKER,
    Reset: Role.WORKER,
    Attach: Role.WORKER,
    Join: Role.WORKER,
    Leave: Role.WORKER,
    Heartbeat: Role.WORKER,
    Create: Role.WORKER,
    Initialised: Role.WORKER,
    Describe: Role.WORKER,
    Lease: Role.WORKER,
    Finish: Role.WORKER,
    Prepared: Role.WORKER,
    Diverged: Role.WORKER,
    Drift: Role.WORKER,
    Drop: Role.WORKER,  # with ``force`` an admin's
    Marker: Role.WORKER,
    # an operator's
    Set: Role.ADMIN,
    Checkpoint: Role.ADMIN,
    Restore: Role.ADMIN,
    # said by servers only: to become one takes an admin's token
    JoinShard: Role.ADMIN,
    ShardBeat: Role.ADMIN,
    Announce: Role.ADMIN,
    Keep: Role.ADMIN,
    Ended: Role.ADMIN,
    Decide: Role.ADMIN,
    Mark: Role.ADMIN,
    Hold: Role.ADMIN,
    Cut: Role.ADMIN,
    Release: Role.ADMIN,
    Saved: Role.ADMIN,
    Completed: Role.ADMIN,
    Load: Role.ADMIN,
    Install: Role.ADMIN,
}
"""The least role that each request takes. A request that is not here nobody may make."""

MAY: Final[dict[Role, frozenset[type[Request]]]] = {
    Role.WORKER: frozenset(kind for kind in REQUESTS if LEAST_ROLE.get(kind) is Role.WORKER),
    Role.ADMIN: frozenset(LEAST_ROLE),
}
"""What each role may ask for."""


@dataclass(frozen=True, slots=True)
class Token:
    """A secret and what it allows; it does not show in a ``repr``, and so in no log."""

    role: Role
    secret: str = field(repr=False)


def fresh_token_advice() -> str:
    """Return how to make a token."""
    return 'make one with: python -c "import secrets; print(secrets.token_urlsafe(32))"'


def parse_tokens(text: str) -> tuple[Token, ...]:
    """Return the tokens of a file: a line each, ``ROLE:TOKEN`` or ``TOKEN`` (an admin's), ``#`` for comments.

    Raises:
        BadRequest: there is none, or a line is not one; the message never shows a token.
    """
    tokens = []
    for number, line in enumerate(text.splitlines(), 1):
        content = line.strip()
        if content and not content.startswith("#"):
            tokens.append(_token(content, number))
    if not tokens:
        raise BadRequest(f"there is no token in it; {fresh_token_advice()}", field="tokens", value=0)
    if len(tokens) > _MOST_TOKENS:
        raise BadRequest(f"a file has at most {_MOST_TOKENS} tokens", field="tokens", value=len(tokens))
    return tuple(tokens)


def _token(content: str, line: int) -> Token:
    before, colon, after = content.partition(":")
    name, secret = (before.strip(), after.strip()) if colon else (Role.ADMIN, content)
    if name not in tuple(Role):
        roles = " or ".join(Role)
        raise BadRequest(f"a line is TOKEN or ROLE:TOKEN, where ROLE is {roles}", field="line", value=line)
    if not (secret.isascii() and secret.isprintable()) or " " in secret:
        raise BadRequest("a token is printable ASCII without spaces", field="line", value=line)
    if not _SHORTEST <= len(secret) <= _LONGEST:
        raise BadRequest(
            f"a token has {_SHORTEST} to {_LONGEST} characters, not {len(secret)}; {fresh_token_advice()}",
            field="line",
            value=line,
        )
    return Token(Role(name), secret)


# --- proofs


@dataclass(frozen=True, slots=True)
class _Exchange:
    """What both proofs of one connection are about."""

    role: str
    client_nonce: str
    server_nonce: str
    channel: bytes
    hello: Hello

    def proof(self, token: Token, label: str) -> str:
        said = self.hello
        identity = [list(said.versions), said.client, said.job, said.worker, said.incarnation]
        content: list[Any] = [label, self.role, self.client_nonce, self.server_nonce, self.channel, identity]
        packed: bytes = msgpack.packb(content)
        return hmac.new(token.secret.encode(), packed, sha256).hexdigest()


_CLIENT: Final = "asyncps client"
_SERVER: Final = "asyncps server"


class Prover:
    """The client's side of one connection.

    Args:
        token: what it proves to know.
        nonce: 32 random bytes that were never used before.
    """

    def __init__(self, token: Token, nonce: bytes) -> None:
        self._token = token
        self._nonce = nonce.hex()
        self._exchange: _Exchange | None = None

    def auth(self) -> Auth:
        """Return what to say first."""
        return Auth(self._token.role.value, self._nonce)

    def prove(self, challenge: Challenge, hello: Hello, channel: bytes) -> Hello:
        """Return ``hello`` with its proof; ``channel`` is the binding of the connection, or empty."""
        self._exchange = _Exchange(self._token.role.value, self._nonce, challenge.nonce, channel, hello)
        return replace(hello, proof=self._exchange.proof(self._token, _CLIENT))

    def check(self, welcome: Welcome) -> None:
        """Refuse a server that does not know the token, and was told nothing that it could learn it from.

        Raises:
            Unauthenticated: the proof is wrong or missing.
        """
        assert self._exchange is not None  # noqa: S101 (a welcome answers a hello)
        expected = self._exchange.proof(self._token, _SERVER)
        if welcome.proof is None or not hmac.compare_digest(welcome.proof, expected):
            raise Unauthenticated(
                "the server has not proven that it knows the token: it is not the one that was meant, or "
                "somebody is in between",
                field="proof",
                value="absent" if welcome.proof is None else "wrong",
            )


class Examiner:
    """The server's side of one connection.

    Args:
        auth: what the client said first.
        nonce: 32 random bytes that were never used before.
    """

    def __init__(self, auth: Auth, nonce: bytes) -> None:
        self._auth = auth
        self._nonce = nonce.hex()

    def challenge(self) -> Challenge:
        """Return what to answer the ``auth`` with."""
        return Challenge(self._nonce)

    def examine(self, hello: Hello, channel: bytes, tokens: Sequence[Token]) -> tuple[Role, str]:
        """Return the role that the client has proven, and the server's own proof.

        Args:
            hello: as it came.
            channel: the binding of the connection, or empty.
            tokens: those that are good.

        Raises:
            Unauthenticated: it proves none of the tokens of the role that the client says.
        """
        auth, proof = self._auth, hello.proof or ""
        exchange = _Exchange(auth.role, auth.nonce, self._nonce, channel, hello)
        proven = None
        for token in tokens:  # all of them, so that the time says nothing of which one it was
            if token.role == auth.role and hmac.compare_digest(exchange.proof(token, _CLIENT), proof):
                proven = token
        if proven is None:
            raise Unauthenticated(
                f"this proves none of the server's tokens for the role {auth.role}; do both --token-files "
                "have a line in common (psctl token makes one), do both speak TLS, and nobody in between?",
                field="proof",
                value="wrong" if proof else "absent",
            )
        return proven.role, exchange.proof(proven, _SERVER)

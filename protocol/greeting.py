"""How a client greets a server: the hello, and before it the proofs where it has a token."""

from __future__ import annotations

import secrets

from protocol.auth import NONCE, Prover, Token
from protocol.connection import Connection
from protocol.errors import RequestError, Unauthenticated
from protocol.messages import Challenge, Hello, Welcome

__all__ = ["say_hello"]


async def say_hello(connection: Connection, hello: Hello, token: Token | None) -> Welcome:
    """Say hello on a new connection and return the welcome of a server that knows the token, if there is one.

    Raises:
        Unauthenticated: one of the two does not know the other's token.
        PSError: the server refuses, or goes away.
    """
    welcome: Welcome
    if token is None:
        welcome, _ = await connection.request(hello)
        return welcome
    prover = Prover(token, secrets.token_bytes(NONCE))
    challenge: Challenge
    try:
        challenge, _ = await connection.request(prover.auth())
    except RequestError as error:  # an older server, or one that would rather not prove anything
        raise Unauthenticated(
            f"the server does not take tokens ({error}); nothing was said to it",
            field="proof",
            value="absent",
        ) from error
    welcome, _ = await connection.request(prover.prove(challenge, hello, connection.channel))
    prover.check(welcome)
    return welcome

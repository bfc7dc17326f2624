from contextlib import suppress
from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.auth import LEAST_ROLE, MAY, NONCE, Examiner, Prover, Role, Token, parse_tokens
from protocol.errors import BadRequest, Unauthenticated
from protocol.messages import (
    REQUESTS,
    Announce,
    Auth,
    Challenge,
    Checkpoint,
    Completed,
    Cut,
    Decide,
    Ended,
    Hello,
    Hold,
    Install,
    JoinShard,
    Keep,
    Load,
    Mark,
    Release,
    Restore,
    Saved,
    Set,
    ShardBeat,
    Welcome,
)

ADMIN = Token(Role.ADMIN, "an admin's token of some length")
WORKER = Token(Role.WORKER, "a worker's token of some length")
HELLO = Hello((1,), "test", "job", 3, 7)
OURS, THEIRS = bytes(range(NONCE)), bytes(range(1, NONCE + 1))
CHANNEL = b"c" * 32
WELCOME = Welcome(1, "server", 0, 1, 1 << 30)


# --- token files


def test_a_file_has_a_token_a_line() -> None:
    text = f"# who may what\n\n  {'a' * 16}\nworker:{'b' * 16}\n\tadmin : {'c' * 32}  \r\n#{'d' * 16}"
    assert parse_tokens(text) == (
        Token(Role.ADMIN, "a" * 16),
        Token(Role.WORKER, "b" * 16),
        Token(Role.ADMIN, "c" * 32),
    )


@pytest.mark.parametrize(
    ("text", "field", "says"),
    [
        ("", "tokens", "token_urlsafe"),
        ("# only a comment\n\n", "tokens", "no token"),
        ("\nsecret-too-shor", "line", "16 to 1024"),
        ("worker:", "line", "16 to 1024"),
        ("s" * 1025, "line", "1024"),
        ("root:" + "s" * 20, "line", "worker or admin"),
        ("Worker:" + "s" * 20, "line", "worker or admin"),
        ("two words in a token", "line", "without spaces"),
        ("with\x00a nul in the midst", "line", "printable"),
        ("sécrète" * 4, "line", "ASCII"),
        ("\n".join(["s" * 16] * 1001), "tokens", "1000"),
    ],
)
def test_what_is_no_token_file(text: str, field: str, says: str) -> None:
    with pytest.raises(BadRequest, match=says) as caught:
        parse_tokens(text)
    assert caught.value.field == field
    assert "secret-too-shor" not in str(caught.value)


@given(st.text())
def test_any_text_is_tokens_or_a_typed_error(text: str) -> None:
    with suppress(BadRequest):
        assert parse_tokens(text)


def test_a_token_does_not_show() -> None:
    assert ADMIN.secret not in f"{ADMIN!r} {ADMIN} {[ADMIN]} {Prover(ADMIN, OURS)!r}"


# --- proofs


def greeted(
    prover: Prover, examiner: Examiner, channels: tuple[bytes, bytes] = (CHANNEL, CHANNEL)
) -> tuple[Role, Welcome]:
    """Let both ends talk; they see these channels."""
    hello = prover.prove(examiner.challenge(), HELLO, channels[0])
    role, proof = examiner.examine(hello, channels[1], [ADMIN, WORKER])
    return role, replace(WELCOME, proof=proof)


@pytest.mark.parametrize("token", [ADMIN, WORKER], ids=["admin", "worker"])
@pytest.mark.parametrize("channel", [CHANNEL, b""], ids=["tls", "plain"])
def test_both_ends_know_the_same_token(token: Token, channel: bytes) -> None:
    prover = Prover(token, OURS)
    role, welcome = greeted(prover, Examiner(prover.auth(), THEIRS), (channel, channel))
    assert role is token.role
    prover.check(welcome)


def refused(examiner: Examiner, hello: Hello, channel: bytes = CHANNEL) -> str:
    with pytest.raises(Unauthenticated) as caught:
        examiner.examine(hello, channel, [ADMIN, WORKER])
    assert ADMIN.secret not in str(caught.value)
    return caught.value.value


@pytest.mark.parametrize(
    "token",
    [
        replace(ADMIN, secret="another token of some length"),
        replace(WORKER, role=Role.ADMIN),  # a worker's that says it is an admin's
        replace(ADMIN, role=Role.WORKER),
    ],
    ids=["unknown", "worker as admin", "admin as worker"],
)
def test_a_token_that_the_server_has_not(token: Token) -> None:
    prover = Prover(token, OURS)
    examiner = Examiner(prover.auth(), THEIRS)
    assert refused(examiner, prover.prove(examiner.challenge(), HELLO, CHANNEL)) == "wrong"


@pytest.mark.parametrize("name", [field.name for field in fields(Hello)])
def test_nothing_of_a_hello_can_be_changed_on_the_way(name: str) -> None:
    prover = Prover(WORKER, OURS)
    examiner = Examiner(prover.auth(), THEIRS)
    hello = prover.prove(examiner.challenge(), HELLO, CHANNEL)
    changes = {"versions": (), "client": "", "job": None, "worker": 4, "incarnation": None, "proof": "0" * 64}
    kept = {field.name: getattr(hello, field.name) for field in fields(Hello)}
    assert refused(examiner, Hello(**kept | {name: changes[name]})) == "wrong"


def test_a_proof_is_of_one_connection_only() -> None:
    prover = Prover(WORKER, OURS)
    examiner = Examiner(prover.auth(), THEIRS)
    hello = prover.prove(examiner.challenge(), HELLO, CHANNEL)
    examiner.examine(hello, CHANNEL, [WORKER])
    assert refused(Examiner(prover.auth(), bytes(NONCE)), hello) == "wrong"  # replayed later
    assert refused(Examiner(replace(prover.auth(), nonce="0" * 64), THEIRS), hello) == "wrong"
    assert refused(examiner, hello, b"x" * 32) == "wrong"  # passed on by who has another certificate
    assert refused(examiner, hello, b"") == "wrong"


def test_a_hello_without_a_proof() -> None:
    assert refused(Examiner(Prover(WORKER, OURS).auth(), THEIRS), HELLO) == "absent"


@pytest.mark.parametrize("proof", [None, "0" * 64], ids=["absent", "wrong"])
def test_a_server_that_does_not_know_the_token(proof: str | None) -> None:
    prover = Prover(WORKER, OURS)
    prover.prove(Challenge(THEIRS.hex()), HELLO, CHANNEL)
    with pytest.raises(Unauthenticated, match="has not proven"):
        prover.check(replace(WELCOME, proof=proof))


def test_a_server_cannot_send_the_client_s_own_proof_back() -> None:
    prover = Prover(WORKER, OURS)
    hello = prover.prove(Challenge(OURS.hex()), HELLO, CHANNEL)  # both nonces are the same, too
    with pytest.raises(Unauthenticated):
        prover.check(replace(WELCOME, proof=hello.proof))


def test_a_proof_as_others_compute_it() -> None:
    """docs/protocol.md, step by step, without this project."""
    import hashlib
    import hmac

    prover = Prover(WORKER, OURS)
    hello = prover.prove(Challenge(THEIRS.hex()), HELLO, CHANNEL)
    packed = b"\x96" + b"\xae" + b"asyncps client" + b"\xa6worker"
    packed += b"\xd9\x40" + OURS.hex().encode() + b"\xd9\x40" + THEIRS.hex().encode()
    packed += b"\xc4\x20" + CHANNEL
    packed += b"\x95" + b"\x91\x01" + b"\xa4test" + b"\xa3job" + b"\x03" + b"\x07"
    assert hello.proof == hmac.new(WORKER.secret.encode(), packed, hashlib.sha256).hexdigest()


# --- roles

ADMINS_ONLY = {
    Set, Checkpoint, Restore, JoinShard, ShardBeat, Announce, Ended, Decide, Mark, Hold, Cut, Release, Saved,
    Completed, Load, Install, Keep,
}  # fmt: skip


def test_every_request_has_its_least_role() -> None:
    assert set(LEAST_ROLE) == set(REQUESTS)
    assert {kind for kind, role in LEAST_ROLE.items() if role is Role.ADMIN} == ADMINS_ONLY
    assert MAY[Role.WORKER] == frozenset(REQUESTS) - ADMINS_ONLY
    assert MAY[Role.ADMIN] == frozenset(REQUESTS)
    assert {Auth, Hello} <= MAY[Role.WORKER]

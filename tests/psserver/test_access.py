"""Who is let in by a server with tokens or certificates, and what they may do then."""

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from protocol.auth import LEAST_ROLE, NONCE, Prover, Role, Token
from protocol.connection import Connection, RefuseAll, Traffic, dial
from protocol.credentials import Access, Credentials
from protocol.errors import ConnectionLost, Forbidden, JobMismatch, Unauthenticated, UnknownJob, Unreachable
from protocol.frames import VERSION
from protocol.greeting import say_hello
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
    Ping,
    Release,
    Request,
    Restore,
    Saved,
    Set,
    ShardBeat,
    Status,
    Welcome,
)
from protocol.tls import TLS, client_context, server_context
from psserver.server import Server, ServerSettings
from psworker.asking import ask, drop, fetch_status
from psworker.client import connect
from tests.certificates import Authority
from tests.cluster import MAX_PAYLOAD, Cluster, hello, holds, running_cluster, wire

ADMIN, WORKER, UNKNOWN = "an-admins-token-0", "a-workers-token-0", "nobodys-token-000"


@dataclass(frozen=True)
class Files:
    """What servers, workers and others have in a directory of theirs."""

    directory: Path
    authority: Authority
    server: TLS
    worker: TLS

    def tokens(self, name: str, *lines: str) -> Path:
        """Write a token file, in the place of a former one of that name."""
        partial = self.directory / "partial"
        partial.write_text("\n".join(lines))
        partial.chmod(0o600)
        return partial.replace(self.directory / name)

    @property
    def servers(self) -> Access:
        return Access(self.tokens("servers", "worker:" + WORKER, ADMIN), self.server)

    @property
    def workers(self) -> Access:
        return Access(self.tokens("workers", "worker:" + WORKER), self.worker)

    @property
    def admins(self) -> Access:
        return Access(self.tokens("admins", ADMIN), self.worker)


@pytest.fixture
def files(tmp_path: Path) -> Files:
    authority = Authority(tmp_path)
    return Files(tmp_path, authority, authority.issue("server"), authority.issue("worker"))


@asynccontextmanager
async def cluster(access: Access, shards: int = 1, **settings: Any) -> AsyncIterator[Cluster]:
    """Servers that all have the same files."""
    async with running_cluster(shards, 1, access=access, **settings) as running:
        for _ in range(shards - 1):
            await running.add_shard(access=access)
        yield running


async def trains(address: str, access: Access) -> None:
    """Check that a client with these files can use the cluster."""
    async with connect(
        address, "trained", reconnect_for=0.0, token_file=access.token_file, tls=access.tls
    ) as client:
        await client.create("w", np.zeros(1000, np.float32))
        await client.push({"w": np.ones(1000, np.float32)})
        assert (await client.pull("w")).shape == (1000,)


async def greeted(address: tuple[str, int], access: Access) -> Connection:
    """A connection that has been let in, without a client's care."""
    credentials = Credentials(access)
    connection = await dial(
        *address, RefuseAll(), max_payload=MAX_PAYLOAD, traffic=Traffic(), tls=credentials.dialling
    )
    await say_hello(connection, hello(), credentials.token)
    return connection


@pytest.mark.parametrize("way", ["tokens", "mutual TLS", "TLS and tokens", "both"])
async def test_who_has_what_is_asked_for_trains_on_all_shards(files: Files, way: str) -> None:
    tokens, mutual = files.servers.token_file, files.server
    client_tokens = files.workers.token_file
    servers, clients = {
        "tokens": (Access(tokens), Access(client_tokens)),
        "mutual TLS": (Access(None, mutual), Access(None, files.worker)),
        "TLS and tokens": (
            Access(tokens, replace(mutual, ca=None)),
            Access(client_tokens, TLS(files.authority.file)),
        ),
        "both": (files.servers, files.workers),
    }[way]
    shards = 1 if way == "TLS and tokens" else 2  # without a CA it would believe only the system's
    async with cluster(servers, shards) as running:
        await trains(running.address, clients)


@pytest.mark.parametrize(
    ("case", "says", "reason"),
    [
        ("an unknown token", "proves none", "token"),
        ("a worker's token as an admin's", "proves none", "token"),
        ("no token", "give --token-file", "missing"),
        ("no certificate", "--tls-cert", "certificate"),
        ("a certificate of another authority", "--tls-cert", "certificate"),
        ("a certificate that is over", "--tls-cert", "certificate"),
        ("another authority for servers", "--tls-ca", "certificate"),
        ("no TLS", "speaks TLS only", "plain"),
    ],
)
async def test_who_has_not_is_told_and_counted(files: Files, case: str, says: str, reason: str) -> None:
    stranger = Authority(files.directory / "stranger", "stranger").issue("worker")
    tls, right = files.worker, files.workers
    access = {
        "an unknown token": replace(right, token_file=files.tokens("mine", "worker:" + UNKNOWN)),
        "a worker's token as an admin's": replace(right, token_file=files.tokens("mine", WORKER)),
        "no token": replace(right, token_file=None),
        "no certificate": replace(right, tls=TLS(tls.ca)),
        "a certificate of another authority": replace(right, tls=replace(stranger, ca=tls.ca)),
        "a certificate that is over": replace(right, tls=files.authority.issue("over", days=-1)),
        "another authority for servers": replace(right, tls=replace(tls, ca=stranger.ca)),
        "no TLS": replace(right, tls=None),
    }[case]
    async with cluster(files.servers) as running:
        (server,) = running.servers
        with pytest.raises(Unauthenticated, match=says):
            await trains(running.address, access)
        await holds(lambda: not server._connections)
        assert dict(server.metrics.failed_hellos) == {reason: 1}
        assert (
            server.metrics.registry.get_sample_value("psserver_failed_hellos_total", {"reason": reason}) == 1
        )
        await trains(running.address, right)


@pytest.mark.parametrize("client", ["token", "TLS"])
async def test_a_server_that_cannot_prove_anything_is_not_believed(files: Files, client: str) -> None:
    access = Access(files.workers.token_file) if client == "token" else Access(None, files.worker)
    async with running_cluster() as running:
        with pytest.raises(
            Unauthenticated, match="token-file" if client == "token" else "does not speak TLS"
        ):
            await trains(running.address, access)


async def test_a_server_with_another_token_is_not_believed(files: Files) -> None:
    """It takes anybody's proof, to hear what comes then."""

    class Impostor(RefuseAll):
        heard: list[Any] = []  # noqa: RUF012 (of this test alone)

        def prepare(self, connection: Connection, request: Any) -> Sequence[Any]:
            return ()

        def handle(self, connection: Connection, request_id: int, request: Any, arrays: Any) -> None:
            self.heard.append(request)
            if isinstance(request, Auth):
                connection.reply(request_id, Challenge("ab" * NONCE))
            else:
                connection.reply(request_id, Welcome(VERSION, "fake", 0, 1, 1 << 30, proof=request.proof))

    impostor = Impostor()
    ends: list[Connection] = []

    def accept() -> Connection:
        ends.append(Connection(impostor, max_payload=0, traffic=Traffic(), server=True))
        return ends[-1]

    listener = await asyncio.get_running_loop().create_server(accept, "127.0.0.1", 0)
    with pytest.raises(Unauthenticated, match="has not proven"):
        await greeted(listener.sockets[0].getsockname(), Access(files.workers.token_file))
    assert [type(request) for request in impostor.heard] == [Auth, Hello]
    assert WORKER not in repr(impostor.heard)
    listener.close()
    for end in ends:
        end.abort()
        await end.wait_closed()


# --- before the hello nothing else is looked at


async def test_nothing_but_a_greeting_is_looked_at_before_the_hello(files: Files) -> None:
    async with cluster(Access(files.servers.token_file)) as running:
        for op in sorted({kind.op for kind in REQUESTS} - {"auth", "hello"} | {"no such op"}):
            async with wire(running.address) as stranger:
                answer = await stranger.ask(op, nonsense={"deep": [1, 2]})
                assert (answer["code"], answer["field"]) == ("BAD_REQUEST", "op"), op
                assert "hello" in answer["message"]


async def test_a_hello_that_fails_is_the_last_word(files: Files) -> None:
    async with cluster(Access(files.servers.token_file)) as running, wire(running.address) as stranger:
        answer = await stranger.ask("hello", versions=[VERSION], client="test")
        assert (answer["code"], answer["value"]) == ("UNAUTHENTICATED", "absent")
        with pytest.raises(asyncio.IncompleteReadError):
            await stranger.reply()


async def test_a_connection_says_auth_once(files: Files) -> None:
    async with cluster(Access(files.servers.token_file)) as running, wire(running.address) as stranger:
        first = await stranger.ask("auth", role="worker", nonce="0" * 64)
        assert len(first["nonce"]) == 2 * NONCE
        assert (await stranger.ask("auth", role="worker", nonce="0" * 64))["code"] == "BAD_REQUEST"
        for nonce in ("0" * 63, "G" * 64, "A" * 64, "", "0" * 65):
            assert (await stranger.ask("auth", role="worker", nonce=nonce))["field"] == "nonce"


async def test_a_proof_is_worth_nothing_on_another_connection(files: Files) -> None:
    prover = Prover(Token(Role.WORKER, WORKER), bytes(NONCE))
    async with (
        cluster(Access(files.servers.token_file)) as running,
        wire(running.address) as first,
        wire(running.address) as second,
    ):
        auth: dict[str, Any] = {"role": "worker", "nonce": bytes(NONCE).hex()}
        nonces = [(await one.ask("auth", **auth))["nonce"] for one in (first, second)]
        assert nonces[0] != nonces[1]
        said = prover.prove(Challenge(nonces[0]), hello(), b"")
        fields: dict[str, Any] = {"versions": [VERSION], "client": "test", "proof": said.proof}
        assert (await second.ask("hello", **fields))["code"] == "UNAUTHENTICATED"
        assert (await first.ask("hello", **fields))["op"] == "ok"


# --- somebody in between


async def test_who_has_a_certificate_of_the_same_authority_cannot_stand_in_between(files: Files) -> None:
    """A relay that both ends' TLS believes passes on what each of them says; the proofs tell."""
    relay = files.authority.issue("relay")

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            writer.write(data)
        writer.close()

    async with cluster(files.servers) as running:
        pumps: list[asyncio.Task[None]] = []

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            onward = await asyncio.open_connection(*running.endpoint, ssl=client_context(relay))
            pumps.append(asyncio.create_task(pump(reader, onward[1])))
            pumps.append(asyncio.create_task(pump(onward[0], writer)))

        listener = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=server_context(relay).context)
        host, port = listener.sockets[0].getsockname()
        with pytest.raises(Unauthenticated, match="proves none"):
            await trains(f"{host}:{port}", files.workers)
        listener.close()
        await asyncio.gather(*pumps)


# --- roles

SAMPLES: dict[type[Request], Request] = {
    type(request): request
    for request in (
        Set(staleness=1.0), Checkpoint(), Restore("/nowhere"), JoinShard(1), ShardBeat(()), Announce(()),
        Ended("trained", 0, (), ()), Decide("trained", 0, (), False), Mark(1), Hold(1), Cut(1), Release(1),
        Saved(1, ()), Completed(1, ()), Load(()), Install(1), Keep(()),
    )
}  # fmt: skip


async def test_a_worker_s_token_does_not_allow_what_is_an_admin_s(files: Files) -> None:
    assert set(SAMPLES) == {kind for kind, role in LEAST_ROLE.items() if role is Role.ADMIN}
    async with cluster(files.servers) as running:
        await trains(running.address, files.workers)
        connection = await greeted(running.endpoint, files.workers)
        before = await fetch_status(*running.endpoint, credentials=Credentials(files.admins))
        for request in SAMPLES.values():
            with pytest.raises(Forbidden, match="token of an admin") as caught:
                await connection.request(request)
            assert (caught.value.field, caught.value.value) == ("op", request.op)
        await connection.request(Ping())
        after = await fetch_status(*running.endpoint, credentials=Credentials(files.admins))
        assert [(job.name, job.staleness) for job in after.jobs] == [
            (job.name, job.staleness) for job in before.jobs
        ]
        assert len(after.shards) == 1
        connection.close()
        await connection.wait_closed()


async def test_an_admin_s_token_allows_what_is_a_worker_s_and_more(files: Files) -> None:
    async with cluster(files.servers) as running:
        await trains(running.address, files.admins)
        await ask(*running.endpoint, Set("trained", 2.0), within=0.0, credentials=Credentials(files.admins))
        await ask(*running.endpoint, Status(), within=0.0, credentials=Credentials(files.workers))


@pytest.mark.parametrize(
    ("lines", "error"),
    [((UNKNOWN,), Unauthenticated), (("worker:" + WORKER,), Forbidden), ((), Unauthenticated)],
    ids=["unknown", "worker", "none"],
)
async def test_a_shard_needs_an_admin_s_token(
    files: Files, lines: tuple[str, ...], error: type[Exception]
) -> None:
    async with cluster(Access(files.servers.token_file), 1) as running:
        access = Access(files.tokens("shard", *lines) if lines else None)
        shard = Server(ServerSettings(port=0, join=running.endpoint, access=access))
        with pytest.raises(error):
            await shard.start()
        await shard.stop()


async def test_a_coordinator_that_proves_nothing_may_not_ask_a_shard_for_anything(files: Files) -> None:
    """Before it has proven that it knows the token, it is nobody to the shard that has dialled it."""

    class Fake(RefuseAll):
        answers: list[Any] = []  # noqa: RUF012 (of this test alone)

        def prepare(self, connection: Connection, request: Any) -> Sequence[Any]:
            return ()

        def handle(self, connection: Connection, request_id: int, request: Any, arrays: Any) -> None:
            self.answers.append(connection.send(Status()))
            self.answers[-1].add_done_callback(lambda _: connection.close())

    fake, ends = Fake(), []

    def accept() -> Connection:
        ends.append(Connection(fake, max_payload=0, traffic=Traffic(), server=True))
        return ends[-1]

    listener = await asyncio.get_running_loop().create_server(accept, "127.0.0.1", 0)
    shard = Server(
        ServerSettings(
            port=0,
            join=listener.sockets[0].getsockname(),
            access=Access(files.servers.token_file),
            reconnect_for=0.0,
        )
    )
    with pytest.raises((ConnectionLost, Unreachable)):
        await shard.start()
    (answer,) = fake.answers
    assert "hello" in str(answer.exception())
    await shard.stop()
    listener.close()
    for end in ends:
        await end.wait_closed()


# --- rotation


async def test_tokens_are_rotated_under_live_connections(files: Files) -> None:
    new = "worker:" + "a-new-workers-token"
    access = Access(files.servers.token_file)
    clients = Access(files.workers.token_file)
    async with cluster(access) as running:
        (server,) = running.servers
        async with connect(running.address, "live", token_file=clients.token_file) as client:
            await client.create("w", np.zeros(10, np.float32))

            files.tokens("servers", "worker:" + WORKER, new, ADMIN)  # both are good for a while
            server.reload()
            await trains(running.address, clients)
            files.tokens("workers", new)
            await trains(running.address, clients)

            files.tokens("servers", new, ADMIN)  # the former one is over
            server.reload()
            await client.push({"w": np.ones(10, np.float32)})  # who is in stays in
            with pytest.raises(Unauthenticated):
                await trains(running.address, Access(files.tokens("old", "worker:" + WORKER)))

            for connection in tuple(server._connections):  # and comes in again with what the file says now
                connection.abort()
            await client.push({"w": np.ones(10, np.float32)})
            assert client.recovery.reconnects > 0


async def test_certificates_and_their_authority_are_rotated_under_live_connections(files: Files) -> None:
    access, before = Access(None, files.server), Access(None, files.worker)
    async with cluster(access) as running:
        (server,) = running.servers
        async with connect(running.address, "live", tls=before.tls) as client:
            await client.create("w", np.zeros(10, np.float32))
            successor = Authority(files.directory / "successor")
            fresh = successor.issue("server")
            for name in ("ca", "cert", "key"):
                os.replace(getattr(fresh, name), getattr(files.server, name))
            server.reload()
            after = Access(None, replace(successor.issue("worker"), ca=files.server.ca))
            await trains(running.address, after)
            former = files.authority.issue("worker")
            with pytest.raises(Unauthenticated, match="refuses this end's certificate"):
                await trains(running.address, Access(None, replace(former, ca=files.server.ca)))
            await client.push({"w": np.ones(10, np.float32)})
            assert client.recovery.reconnects == 0


async def test_a_broken_file_leaves_all_as_it_was(files: Files, caplog: pytest.LogCaptureFixture) -> None:
    async with cluster(files.servers) as running:
        (server,) = running.servers
        files.tokens("servers", "short")
        files.tokens("server.pem", "no certificate")
        server.reload()
        assert caplog.text.count("stays in use") >= 2
        client = Access(files.workers.token_file, files.worker)
        async with connect(running.address, "job", token_file=client.token_file, tls=client.tls) as joined:
            assert joined.joined is not None


async def test_a_worker_s_token_drops_a_job_that_nobody_works_on(files: Files) -> None:
    workers, admins = Credentials(files.workers), Credentials(files.admins)
    async with cluster(files.servers, shards=2) as running:
        async with connect(running.address, "gone", token_file=files.workers.token_file, tls=files.worker):
            with pytest.raises(JobMismatch):
                await drop(*running.endpoint, "gone", credentials=workers)
            with pytest.raises(Forbidden) as caught:
                await drop(*running.endpoint, "gone", force=True, credentials=workers)
            assert caught.value.field == "force"
            await drop(*running.endpoint, "gone", force=True, credentials=admins)
        async with connect(running.address, "gone", token_file=files.workers.token_file, tls=files.worker):
            pass
        await drop(*running.endpoint, "gone", credentials=workers)
        with pytest.raises(UnknownJob):
            await drop(*running.endpoint, "gone", credentials=workers)

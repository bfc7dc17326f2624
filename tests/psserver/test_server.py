import asyncio
import gc
import math
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pytest
import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.errors import BadRequest, ConnectionLost, PSError, Unreachable
from protocol.frames import VERSION
from protocol.messages import REQUESTS, Pull, Status
from psserver.membership import FailureSettings
from psserver.server import Server, ServerSettings
from psworker.client import connect
from tests.cluster import Wire, connected, full, hello, parts_of, payload_of, running_cluster, wire, workers

pytestmark = pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered")

Array: TypeAlias = npt.NDArray[Any]
Run: TypeAlias = Callable[[Coroutine[Any, Any, None]], None]

SPEC = ["float32", [4], ["sgd", [["lr", 0.5]]]]
FOUR = full(4, 1.0)
START = {"w": np.arange(4, dtype=np.float32), "v": np.ones(4, np.float32), "n": np.ones(3, np.int32)}


async def make(worker: Wire, name: str, value: Array, spec: list[Any]) -> None:
    created = await worker.ask("create", name=name, spec=spec)
    block = {"name": name, "spec": spec, "attempt": created["attempt"]}
    tensors = parts_of(**{name: value})
    assert (await worker.ask("init", payload_of(value), tensors=tensors, **block))["op"] == "ok"
    assert (await worker.ask("initialised", name=name, attempt=created["attempt"]))["op"] == "ok"


@asynccontextmanager
async def worker_at(address: str, staleness: float = math.inf) -> AsyncIterator[Wire]:
    """A worker that has joined and made three tensors, on a connection that sends anything."""
    async with wire(address) as worker:
        assert (await worker.ask("hello", versions=[VERSION], client="test"))["op"] == "ok"
        joined = await worker.ask("join", token="a", job="job", name="a", staleness=staleness)
        assert joined["op"] == "ok"
        await make(worker, "w", START["w"], SPEC)
        await make(worker, "v", START["v"], SPEC)
        if staleness:
            await make(worker, "n", START["n"], ["int32", [3], ["add", []]])
        yield worker


async def pulled(worker: Wire, name: str) -> Array:
    worker.send("pull", b"", 0, names=[name])
    header, payload = await worker.reply()
    assert header["op"] == "ok"
    return np.frombuffer(payload, START[name].dtype)


async def assert_untouched(worker: Wire, names: str = "wvn") -> None:
    for name in names:
        np.testing.assert_array_equal(await pulled(worker, name), START[name])


async def assert_goes_on(worker: Wire, seq: int = 1) -> None:
    """The next valid push on the same connection, with this number, succeeds and does what it says."""
    before = await pulled(worker, "w")
    fields: dict[str, Any] = {"tensors": parts_of(w=FOUR), "names": ["w"], "step": 0}
    reply = await worker.ask("push_pull", payload_of(FOUR), seq=seq, **fields)
    assert reply["op"] == "ok"
    np.testing.assert_array_equal(await pulled(worker, "w"), before - 0.5)


def push(payload: bytes = b"", **changes: Any) -> tuple[str, bytes, dict[str, Any]]:
    fields = {"tensors": parts_of(w=FOUR), "step": 0, "seq": 1} | changes
    return "push", payload or payload_of(FOUR), fields


def create(**changes: Any) -> tuple[str, bytes, dict[str, Any]]:
    return "create", b"", {"name": "new", "spec": SPEC} | changes


def shape(*sizes: Any) -> list[Any]:
    return ["float32", list(sizes), ["sgd", [["lr", 0.5]]]]


def sgd(**given: Any) -> list[Any]:
    return ["float32", [4], ["sgd", [list(setting) for setting in given.items()]]]


def block(tensors: Any, spec: Any = SPEC, payload: bytes | None = None) -> tuple[str, bytes, dict[str, Any]]:
    fields = {"name": "new", "spec": spec, "attempt": 1, "tensors": tensors}
    return "init", payload_of(FOUR) if payload is None else payload, fields


NAN = np.array([0, 0, 0, np.nan], np.float32)
INF = np.array([np.inf, 0, 0, 0], np.float32)
MOST = np.full(4, np.finfo(np.float32).max)
LONG = "x" * 129
DECISION = {"job": "job", "step": 0, "workers": [0], "commit": True}
ENDED = {"job": "job", "step": 0, "workers": [0], "idle": []}

# Understood and refused: the number is used up, and the error is its answer.
BAD_PUSHES = [
    (push(tensors=[["x", "float32", 4]]), "UNKNOWN_TENSOR", "name"),
    (push(payload_of(np.ones(4)), tensors=[["w", "float64", 4]]), "BAD_TENSOR", "w"),
    (push(payload_of(np.ones(4, np.int32)), tensors=[["w", "int32", 4]]), "BAD_TENSOR", "w"),
    (push(payload_of(full(5, 1)), tensors=[["w", "float32", 5]]), "BAD_TENSOR", "w"),
    (push(payload_of(full(3, 1)), tensors=[["w", "float32", 3]]), "BAD_TENSOR", "w"),
    (push(payload_of(FOUR, FOUR), tensors=[["w", "float32", 4]] * 2), "BAD_TENSOR", "tensors"),
    (push(payload_of(NAN)), "NOT_FINITE", "tensors"),
    (push(payload_of(INF)), "NOT_FINITE", "tensors"),
    (push(payload_of(FOUR, NAN), tensors=parts_of(w=FOUR, v=NAN)), "NOT_FINITE", "tensors"),
    (push(payload_of(NAN, FOUR), tensors=parts_of(v=NAN, w=FOUR)), "NOT_FINITE", "tensors"),
    (push(payload_of(FOUR, FOUR), tensors=parts_of(w=FOUR, x=FOUR)), "UNKNOWN_TENSOR", "name"),
    (push(weight=0.0), "BAD_REQUEST", "weight"),
    (("push_pull", b"", {"tensors": [], "names": ["x"], "step": 0, "seq": 1}), "UNKNOWN_TENSOR", "name"),
    (("push_pull", b"", {"tensors": [], "names": ["w", "w"], "step": 0, "seq": 1}), "BAD_REQUEST", "names"),
]
# Not even understood, so that nobody knows a number: the next one is still the same.
UNREADABLE_PUSHES = [
    (push(payload_of(full(3, 1))), "BAD_TENSOR", "payload length"),
    (push(payload_of(full(40, 1))), "BAD_TENSOR", "payload length"),
    (push(tensors=[]), "BAD_TENSOR", "payload length"),
    (push(tensors=[["w", "float32", -4]]), "BAD_REQUEST", "elements"),
    (push(tensors=[["w", "float32", True]]), "BAD_REQUEST", "elements"),
    (push(tensors=[["w", "float32", 4.0]]), "BAD_REQUEST", "elements"),
    (push(tensors=[["w", "float32", 2**63 - 1]]), "BAD_TENSOR", "payload length"),
    (push(tensors=[["w", "float32", 2**64 - 1]]), "BAD_REQUEST", "elements"),
    (push(tensors=[["w", "object", 4]]), "BAD_REQUEST", "dtype"),
    (push(tensors=[["w", ">f4", 4]]), "BAD_REQUEST", "dtype"),
    (push(tensors=[["w", "float32"]]), "BAD_REQUEST", "tensors"),
    (push(tensors="w"), "BAD_REQUEST", "tensors"),
    (push(tensors=None), "BAD_REQUEST", "tensors"),
    (push(step=-1), "BAD_REQUEST", "step"),
    (push(weight=-1), "BAD_REQUEST", "weight"),
    (push(weight=math.nan), "BAD_REQUEST", "weight"),
    (push(weight=math.inf), "BAD_REQUEST", "weight"),
    (push(weight="1"), "BAD_REQUEST", "weight"),
    (push(learning_rate=1), "BAD_REQUEST", "learning_rate"),
    (push(seq=0), "BAD_REQUEST", "seq"),
    (push(seq=-1), "BAD_REQUEST", "seq"),
    (push(seq=1.0), "BAD_REQUEST", "seq"),
    (push(seq=2**64 - 1), "BAD_REQUEST", "seq"),
    (push(seq=None), "BAD_REQUEST", "seq"),
    (push(seq=2), "OUT_OF_ORDER", "seq"),
    (push(seq=2**63 - 1), "OUT_OF_ORDER", "seq"),
]
BAD_TENSORS = [
    *((create(name=name), "BAD_REQUEST", "name") for name in ("", "..", ".", "a/b", "../w", "a\\b", LONG)),
    *((create(name=name), "BAD_REQUEST", "name") for name in ("a\0b", "a\nb", "\x1b[2J", "\u202eb", 7, None)),
    *((create(spec=shape(*sizes)), "BAD_REQUEST", "shape") for sizes in ((0,), (-1,), (1.5,), (True,))),
    *((create(spec=shape(*sizes)), "BAD_REQUEST", "shape") for sizes in ((2**62, 4), (2**49,), (1,) * 9)),
    *((create(spec=sgd(lr=lr)), "BAD_REQUEST", "lr") for lr in (0, -1, math.nan, math.inf, -math.inf)),
    (create(spec=sgd(lr="fast")), "BAD_REQUEST", "value"),
    (create(spec=sgd(momentum=0.9)), "BAD_REQUEST", "optimizer"),
    (create(spec=["float32", [4], ["os.system", []]]), "BAD_REQUEST", "optimizer"),
    (create(spec=["complex64", [4], ["sgd", []]]), "BAD_REQUEST", "dtype"),
    (create(spec=["int32", [4], ["sgd", []]]), "BAD_REQUEST", "dtype"),
    (create(name="w", spec=shape(5)), "SPEC_MISMATCH", "shape"),
    (create(name="w", spec=["float64", *SPEC[1:]]), "SPEC_MISMATCH", "dtype"),
    (create(name="w", spec=sgd(lr=0.25)), "SPEC_MISMATCH", "optimizer"),
    (("initialised", b"", {"name": "new", "attempt": 1}), "UNKNOWN_TENSOR", "name"),
    (("initialised", b"", {"name": "w", "attempt": 7}), "BAD_REQUEST", "attempt"),
    (("describe", b"", {"names": ["new"]}), "UNKNOWN_TENSOR", "name"),
    (("pull", b"", {"names": ["new"]}), "UNKNOWN_TENSOR", "name"),
    (("pull", b"", {"names": ["../w"]}), "BAD_REQUEST", "names"),
    (block([["new", "float64", 4]]), "BAD_TENSOR", "payload length"),
    (block([["new", "int32", 4]]), "BAD_TENSOR", "tensors"),
    (block([["w", "float32", 4]]), "BAD_TENSOR", "tensors"),
    (block([], payload=b""), "BAD_TENSOR", "tensors"),
    (block([["new", "float32", 2**62]]), "BAD_TENSOR", "payload length"),
    (block([["new", "float32", 4]], payload=payload_of(NAN)), "NOT_FINITE", "tensors"),
    (block([["new", "float32", 5]], payload=payload_of(full(5, 1))), "BAD_TENSOR", "new"),
    (block([["new", "float32", 0]], payload=b""), "BAD_TENSOR", "new"),
    (("pull", b"", {"names": ["w", "v", "w"]}), "BAD_REQUEST", "names"),
]
BAD_REQUESTS = [
    (("no_such_thing", b"", {}), "BAD_REQUEST", "op"),
    (("no_such_thing", b"1234", {}), "BAD_REQUEST", "op"),
    (("hello", b"", {"versions": [VERSION], "client": "again"}), "BAD_REQUEST", "op"),
    (("join", b"", {"job": "job"}), "BAD_REQUEST", "token"),
    (("join", b"", {"job": "job", "token": "other"}), "BAD_REQUEST", "job"),
    (("join", b"", {"job": "other", "name": "b", "token": "other"}), "BAD_REQUEST", "job"),
    (("join", b"", {"job": "job", "token": "a/b"}), "BAD_REQUEST", "token"),
    (("attach", b"", {"job": "job"}), "BAD_REQUEST", "job"),
    (("status", b"1234", {}), "BAD_TENSOR", "payload length"),
    (("pull", b"1234", {"names": ["w"]}), "BAD_TENSOR", "payload length"),
    (("epoch", bytes(9), {"tensors": [["epoch", "uint8", 9]]}), "BAD_REQUEST", "op"),
    (("epoch", bytes(8), {"tensors": [["epoch", "uint64", 1]]}), "BAD_TENSOR", "tensors"),
    (("epoch", b"", {"tensors": []}), "BAD_TENSOR", "tensors"),
    (("decide", b"", DECISION), "BAD_REQUEST", "op"),
    (("ended", b"", ENDED), "BAD_REQUEST", "op"),
    (("shard_heartbeat", bytes(9), {"tensors": [["waits", "uint8", 9]]}), "BAD_REQUEST", "waits"),
    (("shard_heartbeat", b"\x92\x90\xa0", {"tensors": [["waits", "uint8", 3]]}), "BAD_REQUEST", "op"),
    (("set", b"", {"job": "job", "staleness": 0.5}), "BAD_REQUEST", "staleness"),
    (("set", b"", {"job": "job", "staleness": -1.0}), "BAD_REQUEST", "staleness"),
    (("set", b"", {"job": "job", "staleness": math.nan}), "BAD_REQUEST", "staleness"),
    (("set", b"", {"job": "job", "backup_workers": -1}), "BAD_REQUEST", "backup_workers"),
    (("set", b"", {"job": "job", "backup_workers": 2**62}), "BAD_REQUEST", "backup_workers"),
    (("set", b"", {"job": "nobody-made-it"}), "UNKNOWN_JOB", "job"),
    (("leave", b"", {"clock": -1}), "BAD_REQUEST", "clock"),
    (("join_shard", b"", {"port": 1}), "BAD_REQUEST", "shards"),
    (("join_shard", b"", {"port": 1, "shard": 0}), "BAD_REQUEST", "shard"),
    (("join_shard", b"", {"port": 0}), "BAD_REQUEST", "port"),
    (("lease", b"", {"seq": 1, "block": True}), "BAD_REQUEST", "job"),
    (("lease", b"", {"seq": 1, "block": 1}), "BAD_REQUEST", "block"),
    (("lease", b"", {"seq": 0, "block": True}), "BAD_REQUEST", "seq"),
    (("heartbeat", b"", {"clock": -1, "examples": 0}), "BAD_REQUEST", "clock"),
]  # fmt: skip


CASES = ("request_", "code", "field")
Asked: TypeAlias = tuple[str, bytes, dict[str, Any]]


async def assert_refused(worker: Wire, request: Asked, code: str, field: str) -> None:
    op, payload, fields = request
    reply = await worker.ask(op, payload, **fields)
    assert (reply["op"], reply["code"], reply["field"]) == ("error", code, field)
    assert reply["value"] or field == "name"
    assert len(reply["value"]) <= 120


@pytest.mark.parametrize(CASES, [*UNREADABLE_PUSHES, *BAD_TENSORS, *BAD_REQUESTS])
async def test_bad_input_is_named_changes_nothing_and_leaves_the_connection_usable(
    request_: Asked, code: str, field: str
) -> None:
    async with running_cluster() as cluster, worker_at(cluster.address) as worker:
        await assert_refused(worker, request_, code, field)
        await assert_untouched(worker)
        await assert_goes_on(worker)


@pytest.mark.parametrize("staleness", [0, 2, math.inf])
@pytest.mark.parametrize(CASES, BAD_PUSHES)
async def test_a_bad_push_changes_nothing_uses_its_number_up_and_is_refused_as_often_as_it_comes(
    request_: Asked, code: str, field: str, staleness: float
) -> None:
    async with running_cluster() as cluster, worker_at(cluster.address, staleness) as worker:
        await assert_refused(worker, request_, code, field)
        await assert_refused(worker, request_, code, field)
        op, payload, fields = push()  # a right one under the same number is no new one
        again = await worker.ask(op, payload, **fields)
        assert (again["op"], again["code"], again["field"]) == ("error", code, field)
        await assert_untouched(worker, "wvn" if staleness else "wv")
        await assert_goes_on(worker, seq=2)


@pytest.mark.parametrize("step", [2, 2**63 - 1])
async def test_a_step_that_is_far_ahead_is_refused_where_steps_are_kept(step: int) -> None:
    async with running_cluster() as cluster, worker_at(cluster.address, staleness=0) as worker:
        await assert_refused(worker, push(step=step), "BAD_REQUEST", "step")
        await assert_untouched(worker, "wv")
        await assert_goes_on(worker, seq=2)


async def test_a_sum_that_overflows_is_refused_with_everything_else_in_the_push() -> None:
    async with running_cluster() as cluster, worker_at(cluster.address) as worker:
        op, payload, fields = push(payload_of(-MOST))
        assert (await worker.ask(op, payload, **fields))["op"] == "ok"
        before = await pulled(worker, "w")
        fields = {"tensors": parts_of(v=FOUR, w=MOST), "step": 0}
        for seq in (2, 3):
            reply = await worker.ask("push", payload_of(FOUR, -MOST), seq=seq, **fields)
        assert (reply["code"], reply["value"]) == ("NOT_FINITE", "w")
        np.testing.assert_array_equal(await pulled(worker, "v"), START["v"] - 0.5)  # one of the two pushes
        assert np.isfinite(await pulled(worker, "w")).all()
        assert (before > 0).all()


JUNK = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["w", "v", "n", "float32", "sgd", "job"]),
    lambda inner: st.lists(inner, max_size=4),
    max_leaves=6,
)
VALID: list[tuple[str, bytes, dict[str, Any]]] = [
    push(),
    ("push_pull", payload_of(FOUR), {"tensors": parts_of(w=FOUR), "names": ["w"], "step": 0, "seq": 1}),
    ("pull", b"", {"names": ["w", "v"]}),
    create(),
    ("init", payload_of(FOUR), {"name": "w", "spec": SPEC, "attempt": 1, "tensors": parts_of(w=FOUR)}),
    ("initialised", b"", {"name": "w", "attempt": 1}),
    ("describe", b"", {"names": ["w"]}),
    ("heartbeat", b"", {"clock": 0, "examples": 0, "loss": 1.0}),
    (
        "finish",
        b"",
        {"kind": "train", "epoch": 1, "chunk": 1, "examples": 1, "measures": [["loss", 1.0]], "seq": 1},
    ),
    ("lease", b"", {"seq": 1, "block": False}),
    ("set", b"", {"staleness": 2.0, "backup_workers": 1}),
    ("shard_heartbeat", b"\x92\x90\xa0", {"tensors": [["waits", "uint8", 3]]}),
    ("decide", b"", DECISION),
    ("ended", b"", ENDED),
    ("join_shard", b"", {"port": 1}),
    ("join", b"", {"job": "other", "token": "b", "plan": ["text", 1, 1, 0, 0]}),
    ("epoch", bytes(9), {"tensors": [["epoch", "uint8", 9]]}),
]
ANY_OP = st.sampled_from([cls.op for cls in REQUESTS if cls.op not in ("leave", "init")])


@st.composite
def broken(draw: st.DrawFn) -> tuple[Any, bytes, dict[str, Any]]:
    """A valid request in which one thing is not as it should be, or a request made of nothing but junk."""
    if draw(st.booleans()):
        return (
            draw(ANY_OP | st.text(max_size=5)),
            b"",
            draw(st.dictionaries(st.text(max_size=5), JUNK, max_size=3)),
        )
    op, payload, fields = draw(st.sampled_from(VALID))
    field = draw(st.sampled_from([*fields, "surplus"]))
    return (
        op,
        draw(st.sampled_from([payload, payload[:-1], b"\xff" * len(payload)])),
        fields | {field: draw(JUNK)},
    )


async def next_number(worker: Wire) -> int:
    """The number that a push has to have: the server says it of one that is too high."""
    op, payload, fields = push(seq=2**62)
    reply = await worker.ask(op, payload, **fields)
    return int(reply["message"].split()[-1])


@settings(max_examples=60, deadline=None)
@given(requests=st.lists(broken(), min_size=1, max_size=8))
async def test_no_junk_is_a_defect_or_does_harm(requests: list[tuple[Any, bytes, dict[str, Any]]]) -> None:
    async with running_cluster() as cluster, worker_at(cluster.address) as worker:
        for op, payload, fields in requests:
            before = [(await pulled(worker, name)).tolist() for name in START]
            reply = await worker.ask(op, payload, **fields)
            assert reply.get("code") != "INTERNAL"
            if reply["op"] == "error":
                assert [(await pulled(worker, name)).tolist() for name in START] == before
        await assert_goes_on(worker, seq=await next_number(worker))


# --- the beginning of a connection


async def test_nothing_is_answered_before_hello() -> None:
    async with running_cluster() as cluster, wire(cluster.address) as stranger:
        for op, fields in (("status", {}), ("join", {"token": "a"}), ("pull", {"names": ["w"]})):
            reply = await stranger.ask(op, **fields)
            assert (reply["code"], reply["field"], reply["value"]) == ("BAD_REQUEST", "op", op)
        assert (await stranger.ask("hello", versions=[VERSION], client="test"))["op"] == "ok"
        assert (await stranger.ask("status"))["op"] == "ok"


async def test_a_version_that_the_server_does_not_speak() -> None:
    async with running_cluster() as cluster, wire(cluster.address) as stranger:
        reply = await stranger.ask("hello", versions=[99], client="test")
        assert (reply["code"], reply["field"]) == ("VERSION_MISMATCH", "versions")
        assert (await stranger.ask("status"))["code"] == "BAD_REQUEST"
        reply = await stranger.ask("hello", versions=[VERSION, 99], client="test")
        assert (reply["version"], reply["shard"], reply["shards"]) == (VERSION, 0, 1)


async def test_a_connection_that_says_no_hello_is_closed() -> None:
    async with running_cluster(hello_within=0.0) as cluster, connected(cluster.address) as silent:
        await silent.wait_closed()
        assert cluster.servers[0].metrics.rejected_frames["no_hello"] == 1


async def test_a_payload_above_the_limit_closes_with_a_reason() -> None:
    async with running_cluster(max_frame=1000) as cluster, wire(cluster.address) as client:
        client.send("pull", b"", 1001, names=["w"])
        reply, _ = await client.reply()
        assert (reply["code"], reply["field"], reply["value"]) == (
            "FRAME_TOO_LARGE",
            "payload length",
            "1001",
        )
        with pytest.raises(asyncio.IncompleteReadError):
            await client.reply()
        assert cluster.servers[0].metrics.rejected_frames["frame_too_large"] == 1


LOOPS = pytest.mark.parametrize("run", [asyncio.run, uvloop.run])


@LOOPS
def test_connections_above_the_limit_are_turned_away(run: Run) -> None:
    async def main() -> None:
        async with (
            running_cluster(max_connections=2, kept_connections=0) as cluster,
            connected(cluster.address, hello()),
            connected(cluster.address, hello()) as second,
        ):
            for refused in (1, 2):
                with pytest.raises(PSError):
                    async with connected(cluster.address, hello()):
                        pass
                assert cluster.servers[0].metrics.rejected_frames["connections"] == refused
            assert second.is_open

    run(main())


# --- the cluster


async def test_requests_wait_until_all_shards_have_joined() -> None:
    async with running_cluster(shards=3, started=2) as cluster:
        coordinator = cluster.servers[0]
        async with connected(cluster.address, hello()) as client:
            status = await cluster.status()
            assert [shard.state for shard in status.shards] == ["ready", "ready", "joining"]
            assert not coordinator.is_ready()
            assert coordinator.why_not_ready() == "it waits for server 2"
            joining = asyncio.create_task(first_pull(cluster.address))
            await cluster.until(lambda _: len(coordinator._tasks) > ALWAYS)  # it is being held back
            assert not joining.done()
            await cluster.add_shard()
            assert coordinator.is_ready()
            assert coordinator.why_not_ready() == ""
            await joining
            assert client.is_open


ALWAYS = 2  # tasks that a server has when nothing is asked of it
SOON = FailureSettings(heartbeat=0.05, dead_after=0.3)


async def first_pull(address: str) -> None:
    async with connect(address) as ps:
        await ps.create("w", [1.0, 2.0])
        np.testing.assert_array_equal(await ps.pull("w"), [1.0, 2.0])


async def test_who_goes_away_while_held_back_does_not_become_a_member() -> None:
    async with running_cluster(shards=2, started=1) as cluster:
        coordinator = cluster.servers[0]
        async with wire(cluster.address) as gone:
            await gone.ask("hello", versions=[VERSION], client="test")
            gone.send("join", b"", 0, token="gone", job="default", name="gone", staleness=0, workers=1)
            await cluster.until(lambda _: len(coordinator._tasks) > ALWAYS)
        await cluster.until(lambda _: len(coordinator._connections) == 1)  # the status' own
        await cluster.add_shard()
        async with connect(cluster.address, name="a", staleness=0, workers=1) as ps:
            assert [worker.name for worker in (await cluster.job()).workers] == ["a"]
            await ps.step()


async def test_only_the_coordinator_coordinates() -> None:
    async with running_cluster(shards=2) as cluster:
        host, port = cluster.endpoint
        (shard,) = [s.address for s in (await cluster.status()).shards if s.shard == 1]
        async with wire(shard) as client:
            welcome = await client.ask("hello", versions=[VERSION], client="test")
            assert (welcome["shard"], welcome["shards"]) == (1, 2)
            for op, fields in (
                ("status", {}),
                ("join", {"job": "job", "token": "a"}),
                ("attach", {}),
                ("create", {"name": "w", "spec": SPEC}),
                ("join_shard", {"port": port}),
            ):
                reply = await client.ask(op, **fields)
                assert (reply["code"], reply["field"], reply["value"]) == ("BAD_REQUEST", "op", op)
                assert "coordinator" in reply["message"]
            assert (await client.ask("pull", names=["w"]))["code"] == "UNKNOWN_JOB"
        assert host == "127.0.0.1"


async def test_a_server_may_ask_for_its_number() -> None:
    async with running_cluster(shards=3, started=1) as cluster:
        second = await cluster.add_shard(shard=2)
        first = await cluster.add_shard()
        assert (second._shard.number, first._shard.number) == (2, 1)


@pytest.mark.parametrize("shard", [0, 1, 2, 7])
async def test_a_number_that_is_taken_or_out_of_range_is_refused(shard: int) -> None:
    async with running_cluster(shards=2) as cluster:
        with pytest.raises(PSError) as caught:
            await cluster.add_shard(shard=shard)
        assert (caught.value.field, caught.value.value) == ("shard", str(shard))


async def test_a_server_takes_one_number() -> None:
    async with running_cluster(shards=3, started=1) as cluster, wire(cluster.address) as server:
        await server.ask("hello", versions=[VERSION], client="test")
        assert (await server.ask("join_shard", port=1))["shard"] == 1
        assert (await server.reply())[0]["op"] == "keep"  # it is told which jobs there are
        for shard in (None, 2):
            reply = await server.ask("join_shard", port=1, shard=shard)
            assert (reply["code"], reply["field"]) == ("BAD_REQUEST", "shard")
        assert [shard.state for shard in (await cluster.status()).shards][2] == "joining"


async def test_a_server_that_goes_before_the_cluster_is_complete_frees_its_number() -> None:
    async with running_cluster(shards=3, started=2) as cluster:
        await cluster.servers.pop().stop()
        await cluster.until(lambda status: status.shards[1].state == "joining")
        assert (await cluster.add_shard())._shard.number == 1


async def test_a_lost_shard_is_named_in_the_status_and_those_who_join_wait_for_it() -> None:
    async with running_cluster(shards=2) as cluster:
        await cluster.servers.pop().stop()
        await cluster.until(lambda status: status.shards[1].state == "lost")
        joining = asyncio.create_task(first_pull(cluster.address))
        await cluster.until(lambda status: bool(status.jobs))
        joining.cancel()
        await asyncio.gather(joining, return_exceptions=True)
        assert joining.cancelled()


async def test_nobody_at_the_coordinators_address() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        server = Server(ServerSettings(port=0, join=free.getsockname(), reconnect_for=0.1))
        with pytest.raises(Unreachable) as caught:
            await server.start()
        assert (caught.value.field, caught.value.value) == (
            "join",
            f"127.0.0.1:{free.getsockname()[1]}",
        )
        await server.stop()


async def test_a_shard_notices_that_the_coordinator_is_gone_and_gives_up_in_time() -> None:
    async with running_cluster(shards=2, started=1, failure=SOON) as cluster:
        shard = await cluster.add_shard(reconnect_for=0.1)
        assert shard.is_ready()
        assert shard.failed is not None
        assert not shard.failed.done()
        await cluster.servers[0].stop()
        assert isinstance(await shard.failed, Unreachable)
        assert not shard.is_ready()
        assert shard.why_not_ready() == f"it waits for the coordinator at {cluster.address}"


async def test_what_only_the_coordinator_does_another_server_refuses_and_says_where_that_is() -> None:
    async with running_cluster(shards=2) as cluster:
        other = (await cluster.status()).shards[1].address
        async with connected(other, hello()) as client:
            with pytest.raises(BadRequest, match=f"ask that, which is at {cluster.address}"):
                await client.request(Status())


async def test_a_shard_that_is_stopped_has_not_failed() -> None:
    async with running_cluster(shards=2) as cluster:
        shard = cluster.servers[1]
        await shard.stop()
        assert shard.failed is not None
        assert not shard.failed.done()


# --- the end


@LOOPS
def test_stop_ends_whatever_is_under_way(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    """A step that waits, a join that waits, a push and a pull half sent; clients do not wait for ever."""

    async def main() -> None:
        asyncio.get_running_loop().set_debug(True)
        async with running_cluster(shards=2) as cluster:
            waits = [
                asyncio.create_task(wait_in_a_step(cluster.address)),
                asyncio.create_task(wait_for_others(cluster.address)),
            ]
            async with (
                connect(cluster.address, job="big", reconnect_for=0.1) as ps,
                wire(cluster.address) as slow,
            ):
                await ps.create("w", np.zeros(4_000_000, np.float32))
                await slow.ask("hello", versions=[VERSION], client="test")
                await slow.ask("attach", job="big")
                for _ in range(4):  # more than sockets buffer, and nobody reads it
                    slow.send("pull", b"", 0, names=["w"])
                await cluster.until(lambda status: any(job.waits for job in status.jobs))
                await cluster.until(
                    lambda status: {"sync", "waiting", "big"} == {job.name for job in status.jobs}
                )
                pushes = [
                    asyncio.create_task(ps.push({"w": np.ones(4_000_000, np.float32)})) for _ in range(3)
                ]
                await cluster.status()
                for server in cluster.servers:
                    await server.stop()
                    assert not server.is_ready()
                    assert not server._connections
                    assert not server._tasks
                for wait in waits:
                    with pytest.raises(ConnectionLost):
                        await wait
                for end in await asyncio.gather(*pushes, return_exceptions=True):
                    assert end is None or isinstance(end, ConnectionLost)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    run(main())
    gc.collect()  # what was not closed is an error here
    assert not [record for record in caplog.records if record.name == "asyncio" and record.levelno > 30]


async def wait_in_a_step(address: str) -> None:
    async with workers(address, 2, job="sync", staleness=0, reconnect_for=0.1) as (one, _):
        await one.step()


async def wait_for_others(address: str) -> None:
    async with connect(address, job="waiting", workers=2, reconnect_for=0.1):
        raise AssertionError("there is no second worker")


@LOOPS
def test_stop_in_the_moment_in_which_requests_arrive(run: Run) -> None:
    async def main() -> None:
        async with running_cluster(shards=2, started=1) as cluster, wire(cluster.address) as client:
            await client.ask("hello", versions=[VERSION], client="test")
            for _ in range(10):
                client.send("join", b"", 0, token="a", job="job")
            server = cluster.servers[0]
            await cluster.until(lambda _: len(server._tasks) > ALWAYS)
            await server.stop()
            await server.stop()  # once more does no harm

    run(main())
    gc.collect()


async def test_stop_awaits_even_what_has_not_begun() -> None:
    async def answer(work: Coroutine[Any, Any, None]) -> None:
        await work

    async with running_cluster() as cluster:
        cluster.servers[0]._spawn(answer(asyncio.sleep(0)))
        await cluster.servers[0].stop()
        gc.collect()  # a coroutine that was never awaited is an error here


async def test_stop_before_start() -> None:
    await Server(ServerSettings(port=0)).stop()


async def test_observers_pull_but_do_not_push() -> None:
    async with running_cluster() as cluster, worker_at(cluster.address) as worker:
        async with connected(cluster.address, hello("job")) as observer:
            _, (values,) = await observer.request(Pull(("w",)))
            np.testing.assert_array_equal(values, START["w"])
        async with wire(cluster.address) as observer_wire:
            await observer_wire.ask("hello", versions=[VERSION], client="test")
            await observer_wire.ask("attach", job="job")
            op, payload, fields = push()
            reply = await observer_wire.ask(op, payload, **fields)
            assert (reply["code"], reply["field"]) == ("NOT_A_MEMBER", "worker")
            await assert_untouched(observer_wire)
        await assert_goes_on(worker)

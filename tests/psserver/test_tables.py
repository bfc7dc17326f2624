"""Tables on a server, asked over the raw wire: bad input, and what a retry comes to."""

import asyncio
import math
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pytest

from protocol.compression.keys import digest_of
from protocol.frames import VERSION
from protocol.tables import HASH_SLOTS, hash_slots
from tests.cluster import Cluster, Wire, durable_cluster, full, payload_of, running_cluster, wire

pytestmark = pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered")

Array: TypeAlias = npt.NDArray[Any]
Asked: TypeAlias = tuple[str, bytes, dict[str, Any]]
Parts: TypeAlias = list[tuple[list[Any], Array]]

SGD = ["sgd", [["lr", 0.5]], None]
TABLE = [2, "zeros", 0.0, 0, 1, 0.0, 0]
WIDE = [1 << 16, "zeros", 0.0, 0, 1, 0.0, 0]
START = np.arange(4, dtype=np.float32)
FOUR = full(4, 1.0)

KEYS = np.array([5, 1 << 40, 7, (1 << 64) - 1, 5], np.uint64)
SORTED = np.array([5, 7, 7], np.uint64)
KNOWN = np.arange(100, dtype=np.uint64)


def spec(table: Any = TABLE, dtype: Any = "float32", shape: Any = (HASH_SLOTS,), optimizer: Any = SGD) -> Any:
    return [dtype, list(shape), optimizer, table]


# --- requests


def described(
    of: Array = KEYS, name: Any = "t", coding: Any = "raw", values: Any = "float32", **changes: Any
) -> list[Any]:
    """The wire form of ``Rows``."""
    fields = {"name": name, "keys": of.size, "digest": digest_of(of), "coding": coding, "values": values}
    return list((fields | changes).values())


def part(array: Array, name: str = "t") -> tuple[list[Any], Array]:
    return [name, array.dtype.name, array.size], array


def ones(keys: Array = KEYS, dim: int = 2, dtype: Any = np.float32) -> Array:
    return np.ones(keys.size * dim, dtype)


def with_(values: float, dtype: Any = np.float32) -> Array:
    """Gradients of ``KEYS``, of which one number is this one."""
    gradient = ones(dtype=dtype)
    gradient[3] = values
    return gradient


def delta8(first: int, *deltas: int) -> Array:
    return np.concatenate([np.array([first], np.uint64).view(np.uint8), np.array(deltas, np.uint8)])


def message(op: str, parts: Parts, **fields: Any) -> Asked:
    tensors = [one for one, _ in parts]
    return op, payload_of(*(array for _, array in parts)), {"tensors": tensors, **fields}


GIVEN = [part(KEYS), part(ones())]


def push(parts: Parts = GIVEN, rows: Any = None, **changes: Any) -> Asked:
    rows = [described()] if rows is None else rows
    return message("push", parts, **({"rows": rows, "step": 0, "seq": 1} | changes))


def push_pull(parts: Parts = GIVEN, rows: Any = None, wanted: Any = (), **changes: Any) -> Asked:
    rows = [described()] if rows is None else rows
    fields = {"rows": rows, "wanted": list(wanted), "names": [], "step": 0, "seq": 1}
    return message("push_pull", parts, **(fields | changes))


def pull(parts: Sequence[Any] = (), wanted: Any = (), names: Any = ()) -> Asked:
    return message("pull", list(parts), names=list(names), wanted=list(wanted))


# Understood and refused: the number is used up, and the error is its answer.
BAD_PUSHES = [
    (push([part(ones())]), "BAD_TENSOR", "tensors"),  # no keys
    (push([part(KEYS)]), "BAD_TENSOR", "tensors"),  # no values
    (push([]), "BAD_TENSOR", "tensors"),
    (push([part(KEYS), *GIVEN]), "BAD_TENSOR", "t"),  # as if a dense gradient stood before
    (push([*GIVEN, part(KEYS)]), "BAD_TENSOR", "tensors"),
    (push([part(np.append(KEYS, KEYS[:1])), part(ones())]), "BAD_TENSOR", "tensors"),
    (push([part(KEYS[1:]), part(ones())]), "BAD_TENSOR", "tensors"),
    (push([part(KEYS.view(np.int64)), part(ones())]), "BAD_TENSOR", "tensors"),
    (push([part(KEYS.view(np.uint8)), part(ones())]), "BAD_TENSOR", "tensors"),
    (push([part(KEYS, "w"), part(ones())]), "BAD_TENSOR", "tensors"),
    (push([part(KEYS), part(ones(), "w")]), "BAD_TENSOR", "tensors"),
    (push([part(ones()), part(KEYS)]), "BAD_TENSOR", "tensors"),
    (push([part(KEYS), part(ones(dim=3))]), "BAD_TENSOR", "tensors"),
    (push([part(KEYS), part(ones(dim=1))]), "BAD_TENSOR", "tensors"),
    (push([part(KEYS), part(ones(dtype=np.float64))]), "BAD_TENSOR", "tensors"),
    (push([part(KEYS), part(ones(dtype=np.float16))]), "BAD_TENSOR", "tensors"),
    (push(rows=[described(keys=4)]), "BAD_TENSOR", "tensors"),
    (push([part(KEYS), part(ones(dtype=np.float64))], [described(values="float64")]), "BAD_TENSOR", "t"),
    (push(GIVEN, [described(values="bfloat16")]), "BAD_TENSOR", "tensors"),
    (push([part(ones())], [described(coding="known")]), "UNKNOWN_KEYS", "t"),
    (push([part(ones(KNOWN))], [described(KNOWN, coding="known", digest="0" * 32)]), "UNKNOWN_KEYS", "t"),
    (push([part(ones(KNOWN[1:]))], [described(KNOWN, coding="known", keys=99)]), "UNKNOWN_KEYS", "t"),
    (push([], [described(KNOWN, coding="known", keys=0)]), "UNKNOWN_KEYS", "t"),
    (push(GIVEN, [described(coding="known")]), "UNKNOWN_KEYS", "t"),
    (push([], [described(KEYS[:0], coding="delta8")]), "BAD_REQUEST", "coding"),
    (push([part(delta8(0)), part(ones())], [described(KEYS[:0], coding="delta8")]), "BAD_REQUEST", "coding"),
    (push([part(delta8(5, 2)), GIVEN[1]], [described(SORTED, coding="delta8")]), "BAD_TENSOR", "tensors"),
    (
        push([part(delta8((1 << 64) - 2, 1, 1)), part(ones(SORTED))], [described(SORTED, coding="delta8")]),
        "BAD_REQUEST",
        "keys",
    ),
    (push([part(np.ones(HASH_SLOTS, np.float32))], []), "BAD_TENSOR", "t"),
    (push([part(KEYS, "w"), part(ones(), "w")], [described(name="w")]), "BAD_TENSOR", "w"),
    (push([part(KEYS, "x"), part(ones(), "x")], [described(name="x")]), "UNKNOWN_TENSOR", "name"),
    (push(GIVEN * 2, [described()] * 2), "BAD_TENSOR", "rows"),
    (push([part(KEYS), part(with_(math.nan))]), "NOT_FINITE", "tensors"),
    (push([part(KEYS), part(with_(-math.inf))]), "NOT_FINITE", "tensors"),
    (
        push([part(KEYS), part(with_(math.inf, np.float16))], [described(values="float16")]),
        "NOT_FINITE",
        "tensors",
    ),
    (push([part(FOUR, "w"), part(KEYS), part(with_(math.nan))]), "NOT_FINITE", "tensors"),
    (push([part(START * math.nan, "w"), *GIVEN]), "NOT_FINITE", "tensors"),
    (push([part(full(5, 1.0), "w"), *GIVEN]), "BAD_TENSOR", "w"),
    (push([part(FOUR, "x"), *GIVEN]), "UNKNOWN_TENSOR", "name"),
    (push(weight=0.0), "BAD_REQUEST", "weight"),
    (push_pull(names=["t"]), "BAD_TENSOR", "names"),
    (push_pull(wanted=[described(coding="known")]), "UNKNOWN_KEYS", "t"),  # it is too short to be remembered
    (push_pull(wanted=[described()]), "BAD_TENSOR", "tensors"),
    (push_pull([*GIVEN, part(KEYS, "w")], wanted=[described(name="w")]), "BAD_TENSOR", "w"),
    (push_pull([*GIVEN, part(KEYS, "x")], wanted=[described(name="x")]), "UNKNOWN_TENSOR", "name"),
    (push_pull([*GIVEN, part(KEYS)], wanted=[described(values="float64")]), "BAD_TENSOR", "t"),
    (push_pull(wanted=[described(KNOWN, "wide", "known")] * 41), "FRAME_TOO_LARGE", "wanted"),
]  # fmt: skip
# Not even understood, so that nobody knows a number: the next one is still the same.
UNREADABLE = [
    (push(rows=[described(keys=-1)]), "BAD_REQUEST", "keys"),
    (push(rows=[described(keys=(1 << 28) + 1)]), "BAD_REQUEST", "keys"),
    (push(rows=[described(keys=True)]), "BAD_REQUEST", "keys"),
    (push(rows=[described(digest="0" * 31)]), "BAD_REQUEST", "digest"),
    (push(rows=[described(digest="A" * 32)]), "BAD_REQUEST", "digest"),
    (push(rows=[described(digest=None)]), "BAD_REQUEST", "digest"),
    (push(rows=[described(coding="zip")]), "BAD_REQUEST", "coding"),
    (push(rows=[described(values="int8")]), "BAD_REQUEST", "values"),
    (push(rows=[described(values=7)]), "BAD_REQUEST", "values"),
    (push(rows=[described(name="../t")]), "BAD_REQUEST", "name"),
    (push(rows=[described()[:-1]]), "BAD_REQUEST", "rows"),
    (push(rows=[[*described(), 1]]), "BAD_REQUEST", "rows"),
    (push(rows="t"), "BAD_REQUEST", "rows"),
    (push(wanted=[]), "BAD_REQUEST", "wanted"),
]
BAD_PULLS = [
    (pull(names=["t"]), "BAD_TENSOR", "names"),
    (pull([part(KEYS, "w")], [described(name="w")]), "BAD_TENSOR", "w"),
    (pull([part(KEYS, "x")], [described(name="x")]), "UNKNOWN_TENSOR", "name"),
    (pull([], [described()]), "BAD_TENSOR", "tensors"),
    (pull([part(KEYS)], []), "BAD_TENSOR", "tensors"),
    (pull([part(KEYS), part(KEYS)], [described()]), "BAD_TENSOR", "tensors"),
    (pull([part(KEYS[1:])], [described()]), "BAD_TENSOR", "tensors"),
    (pull([part(KEYS)], [described(values="float64")]), "BAD_TENSOR", "t"),
    (pull([], [described(coding="known")]), "UNKNOWN_KEYS", "t"),
    (pull([], [described(KNOWN, coding="known", keys=101)]), "UNKNOWN_KEYS", "t"),
    (pull([], [described(KEYS[:0], coding="delta32")]), "BAD_REQUEST", "coding"),
    (pull([], [described(KNOWN, "wide", "known")] * 41), "FRAME_TOO_LARGE", "wanted"),
    (pull([part(KEYS)], [described(keys=-5)]), "BAD_REQUEST", "keys"),
]


def create(*, name: str = "new", **changes: Any) -> Asked:
    return "create", b"", {"name": name, "spec": spec(**changes)}


def init(given: Any = None, tensors: Parts | None = None, **changes: Any) -> Asked:
    fields = {"name": "new", "spec": given or spec(), "attempt": 1, "start": 0, "stop": HASH_SLOTS}
    return message("init", tensors or [], **(fields | changes))


def table(place: int, value: Any) -> list[Any]:
    return [*TABLE[:place], value, *TABLE[place + 1 :]]


BAD_TABLES = [
    (create(shape=[5]), "BAD_REQUEST", "shape"),
    (create(shape=[]), "BAD_REQUEST", "shape"),
    (create(shape=[HASH_SLOTS, 1]), "BAD_REQUEST", "shape"),
    (create(dtype="float16"), "BAD_REQUEST", "dtype"),
    (create(dtype="int64", optimizer=["add", [], None]), "BAD_REQUEST", "dtype"),
    (create(dtype="uint8"), "BAD_REQUEST", "dtype"),
    (create(optimizer=["os.system", [], None]), "BAD_REQUEST", "optimizer"),
    (create(optimizer=["sgd", [["lr", "fast"]], None]), "BAD_REQUEST", "value"),
    (create(table=table(0, 0)), "BAD_REQUEST", "dim"),
    (create(table=table(0, -1)), "BAD_REQUEST", "dim"),
    (create(table=table(0, (1 << 16) + 1)), "BAD_REQUEST", "dim"),
    (create(table=table(0, 2.0)), "BAD_REQUEST", "dim"),
    (create(table=table(1, "ones")), "BAD_REQUEST", "initial"),
    (create(table=table(2, -1.0)), "BAD_REQUEST", "scale"),
    (create(table=table(2, math.nan)), "BAD_REQUEST", "scale"),
    (create(table=table(2, math.inf)), "BAD_REQUEST", "scale"),
    (create(table=table(3, -1)), "BAD_REQUEST", "seed"),
    (create(table=table(4, 0)), "BAD_REQUEST", "admit_after"),
    (create(table=table(4, 256)), "BAD_REQUEST", "admit_after"),
    (create(table=table(5, -1.0)), "BAD_REQUEST", "expire_after"),
    (create(table=table(5, math.inf)), "BAD_REQUEST", "expire_after"),
    (create(table=table(5, math.nan)), "BAD_REQUEST", "expire_after"),
    (create(table=table(6, -1)), "BAD_REQUEST", "capacity"),
    (create(table=table(6, 0.5)), "BAD_REQUEST", "capacity"),
    (create(table=[]), "BAD_REQUEST", "table"),
    (create(name="t", table=table(0, 3)), "SPEC_MISMATCH", "table"),
    (create(name="t", table=table(3, 1)), "SPEC_MISMATCH", "table"),
    (create(name="t", table=None), "SPEC_MISMATCH", "table"),
    (create(name="t", dtype="float64"), "SPEC_MISMATCH", "dtype"),
    (init(tensors=[part(FOUR, "new")]), "BAD_TENSOR", "tensors"),
    (init(start=5, stop=5), "BAD_TENSOR", "new"),
    (init(start=6, stop=5), "BAD_TENSOR", "new"),
    (init(stop=0), "BAD_TENSOR", "new"),
    (init(stop=HASH_SLOTS + 1), "BAD_TENSOR", "new"),
    (init(start=-1), "BAD_REQUEST", "start"),
    (init(spec(dtype="float16")), "BAD_REQUEST", "dtype"),
    (init(spec(shape=[5])), "BAD_REQUEST", "shape"),
    (init(spec(table(0, 3)), name="t", attempt=2), "SPEC_MISMATCH", "name"),
]


# --- a worker


async def make(worker: Wire, name: str, spec: Any, **block: Any) -> None:
    created = await worker.ask("create", name=name, spec=spec)
    payload = block.pop("payload", b"")
    fields = {"name": name, "spec": spec, "attempt": created["attempt"]} | block
    assert (await worker.ask("init", payload, **fields))["op"] == "ok"
    assert (await worker.ask("initialised", name=name, attempt=created["attempt"]))["op"] == "ok"


@asynccontextmanager
async def worker_at(address: str, staleness: float = math.inf) -> AsyncIterator[tuple[Wire, dict[str, Any]]]:
    """A worker that has joined, made a tensor and two tables, and asked for the rows of ``KNOWN``."""
    async with wire(address) as worker:
        assert (await worker.ask("hello", versions=[VERSION], client="test"))["op"] == "ok"
        joined = await worker.ask("join", token="a", job="job", name="a", staleness=staleness)
        dense = {"tensors": [["w", "float32", 4]], "payload": payload_of(START)}
        await make(worker, "w", ["float32", [4], SGD, None], **dense)
        for name, one in (("t", TABLE), ("wide", WIDE)):
            await make(worker, name, spec(one), tensors=[], stop=HASH_SLOTS)
        op, payload, fields = pull([part(KNOWN)], [described(KNOWN)])
        assert (await worker.ask(op, payload, **fields))["op"] == "ok"
        yield worker, joined


@asynccontextmanager
async def again_at(address: str, joined: dict[str, Any]) -> AsyncIterator[Wire]:
    """Another connection of the same worker."""
    async with wire(address) as worker:
        life = {"job": "job", "worker": joined["worker"], "incarnation": joined["incarnation"]}
        while (hello := await worker.ask("hello", versions=[VERSION], client="test", **life))["op"] != "ok":
            assert hello["code"] == "NOT_READY", hello  # it has just been started
        yield worker


async def answered(worker: Wire, request: Asked) -> tuple[dict[str, Any], bytes]:
    op, payload, fields = request
    worker.send(op, payload, len(payload), **fields)
    return await worker.reply()


async def rows_of(worker: Wire, keys: Array = KEYS) -> Array:
    header, payload = await answered(worker, pull([part(keys)], [described(keys)]))
    assert header["op"] == "ok", header
    return np.frombuffer(payload, np.float32).reshape(keys.size, -1)


async def assert_refused(worker: Wire, request: Asked, code: str, field: str) -> None:
    reply, _ = await answered(worker, request)
    assert reply["op"] == "error", reply
    assert (reply["code"], reply["field"]) == (code, field), reply
    assert reply["value"] or field == "name", reply
    assert len(reply["value"]) <= 120


async def assert_untouched(cluster: Cluster, worker: Wire) -> None:
    assert not (await rows_of(worker)).any()
    assert not (await rows_of(worker, KNOWN)).any()
    header, payload = await answered(worker, pull(names=["w"]))
    assert header["op"] == "ok"
    np.testing.assert_array_equal(np.frombuffer(payload, np.float32), START)
    assert cluster.servers[0]._shard.load().rows == 0


async def assert_goes_on(worker: Wire, seq: int = 1) -> None:
    """The next valid push, with this number, does what it says; repeated keys are summed."""
    request = push_pull(
        [part(FOUR, "w"), *GIVEN, part(KEYS)], wanted=[described(values="float32")], names=["w"], seq=seq
    )
    header, payload = await answered(worker, request)
    assert header["op"] == "ok", header
    np.testing.assert_array_equal(np.frombuffer(payload[:16], np.float32), START - 0.5)
    found = np.frombuffer(payload[64:], np.float32).reshape(-1, 2)
    np.testing.assert_array_equal(found[:, 0], [-1, -0.5, -0.5, -0.5, -1])
    np.testing.assert_array_equal(found[:, 1], found[:, 0])


CASES = ("request_", "code", "field")


@pytest.mark.parametrize(CASES, [*UNREADABLE, *BAD_PULLS, *BAD_TABLES])
async def test_bad_input_is_named_changes_nothing_and_leaves_the_connection_usable(
    request_: Asked, code: str, field: str
) -> None:
    async with running_cluster() as cluster, worker_at(cluster.address) as (worker, _):
        await assert_refused(worker, request_, code, field)
        await assert_untouched(cluster, worker)
        await assert_goes_on(worker)


@pytest.mark.parametrize("staleness", [0, 2, math.inf])
@pytest.mark.parametrize(CASES, BAD_PUSHES)
async def test_a_bad_push_changes_nothing_and_is_refused_as_often_as_it_comes(
    request_: Asked, code: str, field: str, staleness: float
) -> None:
    async with running_cluster() as cluster, worker_at(cluster.address, staleness) as (worker, joined):
        await assert_refused(worker, request_, code, field)
        await assert_refused(worker, request_, code, field)
        await assert_refused(worker, push(), code, field)  # a right one under the same number is no new one
        async with again_at(cluster.address, joined) as other:
            await assert_refused(other, request_, code, field)
            await assert_untouched(cluster, other)
        await assert_goes_on(worker, seq=2)


async def test_keys_of_another_shard_are_refused_by_each() -> None:
    keys, half = np.arange(64, dtype=np.uint64), HASH_SLOTS // 2
    low = hash_slots(keys) < half
    async with running_cluster(2) as cluster, wire(cluster.address) as first:
        await first.ask("hello", versions=[VERSION], client="test")
        joined = await first.ask("join", token="a", job="job", name="a")
        await first.ask("create", name="t", spec=spec())
        async with again_at(joined["shards"][1], joined) as second:
            for shard, inside, start in ((first, low, 0), (second, ~low, half)):
                ours, theirs = keys[inside], keys[~inside][:1]
                both = np.append(ours, theirs)
                filled = await answered(shard, init(name="t", start=start, stop=start + half))
                assert filled[0]["op"] == "ok"
                for seq, stray in ((1, theirs), (2, both)):
                    request = push([part(stray), part(ones(stray))], [described(stray)], seq=seq)
                    await assert_refused(shard, request, "BAD_REQUEST", "keys")
                await assert_refused(shard, pull([part(both)], [described(both)]), "BAD_REQUEST", "keys")
                parts = [part(ours), part(ones(ours)), part(theirs)]
                request = push_pull(parts, [described(ours)], [described(theirs)], seq=3)
                await assert_refused(shard, request, "BAD_REQUEST", "keys")
                assert not (await rows_of(shard, ours)).any()
                right = push([part(ours), part(ones(ours))], [described(ours)], seq=4)
                assert (await answered(shard, right))[0]["op"] == "ok"
                assert (await rows_of(shard, ours) == -0.5).all()


@pytest.mark.parametrize("staleness", [2, math.inf])
async def test_a_sum_that_overflows_is_refused_with_everything_else_in_the_push(staleness: float) -> None:
    most = np.full(2 * KEYS.size, np.finfo(np.float32).max)
    async with running_cluster() as cluster, worker_at(cluster.address, staleness) as (worker, _):
        parts = [part(FOUR, "w"), part(KEYS), part(most)]  # the first and the last key are the same
        for _ in range(2):
            await assert_refused(worker, push(parts), "NOT_FINITE", "tensors")
        await assert_untouched(cluster, worker)
        await assert_goes_on(worker, seq=2)


async def test_a_step_that_overflows_is_over_without_an_update() -> None:
    most = np.full(2 * KEYS.size, np.finfo(np.float32).max)
    async with running_cluster() as cluster, worker_at(cluster.address, 0) as (worker, _):
        parts = [part(FOUR, "w"), part(KEYS), part(most)]
        for _ in range(2):
            await assert_refused(worker, push_pull(parts), "NOT_FINITE", "tensors")
        await assert_untouched(cluster, worker)
        request = push_pull([*GIVEN, part(KEYS)], wanted=[described()], seq=2, step=1)
        header, payload = await answered(worker, request)
        assert header["op"] == "ok"
        assert (np.frombuffer(payload, np.float32).reshape(-1, 2)[:, 0] == [-1, -0.5, -0.5, -0.5, -1]).all()


@pytest.mark.parametrize("staleness", [0, 2, math.inf])
async def test_a_push_that_counts_though_its_rows_cannot_be_sent_back_counts_once(staleness: float) -> None:
    async with running_cluster() as cluster, worker_at(cluster.address, staleness) as (worker, _):
        far = ones() * np.float32(-1e6)
        asked = push_pull([part(KEYS), part(far), part(KEYS)], wanted=[described(values="float16")])
        for _ in range(2):
            await assert_refused(worker, asked, "BAD_TENSOR", "values")
        assert ((await rows_of(worker))[:, 0] == [1e6, 5e5, 5e5, 5e5, 1e6]).all()
        back = push_pull([part(KEYS), part(-far), part(KEYS)], wanted=[described()], seq=2, step=1)
        header, payload = await answered(worker, back)
        assert header["op"] == "ok"
        assert not np.frombuffer(payload, np.float32).any()


async def test_an_answer_whose_header_would_be_too_long_is_refused_before_anything_is_done() -> None:
    """392 tensors alone would do, and so would 80 times the rows of a table."""
    names = [f"{number:0128}" for number in range(392)]
    long = "t" * 128
    async with running_cluster() as cluster, worker_at(cluster.address) as (worker, _):
        for name in names:
            one = {"tensors": [[name, "float32", 1]], "payload": bytes(4)}
            await make(worker, name, ["float32", [1], SGD, None], **one)
        await make(worker, long, spec(), tensors=[], stop=HASH_SLOTS)
        wanted = [described(KNOWN, long, "known")] * 80
        for asked in (pull(names=names), pull(wanted=wanted)):
            assert (await answered(worker, asked))[0]["op"] == "ok"
        await assert_refused(worker, pull([], wanted, names), "BAD_REQUEST", "names")
        dense = [part(FOUR, "w")]
        await assert_refused(worker, push_pull(dense, [], wanted, names=names), "BAD_REQUEST", "names")
        await assert_untouched(cluster, worker)


# --- lists of keys and connections


async def test_keys_that_come_with_a_retry_are_known_from_then_on() -> None:
    """The first try still waits for the other worker, so the retry takes its place, and is not done."""
    async with running_cluster() as cluster, AsyncExitStack() as stack:
        first, second = [await stack.enter_async_context(wire(cluster.address)) for _ in "ab"]
        joins = []
        for worker, name in ((first, "a"), (second, "b")):
            await worker.ask("hello", versions=[VERSION], client="test")
            fields: dict[str, Any] = {"token": name, "job": "job", "name": name, "staleness": 0, "workers": 2}
            joins.append(asyncio.ensure_future(worker.ask("join", **fields)))
        joined, _ = await asyncio.gather(*joins)
        await make(first, "t", spec(), tensors=[], stop=HASH_SLOTS)
        parts = [part(KNOWN), part(ones(KNOWN))]
        ends = push_pull(parts, [described(KNOWN)], [described(KNOWN, coding="known")])
        first.send(ends[0], ends[1], len(ends[1]), **ends[2])
        other = await stack.enter_async_context(again_at(cluster.address, joined))
        other.send(ends[0], ends[1], len(ends[1]), **ends[2])
        header, _ = await answered(other, pull([], [described(KNOWN, coding="known")]))
        assert header["op"] == "ok", header
        assert (await answered(second, push_pull([], [], step=0, weight=0.0)))[0]["op"] == "ok"
        header, payload = await other.reply()
        assert header["op"] == "ok"
        assert (np.frombuffer(payload, np.float32) == -0.5).all()


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize(("op", "staleness"), [("push", math.inf), ("push_pull", math.inf), ("push_pull", 0)])
async def test_a_retry_counts_once_however_its_keys_are_coded(
    op: str, staleness: float, restart: bool, tmp_path: Path
) -> None:
    async with (
        durable_cluster(tmp_path, 1, "log") as durable,
        AsyncExitStack() as stack,
    ):
        worker, joined = await stack.enter_async_context(worker_at(durable.address, staleness))
        named = [described(KNOWN, coding="known")]
        sent = [described(KNOWN)]
        deltas = part(delta8(0, *[1] * 99))
        if op == "push":
            first = push([part(ones(KNOWN))], named)
            raw = push([part(KNOWN), part(ones(KNOWN))], sent)
            sorted_ = push([deltas, part(ones(KNOWN))], [described(KNOWN, coding="delta8")])
        else:
            first = push_pull([part(ones(KNOWN))], named, named)
            raw = push_pull([part(KNOWN), part(ones(KNOWN)), part(KNOWN)], sent, sent)
            sorted_ = push_pull([deltas, part(ones(KNOWN))], [described(KNOWN, coding="delta8")], named)
        assert (await answered(worker, first))[0]["op"] == "ok"
        if restart:
            await durable.kill(0)
            await durable.start(0)
        for again in (raw, sorted_):
            async with again_at(durable.address, joined) as other:
                await assert_refused(other, first, "UNKNOWN_KEYS", "t")  # they were sent elsewhere
                header, payload = await answered(other, again)
                assert header["op"] == "ok", header
                if op == "push_pull":
                    assert (np.frombuffer(payload, np.float32) == -0.5).all()
                assert (await rows_of(other, KNOWN) == -0.5).all()
                another = push_pull([part(KNOWN), part(ones(KNOWN) * 2)], sent)
                await assert_refused(other, another, "CONFLICT", "seq")
        async with again_at(durable.address, joined) as other:
            assert (await answered(other, raw))[0]["op"] == "ok"
            ends = push_pull([part(ones(KNOWN))], named, named, seq=2, step=int(op == "push_pull"))
            header, payload = await answered(other, ends)
            assert header["op"] == "ok", header
            assert (np.frombuffer(payload, np.float32) == -1).all()


async def test_a_table_that_has_rows_is_not_made_anew_after_a_restart_either(tmp_path: Path) -> None:
    async with durable_cluster(tmp_path, 1, "log") as durable, AsyncExitStack() as stack:
        worker, joined = await stack.enter_async_context(worker_at(durable.address))
        assert (await answered(worker, push()))[0]["op"] == "ok"
        anew = init(name="t", attempt=2)
        await assert_refused(worker, anew, "BAD_REQUEST", "attempt")
        await durable.kill(0)
        await durable.start(0)
        async with again_at(durable.address, joined) as other:
            await assert_refused(other, anew, "BAD_REQUEST", "attempt")
            assert ((await rows_of(other))[:, 0] == [-1, -0.5, -0.5, -0.5, -1]).all()


# --- what a worker has read


DELAYED = ["dcsgd", [["lr", 0.5], ["lam", 1.0]], None]


async def test_what_a_worker_has_read_is_known_on_its_next_connection_too() -> None:
    """p <- p - lr * (g + lam * g * g * (p - q)), where q is what the worker had read."""
    async with running_cluster() as cluster, worker_at(cluster.address) as (worker, joined):
        await make(worker, "late", spec(optimizer=DELAYED), tensors=[], stop=HASH_SLOTS)
        key = np.array([3], np.uint64)
        rows = [described(key, "late")]
        async with wire(cluster.address) as another:
            await another.ask("hello", versions=[VERSION], client="test")
            await another.ask("join", token="b", job="job", name="b")
            header, _ = await answered(worker, pull([part(key, "late")], rows))
            assert header["op"] == "ok"
            given = [part(key, "late"), part(full(2, 2.0), "late")]
            assert (await answered(another, push(given, rows)))[0]["op"] == "ok"  # p = 0 - 0.5 * 2 = -1
        async with again_at(cluster.address, joined) as other:
            given = [part(key, "late"), part(full(2, 3.0), "late")]
            assert (await answered(other, push(given, rows)))[0]["op"] == "ok"  # -1 - 0.5 * (3 - 9)
            header, payload = await answered(other, pull([part(key, "late")], rows))
            assert (np.frombuffer(payload, np.float32) == 2.0).all()


SCALED = ["sgd", [["lr", 1.0], ["scale_by_staleness", 1.0]], None]


@pytest.mark.parametrize("how", ["reconnects", "turns the dial"])
async def test_who_has_missed_nothing_is_not_stale(how: str) -> None:
    staleness = 0 if how == "turns the dial" else math.inf
    async with running_cluster() as cluster, worker_at(cluster.address, staleness) as (worker, joined):
        await make(worker, "s", spec(optimizer=SCALED), tensors=[], stop=HASH_SLOTS)
        given = [part(KEYS[:1], "s"), part(ones(KEYS[:1]), "s")]
        rows = [described(KEYS[:1], "s")]
        for step in range(5):
            ends = push_pull([*given, given[0]], rows, rows, step=step, seq=step + 1)
            header, _ = await answered(worker, ends)
            assert header["op"] == "ok", header
        if how == "turns the dial":
            assert (await worker.ask("set", job="job", staleness=math.inf))["op"] == "ok"
        async with again_at(cluster.address, joined) as other:
            header, _ = await answered(other, push(given, rows, seq=6, step=6))
            assert header["op"] == "ok", header
            header, payload = await answered(other, pull([given[0]], rows))
        np.testing.assert_array_equal(np.frombuffer(payload, np.float32), -6)


# --- what takes long


async def test_a_push_comes_after_the_longer_one_before_it() -> None:
    """Both arrive at once. The first is done in threads; the reply to the second holds both."""
    many = np.arange(3_000, dtype=np.uint64)
    deltas, halves = delta8(0, *[1] * 2_999), ones(many, dtype=np.float16)
    async with running_cluster() as cluster, worker_at(cluster.address) as (worker, _):
        long = push([part(deltas), part(halves)], [described(many, coding="delta8", values="float16")])
        rows = [described(many[:3])]
        parts = [part(many[:3]), part(ones(many[:3])), part(many[:3])]
        for op, payload, fields in (long, push_pull(parts, rows, rows, seq=2)):
            worker.send(op, payload, len(payload), **fields)
        replies = [await worker.reply() for _ in range(2)]
        (found,) = [payload for _, payload in replies if payload]
        assert (np.frombuffer(found, np.float32) == -1.0).all()


@pytest.mark.parametrize("op", ["push", "pull"])
async def test_many_short_lists_are_a_long_one(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are done in threads: the event loop is not kept from the other connections."""
    async with running_cluster() as cluster, worker_at(cluster.address) as (worker, _):
        shard = cluster.servers[0]._shard
        names = [f"t{number}" for number in range(30)]
        for name in names:
            await make(worker, name, spec(), tensors=[], stop=HASH_SLOTS)
        spawned: list[Any] = []
        spawn = shard._spawn

        def counted(work: Any) -> object:
            spawned.append(work)
            return spawn(work)

        monkeypatch.setattr(shard._answers if op == "pull" else shard, "_spawn", counted)
        rows = [described(KNOWN, name, "known") for name in names]
        asked = pull(wanted=rows) if op == "pull" else push([part(ones(KNOWN), name) for name in names], rows)
        assert (await answered(worker, asked))[0]["op"] == "ok"
        assert len(spawned) == 1


async def test_who_does_not_read_what_it_asks_for_takes_a_bounded_amount_of_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each answer has 26 MB and is made in threads: none waits to be sent when the next is asked for."""
    async with running_cluster() as cluster, worker_at(cluster.address) as (worker, _):
        server = cluster.servers[0]
        (connection,) = server._connections
        made: list[Any] = []
        room_for = server._shard._answers._room_for

        def counted(wanted: Any) -> Any:
            made.append(wanted)
            return room_for(wanted)

        monkeypatch.setattr(server._shard._answers, "_room_for", counted)
        op, payload, fields = pull([], [described(KNOWN, "wide", "known")])
        for _ in range(20):
            worker.send(op, payload, 0, **fields)
        await cluster.until(lambda _: bool(made) and not connection._owed)
        assert len(made) <= 8
        for _ in range(20):
            header, rows = await worker.reply()
            assert (header["op"], len(rows)) == ("ok", KNOWN.size * 4 << 16)
        assert len(made) == 20

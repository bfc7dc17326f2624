import asyncio
import gc
import itertools
import random
import socket
import tracemalloc
import weakref
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol import connection as module
from protocol.connection import Pending, RefuseAll, Traffic, check_length, dial
from protocol.errors import (
    BadFrame,
    BadRequest,
    BadTensor,
    ConnectionLost,
    FrameTooLarge,
    NotFinite,
    OutOfOrder,
    PSError,
    ShuttingDown,
    VersionMismatch,
    WireError,
)
from protocol.frames import DIRECT, MAGIC, MAX_HEADER, PRELUDE, encode_prelude
from protocol.messages import (
    Hello,
    Lease,
    Pull,
    Pulled,
    Push,
    Pushed,
    PushPull,
    encode_error,
    encode_reply,
    encode_request,
)
from protocol.tensors import DTYPES
from tests.protocol.both_loops import (
    ANSWER,
    LIMIT,
    LOOPS,
    REFUSED_STEP,
    WAYS,
    Echo,
    Link,
    LoopFactory,
    Raw,
    Watched,
    dialled_by,
    frame,
    on_both_loops,
    parts,
    run_linked,
)

Array = npt.NDArray[Any]


def numbers(nbytes: int, seed: int = 0, dtype: str = "uint8") -> Array:
    raw = np.random.default_rng(seed).integers(0, 256, nbytes, np.uint8)
    return raw.view(DTYPES[dtype])


def echo(*arrays: Array, step: int = 0) -> PushPull:
    return PushPull(parts(arrays), (), step, 1)


async def works(link: Link) -> None:
    """Check that the connection can be used in both directions."""
    array = numbers(40_000, seed=99)
    for end in (link.client, link.server):
        assert end.is_open
        reply, arrays = await end.request(echo(array, step=77), [array])
        assert reply.version == 77
        assert np.array_equal(arrays[0], array)


# --- requests and replies


@on_both_loops
async def test_arrays_of_every_dtype_and_size_are_echoed(link: Link) -> None:
    for size in (0, 8, 64, 72, DIRECT - 8, DIRECT, DIRECT + 8, 1 << 20):
        sent = [numbers(size, seed, dtype) for seed, dtype in enumerate(DTYPES)]
        reply, arrays = await link.client.request(echo(*sent, step=size), sent)
        assert reply == Pulled(size, parts(sent))
        for array, expected in zip(arrays, sent, strict=True):
            assert array.dtype == expected.dtype
            assert array.tobytes() == expected.tobytes()


@on_both_loops
async def test_arrays_of_any_shape_may_be_sent(link: Link) -> None:
    sent = [
        np.full((), 3.5),
        np.ones((0, 4)),
        np.ones((3, 2), np.int16),
        numbers(1 << 17).reshape(2, -1),
    ]
    _, arrays = await link.client.request(echo(*sent), sent)
    assert [array.tobytes() for array in arrays] == [array.tobytes() for array in sent]


@on_both_loops
async def test_a_payload_is_received_into_the_arrays_that_the_caller_gives(link: Link) -> None:
    sent = [numbers(100), numbers(1 << 20, 1, "float32"), numbers(0), numbers(1 << 19, 2, "int64")]
    into = [np.zeros_like(array) for array in sent]
    link.client.targets = into
    _, arrays = await link.client.request(echo(*sent), sent, into)
    assert arrays is into
    assert [array.tobytes() for array in into] == [array.tobytes() for array in sent]
    through_scratch = link.client.received - link.client.direct
    assert through_scratch < 3 * (DIRECT + 1024)


@on_both_loops
async def test_traffic_is_counted_alike_at_both_ends(link: Link) -> None:
    array = numbers(100_000)
    await link.client.request(echo(array), [array])
    assert link.client.sent == link.server.received > 100_000
    assert link.server.sent == link.client.received > 100_000


@on_both_loops
async def test_replies_may_overtake_each_other(link: Link) -> None:
    names = [f"t{n}" for n in range(50)]
    pulls = [asyncio.ensure_future(link.client.request(Pull((name,)))) for name in names]
    await link.echo.has_held(len(names))
    array = numbers(1000)
    await link.client.request(echo(array), [array])
    order = random.Random(1).sample(names, len(names))
    for name in order:
        assert not pulls[names.index(name)].done()
        link.echo.held[name]()
        reply, arrays = await pulls[names.index(name)]
        assert isinstance(reply, Pulled)
        assert np.array_equal(arrays[0], ANSWER)


@on_both_loops
async def test_each_of_many_requests_under_way_gets_its_own_reply(link: Link) -> None:
    sent = [numbers(size, seed) for seed, size in enumerate(itertools.chain(*[[3, 20_000, 300_000]] * 20))]
    replies = await asyncio.gather(
        *(link.client.request(echo(array, step=100 + n), [array]) for n, array in enumerate(sent)),
        *(link.server.request(echo(array, step=100 + n), [array]) for n, array in enumerate(sent)),
    )
    for (reply, arrays), (n, array) in zip(replies, [*enumerate(sent)] * 2, strict=True):
        assert reply.version == 100 + n
        assert np.array_equal(arrays[0], array)


Sizes = list[list[int]]
sizes = st.integers(0, 300) | st.sampled_from([DIRECT - 1, DIRECT, DIRECT + 1, 5 * DIRECT, 300_000])
steps = st.tuples(
    st.sampled_from(["echo", "into", "refused", "push", "cancelled"]), st.lists(sizes, max_size=4)
)


@pytest.mark.parametrize(("loop_factory", "secured"), WAYS.values(), ids=WAYS)
@settings(deadline=None, max_examples=25)
@given(st.lists(steps, max_size=12), st.booleans())
def test_any_sequence_of_requests_is_answered_right(
    loop_factory: LoopFactory, secured: bool, script: list[tuple[str, list[int]]], at_once: bool
) -> None:
    async def ask(link: Link, number: int, kind: str, lengths: list[int]) -> None:
        sent = [numbers(length, seed) for seed, length in enumerate(lengths)]
        step = 100 + number
        match kind:
            case "echo" | "into":
                into = [np.zeros_like(array) for array in sent] if kind == "into" else None
                reply, arrays = await link.client.request(echo(*sent, step=step), sent, into)
                assert reply.version == step
                assert [array.tobytes() for array in arrays] == [array.tobytes() for array in sent]
            case "refused":
                with pytest.raises(BadTensor, match="unlucky"):
                    await link.client.request(echo(*sent, step=REFUSED_STEP), sent)
            case "push":
                reply, arrays = await link.client.request(Push(parts(sent), step, 1), sent)
                assert (reply, len(arrays)) == (Pushed(step), 0)
            case "cancelled":
                before = link.client.received
                request = asyncio.ensure_future(link.client.request(echo(*sent, step=step), sent))
                await link.client.has_received(before + 1)
                request.cancel()
                await asyncio.gather(request, return_exceptions=True)

    async def scenario(link: Link) -> None:
        if at_once:
            await asyncio.gather(*(ask(link, number, *step) for number, step in enumerate(script)))
        else:
            for number, step in enumerate(script):
                await ask(link, number, *step)
        await works(link)

    run_linked(loop_factory, scenario, secured=secured)


# --- requests that are refused


@on_both_loops
async def test_an_error_is_raised_at_the_caller_with_all_it_says(link: Link) -> None:
    with pytest.raises(BadTensor) as caught:
        await link.client.request(Lease(1, block=False))
    assert (caught.value.code, caught.value.message) == ("BAD_TENSOR", "no echo")
    assert (caught.value.field, caught.value.value) == ("op", "lease")
    assert link.echo.refusals[0][0] == "lease"
    await works(link)


@on_both_loops
async def test_a_refused_request_leaves_the_connection_usable(link: Link) -> None:
    for size in (0, 10, DIRECT, 4 << 20):
        array = numbers(size)
        with pytest.raises(BadTensor) as caught:
            await link.client.request(echo(array, step=REFUSED_STEP), [array])
        assert (caught.value.field, caught.value.value) == ("step", "13")
        await works(link)


@on_both_loops
async def test_a_refused_payload_takes_no_memory(link: Link) -> None:
    array = numbers(16 << 20)
    raw, server = await link.raw_client()
    header = frame(
        {"op": "push", "id": 1, "tensors": [["w", "uint8", len(array)]], "step": REFUSED_STEP, "seq": 1}
    )
    raw.send(encode_prelude(len(header) - PRELUDE.size, len(array)), header[PRELUDE.size :])
    fields, _ = await raw.frame()
    assert (fields["id"], fields["code"]) == (1, "BAD_TENSOR")
    tracemalloc.start()
    try:
        piece = bytes(1 << 16)
        for _ in range(len(array) // len(piece)):
            raw.send(piece)
            await raw.writer.drain()
        await server.has_received(len(header) + len(array))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2 << 20
    raw.send(frame({"op": "push", "id": 2, "tensors": [], "step": 5, "seq": 1}))
    assert (await raw.frame())[0] == {"op": "ok", "id": 2, "version": 5}
    await raw.close()


@on_both_loops
async def test_a_payload_that_is_not_what_the_header_says_is_refused(link: Link) -> None:
    array = numbers(1000)
    for request, arrays in (
        (echo(array), []),
        (echo(), [array]),
        (echo(array), [array, array]),
        (Pull(()), [array]),
    ):
        with pytest.raises(BadTensor) as caught:
            await link.client.request(request, arrays)
        assert caught.value.field == "payload length"
    await works(link)


def nested(depth: int) -> bytes:
    header = b"\x83\xa2id\x09\xa2op\xa4pull\xa5names" + b"\x91" * depth + b"\xc0"
    return encode_prelude(len(header), 0) + header


BAD_HEADERS: dict[str, tuple[bytes, int, str]] = {
    "unknown op": (frame({"op": "dance", "id": 9}), 9, "op"),
    "no op": (frame({"id": 9}), 0, "op"),
    "no id": (frame({"op": "pull"}), 0, "id"),
    "missing field": (frame({"op": "pull", "id": 9}), 9, "names"),
    "long unknown field": (frame({"op": "pull", "id": 9, "names": [], "\n" * 60_000: 1}), 9, "\\n"),
    "long unknown op": (frame({"op": "o" * 60_000, "id": 9}), 9, "op"),
    "deep": (nested(400), 9, "names"),
    "deeper": (nested(1000), 9, "names"),
    "too deep": (nested(60_000), 0, "header"),
    "not msgpack": (encode_prelude(1, 0) + b"\xc1", 0, "header"),
    "no header": (encode_prelude(0, 0), 0, "header"),
    "not a map": (encode_prelude(1, 0) + b"\x90", 0, "header"),
    "with a payload": (frame({"op": "dance", "id": 9}, bytes(100_000)), 9, "op"),
    "not msgpack, with a payload": (encode_prelude(1, 70_000) + b"\xc1" + bytes(70_000), 0, "header"),
}


@pytest.mark.parametrize("loop_factory", LOOPS.values(), ids=LOOPS)
@pytest.mark.parametrize("case", BAD_HEADERS)
def test_a_bad_header_is_answered_with_an_error_and_the_connection_stays_usable(
    loop_factory: LoopFactory, case: str
) -> None:
    stream, request_id, field = BAD_HEADERS[case]

    async def scenario(link: Link) -> None:
        raw, server = await link.raw_client()
        raw.send(stream, frame({"op": "push", "id": 10, "tensors": [], "step": 5, "seq": 1}))
        fields, _ = await raw.frame()
        assert (fields["op"], fields["id"], fields["code"]) == ("error", request_id, "BAD_REQUEST")
        assert fields["field"].startswith(field)
        assert len(fields["field"]) + len(fields["value"]) + len(fields["message"]) < 1000
        assert (await raw.frame())[0] == {"op": "ok", "id": 10, "version": 5}
        assert server.is_open
        await raw.close()

    run_linked(loop_factory, scenario)


@on_both_loops
async def test_an_end_that_only_asks_refuses_requests(link: Link) -> None:
    client = await dial(*link.address, RefuseAll(), max_payload=LIMIT, traffic=Traffic(), tls=link.tls)
    server = await link.accepted.get()
    with pytest.raises(BadRequest, match="this end answers no requests") as caught:
        await server.request(Pull(("w",)))
    assert caught.value.value == "pull"
    array = numbers(100)
    assert (await client.request(echo(array, step=3), [array]))[0].version == 3
    client.close()
    await client.wait_closed()


# --- frames that are none


BAD_FRAMES: dict[str, tuple[bytes, type[WireError]]] = {
    "version 2": (PRELUDE.pack(MAGIC, 2, 0, 1, 0), VersionMismatch),
    "flags": (PRELUDE.pack(MAGIC, 1, 1, 1, 0), BadFrame),
    "header too long": (PRELUDE.pack(MAGIC, 1, 0, MAX_HEADER + 1, 0), FrameTooLarge),
    "payload too long": (PRELUDE.pack(MAGIC, 1, 0, 1, LIMIT + 1), FrameTooLarge),
    "payload of 2^64-1": (PRELUDE.pack(MAGIC, 1, 0, 1, (1 << 64) - 1), FrameTooLarge),
}


@pytest.mark.parametrize("loop_factory", LOOPS.values(), ids=LOOPS)
@pytest.mark.parametrize("case", BAD_FRAMES)
def test_a_bad_frame_is_answered_with_an_error_and_the_end(loop_factory: LoopFactory, case: str) -> None:
    stream, expected = BAD_FRAMES[case]

    async def scenario(link: Link) -> None:
        raw, server = await link.raw_client()
        raw.send(frame({"op": "push", "id": 1, "tensors": [], "step": 5, "seq": 1}), stream)
        assert (await raw.frame())[0]["op"] == "ok"
        fields, _ = await raw.frame()
        assert (fields["op"], fields["id"], fields["code"]) == ("error", 0, expected.code)
        assert await raw.rest() == b""
        await server.wait_closed()
        assert not server.is_open
        [(op, error)] = server.handler.refusals  # type: ignore[attr-defined]
        assert (op, type(error)) == ("", expected)
        await raw.close()
        await works(link)

    run_linked(loop_factory, scenario)


@pytest.mark.parametrize("loop_factory", LOOPS.values(), ids=LOOPS)
@pytest.mark.parametrize("stream", [b"GET / HTTP/1.1\r\n\r\n", b"\0", b"APS\x02"])
def test_another_protocol_gets_no_answer_but_the_end(loop_factory: LoopFactory, stream: bytes) -> None:
    async def scenario(link: Link) -> None:
        raw, server = await link.raw_client()
        raw.send(stream)
        assert await raw.rest() == b""
        await server.wait_closed()
        [(op, error)] = server.handler.refusals  # type: ignore[attr-defined]
        assert (op, type(error), error.field) == ("", BadFrame, "magic")
        await raw.close()

    run_linked(loop_factory, scenario)


@pytest.mark.parametrize("loop_factory", LOOPS.values(), ids=LOOPS)
def test_tls_without_any_is_told_in_plain(loop_factory: LoopFactory) -> None:
    async def scenario(link: Link) -> None:
        raw, server = await link.raw_client()
        raw.send(b"\x16\x03\x01")
        fields, _ = await raw.frame()
        assert (fields["op"], fields["id"], fields["code"], fields["field"]) == (
            "error",
            0,
            "BAD_FRAME",
            "tls",
        )
        assert "--tls-cert" in fields["message"]
        assert await raw.rest() == b""
        await server.wait_closed()
        await raw.close()

    run_linked(loop_factory, scenario)


@on_both_loops
async def test_requests_fail_with_what_the_peer_says_of_the_whole_connection(link: Link) -> None:
    limited = await dial(*link.address, RefuseAll(), max_payload=LIMIT, traffic=Traffic(), tls=link.tls)
    (await link.accepted.get()).reply = None  # type: ignore[method-assign,assignment]
    waiting = asyncio.ensure_future(limited.request(Pull(("w",))))
    array = np.zeros(LIMIT + 1, np.uint8)
    with pytest.raises(FrameTooLarge, match="--max-frame"):
        await limited.request(Push(parts([array]), 0, 1), [array])
    with pytest.raises(FrameTooLarge, match="--max-frame"):
        await waiting
    assert not limited.is_open
    await limited.wait_closed()


@on_both_loops
async def test_a_header_that_is_too_long_is_the_senders_mistake_and_nothing_is_sent(link: Link) -> None:
    request = Pull(("n" * 128,) * 600)
    before = link.client.sent
    with pytest.raises(FrameTooLarge, match="name fewer tensors") as caught:
        await link.client.request(request)
    assert caught.value.field == "header length"
    array = numbers(8)
    reply = Pulled(0, parts([array]) * 6000)
    with pytest.raises(FrameTooLarge):
        link.server.reply(1, reply, [array] * 6000)
    assert (link.client.sent, link.server.sent) == (before, 0)
    await works(link)


# --- replies that are wrong


async def accept_request(raw: Raw) -> int:
    fields, _ = await raw.frame()
    return int(fields["id"])


def frame_of(header: bytes) -> bytes:
    """Return a frame without a payload."""
    return encode_prelude(len(header), 0) + header


def pulled(request_id: int, *arrays: Array) -> bytes:
    """Return the prelude and header of a reply."""
    header = encode_reply(request_id, Pulled(1, parts(arrays)))
    return encode_prelude(len(header), sum(array.nbytes for array in arrays)) + header


WRONG_REPLIES: dict[str, tuple[bytes, type[PSError]]] = {
    "a tensor of another size": (pulled(1, numbers(8)) + bytes(8), BadTensor),
    "a tensor of another dtype": (pulled(1, numbers(16, dtype="int8")) + bytes(16), BadTensor),
    "no tensor": (pulled(1), BadTensor),
    "more tensors": (pulled(1, numbers(64), numbers(16)) + bytes(80), BadTensor),
    "another payload": (
        frame({"op": "ok", "id": 1, "version": 1, "tensors": [["w", "uint8", 16]]}, b"15"),
        BadTensor,
    ),
    "a reply to something else": (frame({"op": "ok", "id": 1, "shard": 1}), BadRequest),
    "an error without its fields": (frame({"op": "error", "id": 1}), BadRequest),
    "an error with a payload": (
        frame({"op": "error", "id": 1, "code": "X", "message": "", "field": "", "value": ""}, bytes(99_999)),
        BadTensor,
    ),
}


@pytest.mark.parametrize("loop_factory", LOOPS.values(), ids=LOOPS)
@pytest.mark.parametrize(
    ("case", "given_arrays"),
    [(case, True) for case in WRONG_REPLIES]
    + [
        (case, False) for case in WRONG_REPLIES if "tensor" not in case
    ],  # without arrays, any tensors will do
)
def test_a_wrong_reply_fails_its_request_and_no_other(
    loop_factory: LoopFactory, case: str, given_arrays: bool
) -> None:
    stream, expected = WRONG_REPLIES[case]
    good = numbers(16, 5)

    async def serve(raw: Raw) -> None:
        assert await accept_request(raw) == 1
        raw.send(stream)
        raw.send(pulled(await accept_request(raw), good), good.tobytes())

    async def scenario(link: Link) -> None:
        async with dialled_by(serve) as client:
            with pytest.raises(expected):
                await client.request(Pull(("w",)), into=[np.zeros(16, np.uint8)] if given_arrays else None)
            _, (array,) = await client.request(Pull(("w",)))
            assert np.array_equal(array, good)

    run_linked(loop_factory, scenario)


@on_both_loops
async def test_a_reply_that_nobody_waits_for_is_skipped(link: Link) -> None:
    good = numbers(50_000, 5)

    async def serve(raw: Raw) -> None:
        request_id = await accept_request(raw)
        raw.send(pulled(request_id + 1, numbers(9)), bytes(9), frame({"op": "ok", "id": 77}))
        raw.send(frame({"op": "error", "id": 78}, bytes(100_000)))
        raw.send(pulled(request_id, good), good.tobytes())

    async with dialled_by(serve) as client:
        _, (array,) = await client.request(Pull(("w",)))
        assert np.array_equal(array, good)


@on_both_loops
async def test_a_second_reply_does_not_change_what_the_first_one_brought(link: Link) -> None:
    first, second = numbers(5000, 1), numbers(5000, 2)

    async def serve(raw: Raw) -> None:
        request_id = await accept_request(raw)
        replies = [pulled(request_id, array) + array.tobytes() for array in (first, second)]
        raw.send(*replies)
        raw.send(pulled(await accept_request(raw), second), second.tobytes())

    async with dialled_by(serve) as client:
        into = [np.zeros(5000, np.uint8)]
        await client.request(Pull(("w",)), into=into)
        assert np.array_equal(into[0], first)
        _, (array,) = await client.request(Pull(("w",)))
        assert np.array_equal(array, second)
        assert np.array_equal(into[0], first)


@on_both_loops
async def test_a_request_can_be_cancelled_in_the_middle_of_its_reply(link: Link) -> None:
    lost, good = numbers(1 << 20, 1), numbers(1 << 20, 2)
    cancelled = asyncio.Event()
    head = pulled(1, lost)

    async def serve(raw: Raw) -> None:
        assert await accept_request(raw) == 1
        raw.send(head, lost[: 1 << 19].tobytes())
        await cancelled.wait()
        raw.send(lost[1 << 19 :].tobytes())
        raw.send(pulled(await accept_request(raw), good), good.tobytes())

    async with dialled_by(serve) as client:
        request = asyncio.ensure_future(client.request(Pull(("w",))))
        await client.has_received(len(head) + (1 << 19))
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request
        cancelled.set()
        _, (array,) = await client.request(Pull(("w",)))
        assert np.array_equal(array, good)


@on_both_loops
async def test_a_request_that_was_cancelled_before_its_reply_leaves_nothing_behind(link: Link) -> None:
    request = asyncio.ensure_future(link.client.request(Pull(("w",))))
    await link.echo.has_held(1)
    request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request
    link.echo.held["w"]()
    await works(link)


@on_both_loops
async def test_a_request_that_is_done_keeps_no_arrays(link: Link) -> None:
    sent, into = numbers(100_000), np.zeros(100_000, np.uint8)
    references = [weakref.ref(sent), weakref.ref(into)]
    await link.client.request(echo(sent), [sent], [into])
    del sent, into
    await works(link)
    gc.collect()
    assert [reference() for reference in references] == [None, None]


# --- ends


@on_both_loops
async def test_requests_fail_when_the_peer_goes(link: Link) -> None:
    pulls = [asyncio.ensure_future(link.client.request(Pull((name,)))) for name in "abc"]
    await link.echo.has_held(3)
    link.server.abort()
    for error in await asyncio.gather(*pulls, return_exceptions=True):
        assert isinstance(error, ConnectionLost)
    with pytest.raises(ConnectionLost):
        await link.client.request(Pull(("d",)))
    await link.client.wait_closed()
    assert not link.client.is_open


@on_both_loops
async def test_a_request_fails_when_the_peer_goes_in_the_middle_of_the_reply(link: Link) -> None:
    async def serve(raw: Raw) -> None:
        raw.send(pulled(await accept_request(raw), numbers(1 << 20)), bytes(1 << 19))
        await raw.close()

    async with dialled_by(serve) as client:
        with pytest.raises(ConnectionLost):
            await client.request(Pull(("w",)))
        assert not client.is_open


@on_both_loops
async def test_closing_sends_what_is_queued_and_tells_both_handlers(link: Link) -> None:
    array = numbers(8 << 20)
    await link.client.request(echo(numbers(1)), [numbers(1)])
    pull = asyncio.ensure_future(link.client.request(Pull(("w",)), into=[np.zeros(5, np.int32)]))
    await link.echo.has_held(1)
    waiting = asyncio.ensure_future(link.server.request(Push(parts([array]), 0, 1), [array]))
    await asyncio.sleep(0)  # one turn of the loop, in which the request is queued
    link.echo.held["w"]()
    link.server.close(OutOfOrder("the reason"))
    with pytest.raises(OutOfOrder, match="the reason"):
        await waiting
    _, (answer,) = await pull
    assert np.array_equal(answer, ANSWER)
    for end in (link.server, link.client):
        await end.wait_closed()
        assert end.handler.ended.done()  # type: ignore[attr-defined]
    assert link.client.received == link.server.sent


@on_both_loops
async def test_nothing_is_sent_after_the_end(link: Link) -> None:
    pulls = [asyncio.ensure_future(link.client.request(Pull((name,)))) for name in "abc"]
    await link.echo.has_held(3)
    link.server.close()
    sent = link.server.sent
    link.echo.held["a"]()
    link.server.fail(2, "pull", OutOfOrder("gone"))
    await link.server.wait_closed()
    link.echo.held["c"]()
    link.server.fail(3, "pull", OutOfOrder("gone"))
    link.server.close()
    assert link.server.sent == sent
    with pytest.raises(ConnectionLost, match="closed at this end"):
        await link.server.request(Pull(("d",)))
    for error in await asyncio.gather(*pulls, return_exceptions=True):
        assert isinstance(error, ConnectionLost)


@on_both_loops
async def test_ending_a_connection_that_has_ended_does_nothing(link: Link) -> None:
    for end in (link.client, link.server):
        end.close()
        await end.wait_closed()
        end.close()
        end.abort()
        await end.wait_closed()


@on_both_loops
async def test_half_a_frame_and_the_end_is_no_request(link: Link) -> None:
    raw, server = await link.raw_client()
    whole = frame(
        {"op": "push", "id": 1, "tensors": [["w", "uint8", 50_000]], "step": 5, "seq": 1}, bytes(50_000)
    )
    raw.send(whole[:-1])
    if raw.writer.can_write_eof():
        raw.writer.write_eof()
    else:  # TLS ends in both directions at once
        raw.writer.close()
    assert await raw.rest() == b""
    await server.wait_closed()
    assert server.received == len(whole) - 1
    assert server.sent == 0
    await raw.close()


@on_both_loops
async def test_nobody_answers_at_a_closed_port(link: Link) -> None:
    listener = await asyncio.get_running_loop().create_server(asyncio.Protocol, "127.0.0.1", 0)
    address = listener.sockets[0].getsockname()
    listener.close()
    await listener.wait_closed()
    with pytest.raises(OSError, match=r"(?i)connect"):
        await dial(address[0], address[1], RefuseAll(), max_payload=LIMIT, traffic=Traffic())


# --- peers that do not read


@on_both_loops
async def test_a_peer_that_does_not_read_is_not_read_from(link: Link) -> None:
    answer, requests, queued = np.zeros(64 * 1024, np.uint8), 1000, 1 << 20
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_QUEUED", queued)
        raw, server = await link.raw_client()
    most = 0

    def handle(connection: Any, request_id: int, request: Any, arrays: Any) -> None:
        nonlocal most
        connection.reply(request_id, Pulled(0, parts([answer])), [answer])
        most = max(most, server.transport.get_write_buffer_size())

    server.handler.handle = handle  # type: ignore[method-assign]
    raw.writer.transport.pause_reading()  # type: ignore[attr-defined]
    raw.send(*(frame({"op": "pull", "id": n, "names": []}) for n in range(1, requests + 1)))
    await server.paused.wait()
    raw.writer.transport.resume_reading()  # type: ignore[attr-defined]
    for n in range(1, requests + 1):
        fields, payload = await raw.frame()
        assert fields["id"] == n
        assert len(payload) == answer.nbytes
    assert queued // 2 < most <= queued + answer.nbytes + MAX_HEADER
    await raw.close()


@on_both_loops
async def test_a_client_holds_its_requests_back_while_the_server_does_not_read(link: Link) -> None:
    large, good = numbers(32 << 20), numbers(16)
    may_read = asyncio.Event()

    async def serve(raw: Raw) -> None:
        await may_read.wait()
        request_id = await accept_request(raw)
        raw.send(frame({"op": "ok", "id": request_id, "version": 4}))
        raw.send(pulled(await accept_request(raw), good), good.tobytes())

    async with dialled_by(serve) as client:
        push = asyncio.ensure_future(client.request(Push(parts([large]), 0, 1), [large]))
        await client.paused.wait()
        sent = client.sent
        pulls = [asyncio.ensure_future(client.request(Pull((name,)))) for name in "ab"]
        await asyncio.sleep(0)  # one turn of the loop, in which they would be sent
        assert client.sent == sent
        pulls.pop().cancel()
        may_read.set()
        assert (await push)[0] == Pushed(4)
        assert np.array_equal((await pulls[0])[1][0], good)


@on_both_loops
async def test_requests_that_are_held_back_fail_with_the_connection(link: Link) -> None:
    large = numbers(32 << 20)
    may_go = asyncio.Event()

    async def serve(raw: Raw) -> None:
        await may_go.wait()
        raw.writer.transport.abort()

    async with dialled_by(serve) as client:
        requests = [asyncio.ensure_future(client.request(Push(parts([large]), 0, 1), [large]))]
        await client.paused.wait()
        requests += [asyncio.ensure_future(client.request(Pull((name,)))) for name in "ab"]
        await asyncio.sleep(0)  # one turn of the loop, in which they begin to wait
        may_go.set()
        for error in await asyncio.gather(*requests, return_exceptions=True):
            assert isinstance(error, ConnectionLost)


@on_both_loops
async def test_what_is_held_back_is_sent_in_the_order_of_the_calls_notices_too(link: Link) -> None:
    large, small = numbers(32 << 20), numbers(5000)
    may_read, came = asyncio.Event(), list[tuple[str, int]]()

    async def serve(raw: Raw) -> None:
        await may_read.wait()
        for _ in range(8):
            fields, payload = await raw.frame()
            came.append((fields["op"], len(payload)) if fields["id"] else ("notice", len(fields["names"])))
            if fields["op"] != "pull":
                raw.send(frame({"op": "ok", "id": fields["id"], "version": 4}))
        raw.send(pulled(fields["id"], small), small.tobytes())

    async with dialled_by(serve) as client:
        pushes = [client.send(Push(parts([large]), 0, 1), [large])]
        await client.paused.wait()
        client.notify(Pull(("w",)))
        pushes.append(client.send(Push(parts([small]), 0, 2), [small]))
        client.notify(Pull(("w",) * 2))
        client.notify(Pull(("w",) * 3))
        pushes.append(client.send(Push((), 0, 3)))
        pushes.append(client.send(Push(parts([large]), 0, 4), [large]))
        last = client.send(Pull(("w",)))
        may_read.set()
        await last
        client.notify(Pull(()))
        assert [reply for reply, _ in await asyncio.gather(*pushes)] == [Pushed(4)] * 4
    assert came == [
        ("push", 32 << 20), ("notice", 1), ("push", 5000), ("notice", 2), ("notice", 3), ("push", 0),
        ("push", 32 << 20), ("pull", 0),
    ]  # fmt: skip


# --- notices


@on_both_loops
async def test_a_notice_is_handled_and_never_answered(link: Link) -> None:
    raw, server = await link.raw_client()
    echo_there = server.handler
    assert isinstance(echo_there, Echo)
    array = numbers(50_000)
    tensors = [["w", "uint8", 50_000]]
    raw.send(
        frame({"op": "push", "id": 0, "tensors": [], "step": 5, "seq": 1}),
        frame({"op": "push", "id": 0, "tensors": tensors, "step": REFUSED_STEP, "seq": 1}, array.tobytes()),
        frame({"op": "pull", "id": 0, "names": ["w"]}),
        frame({"op": "pull", "id": 0}),
        frame({"op": "lease", "id": 0, "seq": 1, "block": False}),
        frame({"op": "dance", "id": 0}),
        frame({"op": "ok", "id": 0}),
        frame({"op": "push", "id": 7, "tensors": [], "step": 6, "seq": 1}),
    )
    assert (await raw.frame())[0] == {"op": "ok", "id": 7, "version": 6}
    before = server.sent
    echo_there.held["w"]()
    assert server.sent == before
    assert [op for op, _ in echo_there.refusals] == ["push", "pull", "lease", "dance"]
    await raw.close()


@on_both_loops
async def test_a_notice_arrives_and_takes_no_id_of_a_request(link: Link) -> None:
    link.client.notify(Lease(1, block=False))
    pull = link.client.send(Pull(("w",)))
    link.client.notify(Lease(2, block=False))
    await link.echo.has_held(1)
    await works(link)
    assert [op for op, _ in link.echo.refusals] == ["lease", "lease"]
    link.echo.held["w"]()
    assert np.array_equal((await pull)[1][0], ANSWER)


@on_both_loops
async def test_a_notice_that_cannot_be_sent(link: Link) -> None:
    before = link.client.sent
    with pytest.raises(FrameTooLarge, match="name fewer tensors"):
        link.client.notify(Pull(("n" * 128,) * 600))
    link.client.close()
    link.client.notify(Pull(()))
    await link.client.wait_closed()
    link.client.notify(Pull(()))
    assert link.client.sent == before


def hello_of(length: int) -> Hello:
    """Return a request whose header has ``length`` bytes if its id is as long as any."""
    longest = (1 << 63) - 1
    fixed = len(encode_request(longest, Hello((1,), "c" * 60_000))) - 60_000
    hello = Hello((1,), "c" * (length - fixed))
    assert len(encode_request(longest, hello)) == length
    return hello


@on_both_loops
async def test_what_the_check_of_the_length_lets_pass_can_be_sent(link: Link) -> None:
    check_length(hello_of(MAX_HEADER))
    with pytest.raises(BadTensor, match="no echo"):
        await link.client.request(hello_of(MAX_HEADER))
    with pytest.raises(FrameTooLarge) as caught:
        check_length(hello_of(MAX_HEADER + 1))
    assert caught.value.field == "header length"


# --- requests that outlive their connection


async def lost(end: Watched) -> list[Pending]:
    """Return what is handed over once the connection has ended."""
    await end.wait_closed()
    assert isinstance(end.handler, Echo)
    assert end.handler.ended.done()
    return end.take_unanswered()


@on_both_loops
async def test_what_is_unanswered_is_handed_over_in_the_order_of_sending(link: Link) -> None:
    large = numbers(32 << 20)
    may_go = asyncio.Event()

    async def serve(raw: Raw) -> None:
        ids = [await accept_request(raw) for _ in range(4)]
        raw.send(frame({"op": "ok", "id": ids[1], "version": 4}))
        raw.send(frame_of(encode_error(ids[2], NotFinite("no"))))
        await may_go.wait()
        raw.writer.transport.abort()

    async with dialled_by(serve) as client:
        client.resend = True
        sent = [client.send(Push((), step, step + 1)) for step in range(4)]
        assert (await sent[1])[0] == Pushed(4)
        with pytest.raises(NotFinite):
            await sent[2]
        sent += [client.send(Push(parts([large]), 4, 5), [large]), client.send(Push((), 5, 6))]
        await client.paused.wait()
        client.notify(Pull(("w",)))
        sent += [client.send(Push((), step, step + 1)) for step in range(6, 10)]
        for cancelled in (3, 5, 7, 9):
            sent[cancelled].cancel()
        may_go.set()
        taken = await lost(client)
        assert [pending.request.seq for pending in taken] == [1, 4, 5, 6, 7, 8, 9, 10]  # type: ignore[union-attr]
        assert [pending.future for pending in taken] == [sent[0], *sent[3:]]
        assert [future.done() for future in sent] == [seq in (2, 3, 4, 6, 8, 10) for seq in range(1, 11)]
        assert taken[2].arrays[0] is large
        assert client.take_unanswered() == []
        with pytest.raises(ConnectionLost):
            await client.request(Push((), 10, 11))


@on_both_loops
async def test_what_is_handed_over_can_be_sent_elsewhere_and_its_callers_get_the_answers(link: Link) -> None:
    sent = [numbers(320_000, 1), numbers(100, 2)]
    into = [np.zeros_like(array) for array in sent]
    halfway = asyncio.Event()

    async def serve(raw: Raw) -> None:
        request_id = await accept_request(raw)
        raw.send(pulled(request_id, numbers(320_000, 3), sent[1]), numbers(150_000, 3).tobytes())
        await halfway.wait()
        raw.writer.transport.abort()

    async with dialled_by(serve) as client:
        client.resend = True
        echoed = client.send(echo(*sent, step=77), sent, into)
        pull, cancelled = client.send(Pull(("a",))), client.send(Lease(1, block=False))
        refused = client.send(echo(step=REFUSED_STEP))
        await client.has_received(150_000)
        cancelled.cancel()
        halfway.set()
        for pending in await lost(client):
            link.client.submit(pending)
    reply, arrays = await echoed
    assert reply.version == 77
    assert arrays is into
    assert [array.tobytes() for array in into] == [array.tobytes() for array in sent]
    with pytest.raises(BadTensor, match="unlucky"):
        await refused
    link.echo.held["a"]()
    assert np.array_equal((await pull)[1][0], ANSWER)
    assert [op for op, _ in link.echo.refusals] == ["lease", "push_pull"]  # cancelled, but sent all the same
    await works(link)


@on_both_loops
async def test_a_request_that_is_lost_again_is_handed_over_again(link: Link) -> None:
    client, server = link.client, link.server
    client.resend = True
    pull = client.send(Pull(("w",)))
    for _ in range(3):
        server.abort()
        (pending,) = await lost(client)
        client, server = await link.another()
        client.resend = True
        client.submit(pending)
    assert isinstance(server.handler, Echo)
    await server.handler.has_held(1)
    server.handler.held["w"]()
    assert np.array_equal((await pull)[1][0], ANSWER)
    server.abort()
    assert await lost(client) == []


@on_both_loops
async def test_what_was_given_up_and_then_answered_is_not_handed_over(link: Link) -> None:
    link.client.resend = True
    given_up = link.client.send(Pull(("w",)))
    await link.echo.has_held(1)
    given_up.cancel()
    link.echo.held["w"]()
    await works(link)
    link.server.abort()
    assert await lost(link.client) == []


@on_both_loops
async def test_what_is_sent_while_the_connection_is_ending_is_handed_over(link: Link) -> None:
    link.client.resend = True
    link.client.abort()
    pull = link.client.send(Pull(("w",)))
    (pending,) = await lost(link.client)
    assert pending.future is pull
    assert not pull.done()


@on_both_loops
async def test_a_server_that_stops_has_not_answered(link: Link) -> None:
    stopping = ShuttingDown("the server is stopping")

    def refuse(connection: Any, request_id: int, request: Any, arrays: Any) -> None:
        connection.fail(request_id, request.op, stopping)

    link.server.handler.handle = refuse  # type: ignore[method-assign]
    with pytest.raises(ShuttingDown):
        await link.client.request(Push((), 0, 1))
    link.client.resend = True
    pushes = [link.client.send(Push((), 0, seq)) for seq in (1, 2, 3)]
    pushes[1].cancel()
    assert (await link.server.request(Push((), 5, 1)))[0] == Pushed(5)  # after the refusals
    assert [future.done() for future in pushes] == [False, True, False]
    link.server.close(stopping)
    assert [pending.future for pending in await lost(link.client)] == pushes


@on_both_loops
async def test_an_end_of_ones_own_hands_nothing_over(link: Link) -> None:
    link.client.resend = True
    pull = link.client.send(Pull(("w",)))
    link.client.close(OutOfOrder("the reason"))
    with pytest.raises(OutOfOrder, match="the reason"):
        await pull
    assert await lost(link.client) == []


@on_both_loops
async def test_a_peer_whose_bytes_make_no_sense_is_not_tried_again(link: Link) -> None:
    link.client.resend = True
    pull = link.client.send(Pull(("w",)))
    link.server.transport.write(PRELUDE.pack(MAGIC, 1, 1, 1, 0))
    with pytest.raises(BadFrame):
        await pull
    assert await lost(link.client) == []
    assert isinstance(link.client.error, BadFrame)


@on_both_loops
async def test_a_connection_that_is_lost_keeps_none_of_the_arrays(link: Link) -> None:
    sent = numbers(100_000)
    reference = weakref.ref(sent)
    link.client.resend = True
    push = link.client.send(Pull(("w",)), [sent])
    del sent
    link.server.abort()
    (pending,) = await lost(link.client)
    push.cancel()
    del pending, push
    gc.collect()
    assert reference() is None


# --- progress


@on_both_loops
async def test_all_that_has_come_and_gone_is_progress(link: Link) -> None:
    for size in (0, 1000, 1 << 20):
        array = numbers(size)
        await link.client.request(echo(array), [array])
        assert link.client.progress == link.client.sent + link.client.received


@on_both_loops
async def test_what_the_peer_does_not_read_is_no_progress_and_what_it_reads_is(link: Link) -> None:
    large, piece, notice = numbers(48 << 20), 4 << 20, frame({"op": "pull", "id": 0, "names": ["w"]})
    may_read = asyncio.Queue[int]()

    async def serve(raw: Raw) -> None:
        while nbytes := await may_read.get():
            await raw.reader.readexactly(nbytes)
            raw.send(notice)  # it tells the other end's kernel what has arrived
        raw.writer.transport.abort()

    async with dialled_by(serve) as client:
        push = client.send(Push(parts([large]), 0, 1), [large])
        await client.paused.wait()
        assert client.progress < len(large) // 2
        for count in range(1, 7):
            may_read.put_nowait(piece)
            await client.has_received(count * len(notice))
            assert count * piece <= client.progress < client.sent
        may_read.put_nowait(0)
        with pytest.raises(ConnectionLost):
            await push


@on_both_loops
async def test_what_only_the_kernels_have_taken_is_no_progress(link: Link) -> None:
    large = numbers(1 << 20)
    loop = asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", 0)) as hung:  # its kernel takes connections, and a few bytes
        hung.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        hung.setblocking(False)
        _, client = await loop.create_connection(lambda: Watched(Echo(), server=False), *hung.getsockname())
        link.ends.append(client)
        push = client.send(Push(parts([large]), 0, 1), [large])
        for _ in range(5):  # turns of the loop, in which it goes to the kernel
            await asyncio.sleep(0)
            assert client.progress < len(large) // 2
        peer, _ = await loop.sock_accept(hung)
        with peer:
            left = client.sent
            while left:
                left -= len(await loop.sock_recv(peer, left))
            await loop.sock_sendall(peer, frame({"op": "ok", "id": 1, "version": 4}))
            assert (await push)[0] == Pushed(4)
            assert client.progress == client.sent + client.received


@on_both_loops
async def test_a_reply_that_comes_slowly_is_progress(link: Link) -> None:
    answer = numbers(100_000)
    pieces = asyncio.Queue[int]()

    async def serve(raw: Raw) -> None:
        request_id = await accept_request(raw)
        stream = pulled(request_id, answer) + answer.tobytes()
        while stream:
            nbytes = await pieces.get()
            raw.send(stream[:nbytes])
            stream = stream[nbytes:]

    async with dialled_by(serve) as client:
        pull = client.send(Pull(("w",)))
        seen = []
        for nbytes in (1, 1, 20, 50_000):
            before = client.received
            pieces.put_nowait(nbytes)
            await client.has_received(before + nbytes)
            seen.append(client.progress)
        assert seen == sorted(set(seen))
        pieces.put_nowait(len(answer))
        assert np.array_equal((await pull)[1][0], answer)


@on_both_loops
async def test_the_progress_of_a_connection_that_has_ended_stands_still(link: Link) -> None:
    await works(link)
    link.server.abort()
    await link.client.wait_closed()
    before = link.client.progress
    link.client.abort()
    link.client.close()
    assert link.client.progress == before

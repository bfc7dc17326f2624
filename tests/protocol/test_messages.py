import contextlib
import dataclasses
import math
import struct
import tracemalloc
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.errors import BadRequest, BadTensor, Conflict, Fenced, OutOfOrder, PSError, ShuttingDown
from protocol.frames import MAX_HEADER
from protocol.measures import MAX_MEASURES
from protocol.messages import (
    MAX_ARRAY,
    MAX_MAP,
    REQUESTS,
    Empty,
    Finish,
    Header,
    Hello,
    Join,
    Joined,
    Pull,
    Pulled,
    Push,
    Reply,
    Set,
    ShardJoined,
    Welcome,
    check_weight,
    decode_header,
    decode_reply,
    decode_request,
    encode_error,
    encode_reply,
    encode_request,
)
from tests.protocol.strategies import LARGEST, instances

REPLIES = Reply.__args__
ids = st.integers(1, LARGEST)


def named(cls: type) -> str:
    return cls.__name__


def pack(value: object) -> bytes:
    packed: bytes = msgpack.packb(value)
    return packed


def decode(header: bytes) -> Any:
    return decode_request(decode_header(header))


@pytest.mark.parametrize("cls", REQUESTS, ids=named)
@given(st.data(), ids)
@settings(max_examples=25)  # of each of some twenty types
def test_a_request_arrives_as_it_was_sent(cls: type, data: st.DataObject, request_id: int) -> None:
    request = data.draw(instances(cls))
    header = decode_header(encode_request(request_id, request))
    assert (header.op, header.id) == (request.op, request_id)
    assert decode_request(header) == request


@pytest.mark.parametrize("cls", REPLIES, ids=named)
@given(st.data(), ids)
@settings(max_examples=25)
def test_a_reply_arrives_as_it_was_sent(cls: type, data: st.DataObject, request_id: int) -> None:
    reply = data.draw(instances(cls))
    header = decode_header(encode_reply(request_id, reply))
    assert (header.op, header.id) == ("ok", request_id)
    assert decode_reply(header, cls) == reply


@given(st.text(), st.text(), st.text(), st.integers(0, LARGEST))
def test_an_error_arrives_as_it_was_sent(message: str, field: str, value: str, request_id: int) -> None:
    header = decode_header(encode_error(request_id, BadTensor(message, field=field, value=value)))
    assert (header.op, header.id) == ("error", request_id)
    arrived = decode_reply(header, Empty)
    assert type(arrived) is BadTensor
    assert (arrived.message, arrived.field) == (message, field)
    assert arrived.value == BadTensor("", value=value).value


def test_a_server_without_a_number_yet_can_say_so() -> None:
    welcome = Welcome(version=1, server="s", shard=None, shards=2, max_frame=1)
    assert decode_reply(decode_header(encode_reply(1, welcome)), Welcome) == welcome


def test_every_request_has_an_operation_of_its_own_and_a_reply() -> None:
    assert len({cls.op for cls in REQUESTS}) == len(REQUESTS)
    assert not {cls.op for cls in REQUESTS} & {"ok", "error"}
    assert all(cls.reply in REPLIES for cls in REQUESTS)


def test_no_field_is_named_like_what_every_header_has() -> None:
    for cls in (*REQUESTS, *REPLIES):
        assert not {"op", "id"} & {field.name for field in dataclasses.fields(cls)}


def test_a_header_holds_what_the_documentation_says() -> None:
    header = msgpack.unpackb(encode_request(7, Pull(("w", "b"))))
    assert header == {"op": "pull", "id": 7, "names": ["w", "b"]}
    assert msgpack.unpackb(encode_reply(7, Empty())) == {"op": "ok", "id": 7}


@pytest.mark.parametrize(
    ("header", "field"),
    [
        (b"", "header"),
        (b"\xc1", "header"),
        (b"\x00", "header"),
        (pack([]), "header"),
        (pack("pull"), "header"),
        (pack(None), "header"),
        (pack({"op": "pull", "id": 1}) + b"\x00", "header"),
        (pack({"op": "pull", "id": 1})[:-1], "header"),
        (pack({"op": "pull", "id": 1, 7: 1}), "header"),
        (pack({"op": "pull", "id": 1, "names": b"bytes"}), "header"),
        (pack({"op": "pull", "id": 1, "names": msgpack.ExtType(1, b"x")}), "header"),
        (pack({"op": "pull", "id": 1, "names": msgpack.Timestamp(1)}), "header"),
        (b"\x81\xa2op\xa2\xff\xfe", "header"),  # not UTF-8
        (b"\x81\xa2op\xa3\xed\xa0\x80", "header"),  # a lone surrogate
        (pack({"op": "pull", "id": 1, **{str(n): 0 for n in range(MAX_MAP)}}), "header"),
        (pack({"op": "pull", "id": 1, "names": ["w"] * (MAX_ARRAY + 1)}), "header"),
        (pack({}), "id"),
        (pack({"op": "pull"}), "id"),
        (pack({"op": "pull", "id": -1}), "id"),
        (pack({"op": "pull", "id": True}), "id"),
        (pack({"op": "pull", "id": 1.0}), "id"),
        (pack({"op": "pull", "id": "1"}), "id"),
        (pack({"op": "pull", "id": 1 << 63}), "id"),
        (pack({"op": "pull", "id": (1 << 64) - 1}), "id"),
        (pack({"id": 1}), "op"),
        (pack({"op": None, "id": 1}), "op"),
        (pack({"op": 1, "id": 1}), "op"),
        (pack({"op": ["pull"], "id": 1}), "op"),
        (pack({"op": b"", "id": 1}), "op"),
        (pack({"op": "", "id": 1}), "op"),
        (pack({"op": "Pull", "id": 1}), "op"),
        (pack({"op": "__class__", "id": 1}), "op"),
        (pack({"op": "ok", "id": 1}), "op"),
        (pack({"op": "pull", "id": 1}), "names"),
        (pack({"op": "pull", "id": 1, "names": ["a/b"]}), "names"),
        (pack({"op": "pull", "id": 1, "names": [], "more": 1}), "more"),
        (pack({"op": "pull", "id": 1, "names": [], b"": 1}), "b''"),
        (pack({"op": "pull", "id": 1, "names": msgpack.ExtType(1, b"")}), "names"),
        (pack({"op": "push", "id": 1, "step": 0, "tensors": [["w", "object", 1]]}), "dtype"),
        (pack({"op": "push", "id": 1, "step": 0, "tensors": [["w", "int8", -1]]}), "elements"),
        (pack({"op": "push", "id": 1, "step": 0, "tensors": [["w", "int8", 1 << 63]]}), "elements"),
        (pack({"op": "push", "id": 1, "step": 0, "tensors": [["../w", "int8", 1]]}), "name"),
        (pack({"op": "push", "id": 1, "step": 0, "tensors": [["w", "int8"]]}), "tensors"),
        (pack({"op": "push", "id": 1, "step": 0, "seq": 1, "tensors": [], "weight": "1"}), "weight"),
        (pack({"op": "push", "id": 1, "step": 0, "seq": 1, "tensors": [], "weight": -1.0}), "weight"),
        (pack({"op": "push", "id": 1, "step": 0, "seq": 1, "tensors": [], "weight": float("inf")}), "weight"),
        (pack({"op": "push", "id": 1, "step": 0, "seq": 1, "tensors": [], "weight": float("nan")}), "weight"),
        (pack({"op": "join", "id": 1, "token": "t", "job": "j", "staleness": 0.5}), "staleness"),
        (pack({"op": "join", "id": 1, "token": "t", "job": "j", "staleness": -1}), "staleness"),
        (pack({"op": "join", "id": 1, "token": "t", "job": "j", "staleness": float("nan")}), "staleness"),
        (pack({"op": "join", "id": 1, "token": "t", "job": "j", "workers": 0}), "workers"),
        (pack({"op": "finish", "id": 1, "seq": 1, "kind": "rest"}), "kind"),
        (pack({"op": "push", "id": 1, "step": 0, "tensors": [], "seq": 0}), "seq"),
        (pack({"op": "push", "id": 1, "step": 0, "tensors": []}), "seq"),
        (pack({"op": "lease", "id": 1, "block": True}), "seq"),
        (pack({"op": "join", "id": 1, "job": "j"}), "token"),
        (pack({"op": "join", "id": 1, "token": ""}), "token"),
        (pack({"op": "join", "id": 1, "token": "t", "staleness": 1 << 31}), "staleness"),
        (pack({"op": "join", "id": 1, "token": "t", "staleness": float("-inf")}), "staleness"),
        (pack({"op": "join", "id": 1, "token": "t", "backup_workers": -1}), "backup_workers"),
        (pack({"op": "set", "id": 1, "staleness": "inf"}), "staleness"),
        (pack({"op": "set", "id": 1, "backup_workers": 0.5}), "backup_workers"),
        (pack({"op": "hello", "id": 1, "versions": [1], "client": "", "incarnation": -1}), "incarnation"),
        (pack({"op": "heartbeat", "id": 1, "clock": 0, "examples": -1}), "examples"),
        (pack({"op": "heartbeat", "id": 1, "clock": 0, "examples": 0, "loss": "1"}), "loss"),
        (pack({"op": "leave", "id": 1}), "clock"),
        (pack({"op": "ended", "id": 0, "job": "j", "step": 0, "workers": [-1], "idle": []}), "workers"),
        (pack({"op": "ended", "id": 0, "job": "j", "step": 0, "workers": [], "idle": [True]}), "idle"),
        (pack({"op": "ended", "id": 0, "job": "j", "step": 0, "workers": []}), "idle"),
        (pack({"op": "decide", "id": 0, "job": "j", "step": -1, "workers": [], "commit": True}), "step"),
        (pack({"op": "decide", "id": 0, "job": "j", "step": 0, "workers": [], "commit": 1}), "commit"),
        (pack({"op": "join_shard", "id": 1, "port": 0}), "port"),
        (pack({"op": "join_shard", "id": 1, "port": 1, "cluster": 7}), "cluster"),
    ],
)  # fmt: skip
def test_a_bad_header_is_refused_with_the_field(header: bytes, field: str) -> None:
    with pytest.raises(BadRequest) as caught:
        decode(header)
    assert caught.value.field == field


def test_a_header_with_the_last_good_values_is_taken() -> None:
    most = ["w"] * MAX_ARRAY
    assert decode(pack({"op": "pull", "id": LARGEST, "names": most})) == Pull(tuple(most))
    push = {"op": "push", "id": 0, "tensors": [], "step": LARGEST, "seq": LARGEST, "weight": 0}
    assert decode(pack(push)) == Push((), LARGEST, LARGEST, 0.0)
    join = {"op": "join", "id": 1, "token": "t", "job": "j", "staleness": float("inf"), "name": None}
    assert decode(pack(join)) == Join("t", "j", staleness=float("inf"))
    assert decode(pack({"op": "join", "id": 1, "token": "t", "staleness": 3})) == Join("t", staleness=3.0)


NUMBERED = [cls for cls in REQUESTS if "seq" in {field.name for field in dataclasses.fields(cls)}]


def test_what_counts_once_is_numbered() -> None:
    assert {cls.op for cls in NUMBERED} == {"push", "push_pull", "reset", "marker", "lease", "finish"}


@pytest.mark.parametrize("cls", NUMBERED, ids=named)
@pytest.mark.parametrize("seq", [0, -1, 1.0, True, "1", None, 1 << 63, [1]])
@given(data=st.data())
@settings(max_examples=5)
def test_a_number_counts_from_1(cls: type, seq: object, data: st.DataObject) -> None:
    fields = msgpack.unpackb(encode_request(1, data.draw(instances(cls))))
    with pytest.raises(BadRequest) as caught:
        decode(pack({**fields, "seq": seq}))
    assert caught.value.field == "seq"
    del fields["seq"]
    with pytest.raises(BadRequest) as caught:
        decode(pack(fields))
    assert caught.value.field == "seq"


@pytest.mark.parametrize("cls", REQUESTS, ids=named)
@given(data=st.data())
@settings(max_examples=10)
def test_a_notice_arrives_as_it_was_sent(cls: type, data: st.DataObject) -> None:
    request = data.draw(instances(cls))
    header = decode_header(encode_request(0, request))
    assert header.id == 0
    assert decode_request(header) == request


@pytest.mark.parametrize("weight", [0.0, 5e-324, 1.0, 1.7976931348623157e308])
def test_any_finite_weight_that_is_not_negative_is_one(weight: float) -> None:
    check_weight(weight, "weight")
    push = Push((), 3, 4, weight)
    assert decode(encode_request(1, push)) == push


@pytest.mark.parametrize("weight", [-5e-324, -1.0, math.inf, -math.inf, math.nan])
def test_no_other_number_is_a_weight(weight: float) -> None:
    with pytest.raises(BadRequest) as caught:
        check_weight(weight, "weight")
    assert caught.value.field == "weight"


def test_settings_that_are_not_said_are_not_sent() -> None:
    assert msgpack.unpackb(encode_request(7, Join("t"))) == {"op": "join", "id": 7, "token": "t"}
    assert msgpack.unpackb(encode_request(7, Set("j", staleness=math.inf))) == {
        "op": "set", "id": 7, "job": "j", "staleness": math.inf,
    }  # fmt: skip
    assert decode(pack({"op": "set", "id": 7})) == Set(None, None, None)


def test_a_reply_is_ok_or_an_error() -> None:
    for header in (Header("push", 1, {}), Header("", 1, {})):
        with pytest.raises(BadRequest, match="expected ok or error"):
            decode_reply(header, Empty)
    with pytest.raises(BadRequest, match="unknown field"):
        decode_reply(decode_header(encode_reply(1, ShardJoined(1, 2, "c", 1.0))), Empty)
    with pytest.raises(BadRequest, match="this field is required"):
        decode_reply(decode_header(encode_reply(1, Empty())), Joined)
    with pytest.raises(BadRequest, match="expected text"):
        decode_reply(Header("error", 1, {"code": 1, "message": "", "field": "", "value": ""}), Empty)


@pytest.mark.parametrize("cls", [Fenced, OutOfOrder, Conflict, ShuttingDown], ids=named)
def test_an_error_says_of_which_type_it_is(cls: type[PSError]) -> None:
    header = encode_error(5, cls("why", field="seq", value=9))
    assert msgpack.unpackb(header)["code"] == cls.code
    arrived = decode_reply(decode_header(header), Empty)
    assert (type(arrived), str(arrived)) == (cls, "seq=9: why")


# --- hostile bytes


def survives(header: bytes) -> None:
    """Decode ``header`` in every way; only ``BadRequest`` may come of it."""
    with contextlib.suppress(BadRequest):
        decoded = decode_header(header)
        if decoded.op in ("ok", "error"):
            assert isinstance(decode_reply(decoded, Pulled), PSError | Pulled)
        else:
            assert isinstance(decode_request(decoded), REQUESTS)


@given(st.binary(max_size=300))
def test_random_bytes_are_a_header_or_a_bad_request(header: bytes) -> None:
    survives(header)


requests = st.sampled_from(REQUESTS).flatmap(instances)


@given(requests, st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 255)), min_size=1, max_size=4))
def test_flipped_bytes_are_a_header_or_a_bad_request(request: Any, flips: list[tuple[int, int]]) -> None:
    header = bytearray(encode_request(1, request))
    for position, byte in flips:
        header[position % len(header)] = byte
    survives(bytes(header))


plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=10,
)
FIELDS = sorted({field.name for cls in REQUESTS for field in dataclasses.fields(cls)})


@given(
    st.sampled_from([cls.op for cls in REQUESTS] + ["ok", "error"]),
    st.dictionaries(st.sampled_from([*FIELDS, "version", "code", "message"]), plain, max_size=6),
)
def test_any_map_is_a_request_or_a_bad_request(op: str, fields: dict[str, Any]) -> None:
    survives(pack({"op": op, "id": 1, **fields}))


@pytest.mark.parametrize("tail", [b"\xc0", b"\xc0\xc0"])
@pytest.mark.parametrize("depth", [10, 980, 1000, 1020, 60_000])
@pytest.mark.parametrize("opening", [b"\x91", b"\x81\xa1a"])
@pytest.mark.parametrize("field", ["names", "more", "op", "id"])
def test_deep_nesting_is_a_bad_request(field: str, opening: bytes, depth: int, tail: bytes) -> None:
    fields = {"op": "pull", "id": 1, "names": []}
    fields.pop(field, None)
    start = bytes([0x81 + len(fields)]) + pack(fields)[1:] + pack(field)
    with pytest.raises(BadRequest):
        decode(start + opening * depth + tail)


def peak_memory(header: bytes) -> int:
    tracemalloc.start()
    try:
        with pytest.raises(BadRequest):
            decode(header)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "bomb",
    [
        b"\xdd\xff\xff\xff\xff",  # array of 2^32-1
        b"\xdf\xff\xff\xff\xff",  # map
        b"\xdb\xff\xff\xff\xff",  # text
        b"\xc6\xff\xff\xff\xff",  # bytes
        b"\xc9\xff\xff\xff\xff\x01",  # extension
        b"\xdc\xff\xff" * 500,  # arrays of 65,535, nested
        b"\xdd\x00\x10\x00\x00" * 500,
        b"\x81\xa1a\xde\xff\xff" * 300,
        b"\xdf\x00\x0f\xff\xff\xa1a" * 500,
    ],
)  # fmt: skip
def test_a_short_header_that_announces_much_costs_little(bomb: bytes) -> None:
    start = b"\x83\xa2op\xa4pull\xa2id\x01\xa5names"
    assert peak_memory(start + bomb) < 200_000


def test_the_worst_nest_of_arrays_costs_what_is_written_beside_the_limit() -> None:
    start = b"\x83\xa2op\xa4pull\xa2id\x01\xa5names"
    nest = (b"\xdc" + struct.pack(">H", MAX_ARRAY)) * 1020
    assert peak_memory(start + nest) < 36 << 20


def test_what_a_header_holds_is_never_evaluated() -> None:
    hello = decode(pack({"op": "hello", "id": 1, "versions": [1], "client": "__import__('os').abort()"}))
    assert hello == Hello((1,), "__import__('os').abort()")


def test_a_finish_carries_its_measures_as_arrays() -> None:
    finish = decode(
        pack(
            {
                "op": "finish", "id": 1, "seq": 1, "kind": "train", "epoch": 1, "chunk": 2, "examples": 3,
                "measures": [["loss", 1]],
            }
        )
    )  # fmt: skip
    assert isinstance(finish, Finish)
    assert (finish.measures[0].name, finish.measures[0].value) == ("loss", 1.0)


def test_a_finish_has_not_more_measures_than_a_model_makes() -> None:
    def finish(count: int) -> dict[str, object]:
        measures = [[f"~pos.{number}", 0.5] for number in range(count)]
        whose = {"op": "finish", "id": 1, "seq": 1, "kind": "evaluate", "epoch": 1, "chunk": 2, "examples": 3}
        return whose | {"measures": measures}

    header = pack(finish(MAX_MEASURES))
    assert len(header) < MAX_HEADER
    assert isinstance(decode(header), Finish)
    with pytest.raises(BadRequest, match=f"at most {MAX_MEASURES} measures"):
        decode(pack(finish(MAX_MEASURES + 1)))

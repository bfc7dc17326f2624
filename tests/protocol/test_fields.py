import contextlib
import math
from dataclasses import dataclass
from typing import Any, ClassVar

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import BadRequest, shorten
from protocol.fields import Name, Positive, array_decoder, array_encoder, decoder, encoder
from tests.protocol.strategies import LARGEST, instances


@dataclass(frozen=True, slots=True)
class Inner:
    count: int
    label: Name


@dataclass(frozen=True, slots=True)
class Everything:
    whole: int
    real: float
    flag: bool
    text: str
    name: Name
    positive: Positive
    wholes: tuple[int, ...]
    nested: tuple[tuple[str, ...], ...]
    inner: Inner
    inners: tuple[Inner, ...]
    maybe: int | None
    maybe_inner: Inner | None
    maybe_many: tuple[Name, ...] | None
    default: int = 7
    nothing: Inner | None = None
    none_is_not_the_default: int | None = 5


decode, encode = decoder(Everything), encoder(Everything)
VALID = Everything(1, 2.5, True, "t", "n", 3, (4,), (("a",), ()), Inner(5, "i"), (), None, None, None)


def valid(**changes: Any) -> dict[str, Any]:
    return {**encode(VALID), **changes}


def refused(source: dict[str, Any]) -> BadRequest:
    with pytest.raises(BadRequest) as caught:
        decode(source)
    return caught.value


@given(instances(Everything))
def test_what_is_encoded_decodes_to_the_same(message: Everything) -> None:
    assert decode(msgpack.unpackb(msgpack.packb(encode(message)))) == message
    plain = msgpack.unpackb(msgpack.packb(array_encoder(Everything)(message)))
    assert array_decoder(Everything)(plain, "message") == message


WRONG: dict[str, list[Any]] = {
    "whole": [-1, LARGEST + 1, 1 << 64, True, False, 1.0, "1", None, [1], {}, b"1", msgpack.ExtType(1, b"")],
    "real": [True, "1.0", None, [1.0], {}, b"", msgpack.Timestamp(1)],
    "flag": [0, 1, "true", None, [], 1.0],
    "text": [b"t", 1, None, ["t"], {"t": 1}, msgpack.ExtType(1, b"")],
    "name": [
        "", "...", "a..b", "x" * 129, "a/b", "/", "..", ".", "../a", "a\\b", "\0", "a\0b", "a\nb", "\x1b[31m",
        "\x7f", "a\u202eb", "\u2028", "\ufeff", "\u00a0", "\ud800", b"n", 1, None,
    ],
    "positive": [0, -1, True, None, 1.0, LARGEST + 1],
    "wholes": [None, 4, "4", {"0": 4}, (4,), b"\x04"],
    "nested": [None, "a", {}],
    "inner": [None, [], [5], [5, "i", 0], {"count": 5, "label": "i"}, "5i", 5],
    "maybe": ["", True, -1, [], 0.0],
    "maybe_inner": [[], [1], False, 0],
    "maybe_many": [0, "", False, {}],
    "default": [None, True, "7"],
}  # fmt: skip


@pytest.mark.parametrize(
    ("field", "value"), [(field, value) for field, values in WRONG.items() for value in values]
)
def test_a_wrong_value_is_refused_with_its_field_and_value(field: str, value: Any) -> None:
    error = refused(valid(**{field: value}))
    assert error.field == field
    assert error.value == shorten(value)
    assert error.message


@pytest.mark.parametrize(
    ("value", "field", "wrong"),
    [
        ([5, "a/b"], "label", "a/b"),
        ([True, "i"], "count", True),
        ([5, None], "label", None),
    ],
)
def test_a_wrong_value_inside_is_refused_with_the_inner_field(value: Any, field: str, wrong: Any) -> None:
    for error in (refused(valid(inner=value)), refused(valid(inners=[[5, "i"], value]))):
        assert (error.field, error.value) == (field, shorten(wrong))


@pytest.mark.parametrize("name", ["x" * 128, "w", "layer.0", " ", "größe", "重み", "-", "*", "%s"])
def test_printable_names_are_taken(name: str) -> None:
    assert decode(valid(name=name)).name == name


@pytest.mark.parametrize("value", [0, 1, LARGEST, -1, 2.5, float("inf"), float("-inf"), (1 << 64) - 1])
def test_a_real_may_be_a_whole_number(value: float) -> None:
    found = decode(valid(real=value)).real
    assert found == float(value)
    assert type(found) is float


def test_a_real_may_be_not_a_number() -> None:
    found = decode(valid(real=float("nan"))).real
    assert math.isnan(found)


@pytest.mark.parametrize(
    "field", [name for name in encode(VALID) if name not in ("default", "none_is_not_the_default")]
)
def test_a_missing_field_is_refused(field: str) -> None:
    source = valid()
    del source[field]
    error = refused(source)
    assert (error.field, error.message) == (field, "this field is required")


def test_fields_with_a_default_may_be_absent() -> None:
    source = valid()
    del source["default"], source["none_is_not_the_default"]
    assert "nothing" not in source
    assert decode(source) == VALID


@dataclass(frozen=True, slots=True)
class Optional:
    number: int | None = None
    many: tuple[int, ...] = ()
    zero: int = 0
    some: tuple[int, ...] = (1,)


def test_what_is_nothing_by_default_is_left_out() -> None:
    assert encoder(Optional)(Optional()) == {"zero": 0, "some": [1]}
    assert encoder(Optional)(Optional(0, (2,), 1, ())) == {"number": 0, "many": [2], "zero": 1, "some": []}


@pytest.mark.parametrize("field", ["unknown", "", "Whole", "__class__", "op", "count"])
def test_an_unknown_field_is_refused(field: str) -> None:
    error = refused(valid(**{field: 1}))
    assert (error.field, error.message) == (field, "unknown field")


@pytest.mark.parametrize("field", ["x" * 60_000, "\n\x1b[31m", "\u202e" * 1000])
def test_an_unknown_field_is_named_shortened_and_escaped(field: str) -> None:
    error = refused(valid(**{field: 1}))
    assert error.field == shorten(field)
    assert str(error).isprintable()
    assert len(str(error)) < 300


def test_a_decoded_map_is_consumed() -> None:
    source = valid()
    decode(source)
    assert source == {}


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 64) - 1)
    | st.floats()
    | st.text()
    | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from([*encode(VALID), "nothing", "more"]), values, max_size=4))
def test_any_change_of_fields_is_a_bad_request_or_taken_whole(changes: dict[str, Any]) -> None:
    with contextlib.suppress(BadRequest):
        assert type(decode(valid(**changes))) is Everything


@dataclass(frozen=True, slots=True)
class Recurring:
    recurs: ClassVar[bool] = True
    count: int
    label: Name


@pytest.mark.parametrize("wrong", [True, 1.0, -1, "1", None, [1], {"1": 1}, b"1", msgpack.ExtType(1, b"")])
def test_what_equals_a_value_that_was_taken_before_is_checked_all_the_same(wrong: Any) -> None:
    recurring = array_decoder(Recurring)
    assert recurring([1, "a"], "part") == recurring([1, "a"], "part") == Recurring(1, "a")
    for _ in range(2):
        with pytest.raises(BadRequest) as caught:
            recurring([wrong, "a"], "part")
        assert (caught.value.field, caught.value.value) == ("count", shorten(wrong))
    for items in ([1], [1, "a", "a"], [], None):
        with pytest.raises(BadRequest, match="expected an array of count, label"):
            recurring(items, "part")
    assert recurring([1, "a"], "part") == Recurring(1, "a")


@dataclass(frozen=True, slots=True)
class Untyped:
    anything: dict[str, int]


def test_an_annotation_without_a_wire_form_is_noticed_when_the_message_is_defined() -> None:
    with pytest.raises(TypeError, match="no wire form"):
        decoder(Untyped)

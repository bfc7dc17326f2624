import json
import math
import random
import re
from dataclasses import dataclass
from typing import Annotated, Any

import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.fields import Name, Positive
from psserver.durability.documents import decode, encode


@dataclass(frozen=True, slots=True)
class Inner:
    name: Name
    numbers: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Outer:
    count: Positive
    weight: float
    flag: bool
    text: str | None
    inner: tuple[Inner, ...]
    state: dict[str, Any]
    late: int = 5


SAMPLE = Outer(
    3, math.inf, True, None, (Inner("ä", (1, 2)), Inner("b", ())), {"x": [1, 2.5, None, {"y": "z"}]}, 9
)


def sealed(text: str) -> bytes:
    """Return a text with the right checksum, whatever it is."""
    return f'{text[:-1]},"checksum":"{xxhash.xxh3_64_hexdigest(text.encode())}"}}\n'.encode()


def changed(**fields: Any) -> bytes:
    """Return the sample with other fields, and the right checksum."""
    plain = json.loads(encode(SAMPLE)) | fields
    del plain["checksum"]
    return sealed(json.dumps(plain, separators=(",", ":")))


def test_round_trip() -> None:
    data = encode(SAMPLE)
    assert decode(Outer, data) == SAMPLE
    assert data.endswith(b'"}\n')
    assert list(json.loads(data)) == [
        "format", "count", "weight", "flag", "text", "inner", "state", "late", "checksum",
    ]  # fmt: skip


def test_the_checksum_is_that_of_the_text_without_it() -> None:
    data = encode(SAMPLE)
    body, checksum = re.fullmatch(rb'(.*),"checksum":"(.{16})"}\n', data).groups()  # type: ignore[union-attr]
    assert xxhash.xxh3_64_hexdigest(body + b"}").encode() == checksum


def test_any_flipped_bit_is_noticed() -> None:
    data, rng = encode(SAMPLE), random.Random(0)
    for at in range(len(data)):
        damaged = bytearray(data)
        damaged[at] ^= 1 << rng.randrange(8)
        with pytest.raises(ValueError, match=r"damaged|does not end with its checksum"):
            decode(Outer, bytes(damaged))


def test_any_truncation_is_noticed() -> None:
    data = encode(SAMPLE)
    for length in range(len(data)):
        with pytest.raises(ValueError, match=r"damaged|does not end with its checksum"):
            decode(Outer, data[:length])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "offset 0: it does not end with its checksum"),
        (encode(SAMPLE) + b"\n", "does not end with its checksum"),
        (sealed('{"format": 1}'), "spaces"),
        (sealed('{"format":1,"format":1}'), "a key that comes twice"),
        (sealed('{"format":1,"count":NaN}'), "no JSON that asyncps wrote"),
        (sealed('{"format":1,"count":1e999}'), "no JSON that asyncps wrote"),
        (sealed('{"format":1,"count":01}'), "no JSON that asyncps wrote"),
        (sealed('{"format":1,"count":1.50}'), "spaces"),
        (sealed('{"format":1,"count":"ä"}'), "spaces"),
        (sealed('{"format":1,"count":' + "1" * 5000 + "}"), "no JSON that asyncps wrote"),
        (sealed('{"format":1,"count":' + "[" * 65 + "]" * 65 + "}"), "nested too deep"),
        (sealed('{"format":1,"count":' + "[" * 100_000 + "]" * 100_000 + "}"), "no JSON that asyncps wrote"),
        (sealed('{"format":1,"count":{"a":' + "[" * 64 + "]" * 64 + "}}"), "nested too deep"),
        (sealed('{"count":1}'), "format None; this version of asyncps reads format 1"),
        (sealed('{"format":2}'), "format 2; this version of asyncps reads format 1"),
        (sealed('{"format":"\\u001b"}'), "format \\x1b; this version"),
        (sealed('{"format":1}'), "count=(absent): this field is required"),
        (changed(unknown=1), "unknown=(present): unknown field"),
        (changed(**{"\x1b": 1}), "\\x1b=(present): unknown field"),
        (changed(count=0), "count=0: expected 1 or more"),
        (changed(count=-1), "count=-1: expected an integer"),
        (changed(count=True), "count=True: expected an integer"),
        (changed(count=1.0), "count=1.0: expected an integer"),
        (changed(count=1 << 63), "expected an integer from 0 to 2^63-1"),
        (changed(weight="-inf"), "weight=-inf: expected a number"),
        (changed(weight=True), "weight=True: expected a number"),
        (changed(weight=10**400), "expected a number"),
        (changed(flag=1), "flag=1: expected true or false"),
        (changed(text=5), "text=5: expected text"),
        (changed(inner={}), "inner={}: expected an array"),
        (changed(inner=[{"name": "a"}]), "numbers=(absent): this field is required"),
        (changed(inner=[{"name": "a/b", "numbers": []}]), "name=a/b: take printable"),
        (changed(inner=[{"name": "a", "numbers": [1, "2"]}]), "numbers=2: expected an integer"),
        (changed(inner=[["a", []]]), "expected an object"),
        (changed(state=[]), "state=[]: expected an object"),
    ],
)
def test_what_asyncps_did_not_write_is_refused_even_with_its_checksum(data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as raised:
        decode(Outer, data)
    assert "\x1b" not in str(raised.value)


def test_a_field_with_a_default_may_be_absent() -> None:
    text = '{"format":1,"count":3,"weight":1,"flag":true,"text":null,"inner":[],"state":{}}'
    assert decode(Outer, sealed(text)) == Outer(3, 1.0, True, None, (), {}, late=5)


@pytest.mark.parametrize("value", [math.nan, -math.inf, [math.nan], {"a": math.inf}])
def test_what_json_cannot_say_is_not_written(value: Any) -> None:
    with pytest.raises(ValueError, match="JSON"):
        encode(Outer(1, 1.0, True, "", (), {"x": value}))


@pytest.mark.parametrize("deeper", [list, tuple, lambda inner: {"x": inner[0]}])
def test_what_could_not_be_read_again_is_not_written(deeper: Any) -> None:
    state: Any = 1
    for _ in range(62):  # in the state, in the document
        state = deeper([state])
    sample = Outer(1, 1.0, True, "", (), {"x": state})
    decode(Outer, encode(sample))
    with pytest.raises(ValueError, match="more than 64"):
        encode(Outer(1, 1.0, True, "", (), {"x": deeper([state])}))


def test_nothing_too_long_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    length = len(encode(SAMPLE))
    monkeypatch.setattr("psserver.durability.documents.MOST", length - 1)
    with pytest.raises(ValueError, match=f"{length} bytes of JSON"):
        encode(SAMPLE)


def test_a_type_without_a_form_is_a_mistake_of_the_programmer() -> None:
    @dataclass(frozen=True, slots=True)
    class Wrong:
        x: Annotated[bytes, ...]

    with pytest.raises(TypeError, match="no form in JSON"):
        decode(Wrong, sealed('{"format":1}'))


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(st.text(max_size=5), JSON, max_size=3))
def test_a_state_may_be_any_plain_data(state: dict[str, Any]) -> None:
    assert decode(Outer, encode(Outer(1, 0.5, False, "", (), state))).state == state


@settings(max_examples=150)
@given(st.binary() | JSON.map(lambda plain: sealed(json.dumps(plain, separators=(",", ":")))))
def test_whatever_a_file_is_it_is_refused_by_a_value_error(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        decode(Outer, data)


@settings(max_examples=150)
@given(st.sampled_from(["count", "weight", "flag", "text", "inner", "state", "late"]), JSON)
def test_any_field_with_anything_is_read_or_refused(field: str, value: Any) -> None:
    try:
        found = decode(Outer, changed(**{field: value}))
    except ValueError:
        return
    assert isinstance(found, Outer)

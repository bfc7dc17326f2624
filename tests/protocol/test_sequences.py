import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.compression.keys import digest_of
from protocol.messages import (
    Finish,
    Lease,
    Measure,
    Push,
    PushPull,
    Step,
    decode_header,
    decode_request,
    encode_request,
)
from protocol.sequences import UNDER_WAY, WINDOW, fingerprint_of_push, fingerprint_of_work
from protocol.tables import CODINGS, Rows
from protocol.tensors import DTYPES, Part
from tests.protocol.both_loops import parts
from tests.protocol.strategies import instances

Array = npt.NDArray[Any]

LARGE = 10_000


def push_of(*arrays: Array) -> Push:
    return Push(parts(arrays), 3, 4)


def arrived(request: Any) -> Any:
    """Return the request as it is at the other end."""
    return decode_request(decode_header(encode_request(1, request)))


def test_all_that_a_client_has_under_way_is_remembered() -> None:
    assert 0 < UNDER_WAY < WINDOW


# --- pushes

arrays = st.builds(
    lambda dtype, raw: np.frombuffer(raw * 8, DTYPES[dtype]),
    st.sampled_from(sorted(DTYPES)),
    st.binary(max_size=100),
)


@given(instances(Push) | instances(PushPull), st.lists(arrays, max_size=4))
def test_a_retry_has_the_fingerprint_of_the_first_try(request: Step, sent: list[Array]) -> None:
    request = replace(request, tensors=parts(sent), rows=())
    if isinstance(request, PushPull):
        request = replace(request, wanted=())
    first = fingerprint_of_push(arrived(request), sent)
    assert 0 <= first < 1 << 32
    assert fingerprint_of_push(arrived(request), [array.copy() for array in sent]) == first


def test_an_array_that_can_only_be_read_has_a_fingerprint_too() -> None:
    for size in (0, 10, LARGE):
        array = np.arange(size, dtype=np.float32)
        before = fingerprint_of_push(push_of(array), [array])
        array.flags.writeable = False
        assert fingerprint_of_push(push_of(array), [array]) == before


def test_the_number_is_no_content() -> None:
    request = push_of()
    assert fingerprint_of_push(replace(request, seq=9), []) == fingerprint_of_push(request, [])


@pytest.mark.parametrize(
    "other",
    [
        replace(push_of(), step=2),
        replace(push_of(), step=3 + (1 << 32)),
        replace(push_of(), weight=2.0),
        replace(push_of(), weight=0.0),
        PushPull((), (), 3, 4),
        PushPull((), ("w",), 3, 4),
        PushPull((), ("w", "b"), 3, 4),
        PushPull((), ("b", "w"), 3, 4),
    ],
)
def test_another_request_is_another_content(other: Step) -> None:
    assert fingerprint_of_push(other, []) != fingerprint_of_push(push_of(), [])


@pytest.mark.parametrize("dtype", sorted(DTYPES))
@pytest.mark.parametrize("size", [8, 16, 17, LARGE])
def test_other_values_at_either_end_are_another_content(dtype: str, size: int) -> None:
    found = []
    for position in (None, 0, 3, -4, -1):
        array = np.ones(size, DTYPES[dtype])
        if position is not None:
            array[position] = 2
        found.append(fingerprint_of_push(push_of(array), [array]))
    assert len(set(found)) == 5


@pytest.mark.parametrize("size", [8, LARGE])
def test_the_same_values_at_other_places_are_another_content(size: int) -> None:
    found = []
    for first, second in itertools.combinations(range(8), 2):
        array = np.zeros(size, np.float32)
        array[[first, second]] = 1.0
        found.append(fingerprint_of_push(push_of(array), [array]))
    assert len(set(found)) == 28


@given(st.integers(1, 256), st.data())
def test_every_byte_of_a_small_array_counts(size: int, data: st.DataObject) -> None:
    array = np.zeros(size, np.uint8)
    other = array.copy()
    other[data.draw(st.integers(0, size - 1))] = data.draw(st.integers(1, 255))
    assert fingerprint_of_push(push_of(array), [array]) != fingerprint_of_push(push_of(other), [other])


@pytest.mark.parametrize("size", [10, LARGE])
def test_every_tensor_counts_and_under_its_name(size: int) -> None:
    rng = np.random.default_rng(1)
    sent = [rng.normal(size=size).astype(np.float32) for _ in range(3)]
    tensors = parts(sent)
    found = [fingerprint_of_push(Push(tensors, 3, 4), sent)]
    for number in range(3):
        others = list(sent)
        others[number] = -sent[number]
        found.append(fingerprint_of_push(Push(tensors, 3, 4), others))
        found.append(fingerprint_of_push(Push(tensors[:number], 3, 4), sent[:number]))
        renamed = [*tensors]
        renamed[number] = replace(tensors[number], name="other")
        found.append(fingerprint_of_push(Push(tuple(renamed), 3, 4), sent))
    found.append(fingerprint_of_push(Push(tensors, 3, 4), sent[::-1]))
    found.append(fingerprint_of_push(Push(tensors[::-1], 3, 4), sent[::-1]))
    assert len(set(found)) == len(found)


# --- rows of tables


def rows_of(keys: Array, coding: str = "raw", name: str = "emb", values: str = "float32") -> Rows:
    return Rows(name, keys.size, digest_of(keys), coding, values)


def with_rows(
    dense: Array, rows: list[tuple[Rows, Array, Array]], wanted: list[tuple[Rows, Array]]
) -> tuple[PushPull, list[Array]]:
    """Return a request whose payload has the keys of what is not known."""
    named = [("w", dense)]
    for one, keys, values in rows:
        named += [(one.name, array) for array in (keys, values)[one.coding == "known" :]]
    named += [(one.name, keys) for one, keys in wanted if one.coding != "known"]
    tensors = tuple(Part(name, array.dtype.name, array.size) for name, array in named)
    pushed, pulled = tuple(row[0] for row in rows), tuple(row[0] for row in wanted)
    return PushPull(tensors, (), 3, 4, 1.0, None, pushed, pulled), [array for _, array in named]


KEYS = np.arange(1, 5, dtype=np.uint64)
OTHER = np.arange(2, 6, dtype=np.uint64)
VALUES = np.arange(8, dtype=np.float32)
DENSE = np.ones(3, np.float32)


@pytest.mark.parametrize("pushed", CODINGS)
@pytest.mark.parametrize("wanted", CODINGS)
def test_keys_count_alike_whether_they_are_sent_or_named(pushed: str, wanted: str) -> None:
    found = set()
    for codings in (("raw", "raw"), (pushed, wanted)):
        rows = [(rows_of(KEYS, codings[0]), KEYS, VALUES), (rows_of(OTHER, "raw", "b"), OTHER, -VALUES)]
        request, sent = with_rows(DENSE, rows, [(rows_of(OTHER, codings[1]), OTHER)])
        found.add(fingerprint_of_push(arrived(request), sent))
    assert len(found) == 1


def test_other_rows_are_another_content() -> None:
    row, other = (rows_of(KEYS), KEYS, VALUES), (rows_of(OTHER), OTHER, VALUES)
    renamed, narrower = (
        (rows_of(KEYS, name="b"), KEYS, VALUES),
        (rows_of(KEYS, values="float16"), KEYS, VALUES),
    )
    want, want_other = (rows_of(KEYS), KEYS), (rows_of(OTHER), OTHER)
    contents = [
        ([], []),
        ([row], []),
        ([other], []),
        ([renamed], []),
        ([narrower], []),
        ([(row[0], KEYS, -VALUES)], []),
        ([row, other], []),
        ([other, row], []),
        ([], [want]),
        ([row], [want]),
        ([row], [want_other]),
        ([row], [want, want_other]),
    ]
    found = {fingerprint_of_push(*with_rows(DENSE, *content)) for content in contents}
    found.add(fingerprint_of_push(*with_rows(-DENSE, [row], [want])))
    assert len(found) == len(contents) + 1


# --- chunks of work

WORK: list[Lease | Finish] = [
    Lease(1, block=False),
    Lease(1, block=True),
    Finish(1, "train", 1, 2, 30, (Measure("loss", 0.5),)),
    Finish(1, "evaluate", 1, 2, 30, (Measure("loss", 0.5),)),
    Finish(1, "train", 2, 2, 30, (Measure("loss", 0.5),)),
    Finish(1, "train", 1, 3, 30, (Measure("loss", 0.5),)),
    Finish(1, "train", 1, 2, 31, (Measure("loss", 0.5),)),
    Finish(1, "train", 1, 2, 30, (Measure("loss", 0.25),)),
    Finish(1, "train", 1, 2, 30, (Measure("error", 0.5),)),
    Finish(1, "train", 1, 2, 30, ()),
    Finish(1, "train", 1, 2, 30, (Measure("loss", 0.5),), 0),
]


def test_requests_about_chunks_are_told_apart() -> None:
    assert len({fingerprint_of_work(request) for request in WORK}) == len(WORK)


@given(instances(Lease) | instances(Finish))
def test_a_retry_about_a_chunk_has_the_fingerprint_of_the_first_try(request: Lease | Finish) -> None:
    assert fingerprint_of_work(arrived(request)) == fingerprint_of_work(arrived(request))


def test_a_measure_that_is_not_a_number_does_not_make_a_retry_another_content() -> None:
    finish = Finish(1, "train", 1, 2, 30, (Measure("loss", float("nan")),))
    assert fingerprint_of_work(arrived(finish)) == fingerprint_of_work(arrived(finish))

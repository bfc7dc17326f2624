from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.compression.keys import digest_of, encode_keys, keys_part, parts_of_rows, parts_of_wanted
from protocol.messages import Ping, Pull, Push, PushPull
from protocol.tables import KEY_CACHE, KNOWN_FROM, Rows
from protocol.tensors import Part
from psworker.known_keys import Keyed, KnownKeys, names_keys

Array = npt.NDArray[Any]

DIM = 2


def drawn(seed: int, count: int = KNOWN_FROM) -> Array:
    return np.random.default_rng(seed).integers(0, 1 << 63, count, np.uint64)


def described(keys: Array, name: str = "emb") -> tuple[Rows, Array]:
    coding, coded = encode_keys(keys)
    return Rows(name, keys.size, digest_of(keys), coding, "float32"), coded


def pull(*lists: Array) -> tuple[Pull, list[Array]]:
    wanted = [described(keys, f"t{number}") for number, keys in enumerate(lists)]
    rows = tuple(one for one, _ in wanted)
    return Pull(("w",), rows, tuple(parts_of_wanted(rows))), [coded for _, coded in wanted]


def push_pull(pushed: list[Array], wanted: list[Array]) -> tuple[PushPull, list[Array]]:
    arrays: list[Array] = [np.ones(3)]
    rows = [described(keys) for keys in pushed]
    for one, coded in rows:
        arrays += [coded, np.full(one.keys * DIM, one.keys, np.float32)]
    asked, coded_keys = pull(*wanted)
    names = tuple(one for one, _ in rows)
    parts = (Part("w", "float64", 3), *parts_of_rows(names, [DIM] * len(names)), *asked.tensors)
    return PushPull(parts, (), 1, 2, 1.0, None, names, asked.wanted), arrays + coded_keys


def codings(request: Keyed) -> list[str]:
    pushed = () if isinstance(request, Pull) else request.rows
    wanted = () if isinstance(request, Push) else request.wanted
    return [one.coding for one in (*pushed, *wanted)]


def checked(known: KnownKeys, request: Keyed, arrays: list[Array], *, whole: bool = False) -> Keyed:
    """Return what is sent, whose payload must be what it says."""
    short, sent = known.shorten(request, arrays, whole=whole)
    assert [(part.dtype, part.elements) for part in short.tensors] == [(a.dtype.name, a.size) for a in sent]
    keys = [part for one in short.wanted if (part := keys_part(one))] if isinstance(short, Pull) else None
    assert keys is None or list(short.tensors) == keys
    assert all(any(array is one for one in arrays) for array in sent)
    return short


def test_a_list_is_sent_once_and_named_from_then_on() -> None:
    known, keys = KnownKeys(), drawn(1)
    assert codings(checked(known, *pull(keys))) == ["raw"]
    assert codings(checked(known, *pull(keys))) == ["known"]
    assert codings(checked(known, *push_pull([keys], [drawn(2)]))) == ["known", "raw"]
    assert codings(checked(known, *push_pull([drawn(3)], [drawn(2)]))) == ["raw", "known"]


def test_of_a_request_without_its_keys_all_else_is_left() -> None:
    known, keys = KnownKeys(), drawn(1)
    request, arrays = push_pull([keys, drawn(2)], [keys])
    short, sent = known.shorten(request, arrays, whole=False)
    assert codings(short) == ["raw", "raw", "known"]  # the list stands in the request itself
    again, sent_again = known.shorten(request, arrays, whole=False)
    assert isinstance(again, PushPull)
    assert codings(again) == ["known"] * 3
    assert (again.step, again.seq, again.names) == (request.step, request.seq, request.names)
    assert [part.dtype for part in again.tensors] == ["float64", "float32", "float32"]
    assert [id(array) for array in sent_again] == [id(arrays[0]), id(arrays[2]), id(arrays[4])]
    assert len(sent) == 5


def test_what_is_sent_again_carries_its_keys() -> None:
    known, keys = KnownKeys(), drawn(1)
    request = push_pull([keys], [keys, drawn(2)])
    checked(known, *request)
    assert codings(checked(known, *request, whole=True)) == ["raw", "known", "raw"]
    assert codings(checked(known, *request)) == ["known"] * 3
    known.clear()
    assert codings(checked(known, *request)) == ["raw", "known", "raw"]


@pytest.mark.parametrize("count", [0, 1, KNOWN_FROM - 1])
def test_short_lists_are_not_worth_a_name(count: int) -> None:
    known, keys = KnownKeys(), drawn(1, count)
    for _ in range(2):
        assert "known" not in codings(checked(known, *push_pull([keys], [keys])))


def test_the_lists_used_last_are_known_within_a_bound() -> None:
    known, lists = KnownKeys(3 * 8 * KNOWN_FROM), [drawn(seed) for seed in range(5)]
    for keys in lists[:3]:
        checked(known, *pull(keys))
    assert codings(checked(known, *pull(lists[0]))) == ["known"]
    assert codings(checked(known, *pull(lists[3]))) == ["raw"]
    assert codings(checked(known, *pull(lists[1]))) == ["raw"]
    assert codings(checked(known, *pull(lists[0], lists[3], lists[1]))) == ["known"] * 3
    huge = drawn(9, 4 * KNOWN_FROM)
    for _ in range(2):
        assert codings(checked(known, *pull(huge))) == ["raw"]
    assert codings(checked(known, *pull(lists[0]))) == ["known"]


def test_a_client_takes_less_to_be_known_than_a_server_remembers() -> None:
    known, keys = KnownKeys(), drawn(1, KEY_CACHE // 8)
    for _ in range(2):
        assert codings(checked(known, *pull(keys))) == ["raw"]


@given(st.lists(st.tuples(st.lists(st.integers(0, 5), max_size=3), st.lists(st.integers(0, 5), max_size=3))))
def test_whoever_remembers_twice_as_much_knows_all_that_is_named(
    requests: list[tuple[list[int], list[int]]],
) -> None:
    known, size = KnownKeys(2 * 8 * KNOWN_FROM), 2
    remembered: list[str] = []
    for pushed, wanted in requests:
        request = push_pull([drawn(seed) for seed in pushed], [drawn(seed) for seed in wanted])
        short = checked(known, *request)
        assert isinstance(short, PushPull)
        for one in (*short.rows, *short.wanted):
            assert one.coding == "raw" or one.digest in remembered[-2 * size :]
            remembered = [*(digest for digest in remembered if digest != one.digest), one.digest]


def test_which_requests_name_keys() -> None:
    assert names_keys(pull(drawn(1))[0])
    assert names_keys(push_pull([], [drawn(1)])[0])
    assert names_keys(push_pull([drawn(1)], [])[0])
    for request in (Ping(), Pull(("w",)), Push((), 0, 1), PushPull((), (), 0, 1)):
        assert not names_keys(request)

import numpy as np
import pytest

from protocol.compression.keys import digest_of
from protocol.errors import UnknownKeys
from protocol.tables import KEY_CACHE, KNOWN_FROM, Keys, Rows
from psserver.arriving import KnownKeys

MOST = KEY_CACHE // 8


def rows(keys: Keys, count: int | None = None) -> Rows:
    return Rows("t", keys.size if count is None else count, digest_of(keys), "known", "float32")


def listed(count: int, first: int = 0) -> Keys:
    return np.arange(first, first + count, dtype=np.uint64)


def put(known: KnownKeys, keys: Keys) -> Rows:
    known.put(digest_of(keys), keys)
    return rows(keys)


def test_what_was_named_last_is_remembered_longest() -> None:
    known = KnownKeys()
    first, second = put(known, listed(MOST // 2)), put(known, listed(MOST // 2, 1))
    assert known.get(first)[0] == 0
    third = put(known, listed(KNOWN_FROM))
    assert [known.has(one) for one in (first, second, third)] == [True, False, True]
    put(known, listed(MOST // 2))  # once more: it takes its place, and no more memory
    put(known, listed(MOST // 2 - KNOWN_FROM, 2))
    assert [known.has(one) for one in (first, third)] == [True, True]


@pytest.mark.parametrize("count", [0, KNOWN_FROM - 1, MOST + 1])
def test_lists_that_nobody_names_are_not_kept(count: int) -> None:
    known = KnownKeys()
    short = put(known, listed(KNOWN_FROM))
    assert not known.has(put(known, listed(count)))
    assert known.has(short)


@pytest.mark.parametrize("count", [KNOWN_FROM - 1, KNOWN_FROM + 1, 0])
def test_a_digest_with_another_count_is_not_known(count: int) -> None:
    known = KnownKeys()
    put(known, listed(KNOWN_FROM))
    assert not known.has(rows(listed(KNOWN_FROM), count))
    with pytest.raises(UnknownKeys) as caught:
        known.get(rows(listed(KNOWN_FROM), count))
    assert caught.value.field == "t"

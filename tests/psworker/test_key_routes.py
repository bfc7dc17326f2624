from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.buffers import BufferPool
from protocol.compression.keys import decode_keys, digest_of
from protocol.messages import Block
from protocol.tables import HASH_SLOTS, hash_slots
from psworker.key_routes import KeyRoutes, Route

Keys = npt.NDArray[np.uint64]

TOP = (1 << 64) - 1


def blocks_of(shards: int) -> tuple[Block, ...]:
    bounds = [HASH_SLOTS * number // shards for number in range(shards + 1)]
    return tuple(Block(7 - i if shards < 8 else i, bounds[i], bounds[i + 1]) for i in range(shards))


def drawn(count: int, seed: int = 0) -> Keys:
    return np.random.default_rng(seed).integers(0, TOP, count, np.uint64, endpoint=True)


def keys_of(route: Route) -> dict[int, list[int]]:
    return {
        share.shard: decode_keys(share.coding, share.stop - share.begin, share.coded).tolist()
        for share in route.shares
    }


lists = st.lists(st.integers(0, TOP) | st.integers(0, 40), max_size=60).map(
    lambda keys: np.array(keys, np.uint64)
)


@given(st.integers(1, 12), lists | lists.map(np.sort))
def test_every_key_goes_to_the_shard_of_its_slot_and_its_row_comes_back(shards: int, keys: Keys) -> None:
    blocks, pool = blocks_of(shards), BufferPool(0)
    route = KeyRoutes(1 << 20).route(keys, blocks)
    slots = hash_slots(keys)
    expected = {
        block.shard: [k for k, s in zip(keys.tolist(), slots, strict=True) if block.start <= s < block.stop]
        for block in blocks
    }
    assert keys_of(route) == expected
    assert list(keys_of(route)) == [block.shard for block in blocks]
    rows = np.arange(keys.size * 3, dtype=np.float32).reshape(-1, 3)
    sent = route.by_share(rows, pool)
    place = {key: sent[share.begin : share.stop] for share in route.shares for key in [share.shard]}
    for block in blocks:
        own = rows[(slots >= block.start) & (slots < block.stop)]
        np.testing.assert_array_equal(place[block.shard], own)
    back = np.full_like(rows, -1)
    route.in_place(sent, back)
    np.testing.assert_array_equal(back, rows)
    for share, found in zip(route.shares, keys_of(route).values(), strict=True):
        assert share.digest == digest_of(np.array(found, np.uint64))


@pytest.mark.parametrize("shards", [2, 9, 300])
def test_long_lists(shards: int) -> None:
    keys, blocks = drawn(200_001), blocks_of(shards)
    route = KeyRoutes(1 << 30).route(keys, blocks)
    owners = np.searchsorted([block.stop for block in blocks], hash_slots(keys), side="right")
    assert route.order is not None
    np.testing.assert_array_equal(route.order, np.argsort(owners, kind="stable"))


def test_one_shard_is_sent_the_callers_own_array() -> None:
    keys, rows = drawn(100), np.zeros((100, 2), np.float32)
    route = KeyRoutes(1 << 20).route(keys, blocks_of(1))
    assert route.shares[0].coded is keys
    assert route.by_share(rows, BufferPool(0)) is rows


@pytest.mark.parametrize("shards", [1, 3])
def test_a_list_is_routed_once(shards: int) -> None:
    routes, keys, blocks = KeyRoutes(1 << 20), np.sort(drawn(100)) >> np.uint64(40), blocks_of(shards)
    first = routes.route(keys, blocks)
    assert routes.route(keys.copy(), blocks) is first
    assert routes.route(keys[::-1].copy(), blocks) is not first
    assert routes.route(keys, blocks_of(2)) is not first
    assert routes.route(keys, blocks) is first


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("shift", [0, 40])
def test_a_list_that_its_owner_changes_is_another(shards: int, shift: int) -> None:
    routes, keys, blocks = KeyRoutes(1 << 20), np.sort(drawn(100)) >> np.uint64(shift), blocks_of(shards)
    before = keys.copy()
    routes.route(keys, blocks)
    keys += np.uint64(1)
    for wanted in (before, keys):
        found = keys_of(routes.route(wanted, blocks)).values()
        assert sorted(key for keys in found for key in keys) == wanted.tolist()


def test_what_is_remembered_is_bounded() -> None:
    blocks, routes = blocks_of(2), KeyRoutes(5 * 2400)  # 24 bytes a key
    lists = [drawn(100, seed) for seed in range(8)]
    found: list[Any] = [routes.route(keys, blocks) for keys in lists]
    assert [route.nbytes for route in found] == [2400] * 8
    assert routes.route(lists[3], blocks) is found[3]
    routes.route(drawn(100, 8), blocks)
    assert routes.route(lists[3], blocks) is found[3]
    assert routes.route(lists[4], blocks) is not found[4]
    assert routes.route(drawn(10_000, 9), blocks).nbytes > 5 * 2400
    assert routes.route(lists[3], blocks) is not found[3]

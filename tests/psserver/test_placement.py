import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.messages import Block, Spec
from protocol.optimizers import SGD, spec_of
from protocol.tables import HASH_SLOTS, Table, hash_slots
from psserver.placement import place, place_tensor

SMALLEST = 64 * 1024
ALIGN = 16

LOADS = st.lists(st.integers(0, 1 << 40), min_size=1, max_size=40)
ELEMENTS = st.integers(1, 1 << 48) | st.integers(1, 1 << 20)
ITEMSIZES = st.sampled_from([1, 2, 4, 8])


@given(elements=ELEMENTS, itemsize=ITEMSIZES, load=LOADS)
def test_blocks_cover_the_tensor_exactly(elements: int, itemsize: int, load: Sequence[int]) -> None:
    blocks = place(elements, itemsize, load)
    assert blocks[0].start == 0
    assert blocks[-1].stop == elements
    for block, following in itertools.pairwise(blocks):
        assert block.stop == following.start
    assert all(block.start < block.stop for block in blocks)
    assert len({block.shard for block in blocks}) == len(blocks)
    assert all(0 <= block.shard < len(load) for block in blocks)


@given(elements=ELEMENTS, itemsize=ITEMSIZES, load=LOADS)
def test_no_shard_gets_more_than_its_share_and_one_alignment_unit(
    elements: int, itemsize: int, load: Sequence[int]
) -> None:
    blocks = place(elements, itemsize, load)
    wanted = max(1, min(len(load), elements * itemsize // SMALLEST))
    assert max(block.stop - block.start for block in blocks) < elements / wanted + ALIGN
    assert len({block.stop - block.start for block in blocks[:-1]}) <= 1
    assert all(block.start % ALIGN == 0 for block in blocks)


@given(elements=ELEMENTS, itemsize=ITEMSIZES, load=LOADS)
def test_small_tensors_are_not_cut(elements: int, itemsize: int, load: Sequence[int]) -> None:
    blocks = place(elements, itemsize, load)
    if elements * itemsize < 2 * SMALLEST:
        assert len(blocks) == 1
    assert len(blocks) <= max(1, elements * itemsize // SMALLEST)


@given(elements=ELEMENTS, itemsize=ITEMSIZES, load=LOADS)
def test_the_least_loaded_shards_are_taken(elements: int, itemsize: int, load: Sequence[int]) -> None:
    taken = {block.shard for block in place(elements, itemsize, load)}
    wanted = max(1, min(len(load), elements * itemsize // SMALLEST))
    if len(taken) == wanted:  # rounding up to the alignment may leave the last one without a block
        free = [load[shard] for shard in range(len(load)) if shard not in taken]
        assert max(load[shard] for shard in taken) <= min(free, default=1 << 40)


def test_small_tensors_go_round() -> None:
    load = [0, 0, 0]
    for expected in (0, 1, 2, 0):
        (block,) = place(10, 4, load)
        assert block.shard == expected
        load[block.shard] += 40


@pytest.mark.parametrize("shards", [1, 2, 3, 4, 7, 16])
def test_every_shard_has_its_share_of_a_tables_slots(shards: int) -> None:
    spec = Spec("float32", (HASH_SLOTS,), spec_of(SGD()), Table(16))
    blocks = place_tensor(spec, [0] * shards)
    assert [block.shard for block in blocks] == list(range(shards))
    bounds = [0, *(block.stop for block in blocks)]
    assert bounds[-1] == HASH_SLOTS
    assert [block.start for block in blocks] == bounds[:-1]
    sizes = [block.stop - block.start for block in blocks]
    assert max(sizes) - min(sizes) <= 1


def test_a_tensor_whose_norm_is_clipped_is_not_cut() -> None:
    spec = Spec("float32", (1_000_000,), spec_of(SGD(clip_norm=1.0)))
    assert place_tensor(spec, [5, 3, 4]) == (Block(1, 0, 1_000_000),)
    assert len(place_tensor(Spec("float32", (1_000_000,), spec_of(SGD())), [5, 3, 4])) == 3


@pytest.mark.parametrize("first", [0, 1, 1000, 1 << 33])
def test_skewed_keys_are_spread_over_four_shards(first: int) -> None:
    """Zipf 1.1: as many rows as others to 1.3, as many keys in requests to 1.5 times the mean."""
    rng = np.random.default_rng(first)
    shares = np.arange(1, 1_000_001, dtype=np.float64) ** -1.1
    ranks = np.searchsorted(np.cumsum(shares) / shares.sum(), rng.random(1_000_000))
    keys = ranks.astype(np.uint64) + np.uint64(first)
    spec = Spec("float32", (HASH_SLOTS,), spec_of(SGD()), Table(16))
    starts = [block.start for block in place_tensor(spec, [0] * 4)]
    shard_of = np.searchsorted(starts, hash_slots(np.unique(keys)), side="right") - 1
    rows = np.bincount(shard_of, minlength=4)
    assert rows.max() <= 1.3 * rows.mean()
    requested = np.zeros(4)
    for begin in range(0, keys.size, 4096):  # repeats within a batch are sent, too
        batch = keys[begin : begin + 4096]
        requested += np.bincount(np.searchsorted(starts, hash_slots(batch), side="right") - 1, minlength=4)
    assert requested.max() <= 1.5 * requested.mean(), requested / requested.mean()

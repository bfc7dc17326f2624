import itertools
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from psserver.placement import place

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

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.buffers import BufferPool
from protocol.errors import BadTensor, NotFinite
from protocol.messages import Block, Spec, TensorInfo
from protocol.optimizers import Add, spec_of
from protocol.tensors import DTYPES
from psworker.router import as_tensor, plan_pull, plan_push
from psworker.rows import RowPlans

pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered")

Array = npt.NDArray[Any]

POOL = BufferPool(0)
PLANS = RowPlans(POOL, None)


def info_of(name: str, array: Array, bounds: list[int], shards: list[int]) -> TensorInfo:
    blocks = tuple(
        Block(shard, start, stop) for shard, start, stop in zip(shards, bounds[:-1], bounds[1:], strict=True)
    )
    return TensorInfo(name, Spec(array.dtype.name, array.shape, spec_of(Add())), blocks)


def whole(name: str, array: Array, shard: int = 0) -> TensorInfo:
    return info_of(name, array, [0, array.size], [shard])


@st.composite
def tensors(draw: st.DrawFn) -> list[tuple[TensorInfo, Array]]:
    """Some tensors of any shape and dtype, cut anywhere, on any shards."""
    found = []
    for number in range(draw(st.integers(1, 4))):
        shape = tuple(draw(st.lists(st.integers(1, 6), max_size=4)))
        dtype = DTYPES[draw(st.sampled_from(list(DTYPES)))]
        array = np.arange(number, number + math.prod(shape)).astype(dtype).reshape(shape)
        cuts = draw(st.sets(st.integers(1, array.size - 1), max_size=4)) if array.size > 1 else set()
        bounds = [0, *sorted(cuts), array.size]
        shards = draw(st.permutations(range(5)))[: len(bounds) - 1]
        found.append((info_of(f"t{number}", array, bounds, list(shards)), array))
    return found


@given(tensors())
def test_what_is_cut_for_the_shards_is_put_together_again(made: list[tuple[TensorInfo, Array]]) -> None:
    infos = [info for info, _ in made]
    outgoing = plan_push(infos, {info.name: array for info, array in made}, PLANS)
    pulls = plan_pull(infos, POOL, PLANS)
    assert set(outgoing) == set(pulls.names) == set(pulls.into)
    for shard, out in outgoing.items():
        assert [part.name for part in out.parts] == pulls.names[shard]
        assert [part.elements for part in out.parts] == [array.size for array in out.arrays]
        assert [DTYPES[part.dtype] for part in out.parts] == [array.dtype for array in out.arrays]
        for target, sent in zip(pulls.into[shard], out.arrays, strict=True):
            target[...] = sent
    for info, array in made:
        assert pulls.arrays[info.name].dtype == array.dtype
        np.testing.assert_array_equal(pulls.arrays[info.name], array, strict=True)


def test_contiguous_arrays_are_not_copied() -> None:
    array = np.arange(24, dtype=np.float32).reshape(4, 6)
    assert as_tensor("w", array) is array
    outgoing = plan_push([info_of("w", array, [0, 10, 24], [0, 1])], {"w": array}, PLANS)
    assert all(np.shares_memory(sent, array) for out in outgoing.values() for sent in out.arrays)


def test_pulled_blocks_are_received_in_place() -> None:
    array = np.zeros((4, 6), np.float32)
    pulls = plan_pull([info_of("w", array, [0, 10, 24], [0, 1])], POOL, PLANS)
    assert all(np.shares_memory(into, pulls.arrays["w"]) for into in (*pulls.into[0], *pulls.into[1]))


AWKWARD = {
    "transposed": np.arange(24, dtype=np.float32).reshape(4, 6).T,
    "strided": np.arange(24, dtype=np.float32)[::3],
    "reversed": np.arange(24, dtype=np.float32)[::-1],
    "big-endian": np.arange(24, dtype=">f4"),
    "big-endian and transposed": np.arange(24, dtype=">i8").reshape(4, 6).T,
    "fortran": np.asfortranarray(np.arange(24.0).reshape(4, 6)),
    "0-d": np.array(3.0),
    "read-only": np.broadcast_to(np.float32(2.0), (3, 4)),
}


@pytest.mark.parametrize("array", AWKWARD.values(), ids=AWKWARD.keys())
def test_any_layout_travels(array: Array) -> None:
    tensor = as_tensor("w", array)
    assert tensor.flags.c_contiguous
    assert tensor.dtype in DTYPES.values()
    np.testing.assert_array_equal(tensor, array)
    assert tensor.shape == array.shape
    (out,) = plan_push([whole("w", tensor)], {"w": array}, PLANS).values()
    np.testing.assert_array_equal(out.arrays[0], array.reshape(-1))


@pytest.mark.parametrize(
    ("value", "dtype", "shape"),
    [
        ([1.0, 2.0], "float64", (2,)),
        ([[1], [2]], "int64", (2, 1)),
        (3.0, "float64", ()),
        (np.float32(1), "float32", ()),
    ],
)
def test_lists_and_numbers_are_tensors(value: npt.ArrayLike, dtype: str, shape: tuple[int, ...]) -> None:
    tensor = as_tensor("w", value)
    assert (tensor.dtype, tensor.shape) == (DTYPES[dtype], shape)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (np.array([object()]), "dtype('O')"),
        (np.array(["a"]), "<U1"),
        (np.array([1j]), "complex128"),
        (np.array([True]), "bool"),
        (np.array(["2020-01-01"], "datetime64[D]"), "M8[D]"),
        (np.zeros(2, [("a", "f4")]), "[('a', '<f4')]"),
        (np.zeros((0, 3)), "(0, 3)"),
        ([], "(0,)"),
    ],
)
def test_what_cannot_travel_is_refused_by_name(value: npt.ArrayLike, text: str) -> None:
    with pytest.raises(BadTensor) as caught:
        as_tensor("w", value)
    assert caught.value.field == "w"
    assert text in caught.value.value


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (np.zeros((3, 4), np.float64), "float64"),
        (np.zeros((3, 4), np.int32), "int32"),
        (np.zeros((4, 3), np.float32), "(4, 3)"),
        (np.zeros(12, np.float32), "(12,)"),
        (np.float32(0), "()"),
    ],
)
def test_another_dtype_or_shape_than_the_tensors_is_refused(value: npt.ArrayLike, text: str) -> None:
    with pytest.raises(BadTensor) as caught:
        plan_push([whole("w", np.zeros((3, 4), np.float32))], {"w": value}, PLANS)
    assert caught.value.field == "w"
    assert text in caught.value.value


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 9, 10, 19])
def test_a_push_over_several_shards_is_checked_before_it_is_sent(bad: float, place: int) -> None:
    good, spoilt = np.zeros(20), np.zeros(20)
    spoilt[place] = bad
    infos = [whole("good", good, shard=2), info_of("bad", spoilt, [0, 10, 20], [0, 1])]
    with pytest.raises(NotFinite) as caught:
        plan_push(infos, {"good": good, "bad": spoilt}, PLANS)
    assert (caught.value.field, caught.value.value) == ("tensors", "bad")


def test_two_tensors_on_two_shards_are_checked_too() -> None:
    infos = [whole("a", np.zeros(2), shard=0), whole("b", np.zeros(2), shard=1)]
    with pytest.raises(NotFinite):
        plan_push(infos, {"a": np.zeros(2), "b": np.array([0, np.nan])}, PLANS)

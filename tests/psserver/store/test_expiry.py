import numpy as np
import pytest

from protocol.errors import NotFinite
from protocol.optimizers import SGD, Add
from protocol.tables import HASH_SLOTS, Keys, hash_slots
from psserver.optimizers import Moment
from psserver.store.admission import Admission
from psserver.store.expiry import Expiry
from psserver.store.records import Records
from psserver.store.sparse import SparseBlock
from tests.psserver.store.tables import BOTH, gathered, gradient_of, keys_of, table


def push(block: SparseBlock, keys: Keys, now: float = 0.0, value: float = 1.0) -> None:
    block.swap(block.next_version(gradient_of(block, keys, value), Moment(now=now)))


def expire(block: SparseBlock, now: float, calls: int = 200) -> list[int]:
    return sorted(key for _ in range(calls) for key in block.expire(now).tolist())


@pytest.mark.parametrize("kernels", BOTH)
def test_rows_that_nobody_touches_are_dropped(kernels: str) -> None:
    block = table(kernels, Add(), expire_after=10.0)
    push(block, keys_of(1, 2, 3), now=1000.0)
    block.put(keys_of(4, 5), np.ones((2, 3), np.float32))
    assert expire(block, 1001.0) == []  # what was put in place counts from here
    push(block, keys_of(2), now=1005.0)
    gathered(block, keys_of(3, 9), now=1006.0)
    assert expire(block, 1010.0) == []
    assert expire(block, 1010.5) == [1]
    gathered(block, keys_of(4), now=1011.0)
    assert expire(block, 1015.5) == [2, 5]
    assert expire(block, 1016.5) == [3]
    assert gathered(block, keys_of(1, 2, 3, 4, 5))[:, 0].tolist() == [0, 0, 0, 1, 0]
    assert block.expired == 4
    push(block, keys_of(1), now=1017.0)
    assert expire(block, 1027.5) == [1, 4]


def test_a_table_without_limits_keeps_all() -> None:
    block = table("numpy", Add())
    push(block, keys_of(1, 2, 3))
    assert expire(block, 1e12) == []
    assert block.rows == 3


def test_a_sample_that_has_none_of_the_few_rows_that_are_left_drops_none() -> None:
    records = Records(1, np.dtype(np.float32))
    rows = records.take(2_000_000)
    expiry = Expiry(records, 0.0, 2)
    expiry.made(rows)
    few, others = rows[:4], rows[4:]
    expiry.dropped(others)
    records.give_back(others)
    chosen = np.concatenate([expiry.choose(1.0, 100) for _ in range(160)])  # ten times all of them
    assert set(chosen.tolist()) <= set(few.tolist())
    assert chosen.size > 0


@pytest.mark.parametrize("kernels", BOTH)
def test_beyond_its_capacity_a_table_drops_the_least_used(kernels: str) -> None:
    block = table(kernels, Add(), capacity=1000)
    keys = np.arange(1000, dtype=np.uint64)
    push(block, keys[:900], now=1.0)
    push(block, keys[:800], now=2.0)
    push(block, keys[100:], now=3.0)
    assert expire(block, 4.0) == []
    push(block, keys[:1] + np.uint64(5000), now=5.0)
    # Pushed once: 900 to 999 and the new one, 900 to 999 before that. Twice: 0 to 99 at 2, 800 to 899 at 3.
    assert expire(block, 6.0) == list(range(900, 951))
    assert block.rows == 950
    assert expire(block, 7.0) == []


@pytest.mark.parametrize("kernels", BOTH[1:])
def test_a_table_with_many_rows_drops_about_the_least_used(kernels: str) -> None:
    block = table(kernels, Add(), 1, capacity=300_000)
    keys = np.arange(400_000, dtype=np.uint64)
    push(block, keys)
    push(block, keys[150_000:])
    dropped: list[int] = []
    while block.rows > 285_000:
        dropped += block.expire(1.0).tolist()
    assert block.rows == 285_000
    assert len(dropped) == len(set(dropped)) == 115_000
    assert np.mean(np.array(dropped) < 150_000) > 0.95


def test_a_block_has_its_share_of_the_capacity() -> None:
    block = table("numpy", Add(), 1, stop=HASH_SLOTS // 4, capacity=4000)
    keys = np.arange(10_000, dtype=np.uint64)
    push(block, keys[hash_slots(keys) < HASH_SLOTS // 4])
    assert block.rows > 2000
    expire(block, 1.0)
    assert block.rows == 950


@pytest.mark.parametrize("kernels", BOTH)
def test_a_row_is_made_when_its_key_was_in_enough_pushes(kernels: str) -> None:
    block = table(kernels, Add(), admit_after=3)
    push(block, keys_of(1, 1, 1, 2))
    push(block, keys_of(1, 3))
    assert block.rows == 0
    assert block.refused == 4
    push(block, keys_of(3, 1, 2, 1))
    assert block.rows == 1
    assert block.admitted == 1
    assert gathered(block, keys_of(1, 2, 3))[:, 0].tolist() == [2, 0, 0]
    push(block, keys_of(4, 1, 4))
    assert gathered(block, keys_of(1))[0, 0] == 3
    assert block.version == 4


@pytest.mark.parametrize("kernels", BOTH)
def test_a_refused_push_is_no_sighting(kernels: str) -> None:
    block = table(kernels, SGD(0.1), admit_after=2)
    for _ in range(5):
        with pytest.raises(NotFinite):
            push(block, keys_of(1), value=np.nan)
    push(block, keys_of(1))
    assert block.rows == 0
    push(block, keys_of(1))
    assert block.rows == 1


def test_rows_from_a_checkpoint_need_no_admission() -> None:
    block = table("numpy", Add(), admit_after=200)
    block.put(keys_of(1), np.ones((1, 3), np.float32))
    push(block, keys_of(1))
    assert gathered(block, keys_of(1))[0, 0] == 2


def test_an_estimate_is_never_too_low_and_seldom_too_high() -> None:
    admission = Admission(4, counters=1 << 16)
    keys = np.random.default_rng(1).integers(0, 2**64, 5000, np.uint64)
    for _ in range(3):
        assert admission.see(keys).mean() < 0.001
    assert admission.see(keys).all()


def test_a_sketch_ages_and_does_not_fill_up() -> None:
    admission = Admission(2, counters=1 << 12)
    random = np.random.default_rng(1)
    for _ in range(200):
        assert admission.see(random.integers(0, 2**64, 500, np.uint64)).mean() < 0.2

import contextlib

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.documents import CATALOGUE, STATUS
from protocol.errors import BadRequest
from protocol.messages import Block, Catalogue, Spec, TensorInfo
from protocol.optimizers import SGD, spec_of
from protocol.status import ClusterStatus, ShardStatus
from tests.protocol.strategies import instances

SMALL = ClusterStatus("0.1.0", 12.5, (ShardStatus(0, "127.0.0.1:7070", "ready", 4000),), ())


@given(instances(ClusterStatus))
def test_a_status_arrives_as_it_was_sent(status: ClusterStatus) -> None:
    payload = STATUS.encode(status)
    assert payload.dtype == np.uint8
    assert payload.ndim == 1
    assert STATUS.decode(payload) == status


@given(st.binary(max_size=200))
def test_random_bytes_are_no_status(payload: bytes) -> None:
    with pytest.raises(BadRequest):
        STATUS.decode(np.frombuffer(payload, np.uint8))


@given(st.integers(0, 1 << 20), st.integers(0, 255))
def test_a_flipped_byte_is_a_status_or_refused(position: int, byte: int) -> None:
    payload = STATUS.encode(SMALL).copy()
    payload[position % len(payload)] = byte
    with contextlib.suppress(BadRequest):
        assert isinstance(STATUS.decode(payload), ClusterStatus)


@pytest.mark.parametrize(
    ("plain", "field"),
    [
        ([], "status"),
        ({"version": "0.1.0"}, "status"),
        (["0.1.0", 12.5, [], [], []], "status"),
        ([1, 12.5, [], []], "version"),
        (["0.1.0", 12.5, [[0, "a", "ready"]], []], "shards"),
        (["0.1.0", 12.5, [[-1, "a", "ready", 0]], []], "shard"),
    ],
)
def test_a_status_of_another_form_is_refused_with_the_field(plain: object, field: str) -> None:
    with pytest.raises(BadRequest) as caught:
        STATUS.decode(np.frombuffer(msgpack.packb(plain), np.uint8))
    assert caught.value.field == field


def test_a_truncated_status_is_refused() -> None:
    with pytest.raises(BadRequest) as caught:
        STATUS.decode(STATUS.encode(SMALL)[:-1])
    assert caught.value.field == "status"


def test_more_tensors_than_a_header_holds() -> None:
    spec = Spec("float32", (1000, 1000), spec_of(SGD()))
    blocks = tuple(Block(shard, shard * 1000, shard * 1000 + 1000) for shard in range(100))
    catalogue = Catalogue(tuple(TensorInfo(f"{number:0128}", spec, blocks) for number in range(5000)))
    assert CATALOGUE.decode(CATALOGUE.encode(catalogue)) == catalogue

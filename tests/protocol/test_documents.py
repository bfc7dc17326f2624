import contextlib
import math
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.documents import CATALOGUE, EPOCH, MOST, STATUS, WAITS, Document
from protocol.errors import BadRequest
from protocol.frames import MAX_HEADER
from protocol.messages import Block, Catalogue, Epoch, Member, Spec, TensorInfo
from protocol.optimizers import SGD, spec_of
from protocol.status import ClusterStatus, JobStatus, ShardStatus, Wait, Waits, WorkerStatus
from tests.protocol.strategies import instances

WORKER = WorkerStatus(1, "w1", 2, "suspect", 7, 3, 640, 80.5, 0.75, 1, None, 12)
WAIT = Wait("job", 1, "step 3", 2, ("a", "b"), 1.5)
JOB = JobStatus("job", 3.0, 1, 5, 10, (WORKER,), (), None, (WAIT,), 4, 2.5)
SHARDS = (
    ShardStatus(0, "127.0.0.1:7070", "ready", 4000, 0.0),
    ShardStatus(1, "127.0.0.1:7071", "suspect", 4000, 1.25),
)
SMALL = ClusterStatus("0.1.0", 12.5, SHARDS, (JOB,))
EPOCH_3 = Epoch("job", 3, 2.0, 5, (Member(0, 1, "a", 7), Member(4, 2, "b", 9)))
WAITS_2 = Waits((WAIT, Wait("job", 0, "chunks", 1, (), 0.0)))

DOCUMENTS: dict[str, tuple[Document[Any], type, Any]] = {
    "status": (STATUS, ClusterStatus, SMALL),
    "catalogue": (
        CATALOGUE,
        Catalogue,
        Catalogue((TensorInfo("w", Spec("float32", (4,), spec_of(SGD())), (Block(0, 0, 4),)),)),
    ),
    "epoch": (EPOCH, Epoch, EPOCH_3),
    "waits": (WAITS, Waits, WAITS_2),
}
on_all_documents = pytest.mark.parametrize(("document", "cls", "example"), DOCUMENTS.values(), ids=DOCUMENTS)


@on_all_documents
@settings(max_examples=30)  # they are long
@given(st.data())
def test_a_document_arrives_as_it_was_sent(
    document: Document[Any], cls: type, example: object, data: st.DataObject
) -> None:
    for sent in (example, data.draw(instances(cls))):
        payload = document.encode(sent)
        assert payload.dtype == np.uint8
        assert payload.ndim == 1
        assert document.decode(payload) == sent


@on_all_documents
@given(payload=st.binary(max_size=200))
def test_random_bytes_are_no_document(
    document: Document[Any], cls: type, example: object, payload: bytes
) -> None:
    with pytest.raises(BadRequest):
        document.decode(np.frombuffer(payload, np.uint8))


@on_all_documents
@given(position=st.integers(0, 1 << 20), byte=st.integers(0, 255))
def test_a_flipped_byte_is_a_document_or_refused(
    document: Document[Any], cls: type, example: object, position: int, byte: int
) -> None:
    payload = document.encode(example).copy()
    payload[position % len(payload)] = byte
    with contextlib.suppress(BadRequest):
        assert isinstance(document.decode(payload), cls)


@on_all_documents
def test_a_document_that_is_cut_short_is_refused(document: Document[Any], cls: type, example: object) -> None:
    payload = document.encode(example)
    for length in range(len(payload)):
        with pytest.raises(BadRequest) as caught:
            document.decode(payload[:length])
        assert document.parts(payload)[0].name == caught.value.field


@on_all_documents
def test_a_document_says_what_its_payload_is(document: Document[Any], cls: type, example: object) -> None:
    payload = document.encode(example)
    (part,) = document.parts(payload)
    assert (part.dtype, part.elements) == ("uint8", len(payload))


@on_all_documents
def test_a_document_that_announces_much_is_refused(
    document: Document[Any], cls: type, example: object
) -> None:
    for bomb in (b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xdb\xff\xff\xff\xff", b"\x91" * 5000):
        with pytest.raises(BadRequest):
            document.decode(np.frombuffer(bomb, np.uint8))


PLAIN_DURABILITY = ["none", "", 1, None, ""]


@pytest.mark.parametrize(
    ("plain", "field"),
    [
        ([], "status"),
        ({"version": "0.1.0"}, "status"),
        (["0.1.0", 12.5, []], "status"),
        ([1, 12.5, [], [], PLAIN_DURABILITY], "version"),
        (["0.1.0", 12.5, [[0, "a", "ready"]], [], PLAIN_DURABILITY], "shards"),
        (["0.1.0", 12.5, [[-1, "a", "ready", 0, 0.0, ""]], [], PLAIN_DURABILITY], "shard"),
        (["0.1.0", 12.5, [[0, "a", "ready", 0, "0", ""]], [], PLAIN_DURABILITY], "heartbeat_age"),
    ],
)
def test_a_status_of_another_form_is_refused_with_the_field(plain: object, field: str) -> None:
    with pytest.raises(BadRequest) as caught:
        STATUS.decode(np.frombuffer(msgpack.packb(plain), np.uint8))
    assert caught.value.field == field


def with_field(plain: list[Any], number: int, value: object) -> list[Any]:
    """Return a copy of an array of fields with another value of one of them."""
    return [*plain[:number], value, *plain[number + 1 :]]


PLAIN_WORKER = [1, "w1", 2, "dead", 7, 3, 640, 80.5, 0.75, 1, None]
PLAIN_WAIT = ["job", 1, "step 3", 2, ["a", "b"], 1.5]
PLAIN_JOB = ["job", 3.0, 1, 5, 10, [PLAIN_WORKER], [], None, [PLAIN_WAIT], 4, 2.5]
PLAIN_EPOCH = ["job", 3, 2.0, 5, [[0, 1, "a", 7]]]


@pytest.mark.parametrize(
    ("worker", "field"),
    [
        (with_field(PLAIN_WORKER, 1, "a/b"), "name"),
        (with_field(PLAIN_WORKER, 2, -1), "incarnation"),
        (with_field(PLAIN_WORKER, 3, None), "state"),
        (with_field(PLAIN_WORKER, 5, 1.5), "lag"),
        (with_field(PLAIN_WORKER, 7, True), "examples_per_second"),
        (with_field(PLAIN_WORKER, 9, True), "leases"),
        (with_field(PLAIN_WORKER, 10, "nan"), "loss"),
        (PLAIN_WORKER[:-1], "workers"),
    ],
)
def test_a_worker_of_another_form_is_refused_with_the_field(worker: list[Any], field: str) -> None:
    job = with_field(PLAIN_JOB, 5, [worker])
    with pytest.raises(BadRequest) as caught:
        STATUS.decode(np.frombuffer(msgpack.packb(["0.1.0", 12.5, [], [job], PLAIN_DURABILITY]), np.uint8))
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("job", "field"),
    [
        (with_field(PLAIN_JOB, 2, -1), "backup_workers"),
        (with_field(PLAIN_JOB, 8, [with_field(PLAIN_WAIT, 0, "")]), "job"),
        (with_field(PLAIN_JOB, 8, [with_field(PLAIN_WAIT, 4, ["a", 1])]), "waiting_for"),
        (with_field(PLAIN_JOB, 8, [with_field(PLAIN_WAIT, 5, None)]), "seconds"),
        (with_field(PLAIN_JOB, 9, -1), "dropped"),
        (with_field(PLAIN_JOB, 10, None), "longest_wait"),
        (PLAIN_JOB[:-2], "jobs"),
    ],
)
def test_a_job_of_another_form_is_refused_with_the_field(job: list[Any], field: str) -> None:
    with pytest.raises(BadRequest) as caught:
        STATUS.decode(np.frombuffer(msgpack.packb(["0.1.0", 12.5, [], [job], PLAIN_DURABILITY]), np.uint8))
    assert caught.value.field == field


def test_the_plain_forms_above_are_right_but_for_the_one_field() -> None:
    plain = ["0.1.0", 12.5, [], [PLAIN_JOB], PLAIN_DURABILITY]
    assert STATUS.decode(np.frombuffer(msgpack.packb(plain), np.uint8)).jobs[0].dropped == 4
    assert EPOCH.decode(np.frombuffer(msgpack.packb(PLAIN_EPOCH), np.uint8)).number == 3


@pytest.mark.parametrize(
    ("plain", "field"),
    [
        (with_field(PLAIN_EPOCH, 0, "../job"), "job"),
        (with_field(PLAIN_EPOCH, 1, 0), "number"),
        (with_field(PLAIN_EPOCH, 2, -1.0), "staleness"),
        (with_field(PLAIN_EPOCH, 2, 0.5), "staleness"),
        (with_field(PLAIN_EPOCH, 2, float(1 << 31)), "staleness"),
        (with_field(PLAIN_EPOCH, 2, math.nan), "staleness"),
        (with_field(PLAIN_EPOCH, 2, -math.inf), "staleness"),
        (with_field(PLAIN_EPOCH, 3, -1), "since"),
        (with_field(PLAIN_EPOCH, 4, [[0, 1, "a", -1]]), "clock"),
        (with_field(PLAIN_EPOCH, 4, [[0, 1, "a"]]), "members"),
        (with_field(PLAIN_EPOCH, 4, {}), "members"),
    ],
)
def test_an_epoch_of_another_form_is_refused_with_the_field(plain: list[Any], field: str) -> None:
    with pytest.raises(BadRequest) as caught:
        EPOCH.decode(np.frombuffer(msgpack.packb(plain), np.uint8))
    assert caught.value.field == field


def test_more_tensors_than_a_header_holds() -> None:
    spec = Spec("float32", (1000, 1000), spec_of(SGD()))
    blocks = tuple(Block(shard, shard * 1000, shard * 1000 + 1000) for shard in range(8))
    catalogue = Catalogue(tuple(TensorInfo(f"{number:0128}", spec, blocks) for number in range(5000)))
    assert CATALOGUE.decode(CATALOGUE.encode(catalogue)) == catalogue


def test_an_epoch_of_more_workers_than_a_header_holds() -> None:
    members = tuple(Member(number, 1, f"{number:0128}", 7) for number in range(5000))
    epoch = Epoch("job", 3, 2.0, 5, members)
    payload = EPOCH.encode(epoch)
    assert MAX_HEADER < payload.nbytes <= MOST
    assert EPOCH.decode(payload) == epoch

"""What reads bytes that somebody else has written, and what real bytes look like.

A target takes any bytes. It may refuse them with the errors that it promises, which the target looks for; all
else that it raises is a defect. Seeds are what a fuzzer begins with.
"""

import asyncio
import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

import msgpack
import numpy as np
import xxhash
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from protocol.compression.keys import decode_keys, encode_keys
from protocol.documents import CATALOGUE, EPOCH, LOAD, SAVED, STATUS, WAITS, Document
from protocol.errors import PSError, WireError
from protocol.frames import END, HELLO_HEADER, VERSION, FrameReader, Head, encode_prelude
from protocol.messages import (
    REQUESTS,
    Catalogue,
    Epoch,
    Hello,
    Join,
    LoadPlan,
    Pull,
    Reply,
    SavedFiles,
    Status,
    decode_header,
    decode_reply,
    decode_request,
    encode_error,
    encode_reply,
    encode_request,
)
from protocol.status import ClusterStatus, Waits
from protocol.tables import CODINGS
from protocol.tensors import DTYPES
from psserver.durability import documents, records, safetensors
from psserver.durability.checkpoint import manifest_from_bytes
from psserver.durability.manifest import Header, Manifest, ShardState, check_shard_state
from psserver.server import Server, ServerSettings
from tests.protocol.strategies import instances
from tests.psserver.durability.made_up import TENSORS, manifest_of

__all__ = ["TARGETS", "Target"]

_LIMIT: Final = 1 << 20
_REPLIES: Final[tuple[type[Reply], ...]] = Reply.__args__
_DOCUMENTS: Final[dict[type, Document[Any]]] = {
    ClusterStatus: STATUS,
    Catalogue: CATALOGUE,
    Epoch: EPOCH,
    Waits: WAITS,
    SavedFiles: SAVED,
    LoadPlan: LOAD,
}


@dataclass(frozen=True, slots=True)
class Target:
    """``feed`` takes any bytes; ``seeds`` returns real ones."""

    feed: Callable[[bytes], None]
    seeds: Callable[[], list[bytes]]


def _examples(strategy: st.SearchStrategy[Any], count: int = 5) -> list[Any]:
    """Return the same few examples each time."""
    found: list[Any] = []

    @settings(
        max_examples=count,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def collect(example: Any) -> None:
        found.append(example)

    collect()
    return found


# --- frames


def _frames(data: bytes) -> None:
    """Cut a stream as it comes in pieces; the first byte says how long these are."""
    reader = FrameReader(_LIMIT, HELLO_HEADER)
    step = 1 + (data[0] if data else 0) * 97
    left, greeted = memoryview(data[1:]), False
    try:
        while left:
            buffer = reader.get_buffer()
            assert len(buffer)
            count = min(len(buffer), len(left), step)
            buffer[:count] = left[:count]
            reader.received(count)
            left = left[count:]
            while (event := reader.next_event()) is not None:
                if event is END:
                    continue
                assert isinstance(event, Head)
                assert event.payload <= _LIMIT
                assert greeted or len(event.header) <= HELLO_HEADER
                half = event.payload // 2
                reader.receive_into([memoryview(bytearray(half)), event.payload - half])
                reader.accept(_LIMIT)
                greeted = True
    except WireError:
        pass


def _frame_seeds() -> list[bytes]:
    frames = [encode_prelude(len(header), 100) + header + bytes(100) for header in _request_seeds()[:40]]
    return [bytes([step]) + b"".join(frames[begin : begin + 4]) for begin, step in enumerate((0, 1, 9, 255))]


# --- messages


def _requests(data: bytes) -> None:
    """Whatever is understood can be said again, and means the same."""
    try:
        header = decode_header(data)
        request = decode_request(header)
    except PSError as error:
        decode_header(encode_error(1, error))  # it can be told
        return
    again = decode_request(decode_header(encode_request(header.id, request)))
    assert repr(again) == repr(request)  # NaN is not itself


def _request_seeds() -> list[bytes]:
    return [
        encode_request(number, example)
        for cls in REQUESTS
        for number, example in enumerate(_examples(instances(cls)))
    ]


def _replies(data: bytes) -> None:
    for expected in _REPLIES:
        try:
            decode_reply(decode_header(data), expected)
        except PSError:
            continue


def _reply_seeds() -> list[bytes]:
    replies = [encode_reply(1, example) for cls in _REPLIES for example in _examples(instances(cls))]
    return [*replies, encode_error(1, PSError("wrong", field="w", value=3))]


def _documents(data: bytes) -> None:
    for document in _DOCUMENTS.values():
        try:
            found = document.decode(np.frombuffer(data, np.uint8))
        except PSError:
            continue
        assert repr(document.decode(document.encode(found))) == repr(found)


def _document_seeds() -> list[bytes]:
    return [
        document.encode(example).tobytes()
        for cls, document in _DOCUMENTS.items()
        for example in _examples(instances(cls))
    ]


def _keys(data: bytes) -> None:
    """The first bytes say the coding, the dtype and how many keys there are."""
    if len(data) < 4:
        return
    coding, dtype = CODINGS[data[0] % len(CODINGS)], list(DTYPES.values())[data[1] % len(DTYPES)]
    if coding == "known":
        return
    count = int.from_bytes(data[2:4], "little")
    array = np.frombuffer(data[4 : 4 + (len(data) - 4) // dtype.itemsize * dtype.itemsize], dtype)
    try:
        keys = decode_keys(coding, count, array)
    except PSError:
        return
    assert keys.dtype == np.uint64
    assert keys.size == count
    again, encoded = encode_keys(keys)
    np.testing.assert_array_equal(decode_keys(again, count, encoded), keys)


def _key_seeds() -> list[bytes]:
    found = []
    for keys in ([1, 2, 3], [5], [2**64 - 1, 0], list(range(0, 100_000, 999)), [2**40, 2**41], [7, 7, 7]):
        coding, array = encode_keys(np.array(keys, np.uint64))
        head = bytes([CODINGS.index(coding), list(DTYPES.values()).index(array.dtype)])
        found.append(head + len(keys).to_bytes(2, "little") + array.tobytes())
    return found


# --- files


def _sealed(text: bytes) -> bytes:
    """Return a document with its checksum, for what is intact is not necessarily ours."""
    return text[:-1] + f',"checksum":"{xxhash.xxh3_64_hexdigest(text)}"}}\n'.encode()


def _manifests(data: bytes) -> None:
    for whole in (data, _sealed(data)):
        with suppress(ValueError):
            manifest_from_bytes(whole)
        with suppress(ValueError):
            check_shard_state(documents.decode(ShardState, whole))


def _manifest_seeds() -> list[bytes]:
    manifest: Manifest = manifest_of(Header(3, 2, "cluster-1", timeline=2), TENSORS, ())
    whole = documents.encode(manifest)
    text = json.dumps({k: v for k, v in json.loads(whole).items() if k != "checksum"}, separators=(",", ":"))
    return [whole, text.encode(), b"{}"]


def _safetensors(data: bytes) -> None:
    """A header whose file is as long as it says, or not."""
    with suppress(ValueError):
        length = safetensors.header_length(data[:8], len(data))
        safetensors.parse_header(data[8 : 8 + length], len(data))
    with suppress(ValueError):
        safetensors.parse_header(data, len(data) + 8)


def _safetensors_seeds() -> list[bytes]:
    arrays = [safetensors.Array("a", "float32", (2, 3)), safetensors.Array("b", "int8", (4,))]
    head = safetensors.header(arrays, {"format": "asyncps"})
    return [head + bytes(24 + 64), head]


def _records(data: bytes) -> None:
    """Headers and metas, with their checksums right."""
    for decode in (records.decode_record_header, records.decode_segment_header):
        head = (data + bytes(records.HEADER))[: records.HEADER - 8]
        try:
            decode(head + xxhash.xxh3_64_intdigest(head).to_bytes(8, "little"))
        except (records.Damaged, records.Foreign):
            continue
    header = records.RecordHeader(1, 0, 0, len(data), 0, xxhash.xxh3_64_intdigest(data), 0)
    try:
        batch = records.parse_meta(header, data)
    except (records.Damaged, records.Foreign):
        return
    assert sum(len(buffer) for buffer in records.data_buffers(batch)) == 0


def _record_seeds() -> list[bytes]:
    metas = [
        msgpack.packb([[], [], []]),
        msgpack.packb([[1, ["push", {"seq": 3}]], [[["job", 1], {"a": 1.5}]], []]),
        msgpack.packb([[], [], [[[["job", "w"], [1]], "float32", 0]]]),
    ]
    return [*metas, records.encode_segment_header(records.SegmentHeader(1, 0, 64, 7))]


# --- a whole server


class _Wire(asyncio.Transport):
    """What a server believes to be a socket."""

    def __init__(self) -> None:
        super().__init__()
        self.sent = bytearray()
        self._closing = False

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return ("127.0.0.1", 1) if name == "peername" else default

    def write(self, data: Any) -> None:
        self.sent += bytes(data)

    def writelines(self, list_of_data: Any) -> None:
        for data in list_of_data:
            self.write(data)

    def get_write_buffer_size(self) -> int:
        return 0

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None: ...
    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...

    def is_closing(self) -> bool:
        return self._closing

    def close(self) -> None:
        self._closing = True

    abort = close


class _Servers:
    """A server without sockets, which takes streams one after the other; a new one now and then."""

    _STREAMS = 200

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._left = 0

    def feed(self, data: bytes) -> None:
        """Serve a peer that sends ``data``; afterwards the server still answers."""
        if not self._left:
            self._renew()
        self._left -= 1
        self._loop.run_until_complete(self._serve(data))
        answers = self._loop.run_until_complete(self._serve(_hello() + _asks(2, Status())))
        assert answers.count(b"\xa2op\xa2ok") == 2
        refused = [
            key for key, count in self._server.metrics.requests.items() if key[1] == "internal" and count
        ]
        assert not refused, refused

    def _renew(self) -> None:
        self._left = self._STREAMS
        self._loop.run_until_complete(self._start())
        self._loop.run_until_complete(self._serve(_a_worker()))

    async def _start(self) -> None:
        self._server = Server(ServerSettings(max_frame=_LIMIT))
        coordinator = self._server._coordinator
        assert coordinator is not None
        coordinator.serve()

    async def _serve(self, data: bytes) -> bytes:
        wire = _Wire()
        guest = self._server._reception.accept()
        guest.connection_made(wire)
        left = memoryview(data)
        while left and not wire.is_closing():
            buffer = guest.get_buffer(-1)
            count = min(len(buffer), len(left))
            buffer[:count] = left[:count]
            guest.buffer_updated(count)
            left = left[count:]
        for _ in range(5):
            await asyncio.sleep(0)
        guest.connection_lost(None)
        return bytes(wire.sent)


def _asks(request_id: int, request: Any, payload: bytes = b"") -> bytes:
    header = encode_request(request_id, request)
    return encode_prelude(len(header), len(payload)) + header + payload


def _hello(job: str | None = None) -> bytes:
    return _asks(1, Hello((VERSION,), "fuzz", job))


def _a_worker() -> bytes:
    return _hello() + _asks(2, Join("token", "job", "w0"))


def _server_seeds() -> list[bytes]:
    requests = [
        _hello()
        + b"".join(_asks(2 + number, example) for number, example in enumerate(_examples(instances(cls))))
        for cls in REQUESTS
        if not hasattr(cls, "tensors")
    ]
    return [*requests, _a_worker(), _hello("job") + _asks(2, Pull(("w",)))]


def _make_targets() -> Iterator[tuple[str, Target]]:
    servers: list[_Servers] = []

    def server(data: bytes) -> None:
        if not servers:
            servers.append(_Servers())
        servers[0].feed(data)

    yield "frames", Target(_frames, _frame_seeds)
    yield "requests", Target(_requests, _request_seeds)
    yield "replies", Target(_replies, _reply_seeds)
    yield "documents", Target(_documents, _document_seeds)
    yield "keys", Target(_keys, _key_seeds)
    yield "manifests", Target(_manifests, _manifest_seeds)
    yield "safetensors", Target(_safetensors, _safetensors_seeds)
    yield "records", Target(_records, _record_seeds)
    yield "server", Target(server, _server_seeds)


TARGETS: Final[dict[str, Target]] = dict(_make_targets())

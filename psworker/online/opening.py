"""From [stream] source to the partitions of a stream."""

from __future__ import annotations

from urllib.parse import urlsplit

from protocol.addresses import split_address
from psworker.job import StreamSettings
from psworker.online.kafka import KafkaTopic
from psworker.online.pipe import StandardInput, TcpLines
from psworker.online.records import Streams
from psworker.online.tail import TailFiles

__all__ = ["open_streams"]


async def open_streams(settings: StreamSettings, *, workers: int, reconnect_for: float) -> Streams:
    """Open what a job's stream comes from.

    Args:
        settings: of the stream.
        workers: that the job starts with; each has a standard input of its own.
        reconnect_for: seconds to keep trying while a TCP source or Kafka is not there.

    Raises:
        DataError: it cannot be read.
    """
    header = settings.format == "csv" and not settings.fields
    match settings.kind:
        case "-":
            return StandardInput(workers, header=header, replays=settings.replays)
        case "tail":
            paths = [source.removeprefix("tail:") for source in settings.source]
            return TailFiles(paths, header=header)
        case "tcp":
            host, port = split_address(urlsplit(settings.source[0]).netloc)
            return TcpLines(host, port, header=header, replays=settings.replays, reconnect_for=reconnect_for)
        case _:
            parts = urlsplit(settings.source[0])
            return await KafkaTopic.found(parts.netloc, parts.path.removeprefix("/"), reconnect_for)

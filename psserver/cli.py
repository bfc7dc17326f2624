"""``psserver``: flags in, a running server out."""

from __future__ import annotations

import argparse
import asyncio
import errno
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import configargparse

from protocol.credentials import Access
from protocol.daemon.access_flags import access_flags, access_from
from protocol.daemon.descriptors import allow_descriptors
from protocol.daemon.exit_codes import ExitCode
from protocol.daemon.exposition import Exposition
from protocol.daemon.logs import Speaker, configure_logs
from protocol.daemon.run import announce_ready, on_hangup, run, watch_stdin
from protocol.daemon.settings import address, duration, is_loopback, log_flags, new_parser, port, size
from protocol.errors import AccessError, CheckpointUnusable, ClusterError, PSError
from protocol.events import about
from psserver.durability import failpoints
from psserver.membership import FailureSettings
from psserver.persistence import DurabilitySettings
from psserver.server import Server, ServerSettings

__all__ = ["main", "start"]

_log = logging.getLogger("psserver")

_METRICS_PORT: Final = 9464
_OTHER_DESCRIPTORS: Final = 128
"""Files that are kept for what is no client: operators, other servers, metrics, checkpoints and logs."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        problem = _problem(options)
    except PSError as error:
        problem = str(error)
    if problem:
        parser.error(problem)
    speaker = Speaker()
    configure_logs(options.log_format, options.log_level, speaker)
    try:
        failpoints.configure(os.environ.get("PSSERVER_FAILPOINTS", ""))
    except ValueError as error:
        parser.error(f"PSSERVER_FAILPOINTS: {error}")
    return run(lambda stop: _serve(options, stop, speaker))


def _parser() -> configargparse.ArgParser:
    parser = new_parser(
        "psserver", "Serve one shard of the parameters; without --join, coordinate the others."
    )
    parser.add_argument("--host", default="127.0.0.1", metavar="HOST", help="address to bind")
    parser.add_argument(
        "--port", type=port, default=7070, metavar="PORT", help="TCP port to bind; 0 takes a free one"
    )
    parser.add_argument(
        "--shards", type=int, default=1, metavar="N", help="servers in the cluster; said to the coordinator"
    )
    parser.add_argument(
        "--join", type=address, metavar="HOST:PORT", help="the coordinator; without it this server is the one"
    )
    parser.add_argument(
        "--shard", type=int, metavar="I", help="the number to ask the coordinator for; without it, any"
    )
    parser.add_argument(
        "--advertise",
        type=address,
        metavar="HOST:PORT",
        help="where workers reach this server, if not where it is bound: behind NAT or a proxy",
    )
    parser.add_argument(
        "--heartbeat-interval",
        type=duration,
        default="1s",
        metavar="TIME",
        help="between two heartbeats of workers and servers; said to the coordinator",
    )
    parser.add_argument(
        "--dead-after",
        type=duration,
        default="5s",
        metavar="TIME",
        help="the longest silence of a worker before the others go on without it; one that was always "
        "regular is missed after some --heartbeat-interval already; said to the coordinator",
    )
    parser.add_argument(
        "--hung-after",
        type=duration,
        default="60s",
        metavar="TIME",
        help="how long a worker may keep others waiting though it sends heartbeats; said to the coordinator",
    )
    parser.add_argument(
        "--reconnect-for",
        type=duration,
        default="60s",
        metavar="TIME",
        help="how long to try while the coordinator does not answer; goes with --join",
    )
    parser.add_argument(
        "--checkpoint-dir",
        metavar="DIR",
        help="where checkpoints and the update log are: a directory or, for checkpoints, a URL such as s3://...",
    )
    parser.add_argument(
        "--checkpoint-every",
        type=duration,
        default="30s",
        metavar="TIME",
        help="between two checkpoints, if anything has changed; 0s: only on demand and at the end; said to "
        "the coordinator",
    )
    parser.add_argument("--keep", type=int, default=3, metavar="N", help="complete checkpoints that are kept")
    parser.add_argument(
        "--durability",
        choices=["none", "snapshot", "log"],
        help="what outlives a server: nothing, what was in the last checkpoint, or every acknowledged update "
        "(default: snapshot with --checkpoint-dir, else none)",
    )
    parser.add_argument(
        "--log-sync",
        choices=["always", "1s"],
        default="always",
        help="when the update log is synced: before each acknowledgement, or once a second",
    )
    parser.add_argument(
        "--metrics-port",
        type=port,
        metavar="PORT",
        help=f"HTTP port for metrics (default: {_METRICS_PORT}, or a free one if that is taken)",
    )
    parser.add_argument(
        "--max-frame", type=size, default="1GiB", metavar="SIZE", help="largest payload of a frame accepted"
    )
    parser.add_argument(
        "--kernels",
        choices=["compiled", "numpy"],
        default="compiled",
        help="what computes sparse tables: kernels that Numba compiles once, where it is installed, or NumPy",
    )
    parser.add_argument("--max-connections", type=int, default=1024, metavar="N", help="connections accepted")
    parser.add_argument(
        "--max-connections-per-address",
        type=int,
        metavar="N",
        help="connections accepted from one address but this machine's own (default: half of all)",
    )
    parser.add_argument(
        "--idle-timeout",
        type=duration,
        default="60s",
        metavar="TIME",
        help="silence after which a connection is ended; clients say every heartbeat that they are there",
    )
    parser.add_argument(
        "--write-timeout",
        type=duration,
        default="30s",
        metavar="TIME",
        help="how long a client may take none of its replies before its connection is ended",
    )
    parser.add_argument("--ready-file", metavar="FILE", help="write the addresses there as JSON once bound")
    parser.add_argument(
        "--stop-with-stdin",
        action="store_true",
        help="stop when standard input ends, so as not to outlive the process that started this one",
    )
    access_flags(parser, server=True)
    parser.add_argument(
        "--insecure",
        action="store_true",
        help="allow a --host that others can reach though nobody has to prove who it is",
    )
    log_flags(parser)
    return parser


def _problem(options: argparse.Namespace) -> str | None:
    """Return what is wrong with flags that are right one by one."""
    if options.shards < 1:
        return f"--shards {options.shards}: a cluster has at least 1 server"
    if options.max_connections < 1:
        return f"--max-connections {options.max_connections}: at least 1 is needed"
    if options.max_connections_per_address is not None and options.max_connections_per_address < 1:
        return f"--max-connections-per-address {options.max_connections_per_address}: at least 1 is needed"
    for flag, seconds in (("idle", options.idle_timeout), ("write", options.write_timeout)):
        if seconds < 1:
            return f"--{flag}-timeout {seconds:g}s: at least 1s is needed; it is looked at once a second"
    if options.shard is not None and options.join is None:
        return f"--shard {options.shard} goes with --join; the coordinator is always shard 0"
    if options.shard is not None and options.shard < 1:
        return f"--shard {options.shard}: the coordinator is shard 0, the others count from 1"
    if options.advertise is not None and options.join is None:
        return "--advertise goes with --join: workers are given the coordinator's address by you"
    if not 0.01 <= options.heartbeat_interval <= options.dead_after:
        return (
            f"--heartbeat-interval {options.heartbeat_interval:g}s and --dead-after {options.dead_after:g}s: "
            "expected 10ms or more between heartbeats, and no less than that until death"
        )
    if options.keep < 1:
        return f"--keep {options.keep}: at least 1 checkpoint is kept"
    if _mode(options) != "none" and not options.checkpoint_dir:
        return f"--durability {options.durability} needs a --checkpoint-dir"
    if options.checkpoint_dir and options.durability == "none":
        return "--durability none keeps nothing; leave --checkpoint-dir away, or say snapshot or log"
    if _mode(options) == "log" and "://" in options.checkpoint_dir:
        return (
            f"--checkpoint-dir {options.checkpoint_dir}: an update log needs a directory of this machine; "
            "give one, or say --durability snapshot"
        )
    access = access_from(options, server=True)
    if not is_loopback(options.host) and not access.authenticates and not options.insecure:
        return (
            f"--host {options.host} lets other machines in, and nothing would be asked of them; give "
            "--token-file, or --tls-ca with --tls-cert and --tls-key (docs/security.md), bind 127.0.0.1, or "
            "say --insecure on a network that you trust"
        )
    return None


async def _serve(options: argparse.Namespace, stop: asyncio.Event, speaker: Speaker) -> int:
    settings = ServerSettings(
        host=options.host,
        port=options.port,
        shards=options.shards,
        join=options.join,
        shard=options.shard,
        advertise=options.advertise,
        failure=FailureSettings(options.heartbeat_interval, options.dead_after, options.hung_after),
        durability=_durability(options),
        reconnect_for=options.reconnect_for,
        max_frame=options.max_frame,
        max_connections=_with_descriptors(options.max_connections),
        per_address=options.max_connections_per_address,
        idle_timeout=options.idle_timeout,
        write_timeout=options.write_timeout,
        compiled=options.kernels == "compiled",
        access=access_from(options, server=True),
    )
    try:
        server = Server(settings)
    except PSError as error:
        _log.error("%s", error)
        return ExitCode.USAGE
    except (OSError, ValueError) as error:
        _log.error("--checkpoint-dir cannot be used: %s", error)
        return ExitCode.USAGE
    speaker.tell = server.identity
    _warn(options, settings.access)
    loop = asyncio.get_running_loop()
    exposition = Exposition(server.metrics.registry, server.why_not_ready, loop, server.pages(loop))
    try:
        metrics = exposition.listen(options.host, options.metrics_port, _METRICS_PORT)
    except OSError as error:
        _log.error(
            "cannot serve metrics on --host %s --metrics-port %s: %s; %s",
            options.host, _METRICS_PORT if options.metrics_port is None else options.metrics_port,
            error, _remedy(error, options.host),
            extra=about("failed"),
        )  # fmt: skip
        return ExitCode.USAGE
    server.page_is_at(metrics)
    try:
        bound = await start(server, stop)
    except (OSError, PSError) as error:
        bound, code = None, _start_failure(options, error)
    else:
        code = ExitCode.DONE
    if bound is None:
        exposition.close()
        await server.stop()
        return code
    if settings.access != Access():
        on_hangup(server.reload)
    announce_ready(options.ready_file, address=bound, metrics=metrics)
    code = await _until_stopped(server, stop, with_stdin=options.stop_with_stdin)
    await server.stop()
    exposition.close()
    return code


async def start(server: Server, stop: asyncio.Event) -> str | None:
    """Start the server and return its address; None: it was told to stop before.

    It may take long until a coordinator answers, or a log has been read.
    """
    starting, stopping = asyncio.create_task(server.start()), asyncio.create_task(stop.wait())
    await asyncio.wait([starting, stopping], return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if not starting.done():
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        return None
    return starting.result()


def _with_descriptors(connections: int) -> int:
    """Let this process have a file descriptor for each connection; return for how many there are some."""
    allowed = allow_descriptors(connections + _OTHER_DESCRIPTORS) - _OTHER_DESCRIPTORS
    if allowed >= connections:
        return connections
    _log.warning(
        "--max-connections %d: the system allows this process files for %d; raise its limit (ulimit -n)",
        connections, allowed,
    )  # fmt: skip
    return max(allowed, 1)


def _warn(options: argparse.Namespace, access: Access) -> None:
    """Say what an operator may have overlooked who lets other machines in."""
    if is_loopback(options.host):
        return
    if not access.authenticates:
        _log.warning("--insecure: whoever reaches --host %s may do anything with this cluster", options.host)
    elif access.tls is None:
        _log.warning(
            "tokens without TLS: whoever can listen on the network sees the parameters, and whoever can "
            "change what passes on it changes them; give --tls-cert and --tls-key"
        )


def _durability(options: argparse.Namespace) -> DurabilitySettings | None:
    if _mode(options) == "none":
        return None
    return DurabilitySettings(
        mode=_mode(options),
        url=_absolute(options.checkpoint_dir),
        every=options.checkpoint_every,
        keep=options.keep,
        log_sync=0.0 if options.log_sync == "always" else duration(options.log_sync),
    )


def _absolute(directory: str) -> str:
    """Return a directory as others can name it, too; URLs as they are."""
    return directory if "://" in directory else str(Path(directory).absolute())


def _mode(options: argparse.Namespace) -> Any:
    """Return the durability, which without a flag depends on whether there is a place for it."""
    return options.durability or ("snapshot" if options.checkpoint_dir else "none")


def _start_failure(options: argparse.Namespace, error: Exception) -> int:
    if isinstance(error, CheckpointUnusable):
        _log.error("the state cannot be restored: %s", error, extra=about("failed"))
        return ExitCode.CHECKPOINT_UNUSABLE
    if isinstance(error, ClusterError):
        _log.error("cannot join the cluster: %s", error, extra=about("failed"))
        return ExitCode.UNREACHABLE
    if isinstance(error, PSError):
        _log.error("the coordinator refuses: %s", error, extra=about("failed"))
        return ExitCode.REFUSED
    _log.error(
        "cannot listen on --host %s --port %d: %s; %s",
        options.host, options.port, error, _remedy(error, options.host), extra=about("failed"),
    )  # fmt: skip
    return ExitCode.USAGE


def _remedy(error: Exception, host: str) -> str:
    """Return what can be done where a port cannot be bound."""
    if isinstance(error, OSError) and error.errno == errno.EADDRNOTAVAIL:
        return f"{host} is no address of this machine (ip addr lists them; 0.0.0.0 is all of them)"
    if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
        return "another process has that port, maybe a psserver that runs still; 0 takes a free one"
    return "give another host or port"


async def _until_stopped(server: Server, stop: asyncio.Event, *, with_stdin: bool) -> int:
    assert server.failed is not None  # noqa: S101 (it was started)
    waits: list[asyncio.Future[Any]] = [asyncio.create_task(stop.wait()), server.failed]
    if with_stdin:
        waits.append(asyncio.create_task(_stdin_ends()))
    _, pending = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    for wait in pending:
        wait.cancel()
    await asyncio.gather(*pending, return_exceptions=True)
    if stop.is_set() or server.failed.cancelled():
        return ExitCode.DONE
    error = server.failed.result()
    if isinstance(error, CheckpointUnusable):
        _log.error("the state cannot be restored: %s", error, extra=about("failed"))
        return ExitCode.CHECKPOINT_UNUSABLE
    if isinstance(error, AccessError):
        _log.error("the coordinator refuses: %s", error, extra=about("failed"))
        return ExitCode.REFUSED
    _log.error("the cluster is lost: %s", error, extra=about("failed"))
    return ExitCode.CLUSTER_LOST


async def _stdin_ends() -> bool:
    await watch_stdin()
    _log.info("standard input has ended, stopping")
    return True

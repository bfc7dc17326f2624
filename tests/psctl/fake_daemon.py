"""A stand-in for psserver and psworker: run as ``python fake_daemon.py BEHAVIOUR FLAGS...``.

BEHAVIOUR is ``wait`` (until standard input ends or SIGTERM comes), ``deaf`` (as wait, but SIGTERM does
nothing) or an exit code to end with at once. SIGUSR1 ends it with exit code 0, as work that is done.
While it lives, it keeps a connection open to the port that FAKE_DAEMON_WATCH says, so that a test can see
it end.
"""

import itertools
import json
import os
import signal
import socket
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path


class Ready(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/readyz" else 404)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


def serve_metrics(port: int) -> HTTPServer:
    metrics = HTTPServer(("127.0.0.1", port), Ready)
    threading.Thread(target=metrics.serve_forever, daemon=True).start()
    return metrics


def write_ready_file(path: Path, metrics: HTTPServer) -> None:
    partial = path.with_suffix(".partial")
    addresses = {"address": "127.0.0.1:7070", "metrics": f"127.0.0.1:{metrics.server_port}"}
    partial.write_text(json.dumps({**addresses, "pid": os.getpid()}))
    partial.replace(path)


def end_with_stdin() -> None:
    while os.read(sys.stdin.fileno(), 4096):
        pass
    os._exit(0)


def main(behaviour: str, *flags: str) -> int:
    if "FAKE_DAEMON_WATCH" in os.environ:
        # Kept open until this process ends, in whatever way.
        socket.create_connection(("127.0.0.1", int(os.environ["FAKE_DAEMON_WATCH"]))).detach()
    if behaviour not in ("wait", "deaf"):
        print("flags", *flags, flush=True)
        print("why it ends", file=sys.stderr, flush=True)
        return int(behaviour)
    if behaviour == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    # Blocked and waited for: a handler does not run if the signal comes just before a read that blocks.
    ends = {signal.SIGUSR1} if behaviour == "deaf" else {signal.SIGUSR1, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, ends)
    print("flags", *flags, flush=True)  # from here on it behaves as said
    if "--shards" in flags:  # it is a server
        ports = [flag for before, flag in itertools.pairwise(flags) if before == "--metrics-port"]
        metrics = serve_metrics(int(ports[-1]))
        if "--ready-file" in flags:
            write_ready_file(Path(flags[flags.index("--ready-file") + 1]), metrics)
    threading.Thread(target=end_with_stdin, daemon=True).start()
    return 143 if signal.sigwait(ends) == signal.SIGTERM else 0


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))

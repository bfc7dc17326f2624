"""A stand-in for psserver and psworker: run as ``python fake_daemon.py BEHAVIOUR FLAGS...``.

BEHAVIOUR is ``wait`` (until standard input ends or SIGTERM comes), ``deaf`` (as wait, but SIGTERM does
nothing) or an exit code to end with at once. SIGUSR1 ends it with exit code 0, as work that is done.
While it lives, it keeps a connection open to the port that FAKE_DAEMON_WATCH says, so that a test can see
it end.
"""

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


def write_ready_file(path: Path) -> None:
    metrics = HTTPServer(("127.0.0.1", 0), Ready)
    threading.Thread(target=metrics.serve_forever, daemon=True).start()
    partial = path.with_suffix(".partial")
    addresses = {"address": "127.0.0.1:7070", "metrics": f"127.0.0.1:{metrics.server_port}"}
    partial.write_text(json.dumps({**addresses, "pid": os.getpid()}))
    partial.replace(path)


def main(behaviour: str, *flags: str) -> int:
    if "FAKE_DAEMON_WATCH" in os.environ:
        # Kept open until this process ends, in whatever way.
        socket.create_connection(("127.0.0.1", int(os.environ["FAKE_DAEMON_WATCH"]))).detach()
    if behaviour == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if behaviour not in ("wait", "deaf"):
        print("flags", *flags, flush=True)
        print("why it ends", file=sys.stderr, flush=True)
        return int(behaviour)
    if behaviour == "wait":
        signal.signal(signal.SIGTERM, lambda number, frame: os._exit(143))
    signal.signal(signal.SIGUSR1, lambda number, frame: os._exit(0))
    print("flags", *flags, flush=True)  # from here on it behaves as said
    if "--ready-file" in flags:
        write_ready_file(Path(flags[flags.index("--ready-file") + 1]))
    sys.stdin.read()
    return 0


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))

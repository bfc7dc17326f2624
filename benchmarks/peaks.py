"""The most memory that processes have ever held, as the kernel keeps it."""

import json
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.pinning import descendants

_LOOK_EVERY = 0.05  # seconds between two looks; the kernel keeps each process's peak itself


def peaks_of(pid: int) -> Iterator[tuple[str, int]]:
    """Yield "module pid" and the peak resident bytes, of a process and its descendants that run modules."""
    for one in (pid, *descendants(pid)):
        try:
            status = Path(f"/proc/{one}/status").read_text()
            command = Path(f"/proc/{one}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue  # it has just ended
        peak = next((line for line in status.splitlines() if line.startswith("VmHWM:")), None)
        if peak is not None and b"-m" in command:
            module = command[command.index(b"-m") + 1].decode()
            yield f"{module} {one}", int(peak.split()[1]) * 1024


def watched(command: Sequence[str]) -> tuple[dict[str, Any], dict[str, int]]:
    """Run a command; return the JSON object of its last line, and the peak resident bytes of each process.

    Raises SystemExit if it fails.
    """
    peaks: dict[str, int] = {}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        while process.poll() is None:
            for name, peak in peaks_of(process.pid):
                peaks[name] = max(peak, peaks.get(name, 0))
            time.sleep(_LOOK_EVERY)
        output = process.stdout.read() if process.stdout else ""
    if process.returncode:
        raise SystemExit(f"{' '.join(command[1:4])} ended with exit code {process.returncode}")
    return json.loads(output.splitlines()[-1]), peaks

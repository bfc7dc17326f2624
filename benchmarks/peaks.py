"""The most memory that processes have ever held, as the kernel keeps it."""

from collections.abc import Iterator
from pathlib import Path

from benchmarks.pinning import descendants


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

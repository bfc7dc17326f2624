"""`python -m tests.fuzz [TARGET...] [--seconds S]`: look for bytes that a reader trips over, with atheris.

Each target runs in a process of its own, under a limit of memory, for so many seconds. What it trips over is
kept in ``tests/fuzz/crashes`` and makes the exit status 1.
"""

import argparse
import logging
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

_HERE = Path(__file__).parent
_MOST_MEMORY_MB = 1024
_LONGEST = 16 * 1024  # bytes of an input
_SLOWEST_SECONDS = 10


def main() -> int:
    """Run the targets one after the other; 0 where none has tripped."""
    if sys.argv[1:2] == ["--child"]:
        _fuzz(sys.argv[2], sys.argv[3:])
        return 0
    from tests.fuzz.targets import TARGETS

    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(TARGETS)}; default: all")
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    options = parser.parse_args()
    if unknown := set(options.targets) - set(TARGETS):
        parser.error(f"no such target: {', '.join(sorted(unknown))}")
    names = options.targets or list(TARGETS)
    tripped = [name for name in names if not _run(name, TARGETS[name].seeds(), options.seconds)]
    print(f"fuzz: {', '.join(tripped) or 'none'} tripped; inputs are in {_HERE / 'crashes'}")
    return 1 if tripped else 0


def _run(name: str, seeds: Iterable[bytes], seconds: int) -> bool:
    print(f"fuzz: {name} for {seconds} s", flush=True)
    crashes = _HERE / "crashes"
    crashes.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as corpus:
        for number, seed in enumerate(seeds):
            (Path(corpus) / f"seed-{number}").write_bytes(seed)
        command = [
            *(sys.executable, "-m", "tests.fuzz", "--child", name),
            f"-max_total_time={seconds}",
            f"-max_len={_LONGEST}",
            f"-rss_limit_mb={_MOST_MEMORY_MB}",
            f"-timeout={_SLOWEST_SECONDS}",
            f"-artifact_prefix={crashes}/{name}-",
            "-print_final_stats=1",
            corpus,
        ]
        return subprocess.run(command, check=False).returncode == 0


def _fuzz(name: str, arguments: list[str]) -> None:
    import atheris

    with atheris.instrument_imports(include=["protocol", "psserver"]):
        from tests.fuzz.targets import TARGETS
    logging.disable()  # what is refused is no news
    atheris.Setup([sys.argv[0], *arguments], TARGETS[name].feed)
    atheris.Fuzz()


if __name__ == "__main__":
    sys.exit(main())

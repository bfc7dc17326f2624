"""``python -m psserver.store.kernels``: compile kernels into the cache, so that no server has to.

Without arguments, those of all optimizers are compiled; a container's build may do that.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from time import perf_counter

from psserver.optimizers import RULES
from psserver.store.kernels.cache import cache_directory, is_writable
from psserver.store.kernels.compiled import compile_kernels, is_installed

DTYPES = ("float32", "float64")


def main(arguments: Sequence[str] | None = None) -> int:
    """Compile; return the exit status: 0, or 1 if there is no Numba or no place for what it compiles."""
    options = _options(arguments)
    if not is_installed():
        print("Numba is not installed: pip install 'asyncps[sparse]'", file=sys.stderr)
        return 1
    directory = cache_directory()
    if not is_writable(directory):
        print(f"{directory} cannot be written to; NUMBA_CACHE_DIR names another place", file=sys.stderr)
        return 1
    os.nice(options.nice)
    print(f"compiling into {directory}", flush=True)
    for number in options.rule:
        for dtype in options.dtype:
            begun = perf_counter()
            compile_kernels(RULES[number], dtype)
            name = RULES[number].step.__module__.rpartition(".")[2]
            print(f"{name} {dtype}: {perf_counter() - begun:.1f} s", flush=True)
    return 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m psserver.store.kernels", description=__doc__)
    parser.add_argument("--rule", type=int, nargs="*", choices=range(len(RULES)), default=range(len(RULES)))
    parser.add_argument("--dtype", nargs="*", choices=DTYPES, default=DTYPES)
    parser.add_argument("--nice", type=int, default=0, help="be nicer to other processes by this much")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())

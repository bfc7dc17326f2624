"""Getting compiled kernels for a table while the server goes on with those in NumPy.

A compiler holds the interpreter for seconds. So it runs in a process of its own, which leaves what it made in
a cache; this process then only loads it, in a thread.
"""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import sys
from typing import TYPE_CHECKING, Final

import numpy as np

from psserver.optimizers import NO_PENALTY, Hyper, Rule
from psserver.store.index import Index
from psserver.store.initial import KINDS, Initial
from psserver.store.kernels import Groups, Kernels
from psserver.store.kernels.cache import cache_directory, is_writable
from psserver.store.records import Records

if TYPE_CHECKING:
    from psserver.store.sparse import SparseBlock

__all__ = ["compile_kernels", "compiled_kernels", "is_installed", "use_compiled"]

_LOG: Final = logging.getLogger(__name__)
_NICE: Final = 10


def is_installed() -> bool:
    """Return whether there is a Numba."""
    return importlib.util.find_spec("numba") is not None


async def use_compiled(block: SparseBlock) -> None:
    """Give ``block`` compiled kernels as soon as there are some; it works all the time.

    Without Numba, or where compiling fails, the block stays as it is, and the log says so.
    """
    if not is_installed():
        _LOG.info("table %s: computed by NumPy; pip install 'asyncps[sparse]' makes it faster", block.name)
        return
    kernels = await compiled_kernels(block.rule, block.spec.dtype)
    if kernels is None:
        _LOG.warning("table %s: computed by NumPy, for the kernels could not be compiled", block.name)
        return
    block.kernels = kernels
    _LOG.info("table %s: computed by compiled kernels", block.name)


async def compiled_kernels(rule: Rule, dtype: str) -> Kernels | None:
    """Return compiled kernels, or None if there are none to be had."""
    directory = cache_directory()
    if not is_writable(directory):
        _LOG.info("%s cannot be written to: compiling kernels here, which slows this process down", directory)
    elif not await _fill_cache(rule, dtype):
        return None
    return await asyncio.to_thread(compile_kernels, rule, dtype)


async def _fill_cache(rule: Rule, dtype: str) -> bool:
    arguments = ["--rule", str(rule.number), "--dtype", dtype, "--nice", str(_NICE)]
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "psserver.store.kernels",
        *arguments,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        _, errors = await process.communicate()
    except asyncio.CancelledError:
        process.kill()
        await process.wait()
        raise
    if process.returncode:
        _LOG.warning("compiling kernels failed: %s", errors.decode(errors="replace")[-1000:].strip())
    return process.returncode == 0


def compile_kernels(rule: Rule, dtype: str) -> Kernels:
    """Return compiled kernels for ``rule``, each of which has run once, so that none is compiled later on.

    It takes seconds; if they are in the cache, a tenth of that.
    """
    from psserver.store.kernels.numba_kernels import NumbaKernels  # noqa: PLC0415 - slow to import

    kernels = NumbaKernels(rule)
    _try_all(kernels, rule, np.dtype(dtype))
    return kernels


def _try_all(kernels: Kernels, rule: Rule, dtype: np.dtype[np.generic]) -> None:
    """Call every kernel once with arguments of the types that tables have."""
    index, dim = Index(), 2
    records = Records(dim * (1 + len(rule.slots)) + rule.counts, dtype)
    initial = Initial(KINDS["zeros"], 0.0, np.uint64(0))
    h: Hyper = (1.0,) * 8
    keys = np.arange(2000, dtype=np.uint64)  # so many that segments grow
    groups = Groups(keys.size)
    values = np.zeros((keys.size, dim), dtype)
    kernels.group(index, keys, groups)
    kernels.enter(index, keys, groups.missing[: groups.absent], groups, records.take(keys.size))
    kernels.initial(keys, dim, initial, values)
    kernels.fold(values, groups)
    out = np.zeros((keys.size, records.width), dtype)
    kernels.update(records, groups, values, None, h, NO_PENALTY, out)
    kernels.put(records, groups.rows[: groups.distinct], out)
    rows = np.empty(keys.size, np.int64)
    kernels.find(index, keys, rows)
    kernels.gather(index, records, keys, rows, initial, values)
    saved, old = np.zeros(keys.size, np.uint32), np.zeros(out.size, dtype)
    kernels.save(records, groups.rows[: groups.distinct], 0, keys.size, saved, old, 0)
    kernels.remove(index, keys)

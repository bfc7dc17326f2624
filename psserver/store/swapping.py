"""Swapping new versions in, of several tensors at once: many rows in a thread, all else at once."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import Executor
from typing import Any

from psserver.store.dense import DenseBlock
from psserver.store.sparse import SparseBlock

__all__ = ["swap_all"]


async def swap_all(changes: Sequence[tuple[DenseBlock | SparseBlock, Any]], threads: Executor) -> None:
    """Make these versions the current ones; needs the locks of the blocks."""
    loop = asyncio.get_running_loop()
    for block, version in changes:
        if isinstance(block, SparseBlock) and block.is_long(version.keys.size):
            await loop.run_in_executor(threads, block.swap, version)
        else:
            block.swap(version)

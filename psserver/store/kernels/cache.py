"""Where compiled kernels are kept from one start to the next.

Numba notices when a file with a kernel has changed, but not when one has whose functions the kernel calls. So
the directory is named by a digest of all the sources that go into a kernel.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import xxhash

import psserver.optimizers
import psserver.store

__all__ = ["cache_directory", "is_writable", "use_cache"]


def cache_directory() -> Path:
    """Return where: in ``NUMBA_CACHE_DIR`` if that is set, else where caches of this user are."""
    named = os.environ.get("NUMBA_CACHE_DIR")
    caches = os.environ.get("XDG_CACHE_HOME")
    if named:
        base = Path(named)
    elif caches:
        base = Path(caches) / "asyncps"
    else:
        base = Path(os.path.expanduser("~")) / ".cache" / "asyncps"
    return base / f"kernels-{_digest()}"


def use_cache(config: Any) -> bool:
    """Have Numba, whose ``config`` this is, keep what it compiles; return whether it can."""
    directory = cache_directory()
    if not is_writable(directory):
        return False
    config.CACHE_DIR = str(directory)
    return True


def is_writable(directory: Path) -> bool:
    """Return whether files can be made in ``directory``, which is made if it can be."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            return True
    except OSError:
        return False


def _digest() -> str:
    digest = xxhash.xxh3_64()
    for package in (psserver.optimizers, psserver.store):
        for path in package.__path__:
            for file in sorted(Path(path).rglob("*.py")):
                digest.update(file.read_bytes())
    return digest.hexdigest()

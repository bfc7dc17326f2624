import asyncio
import logging
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import psserver
from protocol.optimizers import Adagrad
from psserver.optimizers import Moment, rule_of
from psserver.store.kernels import cache, compiled
from psserver.store.kernels.__main__ import main
from psserver.store.kernels.compiled import use_compiled
from psserver.store.kernels.numba_kernels import NumbaKernels
from tests.psserver.store.tables import gathered, gradient_of, table


async def test_a_table_goes_on_with_compiled_kernels_when_there_are_some() -> None:
    block = table("numpy", Adagrad(0.1), initial="normal", scale=1.0)
    keys = np.arange(1000, dtype=np.uint64)
    block.swap(block.next_version(gradient_of(block, keys, 1.0), Moment()))
    before = gathered(block, keys)
    await use_compiled(block)
    assert block.kernels.name == "numba"
    assert gathered(block, keys).tobytes() == before.tobytes()


async def test_without_numba_the_log_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(compiled, "is_installed", lambda: False)
    block = table("numpy", Adagrad(0.1))
    with caplog.at_level(logging.INFO):
        await use_compiled(block)
    assert block.kernels.name == "numpy"
    assert [record.levelname for record in caplog.records] == ["INFO"]
    assert "pip install 'asyncps[sparse]'" in caplog.text


async def test_where_compiling_fails_the_table_stays_as_it_is(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    block = table("numpy", Adagrad(0.1))
    await use_compiled(block)
    assert block.kernels.name == "numpy"
    assert "could not be compiled" in caplog.text


async def test_a_cache_that_cannot_be_written_is_not_needed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "file"))
    block = table("numpy", Adagrad(0.1))
    with caplog.at_level(logging.INFO):
        await use_compiled(block)
    assert block.kernels.name == "numba"
    assert "cannot be written to" in caplog.text


async def test_a_compiler_does_not_outlive_its_task(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    started: list[asyncio.subprocess.Process] = []
    start = asyncio.create_subprocess_exec

    async def note(*arguments: str, **more: Any) -> asyncio.subprocess.Process:
        started.append(await start(*arguments, **more))
        task.cancel()
        return started[0]

    monkeypatch.setattr(asyncio, "create_subprocess_exec", note)
    task = asyncio.create_task(use_compiled(table("numpy", Adagrad(0.1))))
    with pytest.raises(asyncio.CancelledError):
        await task
    assert started[0].returncode is not None


def test_the_cache_is_where_the_user_wants_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache.cache_directory().parent == tmp_path / "home/.cache/asyncps"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.cache_directory().parent == tmp_path / "xdg/asyncps"
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "numba"))
    assert cache.cache_directory().parent == tmp_path / "numba"
    assert cache.is_writable(cache.cache_directory())


def test_all_that_goes_into_a_kernel_is_in_the_name_of_the_cache(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Package:
        __path__ = [str(tmp_path)]  # noqa: RUF012

    monkeypatch.setattr(psserver, "optimizers", Package)
    names = set()
    for text in ("a = 1", "a = 2"):
        (tmp_path / "sgd.py").write_text(text)
        names.add(cache.cache_directory())
    assert len(names) == 2


def test_the_command_says_what_it_does(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["--rule", "1", "--dtype", "float32"]) == 0
    printed = capsys.readouterr().out
    assert str(cache.cache_directory()) in printed
    assert "sgd float32: " in printed
    with monkeypatch.context() as patch:
        patch.setenv("NUMBA_CACHE_DIR", "/dev/null/nowhere")
        assert main([]) == 1
    assert "/dev/null/nowhere" in capsys.readouterr().err
    monkeypatch.setattr("psserver.store.kernels.__main__.is_installed", lambda: False)
    assert main([]) == 1
    assert "asyncps[sparse]" in capsys.readouterr().err


async def test_a_home_that_is_read_only_is_no_error() -> None:
    """Kernels are then compiled in this process, and not kept."""
    program = "from psserver.store.kernels import numba_kernels\nassert not numba_kernels._CACHED\n"
    environment = os.environ | {"NUMBA_CACHE_DIR": "/dev/null/nowhere"}
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", program, env=environment)
    assert await process.wait() == 0


def test_kernels_for_a_rule_are_made_once() -> None:
    rule = rule_of(Adagrad(0.1))
    assert NumbaKernels(rule)._update is NumbaKernels(rule)._update

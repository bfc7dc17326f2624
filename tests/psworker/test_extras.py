"""What needs an extra is imported where it is used, and says what to install."""

import subprocess
import sys

import pytest


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )


def test_the_clients_need_no_extra() -> None:
    code = "import sys, psworker, psworker.sync; print({'torch', 'sklearn', 'scipy'} & set(sys.modules))"
    assert run(code).stdout == "set()\n"


@pytest.mark.parametrize(
    ("module", "missing", "extra"),
    [("torch", "torch", "torch"), ("estimators", "sklearn", "sklearn"), ("estimators", "scipy", "sklearn")],
)
def test_it_is_said_what_to_install(module: str, missing: str, extra: str) -> None:
    done = run(f"import sys; sys.modules['{missing}'] = None; import psworker.{module}")
    assert f"pip install 'asyncps[{extra}]'" in done.stderr.splitlines()[-1]

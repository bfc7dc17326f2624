"""The example of a worker that never ends learns, shares what it learns, and ends when it is told to."""

import asyncio
import math
import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack

import numpy as np

from protocol.addresses import split_address
from psworker.asking import fetch_status
from psworker.sync import connect
from tests.deploy.manifests import KUBERNETES
from tests.integration.daemons import Daemon, daemons

PROGRAM = KUBERNETES / "components" / "stream" / "stream.py"
TRUTH = np.linspace(-1, 1, 16)


def learner(stack: ExitStack, address: str) -> Daemon:
    process = subprocess.Popen(
        [sys.executable, str(PROGRAM), "--server", address, "--pause", "0.001"],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    stack.enter_context(process)
    stack.callback(process.kill)
    return Daemon(process)


def test_any_number_of_them_learn_together_until_they_are_stopped() -> None:
    with daemons() as start, ExitStack() as stack:
        address = start.server().addresses()["address"]
        learners = [learner(stack, address) for _ in range(2)]
        with connect(address, "stream", staleness=math.inf) as reader:
            while len(asyncio.run(fetch_status(*split_address(address))).jobs[0].workers) < 1 + len(learners):
                time.sleep(0.05)
            while "w" not in reader.tensors():
                time.sleep(0.01)
            while np.corrcoef(reader.pull("w") + 1e-9 * TRUTH, TRUTH)[0, 1] < 0.95:
                time.sleep(0.01)
        for one in learners:
            one.process.send_signal(signal.SIGTERM)
        for one in learners:
            assert one.exit_code() == 0, one.log()
            assert "Traceback" not in one.log()

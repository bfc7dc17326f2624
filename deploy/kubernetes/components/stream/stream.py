"""Learn from a stream that never ends: a worker of one's own, to be replaced by yours.

It ends cleanly on SIGTERM, and any number of it may run at a time: the job is asynchronous.
"""

import argparse
import asyncio
import math
import signal
from collections.abc import AsyncIterator

import numpy as np
import numpy.typing as npt

from protocol.errors import Fenced
from psworker import TLS, Adagrad, Client, connect

FEATURES = 16
BATCH = 256

Floats = npt.NDArray[np.float32]


async def batches(pause: float) -> AsyncIterator[tuple[Floats, Floats]]:
    """Yield examples as they come: here they are drawn; yours are read from a queue."""
    rng = np.random.default_rng()
    truth = np.linspace(-1, 1, FEATURES, dtype=np.float32)
    while True:
        await asyncio.sleep(pause)
        x = rng.standard_normal((BATCH, FEATURES), np.float32)
        yield x, (x @ truth > 0).astype(np.float32)


async def learn(ps: Client, pause: float) -> None:
    """Push the gradients of a logistic regression, batch after batch."""
    await ps.create("w", np.zeros(FEATURES, np.float32), optimizer=Adagrad(lr=0.1))
    w = await ps.pull("w")
    async for x, y in batches(pause):
        p = 1 / (1 + np.exp(-(x @ w)))
        try:
            w = (await ps.push_pull({"w": x.T @ (p - y) / len(y)}))["w"]
        except Fenced:  # this worker was taken for dead, or the servers went back to a checkpoint
            w = await ps.pull("w")  # joins again


async def main() -> None:
    """Learn until SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--server", required=True)
    parser.add_argument("--job", default="stream")
    parser.add_argument("--pause", type=float, default=0.1, help="seconds between two batches")
    for name in ("token-file", "tls-cert", "tls-key", "tls-ca"):
        parser.add_argument(f"--{name}")
    options = parser.parse_args()
    tls = TLS(options.tls_ca, options.tls_cert, options.tls_key) if options.tls_ca else None
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    access = {"token_file": options.token_file, "tls": tls}
    async with connect(options.server, options.job, staleness=math.inf, reconnect_for=600, **access) as ps:
        learning = asyncio.create_task(learn(ps, options.pause))
        stopped = asyncio.create_task(stop.wait())
        await asyncio.wait((learning, stopped), return_when=asyncio.FIRST_COMPLETED)
        if learning.done():
            await learning  # which tells why it ended
        learning.cancel()


if __name__ == "__main__":
    asyncio.run(main())

"""Statistics of the data, added up on the servers before anything is trained on it.

Each is a float64 tensor to which the workers add what they find in a chunk, once a chunk whoever dies.
Whoever trains or predicts afterwards pulls the sums.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from protocol.messages import Leased
from protocol.optimizers import Add
from psworker.client import Client

__all__ = ["SURVEY", "add_statistics", "totals_of"]

SURVEY: Final = "survey."
"""How the names of the tensors begin."""


async def add_statistics(
    client: Client, leased: Leased, statistics: Mapping[str, npt.NDArray[np.float64]]
) -> None:
    """Add what was found in a chunk, unless others have, and report the chunk as done. Ends a step.

    Raises:
        PSError: as ``Client.create``, ``push_pull`` and ``finish``.
    """
    found = {SURVEY + name: np.asarray(value, np.float64) for name, value in statistics.items()}
    for name, value in found.items():
        await client.create(name, np.zeros_like(value), Add())
    if leased.skip:
        await client.step()
    else:
        await client.push_pull(found, (), done=client.done(leased, 1))
    await client.finish(leased, 0, {})


async def totals_of(client: Client) -> dict[str, npt.NDArray[Any]]:
    """Return the sums over all chunks, by the names that the source gave them.

    Raises:
        PSError: as ``Client.pull``.
    """
    names = [name for name in await client.tensors() if name.startswith(SURVEY)]
    pulled = await client.pull(names)
    return {name.removeprefix(SURVEY): value for name, value in pulled.items()}

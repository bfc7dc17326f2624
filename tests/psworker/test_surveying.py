import asyncio
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from protocol.optimizers import SGD, Add
from psworker.client import connect
from psworker.data import Batch
from psworker.models import LogisticRegression, Model
from psworker.surveying import SURVEY, add_statistics, totals_of
from tests.cluster import Cluster, put_out, running_cluster
from tests.psworker.learning import CHUNKS, ROWS, TRAINED, Array, Sparse, plan, table, trainer

ANY = pytest.mark.parametrize("staleness", [0.0, 1.0, math.inf])

SURVEYED = plan(survey=True)


class Scaled(LogisticRegression):
    """A model that notes what it was prepared from, and on how many rows it was trained."""

    prepared_from: tuple[Array, ...] = ()

    def prepared(self, batch: Batch) -> Model:
        Scaled.prepared_from += (batch.x.copy(),)
        return self


@pytest.fixture(autouse=True)
def nothing_prepared() -> None:
    Scaled.prepared_from = ()


async def work(address: str, source: Sparse, name: str, **settings: Any) -> None:
    async with connect(address, name=name, plan=SURVEYED, **settings) as client:
        await trainer(client, Scaled(source.features, 2), source).run(SGD(0.5))


async def assert_surveyed_once(cluster: Cluster) -> None:
    """Each training row is counted once, and training has been on what the totals make of the data."""
    async with connect(cluster.address, observe=True) as observer:
        totals = await totals_of(observer)
    expected = np.zeros(CHUNKS * ROWS)
    expected[[row for chunk in range(CHUNKS) for row in Sparse().rows(chunk, "train")]] = 1.0
    np.testing.assert_array_equal(totals["rows"], expected)
    assert totals["scale"] == [0.5 * CHUNKS]
    x, _ = table()
    for seen in Scaled.prepared_from:
        np.testing.assert_allclose(seen, 2.0 * x[Sparse().rows(0, "train")])
    progress = (await cluster.job()).progress
    assert progress is not None
    assert (progress.phase, progress.train_examples) == ("finished", 2 * TRAINED)


@ANY
@pytest.mark.parametrize("shards", [1, 2])
async def test_all_chunks_are_surveyed_before_anything_is_trained(staleness: float, shards: int) -> None:
    async with running_cluster(shards) as cluster:
        sources = [Sparse(hashed=False, wants_survey=True) for _ in range(3)]
        settings: dict[str, Any] = {"workers": 3, "staleness": staleness}
        await asyncio.gather(
            *(
                work(cluster.address, source, name, **settings)
                for source, name in zip(sources, "abc", strict=True)
            )
        )
        assert sorted(chunk for source in sources for chunk in source.surveyed) == list(range(CHUNKS))
        assert len(Scaled.prepared_from) == 3
        await assert_surveyed_once(cluster)


async def test_hashed_features_are_surveyed_too() -> None:
    async with running_cluster() as cluster:
        source = Sparse(wants_survey=True)
        async with connect(cluster.address, name="a", plan=SURVEYED) as client:
            await trainer(client, LogisticRegression(0, 2), source).run(SGD(0.5))
        await assert_surveyed_once(cluster)


@ANY
async def test_a_worker_that_comes_late_takes_the_totals(staleness: float) -> None:
    """And one that is out in the middle of training takes them again."""
    async with running_cluster() as cluster:

        class Late(Scaled):
            calls = 0

            def gradients(
                self, parameters: Mapping[str, Array], batch: Batch
            ) -> tuple[dict[str, Array], float]:
                Late.calls += 1
                if Late.calls == 3:
                    asyncio.run_coroutine_threadsafe(put_out(cluster, client), loop).result(20)
                return super().gradients(parameters, batch)

        loop = asyncio.get_running_loop()
        async with connect(cluster.address, name="early", plan=SURVEYED, staleness=staleness) as early:
            while (leased := await early.lease(block=False)).kind == "survey":
                source = Sparse(hashed=False, wants_survey=True)
                await add_statistics(early, leased, source.statistics(leased.chunk))
        late = Sparse(hashed=False, wants_survey=True)
        async with connect(cluster.address, name="late", plan=SURVEYED, staleness=staleness) as client:
            await trainer(client, Late(late.features, 2), late).run(SGD(0.5))
        assert late.surveyed == []
        assert len(Scaled.prepared_from) == 2
        await assert_surveyed_once(cluster)


@pytest.mark.parametrize("pushed", [False, True])
async def test_the_chunk_of_a_worker_that_dies_is_counted_once(pushed: bool) -> None:
    """Whether it dies before its statistics are added, or after that but before it has said so."""
    async with running_cluster() as cluster:
        source = Sparse(hashed=False, wants_survey=True)
        async with connect(cluster.address, name="dies", plan=SURVEYED) as dies:
            leased = await dies.lease(block=False)
            found = {SURVEY + name: value for name, value in source.statistics(leased.chunk).items()}
            for name, value in found.items():
                await dies.create(name, np.zeros_like(value), Add())
            if pushed:
                await dies.push_pull(found, (), done=dies.done(leased, 1))
            await put_out(cluster, dies)
        other = Sparse(hashed=False, wants_survey=True)
        await work(cluster.address, other, "other")
        assert sorted(other.surveyed) == list(range(CHUNKS))
        await assert_surveyed_once(cluster)


async def test_a_worker_that_is_out_in_the_middle_of_the_survey_goes_on() -> None:
    async with running_cluster(2) as cluster:
        loop = asyncio.get_running_loop()

        class Interrupted(Sparse):
            def statistics(self, chunk: int) -> dict[str, Array]:
                if len(self.surveyed) == 1:
                    asyncio.run_coroutine_threadsafe(put_out(cluster, client), loop).result(20)
                return super().statistics(chunk)

        source = Interrupted(hashed=False, wants_survey=True)
        async with connect(cluster.address, name="a", plan=SURVEYED) as client:
            await trainer(client, Scaled(source.features, 2), source).run(SGD(0.5))
        assert len(source.surveyed) == CHUNKS + 1
        await assert_surveyed_once(cluster)

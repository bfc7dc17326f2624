"""The status page in a real browser."""

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pytest
import pytest_asyncio

from benchmarks.browser import browser, missing
from protocol.daemon.exposition import Exposition
from protocol.messages import Plan
from psctl import LocalCluster
from psserver.persistence import DurabilitySettings
from psworker.client import connect
from tests.cluster import Cluster, running_cluster
from tests.integration.points import write_points

if TYPE_CHECKING:
    from playwright.async_api import Browser, Page

pytestmark = [
    pytest.mark.skipif(bool(missing()), reason=missing() or "all is here"),
    pytest.mark.asyncio(loop_scope="module"),  # that of the browser
]

WITHIN = 60_000  # milliseconds; only a defect takes so long


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running() -> AsyncIterator["Browser"]:
    async with browser() as found:
        yield found


class Opened(NamedTuple):
    """A page, and what the browser complains about."""

    page: "Page"
    complaints: list[str]


@asynccontextmanager
async def opened(running: "Browser", metrics: str, **settings: Any) -> AsyncIterator[Opened]:
    """Yield the page of a metrics port."""
    complaints: list[str] = []
    page = await running.new_page(**settings)
    page.set_default_timeout(WITHIN)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda said: complaints.append(said.text) if said.type != "log" else None)
    await page.goto(f"http://{metrics}/")
    yield Opened(page, complaints)
    await page.close()


@asynccontextmanager
async def cluster_with_a_page(**settings: Any) -> AsyncIterator[tuple[Cluster, str]]:
    """A cluster in this event loop, and the metrics port of its coordinator."""
    async with running_cluster(**settings) as cluster:
        (server, loop) = (cluster.servers[0], asyncio.get_running_loop())
        exposition = Exposition(server.metrics.registry, server.why_not_ready, loop, server.pages(loop))
        metrics = exposition.listen("127.0.0.1", 0, 0)
        try:
            yield cluster, metrics
        finally:
            await asyncio.to_thread(exposition.close)


async def has_text(page: "Page", selector: str, text: str) -> None:
    """Return when some element that the selector finds has the text."""
    await page.locator(selector, has_text=text).first.wait_for()


async def test_the_page_follows_a_job_and_outlives_the_server(running: "Browser", tmp_path: Path) -> None:
    job = write_points(tmp_path)
    overrides = ("train.epochs=1000000", "eval.every=1 epoch")
    with LocalCluster(servers=2, workers=2, job=job, overrides=overrides, grace=0.5) as cluster:
        async with opened(running, cluster.metrics[1]) as (page, complaints):  # of the other server
            await page.locator(f'a[href="http://{cluster.metrics[0]}/"]').click()

            await has_text(page, "h2", "points")
            await has_text(page, "#state", "live")
            for worker in ("worker-0", "worker-1"):
                await has_text(page, "tbody .name", worker)
            await has_text(page, ".chip", "synchronous")
            await has_text(page, "h3", "held-out accuracy")
            for chart in ("job-0-loss", "job-0-speed", "job-0-held-0"):
                await page.locator(f"#{chart} .curve").first.wait_for()
            assert await page.title() == f"points · {cluster.address}"

            # What was opened and chosen stays so while the figures change.
            await page.locator("summary").click()
            await page.get_by_role("button", name="whole run").click()
            step = await page.locator(".chip", has_text="step").first.text_content()
            await page.wait_for_function(
                "before => [...document.querySelectorAll('.chip')].every(one => one.textContent !== before)",
                arg=step,
            )
            assert await page.locator("details").get_attribute("open") is not None
            assert await page.locator("[data-range=whole]").get_attribute("aria-pressed") == "true"
            await page.locator("#job-0-loss").hover()
            await page.locator("#job-0-loss .here").wait_for(state="attached")
            assert complaints == []

            cluster.kill_server(0)
            await has_text(page, "#state", "no answer since ")
            assert (await page.title()).startswith("(no answer) ")
            assert await page.locator("tbody .name", has_text="worker-0").count() == 1  # what is known stays
            assert all("net::ERR" in complaint for complaint in complaints)

            cluster.restart_server(0, wait=False)
            await has_text(page, "#state", "live")
            await page.locator(".card", has_text="No job yet").wait_for()


async def test_rows_left_out_and_returns_after_divergence_are_told(
    running: "Browser", tmp_path: Path
) -> None:
    plan = Plan("text", 2, 1, 0, 0)
    durability = DurabilitySettings("snapshot", str(tmp_path), 0.0, 3)
    async with (
        cluster_with_a_page(durability=durability) as (cluster, metrics),
        connect(cluster.address, plan=plan) as client,
    ):
        await client.create("w", np.zeros(4, np.float32))
        await client.finish(await client.lease(block=False), 1, {"loss": 1.0}, {"number": 1200, "fields": 3})
        await client.prepared()
        await client.diverged(math.nan)
        async with opened(running, metrics) as (page, complaints):
            await has_text(page, ".progress p", "rows left out: 1,203 (3 fields, 1,200 number)")
            went_back = "went back after divergence: 1 time, last from loss NaN in step 0 to checkpoint 1"
            await has_text(page, ".progress p", went_back)
            await has_text(page, ".chip", "learning rate")
            assert complaints == []


async def test_names_are_text_whatever_they_are(running: "Browser") -> None:
    evil = "<img src=x onerror=window.owned=1>"
    async with (
        cluster_with_a_page() as (cluster, metrics),
        connect(cluster.address, job=f"{evil}<script>window.owned=1", name=evil) as client,
    ):
        await client.create(evil, np.zeros(4, np.float32))
        async with opened(running, metrics) as (page, complaints):
            await has_text(page, "h2", f"{evil}<script>window.owned=1")
            await has_text(page, "tbody .name", evil)
            await page.locator("summary").click()
            await has_text(page, "details td", evil)
            assert await page.locator("main img, main script").count() == 0
            assert await page.evaluate("window.owned") is None
            assert complaints == []


async def test_the_page_fits_a_telephone_and_the_dark(running: "Browser") -> None:
    async with (
        cluster_with_a_page(shards=2) as (cluster, metrics),
        connect(cluster.address, job="a-job-with-a-name-that-is-rather-long" * 3, name="w" * 100) as client,
    ):
        await client.create("w", np.zeros(4, np.float32))
        size = {"width": 360, "height": 740}
        async with opened(running, metrics, viewport=size, color_scheme="dark") as (page, complaints):
            await has_text(page, "tbody .name", "w" * 100)
            assert await page.evaluate("document.documentElement.scrollWidth") <= 360
            dark = await page.evaluate("getComputedStyle(document.body).backgroundColor")
            await page.emulate_media(color_scheme="light")
            light = await page.evaluate("getComputedStyle(document.body).backgroundColor")
            assert dark != light
            assert complaints == []


async def test_a_job_whose_workers_have_left_has_no_speed(running: "Browser") -> None:
    async with cluster_with_a_page() as (cluster, metrics):
        async with connect(cluster.address, job="short") as client:
            client.report.loss = 0.25
            await cluster.until(lambda status: status.jobs[0].history.loss.values != ())
        async with opened(running, metrics) as (page, complaints):
            await has_text(page, "tr.out .state", "left")
            await has_text(page, "h2", "short")
            assert complaints == []

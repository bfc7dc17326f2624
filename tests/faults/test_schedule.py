import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.addresses import join_address, split_address
from tests.faults.conditions import Counters
from tests.faults.proxy import Proxy
from tests.faults.schedule import (
    CUT,
    CUT_AFTER,
    OF_PROXIES,
    Fault,
    Kind,
    Progress,
    Schedule,
    Seconds,
    on_proxies,
    play,
    seed_from,
)


@given(st.integers(0, 1 << 64), st.integers(0, 50), st.floats(0, 1e6), st.integers(1, 5))
def test_a_seed_makes_one_schedule(seed: int, count: int, over: float, targets: int) -> None:
    first, again = (Schedule.random(seed, OF_PROXIES, count, over, targets) for _ in range(2))
    assert first == again
    assert len(first) == count
    kinds = {kind.name: kind for kind in OF_PROXIES}
    before = 0.0
    for fault in first:
        kind = kinds[fault.kind]
        assert before <= fault.at <= over
        assert 0 <= fault.target < targets
        assert kind.amount[0] * 0.999 <= fault.amount <= kind.amount[1] * 1.001
        assert kind.lasts[0] <= fault.lasts <= kind.lasts[1]
        assert fault.direction in kind.directions
        before = fault.at


def test_seeds_differ_and_every_kind_and_target_is_drawn() -> None:
    one, other = (Schedule.random(seed, OF_PROXIES, 200, 1, 3) for seed in (1, 2))
    assert one.faults != other.faults
    assert {fault.kind for fault in one} == {kind.name for kind in OF_PROXIES}
    assert {fault.target for fault in one} == {0, 1, 2}


@given(st.integers(0, 1 << 64))
def test_what_is_surely_among_them(seed: int) -> None:
    schedule = Schedule.random(seed, [CUT], 3, over=10, surely=[CUT_AFTER, CUT_AFTER])
    assert sorted(fault.kind for fault in schedule) == ["cut", "cut-after", "cut-after"]


def test_a_schedule_says_what_makes_it_again() -> None:
    schedule = Schedule.random(77, [CUT, CUT_AFTER], 3, over=10)
    lines = str(schedule).splitlines()
    assert lines[0] == "ASYNCPS_FAULT_SEED=77"
    assert [eval(line) for line in lines[1:]] == list(schedule)  # as one would paste it into a test


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"faults": []}, "faults must be 1 or more, not 0"),
        ({"targets": 0}, "targets must be 1 or more, not 0"),
        ({"count": -1}, "count must be 0 or more, not -1"),
        ({"surely": [CUT, CUT]}, "count must be 2 or more, not 1"),
        ({"over": -1.0}, "over must be 0 or more, not -1"),
    ],
)
def test_what_cannot_be_drawn(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Schedule.random(**{"seed": 0, "faults": [CUT], "count": 1, "over": 1.0, **arguments})  # type: ignore[arg-type]


def test_a_range_that_is_none() -> None:
    with pytest.raises(ValueError, match=r"lasts of x must be 0 <= least <= most, not \(2, 1\)"):
        Kind("x", lasts=(2, 1))


def test_the_seed_of_the_environment() -> None:
    assert seed_from({"ASYNCPS_FAULT_SEED": "12"}) == 12
    assert len({seed_from({}) for _ in range(5)}) > 1
    with pytest.raises(ValueError, match="ASYNCPS_FAULT_SEED must be an integer from 0 on, not '-3'"):
        seed_from({"ASYNCPS_FAULT_SEED": "-3"})


def test_the_seed_is_shown(fault_seed: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert fault_seed == int(os.environ.get("ASYNCPS_FAULT_SEED") or fault_seed)
    print(Schedule.random(fault_seed, [CUT], 1, 1))
    assert f"ASYNCPS_FAULT_SEED={fault_seed}" in capsys.readouterr().out


def recording(log: list[str]) -> dict[str, Callable[[Fault], Callable[[], object] | None]]:
    """Actions that write down what happens: ``a`` is over at once, ``b`` lasts."""

    def moment(fault: Fault) -> None:
        log.append(f"a{fault.target}")

    def lasting(fault: Fault) -> Callable[[], object]:
        log.append(f"b{fault.target}")
        return lambda: log.append(f"undo b{fault.target}")

    return {"a": moment, "b": lasting}


async def test_faults_happen_in_order_as_progress_is_made() -> None:
    log: list[str] = []
    fired: asyncio.Queue[Fault] = asyncio.Queue()
    progress = Progress()
    schedule = Schedule(0, (Fault(1, "a", 0), Fault(2, "b", 1), Fault(2, "a", 2), Fault(5, "a", 3)))
    playing = asyncio.ensure_future(play(schedule, recording(log), progress, fired.put_nowait))
    progress.advance()
    assert await fired.get() == schedule.faults[0]
    assert log == ["a0"]
    progress.advance(10)
    await playing
    assert [step for step in log if "undo" not in step] == ["a0", "b1", "a2", "a3"]
    assert log.count("undo b1") == 1
    assert tuple(fired.get_nowait() for _ in range(3)) == schedule.faults[1:]


async def test_faults_by_the_clock_overlap() -> None:
    log: list[str] = []
    faults = (Fault(0, "b", 0, lasts=0.03), Fault(0.001, "b", 1, lasts=0.01), Fault(0.002, "a", 2))
    await play(Schedule(0, faults), recording(log), Seconds())
    assert sorted(log) == ["a2", "b0", "b1", "undo b0", "undo b1"]
    assert log.index("b0") < log.index("b1") < log.index("a2")


async def test_cancelling_undoes_what_lasts() -> None:
    log: list[str] = []
    faults = (Fault(0, "b", 0, lasts=3600), Fault(0, "b", 1, lasts=3600), Fault(1, "a"))
    fired: asyncio.Queue[Fault] = asyncio.Queue()
    playing = asyncio.ensure_future(play(Schedule(0, faults), recording(log), Progress(), fired.put_nowait))
    for _ in range(2):
        await fired.get()
    playing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await playing
    assert sorted(log) == ["b0", "b1", "undo b0", "undo b1"]


async def test_an_action_that_fails_ends_the_play() -> None:
    log: list[str] = []

    def fail(_: Fault) -> None:
        raise ProcessLookupError(3)

    actions = {**recording(log), "c": fail}
    faults = (Fault(0, "b", lasts=3600), Fault(0, "c"), Fault(0, "a"))
    with pytest.raises(ExceptionGroup) as caught:
        await play(Schedule(0, faults), actions, Seconds())
    assert caught.group_contains(ProcessLookupError)
    assert log == ["b0", "undo b0"]


async def test_a_kind_without_an_action() -> None:
    log: list[str] = []
    with pytest.raises(ValueError, match=r"missing are \['z'\]"):
        await play(Schedule(0, (Fault(0, "a"), Fault(0, "z"))), recording(log), Seconds())
    assert log == []


@asynccontextmanager
async def echo() -> AsyncIterator[str]:
    """Yield the address of a server that sends everything back."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):  # the faults' doing, on either end
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        yield join_address(*server.sockets[0].getsockname())


async def echoed(address: str, fault: Callable[[], object]) -> bool:
    """Send a word and, after the fault, much; return whether all came back."""
    reader, writer = await asyncio.open_connection(*split_address(address))
    much = bytes(3 << 20)  # more than cut-after lets pass
    try:
        writer.write(b"word")
        await reader.readexactly(4)
        fault()
        writer.write(much)
        return await reader.readexactly(len(much)) == much
    except (ConnectionError, asyncio.IncompleteReadError):
        return False
    finally:
        writer.transport.abort()


async def test_all_faults_of_proxies_are_healed(fault_seed: int) -> None:
    schedule = Schedule.random(fault_seed, OF_PROXIES, count=60, over=0.2, targets=2)
    print(schedule)
    async with asyncio.timeout(20), echo() as address, Proxy(address) as one, Proxy(address) as other:
        await play(schedule, on_proxies([one, other]), Seconds())
        for number, proxy in enumerate((one, other)):
            before = proxy.seen.refusals
            assert before == sum((fault.kind, fault.target) == ("refuse", number) for fault in schedule)
            assert await echoed(proxy.address, lambda: None), str(schedule)
            seen = proxy.seen
            assert seen.delayed == seen.throttled == seen.held == seen.swallowed == seen.cuts == 0


EFFECTS: dict[str, Callable[[Counters], int]] = {
    "cut": lambda seen: seen.cuts,
    "cut-after": lambda seen: seen.cuts,
    "delay": lambda seen: seen.delayed,
    "throttle": lambda seen: seen.throttled,
    "stall": lambda seen: seen.held,
    "swallow": lambda seen: seen.swallowed,
    "refuse": lambda seen: seen.refusals,
    "duplicate": lambda seen: seen.duplicated,
}


@pytest.mark.parametrize("kind", OF_PROXIES, ids=lambda kind: kind.name)
async def test_each_kind_does_what_it_is_called(kind: Kind, fault_seed: int) -> None:
    (fault,) = Schedule.random(fault_seed, [kind], count=1, over=0)
    effect = EFFECTS[kind.name]
    async with asyncio.timeout(20), echo() as address, Proxy(address) as proxy:
        action = on_proxies([proxy])[kind.name]
        sending = asyncio.ensure_future(echoed(proxy.address, lambda: action(fault)))
        await proxy.until(lambda seen: effect(seen) >= 1)
        proxy.heal()
        passes = await sending
        assert passes == (kind.name not in {"cut", "cut-after", "swallow"}), str(fault)
        happened = {name for name, count in EFFECTS.items() if count(proxy.seen)}
        assert happened - {"cut", "cut-after"} == {kind.name} - {"cut", "cut-after"}

"""Shards, workers and a coordinator without sockets, any of which may crash at any moment; a seed is a run.

Workers push slots: each gradient has one that is not zero, and no other has the same. So what is in the
tensors at the end tells which gradients were counted, how often, and with which others. What is on a disk is
what the logs made durable; messages keep their order on each link, and links break when an end crashes.
"""

import asyncio
import math
import random
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from protocol.connection import Connection
from protocol.errors import Fenced, PSError
from protocol.messages import Decide, Done, Ended, Epoch, Member, Pulled, Push, Pushed, PushPull, Spec, Step
from protocol.optimizers import Add, spec_of
from protocol.tensors import Part
from psserver.call import Call
from psserver.decisions import StepDecisions
from psserver.durability.checkpoint import SavedArray
from psserver.durability.log import UpdateLog
from psserver.jobs import JobStore, Session
from psserver.metrics import ServerMetrics
from psserver.shard import Shard
from psserver.store.dense import DenseBlock
from tests.psserver.lone_shard import Listener
from tests.psserver.memory_log import MemoryLog, as_json, as_written, kept

Array = npt.NDArray[Any]

JOB = "job"
SIZE = 1500
WEIGHTS = (2.0, 5.0, 11.0)  # no share of a sum of these is the double of another share of the same one
STATE = ("coordinator",)


class _AtOnce(Executor):
    """Threads whose work is done when it is submitted; who awaits it is told later all the same."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(fn(*args, **kwargs))
        return future


# --- servers


class CrashingShard:
    """A shard with its log, its checkpoints, and what the coordinator has told it and it has yet to hear."""

    def __init__(self, number: int, alone: bool, report: Callable[[int, Ended], None]) -> None:
        self.number = number
        self.log = MemoryLog()
        self.told: deque[Decide | Epoch] = deque()
        self.followed = 0  # the epoch that it has said to follow
        self.errors: list[BaseException] = []
        self._alone = alone
        self._report = report
        self._tasks: set[asyncio.Task[None]] = set()
        self._checkpoints: list[tuple[Any, list[SavedArray], int, Any]] = []
        self._whole = True  # the log makes all of it without a checkpoint, too
        self.shard = self._made()
        self._log_from_now_on()

    def _made(self) -> Shard:
        def report(ended: Ended) -> None:
            if self.shard is made:
                self._report(self.number, ended)

        made = Shard(ServerMetrics(dict), self._spawn, report, lambda: 0.0)
        made.close()
        made._threads = cast(Any, _AtOnce())
        made.journal.alone = self._alone
        return made

    def _log_from_now_on(self) -> None:
        self.shard.journal.log = cast(UpdateLog, self.log)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self.errors.append(cast(BaseException, task.exception()))

    @property
    def job(self) -> JobStore:
        return self.shard.jobs[JOB]

    @property
    def is_quiet(self) -> bool:
        jobs = self.shard.jobs.values()
        return all(not job.applying and self.shard._steps[job.name].is_settled for job in jobs)

    def hear(self) -> None:
        """Take the first thing that it was told."""
        message = self.told.popleft()
        if isinstance(message, Decide):
            if JOB in self.shard.jobs:
                self.shard.decide(message)
            return
        self.shard.follow(message)
        self.log.append(then=partial(self._note_followed, self.log, message.number))
        if "w" not in self.job.blocks:
            spec = Spec("float32", (SIZE,), spec_of(Add()))
            self.job.blocks["w"] = DenseBlock("w", spec, np.zeros(SIZE, np.float32), attempt=1)
            self.shard.journal.filled(self.job, self.job.blocks["w"], lambda: None)

    def _note_followed(self, log: MemoryLog, epoch: int) -> None:
        if log is self.log:
            self.followed = max(self.followed, epoch)

    def take_checkpoint(self, coordinator: Any) -> None:
        taken = self.shard._snapshot()
        arrays = [replace(one, values=kept(cast(Array, one.values))) for one in taken.arrays]
        for one, copy in zip(taken.arrays, arrays, strict=True):
            self._watched.append((cast(Array, one.values), cast(Array, copy.values)))
        assert taken.segment is not None
        self._checkpoints.append((as_json(taken.state), arrays, taken.segment, coordinator))

    @property
    def _watched(self) -> list[tuple[Array, Array]]:
        if not hasattr(self, "_seen"):
            self._seen: list[tuple[Array, Array]] = []
        return self._seen

    def check_checkpoints(self) -> None:
        """What is in a checkpoint must not change while it is being written."""
        for values, copy in self._watched:
            np.testing.assert_array_equal(values, copy)
        self._watched.clear()

    def crash(self, *, written: bool, checkpoint: int) -> Any:
        """Die, and come back; return what the disk says that the coordinator was.

        Args:
            written: what was about to be made durable is, though nobody was told.
            checkpoint: which one is the newest that is sound, counted from the last; -1: none is.
        """
        self.check_checkpoints()
        if written:
            self.log.write()
        if self.log.is_cut_off:
            self._checkpoints, self._whole = self._checkpoints[-1:], False
        self.log = MemoryLog(self.log)  # whatever is still under way goes nowhere
        self.told.clear()
        self.shard = self._made()
        coordinator, segment = None, 0
        if not self._whole and not 0 <= checkpoint < len(self._checkpoints):
            checkpoint = 0
        if 0 <= checkpoint < len(self._checkpoints):
            state, arrays, segment, coordinator = self._checkpoints[-1 - checkpoint]
            self.shard.install(state, [replace(one, values=kept(cast(Array, one.values))) for one in arrays])
        for batch in self.log.since(segment):
            coordinator = batch.docs.get(STATE, coordinator)
            self.shard.replay(batch)
        self._log_from_now_on()
        self.followed = self.job.epoch if JOB in self.shard.jobs else 0
        self.shard.take_up()
        return coordinator

    async def end(self) -> None:
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


class PlainCoordinator:
    """Who works, at which staleness, and whose gradients a step contains: durable before anybody is told."""

    def __init__(self, count: int, staleness: float, backup: int) -> None:
        self.number = 0
        self.staleness = staleness
        self.since = 0
        self.backup = backup
        self.members: dict[int, tuple[int, int]] = {}  # incarnation and first step, by worker
        self.incarnations: dict[int, int] = {}
        self.decisions = StepDecisions(count)
        self.known: set[tuple[int, int]] = set()
        self.shards = [CrashingShard(number, count == 1, self._ended) for number in range(count)]
        self._untold = 0
        self._told: list[Decide | Epoch] = []  # what a shard that was away is told: all of it is durable

    # --- what is durable

    def _plain(self) -> Any:
        return {
            "number": self.number,
            "staleness": self.staleness,
            "since": self.since,
            "members": [[worker, *rest] for worker, rest in self.members.items()],
            "incarnations": [list(one) for one in self.incarnations.items()],
            "decisions": self.decisions.state(),
        }

    def plain(self) -> Any:
        return as_written(self._plain())

    def _restore(self, plain: Any) -> None:
        if plain is None:
            plain = PlainCoordinator(len(self.shards), self.staleness, self.backup).plain()
        self.number, self.since = plain["number"], plain["since"]
        self.staleness = plain["staleness"]
        self.members = {worker: (life, begins) for worker, life, begins in plain["members"]}
        self.incarnations = dict(plain["incarnations"])
        self.decisions = StepDecisions.restored(plain["decisions"], len(self.shards))

    def _record(self, then: Callable[[], None]) -> None:
        self.shards[0].log.append(docs={STATE: self._plain}, then=then)

    # --- who works

    def _epoch(self) -> Epoch:
        lives = self.members.items()
        members = [Member(worker, life, f"w{worker}", begins) for worker, (life, begins) in lives]
        return Epoch(JOB, self.number, self.staleness, self.since, tuple(members))

    def _announce(self) -> None:
        self.number += 1
        self._untold += 1

        told: list[Decide | Epoch] = [*self.decisions.again(JOB), self._epoch()]

        def tell() -> None:
            self._untold -= 1
            self._told = told
            for shard in self.shards:
                shard.told.append(self._epoch())

        self._record(tell)

    def is_agreed(self) -> bool:
        """Return whether all shards follow the latest epoch; then who is in it is told so."""
        followed = min(shard.followed for shard in self.shards)
        agreed = followed == self.number and not self._untold
        if agreed:
            self.known |= {(worker, life) for worker, (life, _) in self.members.items()}
        return agreed

    @property
    def _furthest(self) -> int:
        return max(self.since, self.shards[0].job.clocks.furthest if JOB in self.shards[0].shard.jobs else 0)

    def join(self, worker: int) -> int:
        """Let a worker in; return its incarnation."""
        life = self.incarnations[worker] = self.incarnations.get(worker, 0) + 1
        first = self.decisions.first_step(worker) if self.staleness == 0 else self._furthest
        self.members[worker] = (life, first)
        self._announce()
        return life

    def leave(self, worker: int) -> None:
        del self.members[worker]
        self._decide()
        self._announce()

    def turn(self, staleness: float) -> None:
        if staleness == self.staleness:
            return
        if self.staleness == 0:
            self.since = self.decisions.step + 1
        elif staleness == 0 or self.staleness == math.inf:
            self.since = self._furthest + 1
        self.staleness = staleness
        if staleness == 0:
            self.decisions.begin_at(self.since)
        self._announce()

    # --- steps

    def _ended(self, shard: int, report: Ended) -> None:
        if self.staleness == 0:
            self.is_agreed()
            known = {worker for worker, (life, _) in self.members.items() if (worker, life) in self.known}
            self.decisions.ended(shard, report, known, 0.0)
            self._decide()

    def _decide(self) -> None:
        if self.staleness:
            return
        decision = self.decisions.decide(JOB, self.members, self.backup)
        if decision is None:
            return
        tell = partial(self._tell, decision, self.decisions.again(JOB))
        if len(self.shards) == 1:
            tell()
        else:
            self._record(tell)

    def _tell(self, decision: Decide, again: list[Decide]) -> None:
        self._told = [*again, *(one for one in self._told if isinstance(one, Epoch))]
        for shard in self.shards:
            shard.told.append(decision)

    # --- crashes

    def crash(self, number: int, chance: random.Random) -> None:
        """Have a server die and come back, with the first one the coordinator."""
        shard = self.shards[number]
        written, checkpoint = chance.random() < 0.3, chance.choice([0, 0, 1, -1])
        plain = shard.crash(written=written, checkpoint=checkpoint)
        if number == 0:
            self._untold = 0
            self._restore(plain)
            if len(self.shards) == 1 and JOB in shard.shard.jobs:
                step, included = shard.shard.open_step(JOB)
                if self.staleness == 0 and step < self.since:
                    step, included = self.since, set()
                later = {worker for worker, (_, begins) in self.members.items() if begins > step}
                self.decisions.resume(step, included | later)
            self._told = [*self.decisions.again(JOB), self._epoch()] if self.number else []
        for one in self.shards if number == 0 else [shard]:
            one.told.clear()
            one.told += self._told
        if number == 0:
            self.number += 1000
            self._announce()


# --- workers


@dataclass(slots=True)
class Asked:
    """A numbered request to one shard, and its answer."""

    shard: int
    request: Step
    gradient: Array | None
    listener: Listener | None = None

    @property
    def answer(self) -> Any:
        return self.listener.answers[0] if self.listener is not None and self.listener.answers else None


@dataclass(slots=True)
class Group:
    """What one incarnation of a worker puts into one step, on one shard."""

    worker: int
    life: int
    step: int
    weight: float
    slots: list[int]
    end: Asked
    pushes: list[Asked] = field(default_factory=list)


class Worker:
    """Pushes and ends steps on all shards, and asks again when a link breaks."""

    def __init__(self, number: int, coordinator: PlainCoordinator, chance: random.Random) -> None:
        self.number = number
        self.life = 0
        self.step = 0
        self.ended = 0  # steps, in all
        self.alive = False
        self.links: list[deque[Asked]] = [deque() for _ in coordinator.shards]  # not answered yet
        self.sent = [0] * len(coordinator.shards)  # of those
        self.open: deque[list[Group]] = deque()
        self._seq = [0] * len(coordinator.shards)
        self._connections = 0
        self._coordinator = coordinator
        self._chance = chance

    @property
    def is_let_in(self) -> bool:
        self._coordinator.is_agreed()
        return self.alive and (self.number, self.life) in self._coordinator.known

    def join(self) -> None:
        self.life = self._coordinator.join(self.number)
        self.step = -1
        self.alive = True
        for link in self.links:
            link.clear()
        self.sent, self._seq = [0] * len(self.links), [0] * len(self.links)
        self.open.clear()

    def begin_step(self, slots: Iterator[int], groups: list[list[Group]]) -> None:
        if self.step < 0:
            self.step = self._coordinator.members[self.number][1]
        if self._chance.random() < 0.5 or not self.open:
            self.step = max(self.step, self._coordinator.since if self._coordinator.is_agreed() else 0)
        weight = WEIGHTS[self.number]
        count = self._chance.choice([0, 1, 1, 1, 2, 3])
        found = [next(slots) for _ in range(count)]
        of_all = [self._group(shard, found, weight) for shard in range(len(self.links))]
        groups.append(of_all)
        self.open.append(of_all)
        self.step += 1

    def _group(self, shard: int, slots: list[int], weight: float) -> Group:
        pushes = [self._asked(shard, slot, weight, ends=False) for slot in slots[:-1]]
        end = self._asked(shard, slots[-1] if slots else None, weight, ends=True)
        return Group(self.number, self.life, self.step, weight, slots, end, pushes)

    def _asked(self, shard: int, slot: int | None, weight: float, *, ends: bool) -> Asked:
        self._seq[shard] += 1
        gradient = None
        parts: tuple[Part, ...] = ()
        if slot is not None:
            gradient = np.zeros(SIZE, np.float32)
            gradient[slot] = 1.0
            parts = (Part("w", "float32", SIZE),)
        request: Step
        if ends:
            done = Done(1, self.step + 1)
            weight = weight if parts else 0.0
            request = PushPull(parts, ("w",), self.step, self._seq[shard], weight, done)
        else:
            request = Push(parts, self.step, self._seq[shard], weight)
        asked = Asked(shard, request, gradient)
        self.links[shard].append(asked)
        return asked

    def send(self, shard: int) -> None:
        """Send what comes next on a link."""
        asked = self.links[shard][self.sent[shard]]
        self.sent[shard] += 1
        server, request = self._coordinator.shards[shard].shard, asked.request
        asked.listener = Listener(opened=self._connections)
        call = Call(cast(Connection, asked.listener), 1, request.op, ServerMetrics(dict))
        session = Session(JOB, self.number, self.life)
        try:
            arrays = server.arrays_for_push(session, request)
            for array in arrays:
                array[:] = asked.gradient
            server.push(call, session, request, arrays)
        except PSError as error:
            call.fail(error)

    def reconnect(self, shard: int) -> None:
        """Ask again for all that is not answered, when the link is there."""
        self._connections += 1
        self.read_answers()
        self.sent[shard] = 0

    def read_answers(self) -> None:
        for shard, link in enumerate(self.links):
            left = deque(asked for asked in link if asked.answer is None)
            sent = list(link)[: self.sent[shard]]
            self.sent[shard] = sum(asked.answer is None for asked in sent)
            self.links[shard] = left
        while self.open and all(group.end.answer is not None for group in self.open[0]):
            groups = self.open.popleft()
            clocks = [group.end.answer.clock or 0 for group in groups if isinstance(group.end.answer, Pulled)]
            self.step = max([self.step, *clocks])
            self.ended += 1

    def is_fenced(self) -> bool:
        groups = [group for groups in self.open for group in groups]
        answers = [asked.answer for group in groups for asked in (group.end, *group.pushes)]
        return any(isinstance(answer, Fenced) for answer in answers)


# --- a run


@dataclass(frozen=True, slots=True)
class Kind:
    """What a run is like. ``turns`` are the stalenesses that the dial is turned to."""

    shards: int
    staleness: float
    turns: tuple[float, ...] = ()
    deaths: bool = False
    backup: int = 0


class Run:
    """One run, from its seed."""

    def __init__(self, kind: Kind, seed: int) -> None:
        self.chance = random.Random(f"{kind} {seed}")
        self.kind = kind
        self.coordinator = PlainCoordinator(kind.shards, kind.staleness, kind.backup)
        self.workers = [Worker(number, self.coordinator, self.chance) for number in range(3)]
        self.groups: list[list[Group]] = []
        self.crashes = 0
        self._slots = iter(range(SIZE))

    async def go(self, actions: int, goal: int) -> None:
        for worker in self.workers:
            worker.join()
        for _ in range(actions):
            await self._act()
        await self._finish(goal)

    async def _act(self) -> None:
        chance = self.chance
        shard = chance.choice(self.coordinator.shards)
        worker = chance.choice(self.workers)
        what = chance.random()
        if what < 0.35:
            self._work(worker)
        elif what < 0.60:
            for _ in range(chance.choice([1, 2, 10])):
                await asyncio.sleep(0)
        elif what < 0.77:
            if shard.told:
                shard.hear()
        elif what < 0.92:
            shard.log.commit()
        elif what < 0.94:
            if shard.is_quiet and JOB in shard.shard.jobs:
                shard.take_checkpoint(self.coordinator.plain())
        elif what < 0.95:
            worker.reconnect(chance.randrange(len(worker.links)))
        elif what < 0.97:
            self._crash(shard.number)
        elif what < 0.985:
            if self.kind.turns and self.coordinator.is_agreed():
                self.coordinator.turn(chance.choice(self.kind.turns))
        elif self.kind.deaths:
            self._die_or_join(worker)

    def _work(self, worker: Worker) -> None:
        worker.read_answers()
        if worker.is_fenced():
            worker.alive = False
            worker.open.clear()
        if not worker.is_let_in:
            return
        unsent = [n for n, link in enumerate(worker.links) if worker.sent[n] < len(link)]
        ahead = 2 if self.coordinator.staleness == math.inf else 1
        if unsent and (len(worker.open) >= ahead or self.chance.random() < 0.8):
            worker.send(self.chance.choice(unsent))
        elif len(worker.open) < ahead:
            worker.begin_step(self._slots, self.groups)

    def _die_or_join(self, worker: Worker) -> None:
        members = self.coordinator.members
        if worker.alive and len(members) > 1 and worker.number in members:
            worker.alive = False
            self.coordinator.leave(worker.number)
        elif not worker.alive and worker.number not in members:
            worker.join()

    def _crash(self, number: int) -> None:
        self.crashes += 1
        self.coordinator.crash(number, self.chance)
        for worker in self.workers:
            worker.reconnect(number)
        for worker in self.workers if number == 0 else ():
            life, _ = self.coordinator.members.get(worker.number, (0, 0))
            if worker.alive and worker.life != life:
                assert (worker.number, worker.life) not in self.coordinator.known, "it was told that it is in"
                worker.join()
            elif not worker.alive and life:
                self.coordinator.leave(worker.number)  # found dead once more

    async def _finish(self, goal: int) -> None:
        """Let everybody who is there end so many steps and leave, without any more faults."""
        for _ in range(20_000):
            for worker in self.workers:
                worker.read_answers()
                done = worker.ended >= goal and not worker.open and worker.is_let_in
                if done and worker.number in self.coordinator.members:
                    worker.alive = False
                    self.coordinator.leave(worker.number)
                elif worker.ended < goal or worker.open:
                    self._work(worker)
            for shard in self.coordinator.shards:
                if shard.told:
                    shard.hear()
                shard.log.commit()
            await asyncio.sleep(0)
            if not any(worker.alive for worker in self.workers) and self.coordinator.is_agreed():
                break
        else:
            raise AssertionError(f"stuck: {[(w.number, w.step, len(w.open)) for w in self.workers]}")
        for _ in range(50):
            await asyncio.sleep(0)
            for shard in self.coordinator.shards:
                shard.log.commit()

    async def end(self) -> None:
        for shard in self.coordinator.shards:
            await shard.end()

    # --- what came of it

    def check(self) -> None:
        for shard in self.coordinator.shards:
            shard.check_checkpoints()
            assert not shard.errors, shard.errors
        for of_all in self.groups:
            for group in of_all:
                self._check_answers(group)
        for step in {group.step for of_all in self.groups for group in of_all}:
            means = [self._check_step(number, step) for number in range(self.kind.shards)]
            if 0.0 not in self.kind.turns:  # else it may begin on one shard when it is under way on another
                assert all(mean == means[0] for mean in means), (
                    f"step {step} is not the same everywhere: {means}"
                )

    def _check_answers(self, group: Group) -> None:
        values = self._values(group)
        in_steps = self.kind.staleness == 0 and not self.kind.turns
        if in_steps:
            assert set(values) <= {0.0} or min(values) > 0, f"a part of {group} was counted: {values}"
        for asked, value in zip(group.pushes, values, strict=False):
            assert in_steps or self.kind.turns or not isinstance(asked.answer, Pushed) or value == 1.0
        answer = group.end.answer
        if isinstance(answer, Pulled) and answer.clock is None:
            assert 0 not in values, f"acknowledged, and not counted: {group}"
        elif isinstance(answer, Pulled):
            assert self.kind.backup or self.kind.deaths, f"nobody can be late: {group}"
            assert set(values) <= {0.0}, f"late, and counted: {group}"
        else:
            assert answer is None or isinstance(answer, Fenced), answer
            assert self.kind.deaths, f"nobody died, and this has no answer: {group}"

    def _values(self, group: Group) -> list[float]:
        values = self.coordinator.shards[group.end.shard].job.dense("w").values
        return [float(values[slot]) for slot in group.slots]

    def _check_step(self, shard: int, step: int) -> dict[tuple[int, int], float]:
        """See that a step is one mean, and what was applied alone; return who is in the mean."""
        here = [of_all[shard] for of_all in self.groups]
        groups = [group for group in here if group.step == step and group.slots]
        found = {(group.worker, group.life): self._values(group) for group in groups}
        together = [group for group in groups if not _is_alone(found[group.worker, group.life])]
        shares = {
            id(group): [value for value in found[group.worker, group.life] if value < 1] for group in together
        }
        total = sum(group.weight * len(shares[id(group)]) for group in together)
        for group in together:
            right = group.weight / total
            np.testing.assert_allclose(shares[id(group)], right, rtol=1e-5, err_msg=str(groups))
        return {(group.worker, group.life): round(group.weight / total, 5) for group in together}


def _is_alone(values: list[float]) -> bool:
    """Whether nobody else's gradients were averaged with these: some of them with each other, or none."""
    count = len(values)
    counts = range(1, count + 1)
    patterns = [[1 / some] * some + [one] * (count - some) for some in counts for one in (0.0, 1.0)]
    patterns += [[0.0] * count, [1.0] * count]
    return any(np.allclose(values, pattern, rtol=1e-5) for pattern in patterns)

"""One learner after the other on the same stream, looked at between segments while its clock stands still."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

from benchmarks.ctr_data import CHUNK_EXAMPLES, Chunk, Clicks, concatenate, write_chunks
from benchmarks.ctr_learners.interface import Learner
from benchmarks.ctr_learners.registry import Entry
from benchmarks.ctr_scores import area_under_curve, log_loss
from benchmarks.progress import Progress


class Look(NamedTuple):
    """What a learner predicts after so many examples and seconds: log-loss and area under the ROC curve."""

    examples: int
    seconds: float
    loss: float
    area: float


@dataclass(frozen=True, slots=True)
class Trial:
    """What came of one learner; `writing` is the seconds of its own format, which are in no look's."""

    looks: tuple[Look, ...]
    writing: float

    def reached(self, loss: float) -> Look | None:
        """Return the first look with a log-loss of `loss` or less; None: there was none."""
        return next((look for look in self.looks if look.loss <= loss), None)

    @property
    def examples_per_second(self) -> float:
        """Examples learned in a second of the clock."""
        return self.looks[-1].examples / self.looks[-1].seconds

    @property
    def examples_per_second_with_writing(self) -> float:
        """The same, the clock running while the learner's own format was written, too."""
        return self.looks[-1].examples / (self.looks[-1].seconds + self.writing)


@dataclass(frozen=True, slots=True)
class Stream:
    """Chunks to learn from, in segments; and examples to be judged by, with the best possible scores."""

    segments: tuple[tuple[Path, ...], ...]
    held_out: Chunk

    @property
    def examples(self) -> int:
        """How many there are to learn from."""
        return CHUNK_EXAMPLES * sum(map(len, self.segments))

    @property
    def best(self) -> Look:
        """What the true probabilities score."""
        probability, clicks = self.held_out.probability, self.held_out.clicks
        return Look(0, 0.0, log_loss(probability, clicks), area_under_curve(probability, clicks))


@dataclass(frozen=True, slots=True)
class Report:
    """The trials of each learner, one a round; `missing` gives the reason of each that has none, by name."""

    examples: int
    held_out: int
    best: Look
    trials: Mapping[Entry, list[Trial]]
    missing: Mapping[str, str]


def write_stream(directory: Path, seed: int, examples: int, held_out: int, segment: int) -> Stream:
    """Write at least `examples` to `directory`, `segment` chunks at a time; keep `held_out` chunks."""
    clicks = Clicks.of_seed(seed)
    count = ceil(examples / CHUNK_EXAMPLES)
    paths = write_chunks(map(clicks.train, range(count)), directory, "train")
    segments = tuple(tuple(paths[begin : begin + segment]) for begin in range(0, count, segment))
    return Stream(segments, concatenate([clicks.held_out(number) for number in range(held_out)]))


def run(entries: Sequence[Entry], stream: Stream, rounds: int, progress: Progress) -> Report:
    """Have each learner that is installed learn the stream once a round."""
    missing = {
        entry.name: f"{entry.needs}: not installed, skipped (pip install 'asyncps[peers]')"
        for entry in entries
        if not entry.is_installed()
    }
    trials: dict[Entry, list[Trial]] = {entry: [] for entry in entries if entry.name not in missing}
    for number in range(1, rounds + 1):
        for entry, done in trials.items():
            progress(f"round {number} of {rounds}: {entry.label}")
            done.append(run_trial(entry.build(), stream))
    return Report(stream.examples, len(stream.held_out.clicks), stream.best, trials, missing)


def run_trial(learner: Learner, stream: Stream) -> Trial:
    """Have `learner` learn the stream; look at it after each segment."""
    looks: list[Look] = []
    examples, seconds = 0, 0.0
    clicks = stream.held_out.clicks
    try:
        writing = learner.start(stream.segments, stream.held_out)
        for segment in stream.segments:
            begin = perf_counter()
            learner.learn(segment)
            seconds += perf_counter() - begin
            examples += CHUNK_EXAMPLES * len(segment)
            probability = learner.predict()
            looks.append(
                Look(examples, seconds, log_loss(probability, clicks), area_under_curve(probability, clicks))
            )
    finally:
        learner.stop()
    return Trial(tuple(looks), writing)

"""Vowpal Wabbit, in a process of its own that reads its text from a pipe.

Its text is written before the clock starts; how long that took is said apart. At the end of a segment it is
told to save its model, and the clock stops when it begins to; another process then predicts with what was
saved. To write a prediction for each example that is learned would take twice as long as to learn.
"""

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Final

import numpy as np
import numpy.typing as npt

from benchmarks.ctr_data import Chunk, read_chunk
from benchmarks.ctr_features import lines_of, tokens_of
from benchmarks.ctr_learners.interface import BITS

_COMMAND: Final = (sys.executable, "-m", "vowpalwabbit", "--quiet")
_LOOK_EVERY: Final = 0.001  # seconds


class VowpalWabbit:
    """Logistic loss, example after example; by default with its own adaptive, normalised, invariant steps."""

    def __init__(self, *options: str) -> None:
        self._options = ("--loss_function", "logistic", "-b", str(BITS), *options)
        self._resources = ExitStack()

    def start(self, segments: Sequence[Sequence[Path]], held_out: Chunk) -> float:
        """Write the text and start the process; return the seconds that the text took."""
        self._directory = Path(self._resources.enter_context(TemporaryDirectory(prefix="vowpal-")))
        self._model = self._directory / "model"
        self._texts: dict[Path, Path] = {}
        begin = perf_counter()
        for path in (path for segment in segments for path in segment):
            chunk = read_chunk(path)
            self._texts[path] = self._directory / f"{path.stem}.txt"
            self._texts[path].write_text(lines_of(tokens_of(chunk), chunk.clicks), encoding="ascii")
        wrote = perf_counter() - begin
        held_out_text = lines_of(tokens_of(held_out), None)
        (self._directory / "held-out").write_text(held_out_text, encoding="ascii")
        command = [*_COMMAND, "-d", "/dev/stdin", *self._options]
        # Its context waits for it and closes the pipe.
        self._process = self._resources.enter_context(subprocess.Popen(command, stdin=subprocess.PIPE))
        self._resources.callback(self._process.kill)
        return wrote

    def learn(self, segment: Sequence[Path]) -> None:
        """Learn from the examples of the next segment."""
        self._model.unlink(missing_ok=True)
        for path in segment:
            self._tell(self._texts[path].read_bytes())
        self._tell(b"'save_%b |\n" % bytes(self._model))
        begun = self._model.with_name("model.writing")  # its name until it is complete
        self._wait_for(lambda: begun.exists() or self._model.exists())

    def predict(self) -> npt.NDArray[np.float32]:
        """Return the probability of a click for each held-out example."""
        self._wait_for(self._model.exists)
        model, text, answers = self._model, self._directory / "held-out", self._directory / "predictions"
        test = ("-t", "-i", str(model), "-d", str(text), "--link", "logistic", "-p", str(answers))
        subprocess.run([*_COMMAND, *test], check=True)
        return np.array(answers.read_bytes().split(), np.float32)

    def stop(self) -> None:
        """End the process."""
        self._resources.close()

    def _tell(self, text: bytes) -> None:
        if self._process.stdin is None:
            raise ConnectionError("vowpalwabbit: started without a pipe")
        self._process.stdin.write(text)
        self._process.stdin.flush()

    def _wait_for(self, condition: Callable[[], bool]) -> None:
        while not condition():
            if self._process.poll() is not None:
                raise ConnectionError("vowpalwabbit: its process ended")
            time.sleep(_LOOK_EVERY)

"""The learners of `python -m benchmarks ctr`, in the order of their rows."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Final

from benchmarks.ctr_learners.asyncps import Asyncps
from benchmarks.ctr_learners.interface import MINIBATCH, Learner
from benchmarks.ctr_learners.scikit import ScikitLearn
from benchmarks.ctr_learners.single import SingleMachine
from benchmarks.ctr_learners.vowpal import VowpalWabbit
from benchmarks.ctr_models import FactorizationMachine, LogisticRegression
from benchmarks.ctr_worker import Task
from psworker import FTRL, Adagrad, Normal, Zeros

_LR, _BETA = 0.1, 1.0  # the best of 0.03, 0.1 and 0.3 for one process

REGRESSION: Final = Task(LogisticRegression(), FTRL(lr=_LR, beta=_BETA), Zeros(), MINIBATCH)
MACHINE: Final = Task(
    # Its vectors move each other: with longer steps, and fewer of them, they do not get anywhere.
    FactorizationMachine(), Adagrad(lr=0.03, initial=1.0), Normal(0.03), MINIBATCH // 8
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Entry:
    """A row of the table. `needs` is the package without which it is skipped."""

    name: str
    label: str
    build: Callable[[], Learner]
    needs: str | None = None

    def is_installed(self) -> bool:
        """Tell whether the package that it needs can be imported."""
        return self.needs is None or find_spec(self.needs) is not None


OURS: Final = Entry("asyncps-lr", "asyncps, logistic regression", partial(Asyncps, REGRESSION))
ORACLE: Final = Entry("single", "one process, the same regression", partial(SingleMachine, _LR, _BETA))

ENTRIES: Final = (
    OURS,
    Entry("asyncps-fm", "asyncps, factorization machine", partial(Asyncps, MACHINE)),
    ORACLE,
    Entry("scikit", "scikit-learn SGDClassifier", ScikitLearn, needs="sklearn"),
    Entry("vw", "Vowpal Wabbit", VowpalWabbit, needs="vowpalwabbit"),
    Entry(
        "vw-ftrl",
        "Vowpal Wabbit --ftrl",
        partial(VowpalWabbit, "--ftrl", "--ftrl_alpha", "0.1"),
        "vowpalwabbit",
    ),
)

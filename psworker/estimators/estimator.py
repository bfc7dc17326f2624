"""What all estimators have in common: their settings, and the way from arrays to trained parameters."""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from numbers import Integral
from typing import Any, ClassVar, Final

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array, issparse
from sklearn.base import BaseEstimator
from sklearn.utils import check_random_state
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from protocol.credentials import Access
from protocol.optimizers import OPTIMIZERS, Optimizer
from psworker.data.batch import Batch
from psworker.errors import DataError
from psworker.estimators.own_cluster import has_ended, own_address
from psworker.estimators.passes import Passes, Place, drop, train
from psworker.job import ModelSettings
from psworker.models.load import build_model
from psworker.models.model import Model, OwnRule, PredictingModel, PreparedModel

__all__ = ["ServedEstimator"]

Array = npt.NDArray[Any]

_SEEDS: Final = 2**31 - 1

_DENSE: Final = ("kmeans", "linear-exact")
"""Models that take no sparse features."""

_COPIES: Final = 4
"""What a server keeps of a parameter: two optimizers' slots, the value, and the one before."""

_OVERHEAD: Final = 32 * 1024
"""Bytes that a job without any tensors takes; 18 KiB were measured."""


class ServedEstimator(BaseEstimator):  # type: ignore[misc]
    """An estimator whose parameters are trained on a cluster, by several workers in this process.

    Subclasses have these settings in their constructors, as scikit-learn wants it.

    Args:
        kind: the model: what [model] kind is in a job file, ``package.module:Class`` included.
        settings: more of [model], by name, such as ``{"l2": 0.01}``; None: the model's defaults.
        cluster: ``HOST:PORT`` of the coordinator, or a ``LocalCluster``; None: a server of this process's
            own, which is started when it is first needed and ends with the process.
        access: token and certificates for the cluster, as a ``LocalCluster`` takes them, too.
        workers: how many compute gradients at the same time.
        staleness: steps that a worker may be ahead of the slowest: 0 (synchronous) to ``math.inf``.
        optimizer: what the servers do with gradients: a name, or an optimizer with settings of its own.
        lr: its learning rate; None: what the optimizer has. A model with a rule of its own has neither.
        max_iter: passes over the examples, at most.
        batch_size: rows of one worker's mini-batch; a synchronous step has those of all workers.
        tol: training ends early when the mean loss of ``n_iter_no_change`` passes, one after the other, has
            not fallen below the lowest one by more than this; None: it does not.
        n_iter_no_change: see ``tol``.
        random_state: of the order of examples and of initial values; with a number, synchronous training
            by up to two workers is the same each time, to the last bit.

    Attributes:
        parameters_: trained, by name.
        n_iter_: passes that were made.
        loss_curve_: the mean loss of each pass.
        n_features_in_, feature_names_in_: as scikit-learn has them.
    """

    kind: str
    settings: Mapping[str, Any] | None
    cluster: Any
    access: Access | None
    workers: int
    staleness: float
    optimizer: str | Optimizer
    lr: float | None
    max_iter: int
    batch_size: int
    tol: float | None
    n_iter_no_change: int
    random_state: Any

    _predicts_numbers: ClassVar[bool] = False
    n_iter_: int
    _job: tuple[Place, object]  # the last one, if it was kept, and what it was made with

    # --- training

    def _checked(self, *arrays: Any, reset: bool, **how: Any) -> Any:
        """Return features as models take them, float32 and dense or CSR, and labels, if there are any."""
        sparse = "csr" if self.__sklearn_tags__().input_tags.sparse else False
        checked = validate_data(
            self, *arrays, reset=reset, accept_sparse=sparse, dtype=np.float32, order="C", **how
        )
        return (_design(checked[0]), checked[1]) if len(arrays) == 2 else _design(checked)

    def _weights(self, x: Any, sample_weight: Any) -> Array | None:
        """Return what each row counts, float32; None: 1 each."""
        if sample_weight is None:
            return None
        weights = _check_sample_weight(sample_weight, x, dtype=np.float32, ensure_non_negative=True)
        return np.asarray(weights)

    def _train(self, examples: Batch, *, classes: int | None, anew: bool, passes: int, keeps: bool) -> None:
        """Train on ``examples``: ``anew``, or on from what there is.

        If it ``keeps`` the job, a later call goes on there with what the optimizer knows.
        """
        how = self._passes(passes, 0 if anew else self.n_iter_)
        if anew:
            model = self._built(examples.x.shape[1], classes, how.seed[0])
            self._model: Any = self._prepared(model, examples) if isinstance(model, PreparedModel) else model
            self.parameters_: dict[str, Array] = dict(self._model.parameters())
            self._check_kind(examples)
            self.loss_curve_: list[float] = []
        optimizer = self._model.optimizer if isinstance(self._model, OwnRule) else self._chosen_optimizer()
        with self._address(keeps) as address:
            place = self._place(address, anew, optimizer)
            try:
                self.parameters_, losses = train(
                    place, how, self._model, optimizer, self.parameters_, examples
                )
            finally:
                if not keeps:
                    self._drop_job()
        self.loss_curve_ = [*self.loss_curve_, *losses]
        self.n_iter_ = len(self.loss_curve_)
        self._is_trained()

    def _is_trained(self) -> None:
        """Set what follows from the parameters."""

    def _built(self, features: int, classes: int | None, seed: int) -> Model:
        settings = ModelSettings(self.kind, tuple((self.settings or {}).items()))
        return build_model(settings, features=features, classes=classes, seed=seed)

    def _check_kind(self, examples: Batch) -> None:
        """Raise ValueError where the model predicts classes, and not numbers, or the other way round."""
        if not isinstance(self._model, PredictingModel):
            raise ValueError(f"kind={self.kind!r} has no method predict")  # noqa: TRY004 (of a setting)
        found = np.asarray(self._model.predict(self.parameters_, examples.take(np.arange(1))))
        predicts_numbers = found.dtype.kind == "f"
        if predicts_numbers != self._predicts_numbers:
            raise ValueError(
                f"kind={self.kind!r} predicts {'numbers' if predicts_numbers else 'classes'}; "
                f"take a {'Regressor' if predicts_numbers else 'Classifier'}"
            )

    def _prepared(self, model: PreparedModel, examples: Batch) -> Model:
        try:
            return model.prepared(examples)
        except DataError as error:
            raise ValueError(f"kind={self.kind!r}: the data {error.reason}") from error

    def _chosen_optimizer(self) -> Optimizer:
        optimizer = self.optimizer
        if isinstance(optimizer, str):
            if optimizer not in OPTIMIZERS:
                raise ValueError(f"optimizer={optimizer!r}: expected one of {', '.join(OPTIMIZERS)}")
            optimizer = OPTIMIZERS[optimizer]()
        if self.lr is None or not hasattr(optimizer, "lr"):
            return optimizer
        return dataclasses.replace(optimizer, lr=self.lr)  # type: ignore[arg-type]

    def _passes(self, most: int, before: int) -> Passes:
        for name in ("workers", "max_iter", "batch_size", "n_iter_no_change"):
            value = getattr(self, name)
            if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name}={value!r}: expected a whole number, at least 1")
        seed = int(check_random_state(self.random_state).randint(_SEEDS))
        return Passes(
            workers=int(self.workers),
            staleness=float(self.staleness),
            most=int(most),
            batch_size=int(self.batch_size),
            tol=self.tol,
            patience=int(self.n_iter_no_change),
            seed=(seed, before),
        )

    # --- where

    def _place(self, address: str, anew: bool, optimizer: Optimizer) -> Place:
        """Return where to train: with what a former call of ``partial_fit`` has left there, if that fits."""
        access = self.access or Access()
        settings = (address, access, optimizer, self.workers, self.staleness)
        if anew or "_job" not in self.__dict__ or self._job[1] != settings:
            self._drop_job()
            name = f"{type(self).__name__.lower()}-{secrets.token_hex(8)}"
            self._job = (Place(address, access, name), settings)
        return self._job[0]

    def _drop_job(self) -> None:
        """Have the cluster forget the job of the last call, if that was kept."""
        if "_job" in self.__dict__:
            place, _ = self.__dict__.pop("_job")
            if not has_ended(place.address):
                drop(place)

    def _address(self, keeps: bool) -> AbstractContextManager[str]:
        if self.cluster is not None:
            return nullcontext(_address_of(self.cluster))
        nbytes = _COPIES * sum(value.nbytes for value in self.parameters_.values())
        is_there = "_job" in self.__dict__ and not has_ended(self._job[0].address)  # and is counted
        return own_address(nbytes + _OVERHEAD if keeps and not is_there else 0)

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy goes on from: the parameters, but not the job, and of a cluster the address."""
        state: dict[str, Any] = {**super().__getstate__()}
        state.pop("_job", None)
        if self.cluster is not None:
            state["cluster"] = _address_of(self.cluster)
        return state

    # --- what is made of it

    def _able(self, ability: type) -> bool:
        """Return whether the model, or the one that there will be, can do something."""
        model = getattr(self, "_model", None)
        if model is None and self._takes_classes(2):
            model = self._built(1, 2, 0)
        return isinstance(model, ability)

    def _takes_classes(self, count: int) -> bool:
        """Return whether there is such a model of so many classes."""
        try:
            self._built(1, count, 0)
        except ValueError:
            return False
        return True

    def _predicted(self, x: Any) -> Array:
        """Return what the model predicts for rows: class indices, or numbers.

        Raises:
            NotFittedError: it is not fitted.
            ValueError: the rows have other features.
        """
        parameters, rows = self._asked(x)
        return np.asarray(self._model.predict(parameters, rows))

    def _asked(self, x: Any) -> tuple[dict[str, Array], Batch]:
        """Return the parameters, and rows to look at; doubles, so that a row's result is its own alone."""
        check_is_fitted(self)
        sparse = "csr" if self.__sklearn_tags__().input_tags.sparse else False
        rows = _design(validate_data(self, x, reset=False, accept_sparse=sparse, dtype=np.float64))
        parameters = {name: value.astype(np.float64) for name, value in self.parameters_.items()}
        return parameters, Batch(rows, np.zeros(rows.shape[0], np.float32))

    def _linear_weights(self) -> tuple[Array, Array] | None:
        """Return w and b of a model that is linear in the features; None: it is not."""
        has_weights = hasattr(self._model, "weights")
        found = self._model.weights(self.parameters_) if has_weights else self.parameters_
        return (found["w"], found["b"]) if set(found) == {"w", "b"} else None

    def __sklearn_tags__(self) -> Any:
        """Sparse features are taken, too, by all but a few models."""
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = self.kind not in _DENSE
        return tags


def _address_of(cluster: Any) -> str:
    return str(getattr(cluster, "address", cluster))


def _design(x: Any) -> Any:
    return csr_array(x) if issparse(x) else x

"""Each rule against its equation, written out number by number, and against other implementations."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.optimizers import (
    DCSGD,
    FTRL,
    SGD,
    Adagrad,
    Adam,
    AdamW,
    Add,
    Momentum,
    Nesterov,
    Optimizer,
    RMSProp,
)
from protocol.tensors import DTYPES
from psserver.optimizers import RULES, Moment, hyper_of, is_steady, penalty_of, rule_of
from tests.psserver.optimizers.kinds import EVERY, NAMES, Parameters, gradients, values

STEPS = 50
of_every = pytest.mark.parametrize("optimizer", EVERY, ids=NAMES)


def reference(optimizer: Optimizer, p: float, pushed: Sequence[float]) -> float:
    """One parameter after some gradients, by the equations of the papers."""
    v = m = 0.0
    n = optimizer.initial if isinstance(optimizer, Adagrad) else 0.0
    z = None
    for t, g in enumerate(pushed, 1):
        match optimizer:
            case Add():
                p = p + g
            case SGD(lr=lr):
                p = p - lr * g
            case Momentum(lr=lr, momentum=mu):
                v = mu * v + g
                p = p - lr * v
            case Nesterov(lr=lr, momentum=mu):
                v = mu * v + g
                p = p - lr * (g + mu * v)
            case Adagrad(lr=lr, eps=eps):
                n = n + g**2
                p = p - lr * g / (math.sqrt(n) + eps)
            case RMSProp(lr=lr, decay=decay, eps=eps):
                n = decay * n + (1 - decay) * g**2
                p = p - lr * g / (math.sqrt(n) + eps)
            case Adam() | AdamW():
                decay = optimizer.weight_decay if isinstance(optimizer, AdamW) else 0.0
                lr, b1, b2 = optimizer.lr, optimizer.beta1, optimizer.beta2
                m = b1 * m + (1 - b1) * g
                v = b2 * v + (1 - b2) * g**2
                corrected = m / (1 - b1**t), v / (1 - b2**t)
                p = p - lr * decay * p - lr * corrected[0] / (math.sqrt(corrected[1]) + optimizer.eps)
            case FTRL(lr=alpha, beta=beta, l1=l1, l2=l2):
                if z is None:
                    z = -p * (beta / alpha + l2) - math.copysign(l1, p) * (p != 0)
                sigma = (math.sqrt(n + g**2) - math.sqrt(n)) / alpha
                z = z + g - sigma * p
                n = n + g**2
                if abs(z) <= l1:
                    p = 0.0
                else:
                    p = -(z - math.copysign(l1, z)) / ((beta + math.sqrt(n)) / alpha + l2)
            case DCSGD(lr=lr):
                p = p - lr * g  # nothing was missed: it is sgd
    return p


@of_every
def test_equals_the_equation(optimizer: Optimizer) -> None:
    pushed = gradients(STEPS, 20)
    start = values(20)
    expected = [
        reference(optimizer, float(start[i]), [float(g[i]) for g in pushed]) for i in range(start.size)
    ]
    np.testing.assert_allclose(
        Parameters(optimizer, start).update_all(pushed), expected, rtol=1e-9, atol=1e-12
    )


@of_every
def test_float32_stays_float32_and_near_the_equation(optimizer: Optimizer) -> None:
    pushed, start = gradients(STEPS, 20, np.float32), values(20, np.float32)
    parameters = Parameters(optimizer, start)
    parameters.update_all(pushed)
    wide = Parameters(optimizer, start.astype(np.float64)).update_all([g.astype(np.float64) for g in pushed])
    assert {parameters.values.dtype, parameters.a.dtype, parameters.b.dtype} == {np.dtype(np.float32)}
    np.testing.assert_allclose(parameters.values, wide, rtol=1e-4, atol=1e-5)


@of_every
@given(data=st.data())
def test_a_piece_is_updated_as_in_the_whole(optimizer: Optimizer, data: st.DataObject) -> None:
    """So a tensor may be cut into blocks anywhere, and worked on in pieces."""
    size = data.draw(st.integers(1, 40))
    cuts = sorted(data.draw(st.sets(st.integers(0, size), max_size=4)) | {0, size})
    pushed, start = gradients(5, size, np.float32), values(size, np.float32)
    whole = Parameters(optimizer, start).update_all(pushed)
    for begin, end in itertools.pairwise(cuts):
        part = Parameters(optimizer, start[begin:end]).update_all([g[begin:end] for g in pushed])
        np.testing.assert_array_equal(part, whole[begin:end])


@of_every
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_values_that_may_be_read_are_not_written_to(optimizer: Optimizer, dtype: str) -> None:
    rule, h = rule_of(optimizer), hyper_of(optimizer, Moment())
    p, g = values(20, DTYPES[dtype]), gradients(1, 20, DTYPES[dtype])[0]
    a, b = (slot.copy() for slot in rule.start(p, h))
    before, read = p.copy(), a.copy()
    fresh, new_a, new_b = rule.step(p, g, a, b, tuple(map(float, rule.at(1, h))))  # type: ignore[arg-type]
    np.testing.assert_array_equal(p, before)
    assert fresh is not p
    assert new_a is a  # slots are made in the memory that was pushed
    assert new_b is b
    if rule.needs_backup:
        np.testing.assert_array_equal(a, read)


@pytest.mark.parametrize("name", DTYPES)
def test_add_equals_numpy_for_every_dtype(name: str) -> None:
    rng = np.random.default_rng(1)
    start, delta = rng.integers(0, 100, (2, 1000)).astype(DTYPES[name])
    parameters = Parameters(Add(), start)
    parameters.update(delta)
    np.testing.assert_array_equal(parameters.values, start + delta)
    assert parameters.values.dtype == DTYPES[name]


@pytest.mark.parametrize(
    ("dtype", "value", "delta", "expected"),
    [(np.uint8, 255, 1, 0), (np.int8, 127, 1, -128), (np.uint64, 0, 2**64 - 1, 2**64 - 1)],
)
def test_integers_wrap_around_as_numpys_do(dtype: Any, value: int, delta: int, expected: int) -> None:
    parameters = Parameters(Add(), np.array([value], dtype))
    parameters.update(np.array([delta], dtype))
    assert parameters.values[0] == expected


def test_delay_is_compensated_for_by_what_the_worker_had_read() -> None:
    p, q, g, lr, lam = 1.5, 1.0, 2.0, 0.1, 0.7
    parameters = Parameters(DCSGD(lr, lam), np.array([p]))
    parameters.update(np.array([g]), backup=np.array([q]))
    assert parameters.values[0] == pytest.approx(p - lr * (g + lam * g**2 * (p - q)), rel=1e-15)


def test_ftrl_makes_zeros() -> None:
    pushed = [0.01 * g for g in gradients(STEPS, 50)]
    parameters = Parameters(FTRL(0.1, l1=0.5), np.zeros(50))
    assert (parameters.update_all(pushed) == 0.0).all()
    assert not np.signbit(parameters.values).any()
    parameters.update_all([np.ones(50)] * 2)
    assert (parameters.values < 0.0).all()


@pytest.mark.parametrize("p", [-2.0, 0.0, 3.0])
def test_ftrl_leaves_a_parameter_where_it_was_while_there_is_no_gradient(p: float) -> None:
    """Also if its learning rate changes meanwhile."""
    optimizer = FTRL(0.1, l1=0.3, l2=0.2, warmup=10)
    parameters = Parameters(optimizer, np.array([p]))
    for step in range(12):
        parameters.h = hyper_of(optimizer, Moment(step))
        parameters.update(np.zeros(1))
        assert parameters.values[0] == pytest.approx(p, rel=1e-12)


@pytest.mark.parametrize("optimizer", [Adam(beta1=0.0, beta2=0.0), AdamW(beta1=1 - 2**-53)])
def test_betas_at_their_limits_are_no_trouble(optimizer: Optimizer) -> None:
    for dtype in (np.float32, np.float64):
        assert np.isfinite(Parameters(optimizer, values(20, dtype)).update_all(gradients(5, 20, dtype))).all()


@pytest.mark.parametrize("zero", [0.0, -0.0])
@of_every
def test_no_gradient_is_no_trouble_for_a_new_parameter(optimizer: Optimizer, zero: float) -> None:
    assert (
        Parameters(optimizer, np.zeros(3, np.float32)).update_all([np.full(3, zero, np.float32)] * 3).any()
        == 0
    )


# --- what a rule is pushed


def test_rules_are_numbered_as_they_stand() -> None:
    assert [rule.number for rule in RULES] == list(range(len(RULES)))
    assert {rule_of(optimizer) for optimizer in EVERY} == set(RULES)


def test_the_learning_rate_is_first_and_divided_by_the_staleness_where_that_is_wanted() -> None:
    for optimizer in (SGD(0.5), Adam(0.5), FTRL(0.5)):
        assert hyper_of(optimizer, Moment(3, staleness=4.0))[0] == 0.5
    scaled = SGD(0.5, scale_by_staleness=True)
    rates = [hyper_of(scaled, Moment(0, staleness))[0] for staleness in (0.0, 0.5, 1.0, 4.0)]
    assert rates == [0.5, 0.5, 0.5, 0.125]


def test_what_changes_with_the_moment_is_not_steady() -> None:
    assert all(is_steady(optimizer) for optimizer in EVERY)
    assert not is_steady(SGD(warmup=1))
    assert not is_steady(SGD(scale_by_staleness=True))


def test_penalties_are_off_or_the_settings() -> None:
    off = (math.inf, math.inf, 0.0, 0.0)
    assert penalty_of(Add()) == penalty_of(SGD()) == penalty_of(SGD(clip_norm=0)) == off
    assert penalty_of(Adam(clip_value=1, clip_norm=2, l1=3, l2=4)) == (1.0, 2.0, 3.0, 4.0)
    assert penalty_of(FTRL(clip_value=1, clip_norm=2, l1=3, l2=4)) == (1.0, 2.0, 0.0, 0.0)


# --- compiled for the rows of tables


@pytest.mark.long
@of_every
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_compiled_for_single_numbers_a_rule_does_the_same(optimizer: Optimizer, dtype: Any) -> None:
    numba = pytest.importorskip("numba")
    rule, h = rule_of(optimizer), hyper_of(optimizer, Moment())
    start, at, step = (numba.njit(function) for function in (rule.start, rule.at, rule.step))
    narrow = tuple(map(dtype, h))
    pushed, begin = gradients(5, 8, dtype), values(8, dtype)
    backup = begin + dtype(0.5) if rule.needs_backup else None
    parameters = Parameters(optimizer, begin)
    for g in pushed:
        parameters.update(g, backup)
    for i in range(begin.size):
        p = begin[i]
        a, b = map(dtype, start(p, narrow))
        if backup is not None:
            a = backup[i]
        for t, g in enumerate(pushed, 1):
            now = tuple(map(dtype, at(dtype(t), narrow)))  # called from here, it returns Python's floats
            p, a, b = map(dtype, step(p, g[i], a, b, now))
        np.testing.assert_allclose(p, parameters.values[i], rtol=20 * np.finfo(dtype).eps, atol=1e-6)
    number = numba.typeof(dtype(0))
    for function in (start, at, step):
        (signature,) = function.nopython_signatures
        assert {*signature.return_type} == {number}  # none of its numbers became a float64


# --- against other implementations


@pytest.mark.parametrize(
    ("ours", "theirs", "settings"),
    [
        (SGD(0.1), "SGD", {"lr": 0.1}),
        (Momentum(0.1, 0.8), "SGD", {"lr": 0.1, "momentum": 0.8}),
        (Nesterov(0.1, 0.8), "SGD", {"lr": 0.1, "momentum": 0.8, "nesterov": True}),
        (Adagrad(0.1, 0.5, 1e-3), "Adagrad", {"lr": 0.1, "initial_accumulator_value": 0.5, "eps": 1e-3}),
        (RMSProp(0.1, 0.9, 1e-3), "RMSprop", {"lr": 0.1, "alpha": 0.9, "eps": 1e-3}),
        (Adam(0.1, 0.8, 0.95, 1e-3), "Adam", {"lr": 0.1, "betas": (0.8, 0.95), "eps": 1e-3}),
        (
            AdamW(0.1, 0.8, 0.95, 1e-3, 0.05),
            "AdamW",
            {"lr": 0.1, "betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.05},
        ),
    ],
    ids=["sgd", "momentum", "nesterov", "adagrad", "rmsprop", "adam", "adamw"],
)
def test_equals_torch(ours: Optimizer, theirs: str, settings: dict[str, Any]) -> None:
    torch = pytest.importorskip("torch")
    pushed, start = gradients(STEPS, 20), values(20)
    parameter = torch.nn.Parameter(torch.tensor(start, dtype=torch.float64))
    optimizer = getattr(torch.optim, theirs)([parameter], **settings)
    for g in pushed:
        parameter.grad = torch.tensor(g, dtype=torch.float64)
        optimizer.step()
    expected = parameter.detach().numpy()
    np.testing.assert_allclose(Parameters(ours, start).update_all(pushed), expected, rtol=1e-9, atol=1e-12)


def test_equals_scikit_learn() -> None:
    """Least squares by constant steps, one example a step."""
    linear_model = pytest.importorskip("sklearn.linear_model")
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(STEPS, 4)), rng.normal(size=STEPS)
    model = linear_model.SGDRegressor(
        penalty=None, learning_rate="constant", eta0=0.05, fit_intercept=False, shuffle=False
    )
    parameters = Parameters(SGD(0.05), np.zeros(4))
    for row, target in zip(x, y, strict=True):
        model.partial_fit(row[None], [target])
        parameters.update((row @ parameters.values - target) * row)
    np.testing.assert_allclose(parameters.values, model.coef_, rtol=1e-9)

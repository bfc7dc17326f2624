"""Each model against an independent implementation, and the demo job against its promise."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression as Reference
from sklearn.linear_model import Ridge
from sklearn.metrics import log_loss

from psworker.data import Batch, minibatches, open_source
from psworker.job import load_job
from psworker.models import (
    EvaluatedModel,
    LinearRegression,
    LogisticRegression,
    Model,
    Perceptron,
    SoftmaxRegression,
    build_model,
)


def example(classes: int) -> Batch:
    rng = np.random.default_rng(classes)
    x = rng.standard_normal((300, 4)).astype(np.float32)
    return Batch(x, (x[:, 0] + rng.standard_normal(300)).argsort().argsort() * classes // 300)


def largest_gradient(model: Model, w: object, b: object, batch: Batch) -> float:
    parameters = {"w": np.asarray(w, np.float32), "b": np.asarray(b, np.float32)}
    gradients, _ = model.gradients(parameters, batch)
    return max(float(abs(gradient).max()) for gradient in gradients.values())


# scikit-learn's C and alpha weigh the penalty against the sum over rows, l2 against their mean.


def test_the_optimum_of_linear_regression_is_scikit_learns() -> None:
    batch = example(5)
    reference = Ridge(alpha=0.1 * len(batch)).fit(batch.x.astype(np.float64), batch.y)
    model = LinearRegression(4, l2=0.1)
    assert largest_gradient(model, reference.coef_, [reference.intercept_], batch) < 1e-5
    assert largest_gradient(model, reference.coef_ + 0.1, [reference.intercept_], batch) > 1e-2


def test_the_optimum_of_logistic_regression_is_scikit_learns() -> None:
    batch = example(2)
    wide = batch.x.astype(np.float64)
    reference = Reference(C=1 / (0.1 * len(batch)), tol=1e-9, max_iter=1000).fit(wide, batch.y)
    model = LogisticRegression(4, l2=0.1)
    assert largest_gradient(model, reference.coef_[0], reference.intercept_, batch) < 1e-5
    assert largest_gradient(model, reference.coef_[0] + 0.1, reference.intercept_, batch) > 1e-2


def test_the_optimum_of_softmax_regression_is_scikit_learns() -> None:
    batch = example(3)
    wide = batch.x.astype(np.float64)
    reference = Reference(C=1 / (0.1 * len(batch)), tol=1e-9, max_iter=1000).fit(wide, batch.y)
    model = SoftmaxRegression(4, 3, l2=0.1)
    assert largest_gradient(model, reference.coef_.T, reference.intercept_, batch) < 1e-5
    parameters = {
        "w": reference.coef_.T.astype(np.float32),
        "b": reference.intercept_.astype(np.float32),
    }
    penalty = 0.05 * float((reference.coef_**2).sum())
    expected = log_loss(batch.y, reference.predict_proba(batch.x)) + penalty
    evaluated = model.evaluate(parameters, batch)
    assert evaluated["loss"] == pytest.approx(expected, rel=1e-5)
    assert evaluated["accuracy"] == pytest.approx(reference.score(batch.x, batch.y))


def test_softmax_of_two_classes_is_logistic_regression() -> None:
    batch = example(2)
    w = np.array([0.3, -1, 2, 0.1], np.float32)
    one, loss = LogisticRegression(4).gradients({"w": w, "b": np.ones(1, np.float32)}, batch)
    two = {"w": np.column_stack([0 * w, w]), "b": np.array([0, 1], np.float32)}
    both, softmax_loss = SoftmaxRegression(4, 2).gradients(two, batch)
    assert softmax_loss == pytest.approx(loss, rel=1e-5)
    np.testing.assert_allclose(both["w"][:, 1], one["w"], rtol=1e-4, atol=1e-6)


def test_the_perceptron_rule_row_by_row() -> None:
    batch, model = example(3), Perceptron(4, 3)
    parameters = model.parameters()
    w, b = np.zeros((4, 3)), np.zeros(3)
    for row in range(len(batch)):
        x, y = batch.x[row], int(batch.y[row])
        predicted = int(np.argmax(x @ w + b))
        if predicted != y:
            w[:, y] += x
            b[y] += 1
            w[:, predicted] -= x
            b[predicted] -= 1
        gradients, _ = model.gradients(parameters, batch.take(np.array([row])))
        parameters = {name: parameters[name] - gradients[name] for name in parameters}
    np.testing.assert_allclose(parameters["w"], w, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(parameters["b"], b)
    assert abs(w).max() > 0


def test_the_loss_of_the_perceptron_written_out() -> None:
    batch, model = example(3), Perceptron(4, 3)
    rng = np.random.default_rng(0)
    w, b = rng.standard_normal((4, 3)).astype(np.float32), np.ones(3, np.float32)
    losses = []
    for x, y in zip(batch.x, batch.y, strict=True):
        scores = [sum(float(x[j]) * float(w[j, k]) for j in range(4)) + 1 for k in range(3)]
        losses.append(max(scores) - scores[int(y)])
    assert model.gradients({"w": w, "b": b}, batch)[1] == pytest.approx(np.mean(losses), rel=1e-4)


@pytest.mark.parametrize("batch_size", [32, 128])
def test_the_demo_job_learns_the_digits(batch_size: int) -> None:
    """Also with the batches of four workers together, which take a quarter of the steps."""
    job = load_job(None, [])
    source = open_source(job.data, seed=job.seed, holdout=job.eval.holdout)
    model = build_model(job.model, features=source.features, classes=source.classes, seed=job.seed)
    assert isinstance(model, EvaluatedModel)
    lr = dict(job.optimizer.settings)["lr"]
    assert isinstance(lr, float)
    rng = np.random.default_rng(job.seed)
    train, held_out = (
        Batch(np.concatenate([piece.x for piece in part]), np.concatenate([piece.y for piece in part]))
        for part in (
            [source.read(chunk, "train") for chunk in range(source.chunks)],
            [source.read(chunk, "holdout") for chunk in range(source.chunks)],
        )
    )
    parameters = model.parameters()
    for _ in range(job.train.epochs):
        for batch in minibatches(train, batch_size, rng):
            gradients, _ = model.gradients(parameters, batch)
            parameters = {name: parameters[name] - np.float32(lr) * gradients[name] for name in parameters}
    assert model.evaluate(parameters, held_out)["accuracy"] >= 0.95

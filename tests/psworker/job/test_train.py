import pytest

from psworker.errors import JobError
from psworker.job import TrainSettings, job_from_json, job_to_json, load_job

KEYS = {
    "train.local-steps=4": TrainSettings(local_steps=4),
    "train.accumulate=4": TrainSettings(accumulate=4),
    "train.shuffle=none": TrainSettings(shuffle="none"),
    "train.shuffle=window:100": TrainSettings(shuffle="window:100"),
    "train.patience=3": TrainSettings(patience=3),
    "train.min-delta=0.5": TrainSettings(min_delta=0.5),
    "train.monitor=f1": TrainSettings(monitor="f1"),
    "train.on-divergence=lower-rate": TrainSettings(on_divergence="lower-rate"),
    "train.diverged-above=0": TrainSettings(diverged_above=0.0),
    "train.diverged-above=2.5": TrainSettings(diverged_above=2.5),
    "train.rate-factor=0.25": TrainSettings(rate_factor=0.25),
    "train.returns=0": TrainSettings(returns=0),
}

PLAIN = '{"model": {"kind": "linear"}}'


@pytest.mark.parametrize("override", KEYS)
def test_every_key_is_read_and_written(override: str) -> None:
    rest = [
        "train.epochs=5",
        "train.batch-size=64",
        "train.staleness=inf",
    ]  # the defaults, and not the demo's
    job = load_job(None, [*rest, override])
    assert job.train == KEYS[override]
    assert job_from_json(job_to_json(job)) == job


def test_all_that_is_not_written_is_as_before() -> None:
    train = job_from_json(PLAIN).train
    assert (train.local_steps, train.accumulate, train.shuffle, train.patience) == (1, 1, "chunk", 0)
    assert (train.on_divergence, train.unit_rows) == ("stop", 64)


def test_a_push_is_of_as_many_rows_as_its_mini_batches_have() -> None:
    assert TrainSettings(batch_size=8, accumulate=3).unit_rows == 24
    assert TrainSettings(batch_size=8, local_steps=5).unit_rows == 40


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.local-steps=0", "[train] local-steps = 0; expected a whole number, at least 1"),
        ("train.accumulate=1.5", "[train] accumulate = 1.5"),
        ("train.shuffle=window", '[train] shuffle = "window"; expected "chunk", "window:N"'),
        ("train.shuffle=window:0", "[train] shuffle"),
        ("train.shuffle=true", "[train] shuffle = true"),
        ("train.patience=-1", "[train] patience = -1"),
        ("train.min-delta=-0.1", "[train] min-delta = -0.1; expected a finite number, 0 or more"),
        ("train.min-delta=true", "[train] min-delta = true"),
        ("train.monitor=a/b", "[train] monitor"),
        ("train.on-divergence=panic", '[train] on-divergence = "panic"; expected "stop" or "lower-rate"'),
        (
            "train.diverged-above=1",
            "[train] diverged-above = 1; expected a number above 1, or 0 for no limit",
        ),
        ("train.diverged-above=false", "[train] diverged-above = false"),
        ("train.rate-factor=1", "[train] rate-factor = 1; expected a number between 0 and 1"),
        ("train.returns=-1", "[train] returns = -1"),
        ("train.patience=2\neval.every=never", "[train] patience = 2 counts evaluations, and there are none"),
        ("train.patience=2\neval.holdout=0", "[train] patience = 2 counts evaluations"),
        ("train.local-steps=2\ntrain.accumulate=2", "exclude each other"),
    ],
)
def test_a_wrong_value_is_named(override: str, message: str) -> None:
    with pytest.raises(JobError) as caught:
        load_job(None, override.split("\n"))
    assert message in str(caught.value)

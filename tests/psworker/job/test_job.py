import math
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as under
from hypothesis import strategies as st

from protocol.optimizers import FTRL, OPTIMIZERS, SGD, Adam, Add, Cosine, Step
from psworker.errors import JobError
from psworker.job import (
    DataSettings,
    EvalSettings,
    Fold,
    Job,
    ModelSettings,
    OptimizerSettings,
    TrainSettings,
    difference,
    job_from_json,
    job_to_json,
    job_to_toml,
    load_job,
    optimizer_of,
)

FULL = """
[job]
name = "houses"
seed = 7
[model]
kind = "package.module:Class"
l2 = 0.5
hidden-units = [64, 32]
[data]
source = "a.csv"
target = "price"
chunk-rows = 100
columns = ["age", "size"]
classes = ["low", "high"]
dimensions = 9
partition = "contiguous"
[train]
epochs = 3
batch-size = 16
staleness = 0
workers = 4
[optimizer]
name = "adagrad"
lr = 0.01
[eval]
every = "2 epochs"
holdout = 0
"""

HOUSES = Job(
    name="houses",
    seed=7,
    model=ModelSettings("package.module:Class", (("hidden_units", (64, 32)), ("l2", 0.5))),
    data=DataSettings("a.csv", "price", 100, ("age", "size"), ("low", "high"), 9, "contiguous"),
    train=TrainSettings(3, 16, 0.0, 4),
    optimizer=OptimizerSettings("adagrad", (("lr", 0.01),)),
    eval=EvalSettings(2, 0.0),
)


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "job.toml"
    path.write_text(text)
    return path


def test_settings_may_be_those_of_nobody_else(tmp_path: Path) -> None:
    path = write(tmp_path, '[model]\nkind = "linear"\n[train]\nepochs = 7\n')
    otherwise = ["train.epochs=1", "train.workers=3", "optimizer.lr=0.5"]
    job = load_job(path, ["train.workers=2"], otherwise)
    assert (job.train.epochs, job.train.workers) == (7, 2)
    assert dict(job.optimizer.settings) == {"lr": 0.5}


def test_a_section_that_is_none_is_an_error_there_too(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="train"):
        load_job(write(tmp_path, "train = 5\n"), [], ["train.workers=2"])


def test_every_key_is_read(tmp_path: Path) -> None:
    assert load_job(write(tmp_path, FULL), []) == HOUSES


def test_what_is_not_written_has_its_default(tmp_path: Path) -> None:
    job = load_job(write(tmp_path, '[model]\nkind = "linear"\n'), [])
    assert job == Job(model=ModelSettings("linear"))
    assert job.optimizer.settings == (("lr", 0.1),)


def test_the_demo_job_trains_digits_synchronously() -> None:
    job = load_job(None, [])
    assert (job.model.kind, job.data.source, job.optimizer.name) == ("softmax", "digits", "sgd")
    assert job.train.staleness == 0


def test_another_optimizer_gets_no_learning_rate_of_ours(tmp_path: Path) -> None:
    path = write(tmp_path, '[model]\nkind = "linear"\n[optimizer]\nname = "adam"\n')
    assert load_job(path, []).optimizer == OptimizerSettings("adam", ())


def test_overrides_are_toml_or_plain_text() -> None:
    overrides = ["train.epochs=3", "job.name=try 1", 'train.staleness="inf"', "model.l2 = 1e-3"]
    job = load_job(None, [*overrides, 'data.columns=["a"]', "eval.every=3 epochs"])
    assert (job.train.epochs, job.name, job.train.staleness) == (3, "try 1", math.inf)
    assert job.model.settings == (("l2", 0.001),)
    assert (job.data.columns, job.eval.every) == (("a",), 3)


@pytest.mark.parametrize(
    ("written", "staleness"), [("0", 0.0), ("3", 3.0), ("inf", math.inf), ('"inf"', math.inf)]
)
def test_the_staleness_is_a_number_of_steps_or_none_at_all(written: str, staleness: float) -> None:
    job = load_job(None, [f"train.staleness={written}"])
    assert job.train.staleness == staleness
    assert job_from_json(job_to_json(job)) == job


def test_the_last_override_counts() -> None:
    assert load_job(None, ["train.epochs=3", "train.epochs=4"]).train.epochs == 4


def test_an_override_cannot_smuggle_in_other_keys() -> None:
    assert load_job(None, ["job.name=1e\n"]).name == "1e"
    with pytest.raises(JobError, match="seed"):
        load_job(None, ["job.seed=1\nvalue2 = 2"])


@pytest.mark.parametrize("override", ["train.epochs", "epochs=3", "=3", "train.=3", ".epochs=3"])
def test_an_override_that_names_no_key(override: str) -> None:
    with pytest.raises(JobError, match=r"expected section\.key=value"):
        load_job(None, [override])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.epoch=3", '[train] has no key "epoch"; did you mean "epochs"?'),
        ("train.batch_size=3", 'did you mean "batch-size"?'),
        ("trian.epochs=3", 'no section [trian]; did you mean "train"?'),
        ("data.xyz=3", '[data] has no key "xyz"; known: categorical, chunk-rows, class-weights'),
        ("model.fit_bias=true", 'keys are written "fit-bias"'),
        ("train.epochs=0", "[train] epochs = 0; expected a whole number, at least 1"),
        ("train.epochs=true", "[train] epochs = true; expected a whole number"),
        ("train.epochs=2.5", "[train] epochs = 2.5; expected a whole number"),
        ("train.workers=-1", "[train] workers = -1"),
        ("train.batch-size=x", '[train] batch-size = "x"'),
        ("train.staleness=-1", "staleness = -1; expected 0 (synchronous), a number of steps"),
        ("train.staleness=2147483648", "staleness = 2147483648"),
        ("train.staleness=1.5", "staleness = 1.5"),
        ("train.staleness=false", "staleness = false"),
        ("train.backup-workers=-1", "[train] backup-workers = -1; expected a whole number from 0"),
        ("train.backup_workers=1", 'did you mean "backup-workers"?'),
        ("train.staleness=[]", "staleness = []"),
        ("job.seed=-1", "[job] seed = -1"),
        ("job.seed=9223372036854775808", "[job] seed = "),
        ("job.name=''", "[job] name"),
        ("job.name=../x", "[job] name"),
        ('job.name="a\\u0007"', '[job] name = "a\\u0007"'),
        (f"job.name={'x' * 129}", "1 to 128"),
        ("data.source=1", "[data] source = 1; expected a text"),
        ('data.source="a\\u0000.csv"', "NUL"),
        ("data.chunk-rows=0", "[data] chunk-rows = 0"),
        ("data.columns=age", '[data] columns = "age"; expected a list of texts'),
        ("data.columns=[1]", "[data] columns = [1]"),
        ('data.columns=["a", "a"]', "without repetitions"),
        ('data.columns=["label"]', '[data] columns has the target "label"'),
        ("data.dimensions=0", "[data] dimensions = 0"),
        (
            "data.partition=random",
            '[data] partition = "random"; expected "leases", "contiguous", "round-robin"',
        ),
        ("data.partition=hash", '[data] partition = "hash"'),
        ("data.partition='hash:'", '[data] partition = "hash:"'),
        ('data.partition="hash:a\\u0000"', "[data] partition"),
        ("data.partition=true", "[data] partition = true"),
        (
            "data.partition=hash:user",
            'needs the columns of a .csv file, and source is "digits"; take "contig',
        ),
        ("eval.every=1", '[eval] every = 1; expected "1 epoch"'),
        ("eval.every=0 epochs", "[eval] every"),
        ("eval.every=false", "[eval] every = false"),
        ("eval.holdout=1", "[eval] holdout = 1; expected a number from 0"),
        ("eval.holdout=-0.1", "[eval] holdout"),
        ("eval.holdout=nan", "[eval] holdout"),
        ("eval.holdout=true", "[eval] holdout = true"),
        ("eval.fold=0/5", '[eval] fold = "0/5"; expected "2/5" for the second of five folds'),
        ("eval.fold=6/5", '[eval] fold = "6/5"'),
        ("eval.fold=1/1", '[eval] fold = "1/1"'),
        ("eval.fold=1/1001", '[eval] fold = "1/1001"'),
        ("eval.fold=0.5", "[eval] fold = 0.5"),
        ("model.kind=1", "[model] kind = 1"),
        ("model.l2=inf", "[model] l2 = inf; expected a finite number"),
        ("model.born=1979-05-27", "[model] born"),
        ("optimizer.lr={a=1}", "[optimizer] lr"),
        ("optimizer.lr=0", "[optimizer] lr = 0; a learning rate is a finite number above 0"),
        ("optimizer.lr=true", "[optimizer] lr = true; a learning rate is"),
        ("optimizer.lr=fast", '[optimizer] lr = "fast"; a learning rate is'),
        ("optimizer.lr=[1]", "[optimizer] lr = (1,); a learning rate is"),
        ("optimizer.l1=-1", "[optimizer] l1 = -1; expected a finite number, 0 or more"),
        ("optimizer.clip-norm=-1", "[optimizer] clip-norm = -1; expected a finite number above 0"),
        ("optimizer.clip_norm=1", 'keys are written "clip-norm"'),
        ("optimizer.clip-nrom=1", '[optimizer] sgd has no setting "clip-nrom"; did you mean "clip-norm"?'),
        ("optimizer.momentum=0.9", '[optimizer] sgd has no setting "momentum"; known: clip-norm, clip-value'),
        ("optimizer.warmup=1.5", "[optimizer] warmup = 1.5; expected a whole number from 0"),
        ("optimizer.scale-by-staleness=1", "[optimizer] scale-by-staleness = 1; expected true or false"),
        ("optimizer.name=adagard", '[optimizer] name = "adagard" is none; did you mean "adagrad"?'),
        ("optimizer.name=1", "[optimizer] name = 1; expected a text"),
        ("optimizer.schedule=cosin", '[optimizer] schedule = "cosin" is none; did you mean "cosine"?'),
        ("optimizer.schedule=1", "[optimizer] schedule = 1 is none; known: cosine, inverse-sqrt, step"),
        ("optimizer.schedule=cosine", '[optimizer] has no key "schedule-steps"; the schedule needs it'),
        (
            "optimizer.schedule-steps=9",
            '[optimizer] sgd has no setting "schedule-steps"; did you mean "schedule"',
        ),
    ],
)
def test_a_wrong_key_or_value_is_named(override: str, message: str) -> None:
    with pytest.raises(JobError) as caught:
        load_job(None, [override])
    assert message in str(caught.value)


def test_an_optimizer_is_made_of_its_section(tmp_path: Path) -> None:
    text = """
[model]
kind = "linear"
[optimizer]
name = "adam"
lr = 1
beta1 = 0.8
l2 = 0.25
clip-norm = 2.5
clip-value = 0
warmup = 10
scale-by-staleness = true
schedule = "cosine"
schedule-steps = 1000
schedule-floor = 0.1
"""
    assert optimizer_of(load_job(write(tmp_path, text), []).optimizer) == Adam(
        lr=1.0,
        beta1=0.8,
        l2=0.25,
        clip_norm=2.5,
        warmup=10,
        scale_by_staleness=True,
        schedule=Cosine(1000, floor=0.1),
    )
    assert optimizer_of(load_job(None, ["optimizer.name=ftrl"]).optimizer) == FTRL(lr=0.5)


def test_a_schedule_takes_its_own_settings_and_add_takes_none() -> None:
    step = ["optimizer.schedule=step", "optimizer.schedule-every=3"]
    assert optimizer_of(load_job(None, step).optimizer) == SGD(0.5, schedule=Step(3))
    with pytest.raises(JobError) as caught:
        load_job(None, [*step, "optimizer.schedule-evry=3"])
    assert '"schedule-evry"; did you mean "schedule-every"?' in str(caught.value)
    with pytest.raises(JobError) as caught:
        load_job(None, [*step, "optimizer.schedule-factor=2"])
    assert "[optimizer] schedule-factor = 2; expected a number from 0 to 1" in str(caught.value)
    model = '{"model":{"kind":"linear"},"optimizer":{"name":"add"'
    assert optimizer_of(job_from_json(model + "}}").optimizer) == Add()
    with pytest.raises(JobError, match='add has no setting "schedule"; there are none'):
        job_from_json(model + ',"schedule":"step"}}')


@pytest.mark.parametrize(
    ("partition", "column", "parts"),
    [
        ("leases", None, 1),
        ("contiguous", None, 4),
        ("round-robin", None, 4),
        ("hash:user", "user", 4),
        ("hash:a: b", "a: b", 4),
    ],
)
def test_the_data_is_cut_into_a_part_for_each_worker(partition: str, column: str | None, parts: int) -> None:
    job = load_job(None, ["train.workers=4", "data.source=a.CSV", f"data.partition={partition}"])
    assert (job.data.partition, job.data.hash_column, job.parts) == (partition, column, parts)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[train]\nepochs = 1\n", '[model] has no key "kind"'),
        ("model = 3\n", "model is 3; expected a section [model]"),
        ("epochs = 3\n", "no section [epochs]"),
        ("[model\n", "is not TOML"),
        (f"[job]\nseed = {'9' * 5000}\n", "is not TOML"),
    ],
)
def test_a_bad_file(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(JobError) as caught:
        load_job(write(tmp_path, text), [])
    assert message in str(caught.value)


def test_an_override_of_what_is_no_section(tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"model is 3; expected a section"):
        load_job(write(tmp_path, "model = 3\n"), ["model.kind=linear"])


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"cannot read .*none\.toml: No such file"):
        load_job(tmp_path / "none.toml", [])


def test_a_file_that_is_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "job.toml"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(JobError, match="not UTF-8"):
        load_job(path, [])


def test_the_text_of_a_job_is_canonical(tmp_path: Path) -> None:
    reordered = "".join(f"\n[{section}" for section in reversed(FULL.split("\n[")[1:]))
    assert job_to_json(load_job(write(tmp_path, reordered), [])) == job_to_json(HOUSES)
    assert job_to_json(HOUSES).startswith('{"data":{"categorical":[],"chunk-rows":100,')


names = st.from_regex(r"[a-z][a-z0-9]{0,8}", fullmatch=True)
scalars = st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
settings = st.dictionaries(
    names.filter(lambda name: name not in ("kind", "name")),
    scalars | st.lists(scalars, max_size=3).map(tuple),
    max_size=3,
).map(lambda table: tuple(sorted(table.items())))
optimizer_settings = st.fixed_dictionaries(
    {"lr": st.integers(1, 10**6) | st.floats(1e-9, 1e9)},
    optional={
        "l2": st.floats(0, 1e9),
        "warmup": st.integers(0, 1 << 53),
        "scale_by_staleness": st.booleans(),
        "schedule": st.just("inverse-sqrt"),
    },
).map(lambda table: tuple(sorted(table.items())))
texts = st.text(min_size=1).filter(lambda text: "\0" not in text)
jobs = st.builds(
    Job,
    name=names,
    seed=st.integers(0, 2**63 - 1),
    model=st.builds(ModelSettings, kind=texts, settings=settings),
    data=st.builds(
        DataSettings,
        source=texts,
        target=st.just("label"),
        chunk_rows=st.integers(1, 10**9),
        columns=st.lists(names.filter(lambda name: name != "label"), unique=True).map(tuple),
        classes=st.lists(st.text(), unique=True).map(tuple),
        dimensions=st.none() | st.integers(1, 10**9),
        partition=st.sampled_from(["leases", "contiguous", "round-robin"]),
    ),
    train=st.builds(
        TrainSettings,
        epochs=st.integers(1, 10**6),
        batch_size=st.integers(1, 10**6),
        staleness=st.sampled_from([0.0, 1.0, 2.0**31 - 1, math.inf]),
        workers=st.integers(1, 1000),
        backup_workers=st.integers(0, 2**20),
    ),
    optimizer=st.builds(
        OptimizerSettings,
        name=st.sampled_from([name for name in OPTIMIZERS if name != "add"]),
        settings=optimizer_settings,
    ),
    eval=st.builds(
        EvalSettings,
        every=st.integers(0, 10**6),
        holdout=st.floats(0, 1, exclude_max=True),
        fold=st.sampled_from([None, Fold(1, 2), Fold(5, 5), Fold(1, 1000)]),
    ),
)


@under(suppress_health_check=[HealthCheck.too_slow], deadline=None)  # on a busy machine
@given(jobs)
def test_a_job_file_that_is_written_gives_the_job_back(job: Job) -> None:
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory, "job.toml")
        file.write_text(job_to_toml(job), encoding="utf-8", newline="")
        assert load_job(file, ()) == job


@under(suppress_health_check=[HealthCheck.too_slow], deadline=None)  # on a busy machine
@given(jobs)
def test_the_text_of_a_job_gives_it_back(job: Job) -> None:
    text = job_to_json(job)
    assert job_from_json(text) == job
    assert job_to_json(job_from_json(text)) == text


@pytest.mark.parametrize("text", ["", "[]", "3", "{", '{"model": 3}', "[" * 100_000, '{"a": {}}'])
def test_a_text_that_is_no_job(text: str) -> None:
    with pytest.raises(JobError):
        job_from_json(text)


def test_the_difference_names_the_first_key_and_both_values() -> None:
    mine, other = (job_to_json(load_job(None, [f"train.epochs={n}"])) for n in (20, 7))
    assert difference(mine, other) == "[train] epochs is 20 in one and 7 in the other"


def test_the_difference_of_a_key_that_one_does_not_have() -> None:
    mine, other = job_to_json(load_job(None, ["model.l2=1"])), job_to_json(load_job(None, []))
    assert difference(mine, other) == "[model] l2 is 1 in one and absent in the other"


@pytest.mark.parametrize("text", ["", "[]", '{"model": 3}', "[" * 100_000])
def test_the_difference_to_what_is_no_job(text: str) -> None:
    assert "in the other" in difference(job_to_json(load_job(None, [])), text)


def test_the_difference_of_texts_written_otherwise() -> None:
    assert "not in the value of any key" in difference('{"job":{}}', '{"job": {}}')

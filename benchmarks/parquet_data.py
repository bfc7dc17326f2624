"""Examples of a known logistic model in Parquet files, written row group by row group."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

FILES = 10
GROUP_ROWS = 100_000
NUMBERS = tuple(f"x{column}" for column in range(8))
LOGIT = "logit"
CATEGORIES = {"device": 10, "city": 100, "shop": 1000}
SEED = 7


@dataclass(frozen=True)
class Written:
    """The files and their bytes."""

    paths: tuple[str, ...]
    nbytes: int


def write_parquet(directory: Path, rows: int) -> Written:
    """Write `rows` examples into FILES files; those of an earlier run with as many rows are taken again.

    A label is 1 with probability sigmoid(w x + the effects of its categories - 0.5); the numbers are of
    variance 1, the first half of them counts. The column LOGIT has the argument of the sigmoid.
    Raises ImportError if pyarrow is not installed.
    """
    place = directory / f"rows-{rows}"
    done = place / "done"
    paths = [place / f"part-{number:02}.parquet" for number in range(FILES)]
    if not done.exists():
        place.mkdir(parents=True, exist_ok=True)
        bounds = [rows * number // FILES for number in range(FILES + 1)]
        for number, (path, low, high) in enumerate(zip(paths, bounds, bounds[1:], strict=False)):
            _write_file(path, high - low, np.random.default_rng((SEED, number)))
        done.touch()
    nbytes = sum(path.stat().st_size for path in paths)
    return Written(tuple(map(str, paths)), nbytes)


def _write_file(path: Path, rows: int, rng: np.random.Generator) -> None:
    from pyarrow.parquet import ParquetWriter

    effects = _effects()
    with ParquetWriter(path, _schema(), use_dictionary=list(CATEGORIES)) as writer:
        for begin in range(0, rows, GROUP_ROWS):
            writer.write_table(_group(min(GROUP_ROWS, rows - begin), rng, effects))


def _schema() -> Any:
    import pyarrow as pa

    numbers = [(name, pa.float32()) for name in NUMBERS]
    texts = [(name, pa.string()) for name in CATEGORIES]
    return pa.schema([*numbers, *texts, (LOGIT, pa.float32()), ("label", pa.int8())])


def _effects() -> Sequence[npt.NDArray[np.float64]]:
    rng = np.random.default_rng(SEED)
    return [rng.normal(scale=0.7, size=len(NUMBERS)) * (np.arange(len(NUMBERS)) < len(NUMBERS) // 2)] + [
        rng.normal(scale=0.7, size=count) for count in CATEGORIES.values()
    ]


def _group(rows: int, rng: np.random.Generator, effects: Sequence[npt.NDArray[np.float64]]) -> Any:
    import pyarrow as pa

    x = rng.normal(size=(rows, len(NUMBERS)))
    # Some values are far more frequent than others, as in most data.
    drawn = [(count * rng.random(rows) ** 2).astype(np.int32) for count in CATEGORIES.values()]
    z = x @ effects[0] - 0.5 + sum(effect[codes] for effect, codes in zip(effects[1:], drawn, strict=True))
    y = rng.random(rows) < 1 / (1 + np.exp(-z))
    columns = [pa.array(column.astype(np.float32)) for column in x.T]
    for (name, count), codes in zip(CATEGORIES.items(), drawn, strict=True):
        values = pa.array([f"{name}-{code}" for code in range(count)])
        columns.append(pa.DictionaryArray.from_arrays(pa.array(codes), values).cast(pa.string()))
    columns += [pa.array(z.astype(np.float32)), pa.array(y.astype(np.int8))]
    return pa.Table.from_arrays(columns, schema=_schema())

"""Hypothesis strategies for messages, made of the dataclasses' annotations."""

import dataclasses
import math
import types
from typing import Annotated, Any, Final, Union, get_args, get_origin, get_type_hints

from hypothesis import strategies as st

from protocol.fields import Name, Positive
from protocol.messages import (
    WORK_KINDS,
    Factor,
    Hex,
    Measure,
    Measures,
    NotNegative,
    Rate,
    Skipped,
    SkippedRows,
    Staleness,
    Weight,
    WorkKind,
)
from protocol.tables import (
    CODINGS,
    MAX_DIM,
    MAX_KEYS,
    VALUES,
    Admission,
    Coding,
    Digest,
    Dim,
    InitialName,
    KeyCount,
    Scale,
    Seconds,
    Values,
)
from protocol.tensors import DTYPES, DTypeName, Shape

LARGEST: Final = (1 << 63) - 1

names: Final = st.text(
    st.characters(codec="utf-8", categories=["L", "M", "N", "P", "S"], exclude_characters="/\\"),
    min_size=1,
    max_size=128,
).filter(lambda name: name.isprintable() and ".." not in name and name != ".")

_SIMPLE: Final[dict[Any, st.SearchStrategy[Any]]] = {
    int: st.integers(0, LARGEST),
    float: st.floats(allow_nan=False),
    bool: st.booleans(),
    str: st.text(max_size=300),
    Name: names,
    Positive: st.integers(1, LARGEST),
    Staleness: st.sampled_from([0.0, 1.0, 3.0, (1 << 31) - 1.0, math.inf]),
    Weight: st.floats(0, allow_infinity=False),
    WorkKind: st.sampled_from(WORK_KINDS),
    Rate: st.floats(0, exclude_min=True, allow_infinity=False),
    NotNegative: st.floats(0, allow_infinity=False),
    Factor: st.floats(0, 1, exclude_min=True, exclude_max=True),
    Dim: st.integers(1, MAX_DIM),
    InitialName: st.sampled_from(["zeros", "normal", "uniform"]),
    Scale: st.floats(0, 1e30),
    Admission: st.integers(1, 255),
    Seconds: st.floats(0, allow_infinity=False),
    KeyCount: st.integers(0, MAX_KEYS),
    Hex: st.text("0123456789abcdef", min_size=64, max_size=64),
    Digest: st.text("0123456789abcdef", min_size=32, max_size=32),
    Coding: st.sampled_from(CODINGS),
    Values: st.sampled_from(VALUES),
    DTypeName: st.sampled_from(sorted(DTYPES)),
    Shape: st.lists(st.integers(1, 64), max_size=8).map(tuple),
    SkippedRows: st.lists(st.builds(Skipped, names, st.integers(0, 2**63 - 1)), max_size=3).map(tuple),
    Measures: st.lists(st.builds(Measure, names, st.floats(allow_nan=False)), max_size=3).map(tuple),
}


def instances(cls: Any) -> st.SearchStrategy[Any]:
    """Return a strategy for valid instances of a message dataclass."""
    hints = get_type_hints(cls, include_extras=True)
    return st.builds(cls, **{field.name: _values(hints[field.name]) for field in dataclasses.fields(cls)})


def _values(hint: Any) -> st.SearchStrategy[Any]:
    if hint in _SIMPLE:
        return _SIMPLE[hint]
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        (inner,) = (arg for arg in args if arg is not type(None))
        return st.none() | _values(inner)
    if origin is tuple:
        return st.lists(_values(args[0]), max_size=3).map(tuple)
    assert origin is not Annotated, f"say in this file which values {hint} takes"
    return instances(hint)

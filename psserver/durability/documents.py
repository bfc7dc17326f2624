"""Dataclasses as JSON files in which no byte can change unnoticed.

    {"format":1,FIELDS...,"checksum":"0123456789abcdef"}

The checksum is the xxh3_64 of the text without it. There is one text for each content (no spaces, ASCII,
fields in order), and no other is read. Infinity is ``"inf"``; NaN is refused.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import types
from collections.abc import Callable
from functools import cache
from typing import Annotated, Any, Final, TypeVar, Union, get_args, get_origin, get_type_hints

import xxhash

from protocol.errors import BadRequest, shorten

__all__ = ["FORMAT", "MOST", "decode", "encode"]

T = TypeVar("T")
Decode = Callable[[Any, str], Any]

FORMAT: Final = 1
MOST: Final = 256 * 1024 * 1024
"""Bytes of the longest document: the ledger of a million chunks takes about a tenth."""

_DEEPEST: Final = 64  # arrays and objects in each other
_NESTING: Final = frozenset({dict, list, tuple})
_MAX_INT: Final = (1 << 63) - 1
_END: Final = re.compile(rb',"checksum":"([0-9a-f]{16})"}\n')
_END_LENGTH: Final = len(',"checksum":"0123456789abcdef"}\n')
_REQUIRED: Final = dataclasses.MISSING


def encode(value: Any) -> bytes:
    """Return the text of a dataclass.

    A field that is a ``dict`` is written as it is: plain data, with texts as keys.

    Raises:
        ValueError: NaN in it, or it is too long or nested too deep to be read again.
    """
    plain = {"format": FORMAT, **_plain(value)}
    if _is_too_deep(plain):
        raise ValueError(f"more than {_DEEPEST} arrays and objects in each other")
    text = _canonical(plain)
    checksum = xxhash.xxh3_64_hexdigest(text)
    sealed = b'%s,"checksum":"%s"}\n' % (text[:-1], checksum.encode())
    if len(sealed) > MOST:
        raise ValueError(f"{len(sealed)} bytes of JSON, more than {MOST}")
    return sealed


def decode(cls: type[T], data: bytes) -> T:
    """Return the dataclass that ``encode`` made ``data`` of.

    What its fields' annotations say is checked, as in ``protocol.fields``; a ``dict`` may hold anything.

    Raises:
        ValueError: the message says what is wrong, and where.
    """
    found = _unsealed(data)
    if (version := found.pop("format", None)) != FORMAT:
        raise ValueError(f"format {shorten(version)}; this version of asyncps reads format {FORMAT}")
    try:
        value: T = _of_class(cls)(found, "document")  # type: ignore[arg-type]
    except BadRequest as error:
        raise ValueError(str(error)) from None
    return value


def _canonical(plain: object) -> bytes:
    return json.dumps(plain, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode()


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if type(value) is tuple:
        return [_plain(item) for item in value]
    return "inf" if type(value) is float and value == math.inf else value


def _unsealed(data: bytes) -> dict[str, Any]:
    end = _END.fullmatch(data[-_END_LENGTH:])
    if end is None:
        raise ValueError(f"offset {max(0, len(data) - _END_LENGTH)}: it does not end with its checksum")
    text = data[:-_END_LENGTH] + b"}"
    checksum = xxhash.xxh3_64_hexdigest(text)
    if checksum != end[1].decode():
        raise ValueError(f"its checksum is {checksum}, it says {end[1].decode()}: it is damaged")
    # What is intact is what somebody wrote, not necessarily we.
    try:
        found: dict[str, Any] = json.loads(text)  # an object, or it would not end like this
        canonical = not _is_too_deep(found) and _canonical(found) == text
    except (ValueError, RecursionError) as error:
        raise ValueError(f"no JSON that asyncps wrote: {shorten(str(error))}") from None
    if not canonical:
        raise ValueError("no JSON that asyncps wrote: spaces, a key that comes twice, or nested too deep")
    return found


def _is_too_deep(value: object) -> bool:
    level = [value]
    for _ in range(_DEEPEST):
        level = [
            inner
            for one in level
            for inner in (one.values() if type(one) is dict else one)  # type: ignore[attr-defined]
            if type(inner) in _NESTING
        ]
        if not level:
            return False
    return True


# --- what annotations say


def _int(value: Any, field: str) -> int:
    if type(value) is not int or not 0 <= value <= _MAX_INT:
        raise BadRequest("expected an integer from 0 to 2^63-1", field=field, value=value)
    return value


def _float(value: Any, field: str) -> float:
    if value == "inf":
        return math.inf
    if type(value) is not float and (type(value) is not int or abs(value) > _MAX_INT):
        raise BadRequest("expected a number", field=field, value=value)
    return float(value)


def _exactly(kind: type, expected: str) -> Decode:
    def decode(value: Any, field: str) -> Any:
        if type(value) is not kind:
            raise BadRequest(f"expected {expected}", field=field, value=value)
        return value

    return decode


_SCALARS: Final[dict[Any, Decode]] = {
    int: _int,
    float: _float,
    str: _exactly(str, "text"),
    bool: _exactly(bool, "true or false"),
}
_OBJECT: Final = _exactly(dict, "an object")
_ARRAY: Final = _exactly(list, "an array")


def _of_type(hint: Any) -> Decode:
    if hint in _SCALARS:
        return _SCALARS[hint]
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _checked(_of_type(args[0]), args[1:])
    if origin in (Union, types.UnionType):
        (inner,) = (_of_type(arg) for arg in args if arg is not type(None))
        return lambda value, field: None if value is None else inner(value, field)
    if origin is tuple:
        item = _of_type(args[0])
        return lambda value, field: tuple([item(one, field) for one in _ARRAY(value, field)])
    if origin is dict:
        return _OBJECT
    if dataclasses.is_dataclass(hint):
        return _of_class(hint)  # type: ignore[arg-type]
    raise TypeError(f"no form in JSON for {hint!r}")


def _checked(inner: Decode, checks: tuple[Callable[[Any, str], None], ...]) -> Decode:
    def decode(value: Any, field: str) -> Any:
        found = inner(value, field)
        for check in checks:
            check(found, field)
        return found

    return decode


@cache
def _of_class(cls: type) -> Decode:
    hints = get_type_hints(cls, include_extras=True)
    fields = [(f.name, _of_type(hints[f.name]), f.default) for f in dataclasses.fields(cls)]
    names = {name for name, _, _ in fields}

    def decode(value: Any, field: str) -> Any:
        for name in _OBJECT(value, field).keys() - names:
            raise BadRequest("unknown field", field=shorten(name), value="(present)")
        found = []
        for name, inner, default in fields:
            if name not in value and default is _REQUIRED:
                raise BadRequest("this field is required", field=name, value="(absent)")
            found.append(inner(value[name], name) if name in value else default)
        return cls(*found)

    return decode

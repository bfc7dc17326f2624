"""Frozen dataclasses to and from what msgpack carries, with every field checked.

A message travels as a map from field names to values; a dataclass inside a message travels as an array
of its fields in order. What a field may hold is said by its annotation alone: ``int`` (0 to 2^63-1),
``float``, ``bool``, ``str``, ``T | None``, ``tuple[T, ...]``, another dataclass, and ``Annotated[T, check]``
where ``check(value, field)`` raises ``BadRequest``. Fields with a default may be
absent, in arrays at the end.
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Callable
from functools import cache, lru_cache
from operator import attrgetter
from typing import Annotated, Any, Final, TypeVar, Union, get_args, get_origin, get_type_hints

from protocol.errors import BadRequest, shorten

__all__ = [
    "Decode",
    "Encode",
    "Name",
    "Positive",
    "array_decoder",
    "array_encoder",
    "check_name",
    "check_positive",
    "decoder",
    "encoder",
]

MAX_NAME: Final = 128
_MAX_INT: Final = (1 << 63) - 1

Decode = Callable[[Any, str], Any]
Encode = Callable[[Any], Any]
T = TypeVar("T")

_ABSENT: Final = object()
_REQUIRED: Final = dataclasses.MISSING
_REMEMBERED: Final = 4096
"""Values kept of each class with ``recurs``: what comes again in each step is checked once."""


def check_name(value: object, field: str) -> None:
    """Raise ``BadRequest`` unless ``value``, a text, may name a job, a worker or a tensor."""
    name: str = value  # type: ignore[assignment]
    if not 0 < len(name) <= MAX_NAME:
        raise BadRequest(f"take 1 to {MAX_NAME} characters for a name", field=field, value=name)
    if not name.isprintable() or "/" in name or "\\" in name or ".." in name or name == ".":
        raise BadRequest(
            "take printable characters for a name, no slashes, no two dots in a row, and not a dot alone",
            field=field,
            value=name,
        )


def check_positive(value: object, field: str) -> None:
    """Raise ``BadRequest`` unless ``value``, a number, is 1 or more."""
    if not value:
        raise BadRequest("expected 1 or more", field=field, value=value)


Name = Annotated[str, check_name]
Positive = Annotated[int, check_positive]


def _int(value: Any, field: str) -> int:
    if type(value) is not int or not 0 <= value <= _MAX_INT:
        raise BadRequest("expected an integer from 0 to 2^63-1", field=field, value=value)
    return value


def _float(value: Any, field: str) -> float:
    if type(value) is float:
        return value
    if type(value) is int:
        return float(value)
    raise BadRequest("expected a number", field=field, value=value)


def _bool(value: Any, field: str) -> bool:
    if type(value) is not bool:
        raise BadRequest("expected true or false", field=field, value=value)
    return value


def _str(value: Any, field: str) -> str:
    if type(value) is not str:
        raise BadRequest("expected text", field=field, value=value)
    return value


_SCALARS: Final[dict[Any, Decode]] = {int: _int, float: _float, bool: _bool, str: _str}


def _checked(inner: Decode, checks: tuple[Callable[[Any, str], None], ...]) -> Decode:
    def decode(value: Any, field: str) -> Any:
        result = inner(value, field)
        for check in checks:
            check(result, field)
        return result

    return decode


def _optional(inner: Decode) -> Decode:
    def decode(value: Any, field: str) -> Any:
        return None if value is None else inner(value, field)

    return decode


def _tuple(inner: Decode) -> Decode:
    def decode(value: Any, field: str) -> tuple[Any, ...]:
        if type(value) is not list:
            raise BadRequest("expected an array", field=field, value=value)
        return tuple([inner(item, field) for item in value])

    return decode


def _of_type(hint: Any) -> Decode:
    if hint in _SCALARS:
        return _SCALARS[hint]
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _checked(_of_type(args[0]), args[1:])
    if origin in (Union, types.UnionType):
        (inner,) = (arg for arg in args if arg is not type(None))
        return _optional(_of_type(inner))
    if origin is tuple:
        return _tuple(_of_type(args[0]))
    if dataclasses.is_dataclass(hint):
        return array_decoder(hint)  # type: ignore[arg-type]
    raise TypeError(f"no wire form for {hint!r}")


@cache
def _hints(cls: type) -> dict[str, Any]:
    return get_type_hints(cls, include_extras=True)


def _field_decoders(cls: type) -> list[tuple[str, Decode]]:
    hints = _hints(cls)
    return [(f.name, _of_type(hints[f.name])) for f in dataclasses.fields(cls)]


def array_decoder(cls: type) -> Decode:
    """Return a function that makes a ``cls`` of the array of its fields, or raises ``BadRequest``."""
    decoders = _field_decoders(cls)
    least = sum(f.default is _REQUIRED for f in dataclasses.fields(cls))

    def make(*items: Any) -> Any:
        return cls(*[inner(item, name) for (name, inner), item in zip(decoders, items, strict=False)])

    # Typed, for 1 == True == 1.0. What is refused is not remembered.
    remembered = lru_cache(_REMEMBERED, typed=True)(make) if getattr(cls, "recurs", False) else make

    def decode(value: Any, field: str) -> Any:
        if type(value) is not list or not least <= len(value) <= len(decoders):
            names = ", ".join(name for name, _ in decoders)
            raise BadRequest(f"expected an array of {names}", field=field, value=value)
        try:
            return remembered(*value)
        except TypeError:  # an unhashable item, so one of a wrong type: let its decoder say so
            return make(*value)

    return decode


def decoder(cls: type[T]) -> Callable[[dict[str, Any]], T]:
    """Return a function that makes a ``cls`` of a map, or raises ``BadRequest`` naming field and value.

    The map is consumed: what is left in it afterwards were unknown fields, and is refused too.
    """
    fields = [
        (name, inner, f.default)
        for (name, inner), f in zip(_field_decoders(cls), dataclasses.fields(cls), strict=True)  # type: ignore[arg-type]
    ]

    def decode(source: dict[str, Any]) -> T:
        found = []
        for name, inner, default in fields:
            value = source.pop(name, _ABSENT)
            if value is not _ABSENT:
                found.append(inner(value, name))
            elif default is not _REQUIRED:
                found.append(default)
            else:
                raise BadRequest("this field is required", field=name, value="(absent)")
        if source:
            raise BadRequest("unknown field", field=shorten(next(iter(source))), value="(present)")
        return cls(*found)

    return decode


def _plain(hint: Any) -> Encode | None:
    """Return what makes a value of this type plain, or None where it is plain already."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _plain(args[0])
    if origin in (Union, types.UnionType):
        (inner,) = (_plain(arg) for arg in args if arg is not type(None))
        return inner and (lambda value: None if value is None else inner(value))
    if origin is tuple:
        item = _plain(args[0])
        return list if item is None else (lambda value: [item(one) for one in value])
    return array_encoder(hint) if dataclasses.is_dataclass(hint) else None


def _field_encoders(cls: Any) -> list[tuple[str, Encode | None]]:
    hints = _hints(cls)
    return [(f.name, _plain(hints[f.name])) for f in dataclasses.fields(cls)]


def array_encoder(cls: Any) -> Encode:
    """Return a function that makes of a ``cls`` the array of its fields."""
    encoders = [plain for _, plain in _field_encoders(cls)]
    items = _items_of(cls)
    if not any(encoders):
        return lambda value: list(items(value))

    def encode(value: Any) -> list[Any]:
        return [
            item if plain is None else plain(item) for plain, item in zip(encoders, items(value), strict=True)
        ]

    return encode


def _items_of(cls: Any) -> Callable[[Any], tuple[Any, ...]]:
    """Return a function that returns the values of all fields."""
    names = [f.name for f in dataclasses.fields(cls)]
    if len(names) > 1:
        return attrgetter(*names)
    return lambda value: tuple(getattr(value, name) for name in names)


def encoder(cls: type[T]) -> Callable[[T], dict[str, Any]]:
    """Return a function that makes of a ``cls`` the map that msgpack carries.

    A None or an empty tuple that is the field's default is left out.
    """
    fields = [
        (name, plain, f.default if f.default in (None, ()) else _REQUIRED)
        for (name, plain), f in zip(_field_encoders(cls), dataclasses.fields(cls), strict=True)  # type: ignore[arg-type]
    ]

    items = _items_of(cls)

    def encode(message: T) -> dict[str, Any]:
        found = {}
        for (name, plain, left_out), value in zip(fields, items(message), strict=True):
            if value is not left_out:
                found[name] = value if plain is None else plain(value)
        return found

    return encode

import pickle
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import errors
from protocol.errors import (
    BadTensor,
    ClusterError,
    Conflict,
    ConnectionLost,
    Fenced,
    OutOfOrder,
    PSError,
    RequestError,
    Unreachable,
    WireError,
    error_from_wire,
    shorten,
)

DOCUMENTATION = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text()
CLASSES = [cls for cls in vars(errors).values() if isinstance(cls, type) and issubclass(cls, PSError)]


@pytest.mark.parametrize("cls", CLASSES)
def test_an_error_keeps_its_type_and_its_fields_across_the_wire(cls: type[PSError]) -> None:
    sent = cls("what is wrong", field="shape", value=(3, 4))
    arrived = error_from_wire(sent.code, sent.message, sent.field, sent.value)
    assert type(arrived) is cls
    assert vars(arrived) == vars(sent)
    assert str(arrived) == str(sent)


def test_no_two_errors_share_a_code() -> None:
    assert len(CLASSES) >= 20
    assert len({cls.code for cls in CLASSES}) == len(CLASSES)


def test_every_error_is_public_and_drawn_where_it_belongs_in_the_tree() -> None:
    drawn: dict[str, str] = {}  # a class -> its parent
    branch = ["Exception"]
    for line in (errors.__doc__ or "").splitlines():
        if found := re.match(r"([│├└─ ]*)([A-Z]\w+)(  |$)", line):
            depth = len(found[1]) // 4 + 1
            branch = [*branch[:depth], found[2]]
            drawn[found[2]] = branch[-2]
    assert drawn == {cls.__name__: cls.__base__.__name__ for cls in CLASSES if cls.__base__}
    assert {cls.__name__ for cls in CLASSES} < set(errors.__all__)


@pytest.mark.parametrize(
    ("cls", "code"), [(Fenced, "FENCED"), (OutOfOrder, "OUT_OF_ORDER"), (Conflict, "CONFLICT")]
)
def test_the_errors_of_exactly_once_leave_the_connection_usable(cls: type[PSError], code: str) -> None:
    arrived = error_from_wire(code, "m", "seq", "7")
    assert type(arrived) is cls
    assert isinstance(arrived, RequestError)
    assert not isinstance(arrived, WireError | ClusterError)


@pytest.mark.parametrize("cls", CLASSES)
def test_every_error_that_crosses_the_wire_is_documented(cls: type[PSError]) -> None:
    at_the_client_only = {ConnectionLost, Unreachable}
    parents_only = {parent for child in CLASSES for parent in child.__mro__[1:]}
    assert (f"`{cls.code}`" in DOCUMENTATION) == (cls not in at_the_client_only | parents_only)


@pytest.mark.parametrize("code", ["", "NEWER_THAN_THIS", "__class__", "bad_frame"])
def test_an_unknown_code_is_a_request_error(code: str) -> None:
    error = error_from_wire(code, "m", "f", "v")
    assert type(error) is RequestError
    assert (error.message, error.field, error.value) == ("m", "f", "v")


def test_a_value_is_not_escaped_twice() -> None:
    sent = PSError("m", field="name", value="a\nb")
    assert sent.value == "a\\nb"
    assert error_from_wire(sent.code, sent.message, sent.field, sent.value).value == "a\\nb"


def test_the_text_names_field_value_and_message() -> None:
    assert str(BadTensor("expected 4", field="elements", value=5)) == "elements=5: expected 4"
    assert str(BadTensor("expected 4")) == "expected 4"


def test_errors_survive_pickling_between_processes() -> None:
    error = pickle.loads(pickle.dumps(BadTensor("expected 4", field="elements", value=5)))
    assert (type(error), error.message, error.field, error.value) == (
        BadTensor,
        "expected 4",
        "elements",
        "5",
    )


@given(st.text(st.characters()) | st.binary() | st.lists(st.text()) | st.integers() | st.floats())
def test_a_shortened_value_is_printable_ascii_of_bounded_length(value: object) -> None:
    text = shorten(value)
    assert text.isascii()
    assert text.isprintable()
    assert len(text) <= 120


def test_short_values_are_shown_whole() -> None:
    assert shorten("w") == "w"
    assert shorten([1, "a", None, (2.5,) * 9]) == f"[1, 'a', None, {(2.5,) * 9}]"


@pytest.mark.parametrize("depth", [10, 900, 100_000])
def test_values_nested_more_deeply_than_repr_can_follow_are_shortened(depth: int) -> None:
    value: list[object] = []
    for _ in range(depth):
        value = [value]
    assert shorten(value).startswith("[[")


def test_a_value_that_cannot_show_itself_is_still_named() -> None:
    class Broken:
        def __repr__(self) -> str:
            raise RuntimeError

    assert "Broken" in shorten(Broken())

import pytest
from hypothesis import given
from hypothesis import strategies as st

from psworker.online.place import MAX_FILE, Place, mark_of

PLACES = st.builds(Place, st.integers(0, 2**16 - 1), st.integers(0, MAX_FILE), st.integers(0, 2**10 - 1))


@given(PLACES)
def test_an_offset_says_what_it_was_made_of(place: Place) -> None:
    assert Place.of(place.offset) == place
    assert 0 <= place.offset < 2**63


@given(PLACES, PLACES)
def test_later_files_and_later_bytes_have_larger_offsets(one: Place, other: Place) -> None:
    if one[:2] < other[:2]:  # whatever the marks
        assert one.offset < other.offset


def test_the_beginning_is_0() -> None:
    assert Place.of(0) == (0, 0, 0)


@pytest.mark.parametrize("place", [Place(2**16, 0, 0), Place(0, MAX_FILE + 1, 0)])
def test_what_cannot_be_numbered_is_refused(place: Place) -> None:
    with pytest.raises(OverflowError, match=f"file {place.file}, byte {place.byte}"):
        _ = place.offset


def test_marks_tell_files_apart_by_their_beginning_and_by_what_is_before() -> None:
    numbers = [b"%d" % number for number in range(2000)]
    assert len({mark_of(b"head", one) for one in numbers}) > 800  # of 1,024, as chance has it
    assert len({mark_of(one, b"before") for one in numbers}) > 800
    assert max(mark_of(one, b"") for one in numbers) < 2**10

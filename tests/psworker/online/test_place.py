import pytest
from hypothesis import given
from hypothesis import strategies as st

from psworker.online.place import MAX_FILE, Place, mark_of

PLACES = st.builds(Place, st.integers(0, 2**16 - 1), st.integers(0, 2**10 - 1), st.integers(0, MAX_FILE))


@given(PLACES)
def test_an_offset_says_what_it_was_made_of(place: Place) -> None:
    assert Place.of(place.offset) == place
    assert 0 <= place.offset < 2**63


@given(PLACES, PLACES)
def test_later_files_and_later_bytes_have_larger_offsets(one: Place, other: Place) -> None:
    if one.file < other.file or (one[:2] == other[:2] and one.byte < other.byte):
        assert one.offset < other.offset


def test_the_beginning_is_0() -> None:
    assert Place.of(0) == (0, 0, 0)


@pytest.mark.parametrize("place", [Place(2**16, 0, 0), Place(0, 0, MAX_FILE + 1)])
def test_what_cannot_be_numbered_is_refused(place: Place) -> None:
    with pytest.raises(OverflowError, match=f"file {place.file}, byte {place.byte}"):
        _ = place.offset


def test_files_made_one_after_the_other_have_different_marks() -> None:
    assert len({mark_of(inode) for inode in range(5000, 6000)}) == 1000
    assert mark_of(2**64 - 1) < 2**10

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import BadRequest, SpecMismatch, UnknownTensor
from protocol.messages import Block, Created, Spec
from protocol.optimizers import SGD, Add, spec_of
from psserver.catalogue import TensorCatalogue

SPEC = Spec("float32", (4,), spec_of(SGD(lr=0.5)))
BLOCKS = (Block(0, 0, 4),)


def place(_: Spec) -> tuple[Block, ...]:
    return BLOCKS


def test_the_first_fills_and_the_others_wait_until_it_has() -> None:
    catalogue: TensorCatalogue[str, str] = TensorCatalogue()
    assert catalogue.create("w", SPEC, "ada", "ask 1", place) == Created(BLOCKS, 1)
    assert catalogue.create("w", SPEC, "bob", "ask 2", place) is None
    with pytest.raises(UnknownTensor):
        catalogue.describe(("w",))
    assert catalogue.describe(()) == ()
    assert catalogue.initialised("w", 1) == [("ask 2", Created(BLOCKS))]
    assert [info.name for info in catalogue.describe(("w",))] == ["w"]
    assert catalogue.create("w", SPEC, "eve", "ask 3", place) == Created(BLOCKS)


def test_the_next_begins_anew_when_the_creator_goes() -> None:
    catalogue: TensorCatalogue[str, str] = TensorCatalogue()
    catalogue.create("w", SPEC, "ada", "ask 1", place)
    catalogue.create("w", SPEC, "bob", "ask 2", place)
    catalogue.create("w", SPEC, "eve", "ask 3", place)
    assert catalogue.lost("bob") == []
    assert catalogue.lost("ada") == [("ask 3", Created(BLOCKS, 2))]
    with pytest.raises(BadRequest, match="another attempt"):
        catalogue.initialised("w", 1)
    assert catalogue.lost("eve") == []
    assert catalogue.create("w", SPEC, "kim", "ask 4", place) == Created(BLOCKS, 3)
    assert catalogue.initialised("w", 3) == []
    assert catalogue.lost("kim") == []
    assert [info.name for info in catalogue] == ["w"]


def test_a_creator_that_asks_again_begins_anew() -> None:
    catalogue: TensorCatalogue[str, str] = TensorCatalogue()
    assert catalogue.create("w", SPEC, "ada", "ask 1", place) == Created(BLOCKS, 1)
    assert catalogue.create("w", SPEC, "ada", "ask 2", place) == Created(BLOCKS, 2)


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        (Spec("float64", (4,), SPEC.optimizer), "dtype"),
        (Spec("float32", (2, 2), SPEC.optimizer), "shape"),
        (Spec("float32", (4,), spec_of(SGD(lr=0.25))), "optimizer"),
        (Spec("float32", (4,), spec_of(Add())), "optimizer"),
    ],
)
def test_another_spec_is_refused_by_name(spec: Spec, field: str) -> None:
    catalogue: TensorCatalogue[str, str] = TensorCatalogue()
    catalogue.create("w", SPEC, "ada", "ask 1", place)
    with pytest.raises(SpecMismatch, match="'w' exists with") as refused:
        catalogue.create("w", spec, "bob", "ask 2", place)
    assert refused.value.field == field


def test_nothing_is_initialised_that_nobody_creates() -> None:
    catalogue: TensorCatalogue[str, str] = TensorCatalogue()
    with pytest.raises(UnknownTensor):
        catalogue.initialised("w", 1)


@given(st.lists(st.tuples(st.sampled_from(["create", "lost", "done"]), st.integers(0, 3)), max_size=30))
def test_at_any_time_at_most_one_fills_and_everybody_is_answered(events: list[tuple[str, int]]) -> None:
    """Who fills a tensor holds its newest attempt, and every ask is answered unless its client is gone."""
    catalogue: TensorCatalogue[int, int] = TensorCatalogue()
    open_asks: dict[int, int] = {}  # ask -> client
    newest, filled = 0, False

    def answered(ask: int, created: Created) -> None:
        nonlocal newest
        del open_asks[ask]
        assert (created.attempt is None) == filled
        if created.attempt is not None:
            assert created.attempt > newest
            newest = created.attempt

    for ask, (event, client) in enumerate(events):
        if event == "create":
            open_asks[ask] = client
            created = catalogue.create("w", SPEC, client, ask, place)
            if created is not None:
                answered(ask, created)
        elif event == "lost":
            open_asks = {one: owner for one, owner in open_asks.items() if owner != client}
            for one, created in catalogue.lost(client):
                answered(one, created)
        elif newest and not filled and catalogue_takes(catalogue, newest):
            filled = True
            for one in list(open_asks):
                del open_asks[one]
    if filled:
        assert catalogue.create("w", SPEC, 9, -1, place) == Created(BLOCKS)


def catalogue_takes(catalogue: TensorCatalogue[int, int], attempt: int) -> bool:
    """Whether the newest attempt was still under way, and is done now."""
    try:
        catalogue.initialised("w", attempt)
    except BadRequest:
        return False
    return True

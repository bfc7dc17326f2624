import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import BadRequest, SpecMismatch, UnknownTensor
from protocol.messages import Block, Created, Spec
from protocol.optimizers import SGD, Add, spec_of
from psserver.catalogue import TensorCatalogue
from tests.psserver.saved_states import assert_damage_is_refused, through_json

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


def test_who_waits_and_asks_again_is_answered_where_it_asked_last() -> None:
    """Its former connection has broken: an answer there would reach nobody, and the others wait for it."""
    catalogue: TensorCatalogue[str, str] = TensorCatalogue()
    catalogue.create("w", SPEC, "ada", "ask 1", place)
    assert catalogue.create("w", SPEC, "bob", "before the cut", place) is None
    assert catalogue.create("w", SPEC, "bob", "after the cut", place) is None
    assert [asks for _, _, asks in catalogue.waits()] == [["after the cut"]]
    assert catalogue.lost("ada") == [("after the cut", Created(BLOCKS, 2))]
    assert list(catalogue.waits()) == []


def test_saying_again_that_a_tensor_is_filled_changes_nothing() -> None:
    catalogue: TensorCatalogue[str, str] = TensorCatalogue()
    catalogue.create("w", SPEC, "ada", "ask 1", place)
    assert catalogue.create("w", SPEC, "bob", "ask 2", place) is None
    assert catalogue.initialised("w", 1) == [("ask 2", Created(BLOCKS))]
    assert catalogue.initialised("w", 1) == []
    assert catalogue.lost("ada") == []
    assert catalogue.create("w", SPEC, "eve", "ask 3", place) == Created(BLOCKS)


def test_it_is_said_who_waits_for_whom() -> None:
    catalogue: TensorCatalogue[str, str] = TensorCatalogue()
    catalogue.create("w", SPEC, "ada", "ask 1", place)
    assert list(catalogue.waits()) == []
    catalogue.create("w", SPEC, "bob", "ask 2", place)
    catalogue.create("w", SPEC, "eve", "ask 3", place)
    assert list(catalogue.waits()) == [("w", "ada", ["ask 2", "ask 3"])]
    catalogue.lost("ada")
    assert list(catalogue.waits()) == [("w", "bob", ["ask 3"])]
    catalogue.initialised("w", 2)
    assert list(catalogue.waits()) == []


# --- after a restart


def restarted(catalogue: TensorCatalogue[int, int]) -> TensorCatalogue[int, int]:
    again: TensorCatalogue[int, int] = TensorCatalogue.restored(through_json(catalogue.state()))
    assert again.state() == catalogue.state()
    return again


def test_what_is_filled_stays_so_and_what_was_being_filled_is_filled_anew() -> None:
    catalogue: TensorCatalogue[int, int] = TensorCatalogue()
    for name in ("filled", "filling", "lost"):
        catalogue.create(name, SPEC, 1, 0, place)
    catalogue.initialised("filled", 1)
    catalogue.create("lost", SPEC, 1, 0, place)
    catalogue.lost(1)
    catalogue.create("filling", SPEC, 2, 0, place)
    again = restarted(catalogue)
    assert list(again) == list(catalogue)
    assert [info.name for info in again.infos()] == ["filled", "filling", "lost"]
    assert again.create("filled", SPEC, 3, 0, place) == Created(BLOCKS)
    with pytest.raises(BadRequest, match="another attempt"):
        again.initialised("filling", 2)  # of before the restart
    assert again.create("filling", SPEC, 3, 1, place) == Created(BLOCKS, 3)
    assert again.create("filling", SPEC, 4, 2, place) is None
    assert again.create("lost", SPEC, 3, 3, place) == Created(BLOCKS, 3)
    assert again.initialised("filling", 3) == [(2, Created(BLOCKS))]
    with pytest.raises(SpecMismatch):
        again.create("filled", Spec("float64", (4,), SPEC.optimizer), 5, 4, place)


def test_the_latest_attempt_is_told() -> None:
    catalogue: TensorCatalogue[int, int] = TensorCatalogue()
    for attempt in (1, 2, 3):
        catalogue.create("w", SPEC, 1, attempt, place)
        assert catalogue.attempt("w") == attempt
    with pytest.raises(UnknownTensor):
        catalogue.attempt("v")


def test_a_tensor_may_move() -> None:
    catalogue: TensorCatalogue[int, int] = TensorCatalogue()
    catalogue.create("w", SPEC, 1, 0, place)
    catalogue.initialised("w", 1)
    there = (Block(2, 0, 1), Block(0, 1, 4))
    catalogue.move("w", there)
    assert catalogue.create("w", SPEC, 2, 1, place) == Created(there)
    assert [info.blocks for info in restarted(catalogue)] == [there]
    with pytest.raises(UnknownTensor):
        catalogue.move("v", there)


@pytest.mark.parametrize(
    "blocks",
    [
        (),
        (Block(0, 0, 3),),
        (Block(0, 0, 5),),
        (Block(0, 1, 4),),
        (Block(0, 0, 2), Block(1, 3, 4)),
        (Block(0, 0, 3), Block(1, 2, 4)),
        (Block(0, 2, 4), Block(1, 0, 2)),
        (Block(0, 0, 2), Block(1, 2, 2), Block(2, 2, 4)),
        (Block(0, 0, 2), Block(0, 2, 4)),
    ],
)
def test_blocks_that_are_not_all_of_a_tensor_are_refused(blocks: tuple[Block, ...]) -> None:
    catalogue: TensorCatalogue[int, int] = TensorCatalogue()
    catalogue.create("w", SPEC, 1, 0, place)
    with pytest.raises(BadRequest, match="all of a tensor") as caught:
        catalogue.move("w", blocks)
    assert caught.value.field == "blocks"
    assert catalogue.infos()[0].blocks == BLOCKS
    state = catalogue.state()
    state["tensors"][0][0][2] = [[one.shard, one.start, one.stop] for one in blocks]
    with pytest.raises(BadRequest, match="all of a tensor"):
        TensorCatalogue.restored(state)


def test_a_state_that_is_not_whole_is_refused_by_name() -> None:
    catalogue: TensorCatalogue[int, int] = TensorCatalogue()
    catalogue.create("w", SPEC, 1, 0, place)
    catalogue.create("b", Spec("float64", (), SPEC.optimizer), 1, 0, lambda _: (Block(1, 0, 1),))
    catalogue.initialised("b", 1)

    def take_up(state: object) -> object:
        found: TensorCatalogue[int, int] = TensorCatalogue.restored(state)
        return found.state()

    assert_damage_is_refused(through_json(catalogue.state()), take_up, at_least=500)
    twice = {"tensors": catalogue.state()["tensors"] * 2}
    with pytest.raises(BadRequest, match="each once"):
        TensorCatalogue.restored(twice)


class Asked:
    """Clients of one tensor, and which of their asks is open; each listens to its newest only."""

    def __init__(self) -> None:
        self.catalogue: TensorCatalogue[int, int] = TensorCatalogue()
        self.open: dict[int, int] = {}  # newest ask, by client
        self.filling: int | None = None  # the client that was told the newest attempt
        self.attempt = 0
        self.filled = False

    def create(self, client: int, ask: int) -> None:
        if self.filling == client:
            self.filling = None
        self.open[client] = ask
        created = self.catalogue.create("w", SPEC, client, ask, place)
        if created is not None:
            self.answered(ask, created)

    def answered(self, ask: int, created: Created) -> None:
        (client,) = [one for one, newest in self.open.items() if newest == ask]
        del self.open[client]
        assert (created.attempt is None) == self.filled
        if created.attempt is not None:
            assert self.filling is None
            assert created.attempt > self.attempt
            self.filling, self.attempt = client, created.attempt

    def lost(self, client: int) -> None:
        self.open.pop(client, None)
        if self.filling == client:
            self.filling = None
        for ask, created in self.catalogue.lost(client):
            self.answered(ask, created)

    def restart(self) -> None:
        """Nobody's former ask is known any more; who still wants the tensor asks again."""
        asking, self.open = self.open, {}
        self.catalogue, self.filling = restarted(self.catalogue), None
        for client, ask in asking.items():
            self.create(client, ask)

    def done(self) -> None:
        self.filled, self.filling = True, None
        for ask, created in self.catalogue.initialised("w", self.attempt):
            self.answered(ask, created)


EVENTS = st.lists(
    st.tuples(st.sampled_from(["create", "create", "lost", "done", "stale", "restart"]), st.integers(0, 3)),
    max_size=40,
)


@given(EVENTS)
def test_at_any_time_at_most_one_fills_and_everybody_is_answered(events: list[tuple[str, int]]) -> None:
    """Clients ask, ask again after a cut, and go away; as long as anybody waits somebody fills."""
    asked = Asked()
    for ask, (event, client) in enumerate(events):
        if event == "create":
            asked.create(client, ask)
        elif event == "lost":
            asked.lost(client)
        elif event == "restart":
            asked.restart()
        elif event == "done" and asked.filling is not None:
            asked.done()
        elif event == "stale" and asked.attempt > 1 and not asked.filled:
            with pytest.raises(BadRequest, match="another attempt"):
                asked.catalogue.initialised("w", asked.attempt - 1)
        assert not asked.open or asked.filling is not None
        waiting = [newest for _, _, asks in asked.catalogue.waits() for newest in asks]
        assert sorted(waiting) == sorted(asked.open.values())

"""A real server under a limit of memory, and a client that sometimes makes no sense at all.

What is refused changes nothing, what is accepted changes what it says, and afterwards the server answers.
"""

import socket
import sys
from collections.abc import Iterator
from typing import Any, ClassVar

import msgpack
import numpy as np
import pytest
from hypothesis import HealthCheck, assume, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from protocol.frames import PRELUDE, VERSION, encode_prelude
from protocol.messages import REQUESTS
from psctl import LocalCluster
from psserver.failure import FailureDetector
from tests.integration.scrape import Metrics
from tests.integration.test_garbage import resident_bytes

MEMORY = 3 << 30
"""Bytes of address space: what libraries reserve for threads, and room that a lie about a length has not."""

LIMITED = (
    sys.executable,
    "-c",
    f"import resource; resource.setrlimit(resource.RLIMIT_AS, ({MEMORY}, {MEMORY}));"
    "from psserver.cli import main; raise SystemExit(main())",
)
HEARTBEAT, DEAD_AFTER = 60.0, 600.0
"""Seconds. The clients have no heart that beats by itself, and may take long to think of what to send: the
first of a fresh clone has Hypothesis make its table of all characters. How long a silence is death follows
from the interval between heartbeats; ``--dead-after`` only bounds it."""

ANSWER_WITHIN = 30.0  # seconds
ELEMENTS = 64
SPEC = ["float32", [ELEMENTS], ["add", []]]
PARTS = [["w", "float32", ELEMENTS]]
JUNK = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=8)
    | st.binary(max_size=8)
    | st.sampled_from(["w", "job", "float32", "add", "..", "a/b", "\x00", "x" * 200, 2**40, 2**63 - 1]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=8,
)
FIELDS = st.dictionaries(
    (st.sampled_from(["names", "tensors", "name", "job", "seq", "step"]) | st.text()).filter(
        lambda name: name not in ("op", "id")
    ),
    JUNK,
)
HARMFUL = ("leave", "restore", "join_shard", "set", "init", "hello")
"""What may well be meant, and then changes what this client can do."""

REPLIES = ("ok", "error")
"""With these a header is that of a reply, which is not answered."""

OPS = [cls.op for cls in REQUESTS if cls.op not in HARMFUL]


class NoAnswer(BaseException):
    """A request was not answered in time.

    No ``Exception``: Hypothesis would try to make the session smaller, and wait as long at every try.
    """


class Peer:
    """A blocking connection that sends what it is told to."""

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self.socket = socket.create_connection((host, int(port)), timeout=ANSWER_WITHIN)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._stream = self.socket.makefile("rb")
        self._id = 0

    def ask(self, op: Any, payload: bytes = b"", **fields: Any) -> tuple[dict[str, Any], bytes]:
        """Return the reply's header and payload."""
        try:
            self.send(op, payload, **fields)
            *_, length, more = PRELUDE.unpack(self._stream.read(PRELUDE.size))
            return msgpack.unpackb(self._stream.read(length)), self._stream.read(more)
        except TimeoutError as error:
            asked = f"{op!r} with {fields!r} and {len(payload)} bytes"
            raise NoAnswer(f"{asked} was not answered within {ANSWER_WITHIN:g} s") from error

    def send(self, op: Any, payload: bytes = b"", **fields: Any) -> None:
        self._id += 1
        header = msgpack.packb({"op": op, "id": self._id, **fields})
        self.socket.sendall(encode_prelude(len(header), len(payload)) + header + payload)

    def rest(self) -> bytes:
        """Return what comes until the server ends the connection."""
        try:
            return self._stream.read()
        except ConnectionError:
            return b""

    def close(self) -> None:
        self._stream.close()
        self.socket.close()


class Session(RuleBasedStateMachine):
    """One worker of a job of its own, with one tensor to which it adds."""

    cluster: ClassVar[LocalCluster]
    jobs = 0

    def __init__(self) -> None:
        super().__init__()
        Session.jobs += 1
        self.job = f"job-{Session.jobs}"
        self.peer = self._greeted()
        self.joined, _ = self.peer.ask(
            "join", token=self.job, job=self.job, name="w0", staleness=float("inf")
        )
        created, _ = self.peer.ask("create", name="w", spec=SPEC)
        block = {"name": "w", "spec": SPEC, "attempt": created["attempt"]}
        start = np.zeros(ELEMENTS, np.float32)
        assert (
            self.peer.ask("init", start.tobytes(), tensors=[["w", "float32", ELEMENTS]], **block)[0]["op"]
            == "ok"
        )
        assert self.peer.ask("initialised", name="w", attempt=created["attempt"])[0]["op"] == "ok"
        self.values = start
        self.seq = 1

    def _greeted(self, **fields: Any) -> Peer:
        peer = Peer(self.cluster.address)
        assert peer.ask("hello", versions=[VERSION], client="test", **fields)[0]["op"] == "ok"
        return peer

    def teardown(self) -> None:
        self.peer.close()

    def push(self, gradient: np.ndarray[Any, Any], **changed: Any) -> dict[str, Any]:
        fields = {"tensors": PARTS, "step": 0, "seq": self.seq} | changed
        return self.peer.ask("push", gradient.tobytes(), **fields)[0]

    @rule(number=st.integers(-1000, 1000))
    def adds(self, number: int) -> None:
        assert self.push(np.full(ELEMENTS, number, np.float32))["op"] == "ok"
        self.values = self.values + np.float32(number)
        self.seq += 1

    @rule(number=st.integers(1, 1000))
    def adds_twice_and_it_counts_once(self, number: int) -> None:
        for _ in range(2):
            assert self.push(np.full(ELEMENTS, number, np.float32))["op"] == "ok"
        self.values = self.values + np.float32(number)
        self.seq += 1

    @rule(bad=st.sampled_from([np.nan, np.inf, -np.inf]), at=st.integers(0, ELEMENTS - 1))
    def adds_what_is_no_number(self, bad: float, at: int) -> None:
        gradient = np.zeros(ELEMENTS, np.float32)
        gradient[at] = bad
        assert self.push(gradient)["code"] == "NOT_FINITE"
        self.seq += 1  # a refused push has used its number up

    @rule(field=st.sampled_from(["tensors", "step", "seq", "weight", "done", "rows", "surplus"]), junk=JUNK)
    def adds_with_something_wrong(self, field: str, junk: Any) -> None:
        self._may_have_counted(self.push(np.ones(ELEMENTS, np.float32), **{field: junk}))

    @rule(
        op=st.sampled_from(OPS) | st.text(max_size=5) | JUNK, fields=FIELDS, payload=st.binary(max_size=100)
    )
    def asks_for_nonsense(self, op: Any, fields: dict[str, Any], payload: bytes) -> None:
        assume(op not in HARMFUL + REPLIES)  # texts are drawn from the words of this project, too
        reply, _ = self.peer.ask(op, payload, **fields)
        assert reply.get("code") != "INTERNAL"
        self._may_have_counted(reply)

    @rule(
        op=st.sampled_from(REPLIES),
        fields=st.dictionaries(
            st.sampled_from(["version", "tensors", "code", "message", "field", "value"]),
            st.none() | st.integers(0, 2**63 - 1) | st.text(max_size=8) | st.just(PARTS),
        ),
        payload=st.binary(max_size=100),
    )
    def replies_though_nobody_asked(self, op: str, fields: dict[str, Any], payload: bytes) -> None:
        self.peer.send(op, payload, **fields)  # not answered: the next reply is that of the next request

    def _may_have_counted(self, reply: dict[str, Any]) -> None:
        """Learn from the server what was not refused, and which number it expects."""
        if reply["op"] == "ok":
            self.values = self._pulled()
        expected = self.push(np.zeros(ELEMENTS, np.float32), seq=2**62)
        assert expected["code"] == "OUT_OF_ORDER"
        self.seq = int(expected["message"].split()[-1])

    @rule(stream=st.binary(max_size=2000))
    def somebody_sends_garbage(self, stream: bytes) -> None:
        stranger = Peer(self.cluster.address)
        try:
            stranger.socket.sendall(b"\x00" + stream)
            assert stranger.rest() == b""
        except ConnectionError:
            pass  # the server had seen enough
        finally:
            stranger.close()

    @rule(
        header=st.binary(max_size=500), payload=st.binary(max_size=100), announced=st.integers(0, 2**64 - 1)
    )
    def somebody_lies_about_lengths(self, header: bytes, payload: bytes, announced: int) -> None:
        stranger = self._greeted(job=self.job)
        stranger.socket.sendall(encode_prelude(len(header), announced) + header + payload)
        stranger.close()

    @rule(sent=st.integers(0, 4 * ELEMENTS - 1))
    def a_push_stops_in_the_middle_and_comes_again(self, sent: int) -> None:
        identity = {
            "job": self.job,
            "worker": self.joined["worker"],
            "incarnation": self.joined["incarnation"],
        }
        half = self._greeted(**identity)
        fields = {"tensors": [["w", "float32", ELEMENTS]], "step": 0, "seq": self.seq}
        header = msgpack.packb({"op": "push", "id": 9, **fields})
        half.socket.sendall(encode_prelude(len(header), 4 * ELEMENTS) + header + bytes(sent))
        half.close()
        # It was heard of last on that connection: else it would count as gone in a while.
        assert self.peer.ask("heartbeat", clock=0, examples=0)[0]["op"] == "ok"
        self.adds(1)

    @invariant()
    def holds_what_was_added(self) -> None:
        np.testing.assert_array_equal(self._pulled(), self.values)
        assert self.peer.ask("ping")[0]["op"] == "ok"

    def _pulled(self) -> np.ndarray[Any, Any]:
        reply, payload = self.peer.ask("pull", names=["w"])
        assert reply["op"] == "ok", reply
        return np.frombuffer(payload, np.float32)


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    flags = ("--heartbeat-interval", f"{HEARTBEAT:g}s", "--dead-after", f"{DEAD_AFTER:g}s")
    with LocalCluster(server_command=LIMITED, server_flags=flags) as cluster:
        yield cluster


@pytest.mark.parametrize("beats", [0, 1, 1000])
def test_who_is_silent_for_as_long_as_a_test_may_take_is_not_fenced(
    request: pytest.FixtureRequest, beats: int
) -> None:
    detector = FailureDetector(HEARTBEAT, DEAD_AFTER, now=0.0)
    for _ in range(beats):
        detector.beat(0.0)  # all at once: so regular a peer is found dead soonest
    assert detector.dead_at > float(request.config.getini("timeout"))


def test_whatever_a_client_sends_what_is_refused_changes_nothing(cluster: LocalCluster) -> None:
    run(cluster, sessions=8, same_each_time=True)


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_whatever_many_clients_send_what_is_refused_changes_nothing(cluster: LocalCluster) -> None:
    run(cluster, sessions=300)


def run(cluster: LocalCluster, sessions: int, *, same_each_time: bool = False) -> None:
    Session.cluster = cluster
    before = resident_bytes(cluster.servers[0].pid)
    run_state_machine_as_test(
        Session,
        settings=settings(
            max_examples=sessions,
            derandomize=same_each_time,
            stateful_step_count=20,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
    assert resident_bytes(cluster.servers[0].pid) - before < 64 << 20
    requests = Metrics(cluster.metrics[0]).labels("psserver_requests_total")
    assert "internal" not in {dict(labels)["status"] for labels in requests}
    assert "Traceback" not in cluster.servers[0].log_tail(200)

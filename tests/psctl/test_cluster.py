import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from protocol.credentials import Access
from protocol.tls import TLS
from psctl import LocalCluster, ProcessFailed
from psctl.child import Child

MakeCluster = Callable[..., LocalCluster]
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return where temporary directories are made, also by this test's own child processes."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setenv("TMPDIR", str(folder))
    return folder


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """Return a listener to which each fake daemon connects for as long as it lives."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(60)
        monkeypatch.setenv("FAKE_DAEMON_WATCH", str(listener.getsockname()[1]))
        yield listener


def all_ended(cluster: LocalCluster) -> bool:
    """Return whether no process of the cluster exists any more, not even as a zombie."""
    children = (*cluster.servers, *cluster.workers)
    return bool(children) and not any(exists(child.pid) for child in children)


def exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


# --- start and end


def test_it_starts_all_and_leaves_nothing(fake_cluster: MakeCluster, temporary: Path) -> None:
    with fake_cluster(3, 2) as cluster:
        assert cluster.address == "127.0.0.1:7070"
        assert len(set(cluster.metrics)) == 3
        assert [child.name for child in cluster.servers] == ["server-0", "server-1", "server-2"]
        assert [child.name for child in cluster.workers] == ["worker-0", "worker-1"]
        assert all(child.returncode is None for child in (*cluster.servers, *cluster.workers))
        assert list(temporary.iterdir()) == []  # already, so that SIGKILL could not leave one behind
    assert all_ended(cluster)
    assert {child.returncode for child in cluster.servers} == {143}


def test_ctrl_c_in_a_terminal_does_not_reach_the_children(fake_cluster: MakeCluster) -> None:
    with fake_cluster(1, 1) as cluster:
        for child in (*cluster.servers, *cluster.workers):
            assert os.getpgid(child.pid) == child.pid != os.getpgrp()


def test_stop_may_be_called_again(fake_cluster: MakeCluster) -> None:
    with fake_cluster(1, 1) as cluster:
        cluster.stop()
        assert all_ended(cluster)
        cluster.stop()


def test_an_exception_in_the_body_passes_and_leaves_nothing(fake_cluster: MakeCluster) -> None:
    with pytest.raises(KeyError, match="mine"), fake_cluster(2, 1) as cluster:
        raise KeyError("mine")
    assert all_ended(cluster)


def test_a_child_that_ignores_sigterm_is_killed(fake_cluster: MakeCluster) -> None:
    with fake_cluster(1, 1, worker="deaf", grace=0.1) as cluster:
        while "flags" not in cluster.workers[0].log_tail():  # from here on it ignores SIGTERM
            cluster.poll()
    assert all_ended(cluster)
    assert cluster.workers[0].returncode == -signal.SIGKILL


def test_a_deaf_server_is_killed(fake_cluster: MakeCluster) -> None:
    with fake_cluster(2, server="deaf", grace=0.1) as cluster:
        pass
    assert [server.returncode for server in cluster.servers] == [-signal.SIGKILL, -signal.SIGKILL]
    assert all_ended(cluster)


def test_an_interrupt_while_stopping_kills_the_rest(
    fake_cluster: MakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(children: object, grace: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), fake_cluster(2, 1) as cluster:
        monkeypatch.setattr("psctl.cluster.stop_all", interrupted)
    assert all_ended(cluster)
    assert {server.returncode for server in cluster.servers} == {-signal.SIGKILL}


def test_workers_end_before_servers_and_the_coordinator_last(
    fake_cluster: MakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[str] = []

    def end(child: Child, within: float, original: Callable[[Child, float], None] = Child.end) -> None:
        original(child, within)
        ended.append(child.name)

    monkeypatch.setattr(Child, "end", end)
    with fake_cluster(3, 2):
        pass
    assert ended[:5] == ["worker-0", "worker-1", "server-1", "server-2", "server-0"]


@pytest.mark.parametrize("counts", [(0, 1), (-1, 0), (1, -1)])
def test_impossible_counts_are_refused(counts: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=r"servers=|workers="):
        LocalCluster(*counts)


# --- failure to start


def test_a_server_that_dies_at_the_start_is_named(fake_cluster: MakeCluster, temporary: Path) -> None:
    cluster = fake_cluster(1, 1, server="3")
    with pytest.raises(ProcessFailed) as failed, cluster:
        pytest.fail("entered")
    assert (failed.value.name, failed.value.returncode) == ("server-0", 3)
    assert "why it ends" in str(failed.value)
    assert all_ended(cluster)
    assert list(temporary.iterdir()) == []


def test_a_program_that_does_not_exist(temporary: Path) -> None:
    cluster = LocalCluster(1, server_command=("/no/such/program",))
    with pytest.raises(FileNotFoundError), cluster:
        pytest.fail("entered")
    assert list(temporary.iterdir()) == []


def test_servers_that_never_get_ready(fake_cluster: MakeCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("psctl.cluster._START_WITHIN", 0.0)
    cluster = fake_cluster(1)
    with pytest.raises(TimeoutError, match="server-0 is bound"), cluster:
        pytest.fail("entered")
    assert all_ended(cluster)


# --- waiting


def test_wait_returns_when_all_workers_are_done(fake_cluster: MakeCluster) -> None:
    with fake_cluster(1, 3, worker="0") as cluster:
        cluster.wait()
        assert cluster.poll()
        assert [worker.returncode for worker in cluster.workers] == [0, 0, 0]
        assert cluster.servers[0].returncode is None


def test_wait_names_the_worker_that_failed_and_why(fake_cluster: MakeCluster) -> None:
    with fake_cluster(1, 1, worker="14") as cluster, pytest.raises(ProcessFailed) as failed:
        cluster.wait()
    assert (failed.value.name, failed.value.returncode) == ("worker-0", 14)
    assert "exit code 14" in str(failed.value)
    assert "why it ends" in failed.value.log


def test_wait_notices_a_server_that_ended(fake_cluster: MakeCluster) -> None:
    with fake_cluster(2, 1) as cluster:
        os.kill(cluster.servers[1].pid, signal.SIGKILL)
        with pytest.raises(ProcessFailed, match="server-1 was killed by SIGKILL"):
            cluster.wait()


def test_a_server_that_somebody_else_stops_is_missed_too(fake_cluster: MakeCluster) -> None:
    with fake_cluster(1, 1) as cluster:
        cluster.servers[0].terminate()
        with pytest.raises(ProcessFailed, match="server-0 ended with exit code 143"):
            cluster.wait()


def test_the_cause_is_named_and_not_its_consequence(fake_cluster: MakeCluster) -> None:
    with fake_cluster(1, 1, worker="15") as cluster:
        with pytest.raises(ProcessFailed):
            cluster.wait()
        os.kill(cluster.servers[0].pid, signal.SIGKILL)
        cluster.servers[0].failure()  # which waits for its end
        with pytest.raises(ProcessFailed, match="server-0 was killed"):
            cluster.poll()


def kill(*children: Child) -> None:
    """Kill and wait for the end."""
    for child in children:
        os.kill(child.pid, signal.SIGKILL)
    for child in children:
        child.failure()


def finish(child: Child) -> None:
    """Have a made-up worker that waits be done with its work, and wait for its end."""
    while "flags" not in child.log_tail():  # from here on it knows the signal
        pass
    os.kill(child.pid, signal.SIGUSR1)
    assert child.failure().returncode == 0


def test_a_job_goes_on_without_a_worker_that_was_killed(
    fake_cluster: MakeCluster, caplog: pytest.LogCaptureFixture
) -> None:
    with fake_cluster(1, 3) as cluster:
        kill(cluster.workers[2])
        assert not cluster.poll()
        assert not cluster.poll()
        said = ["worker-2 was killed by SIGKILL; the job goes on without it"]
        assert caplog.messages == said  # once
        with pytest.raises(TimeoutError, match="worker-0, worker-1 still at work"):
            cluster.wait(timeout=0.0)
        for worker in cluster.workers[:2]:
            finish(worker)
        cluster.wait()
        assert caplog.messages == said


def test_a_worker_killed_as_the_last_one_is_said_to_be(
    fake_cluster: MakeCluster, caplog: pytest.LogCaptureFixture
) -> None:
    with fake_cluster(1, 2) as cluster:
        finish(cluster.workers[0])
        kill(cluster.workers[1])
        cluster.wait()
    assert caplog.messages == ["worker-1 was killed by SIGKILL; the others have finished the job"]


def test_a_job_whose_workers_were_all_killed_has_failed(fake_cluster: MakeCluster) -> None:
    with fake_cluster(1, 2) as cluster:
        kill(cluster.workers[1])
        assert not cluster.poll()
        kill(cluster.workers[0])
        with pytest.raises(ProcessFailed, match="worker-0 was killed by SIGKILL"):
            cluster.wait()


def test_a_worker_may_take_the_place_of_one_that_was_killed(fake_cluster: MakeCluster) -> None:
    with fake_cluster(1, 1) as cluster:
        kill(cluster.workers[0])
        finish(cluster.add_worker("worker-0"))
        cluster.wait()


def test_an_exit_code_of_its_own_fails_the_job_also_beside_one_killed(fake_cluster: MakeCluster) -> None:
    with fake_cluster(1, 3) as cluster:
        kill(cluster.workers[0])
        while "flags" not in cluster.workers[1].log_tail():  # from here on it knows the signal
            cluster.poll()
        cluster.workers[1].terminate()
        with pytest.raises(ProcessFailed, match="worker-1 ended with exit code 143"):
            cluster.wait()


def test_wait_gives_up_after_its_timeout(fake_cluster: MakeCluster) -> None:
    with fake_cluster(1, 1) as cluster:
        assert not cluster.poll()
        with pytest.raises(TimeoutError, match="worker-0 still at work"):
            cluster.wait(timeout=0.0)


def test_a_cluster_without_workers_has_nothing_to_wait_for(fake_cluster: MakeCluster) -> None:
    with fake_cluster(1) as cluster:
        cluster.wait(timeout=0.0)


# --- servers that are killed and started again


def test_a_server_that_was_killed_is_not_missed_and_comes_back(fake_cluster: MakeCluster) -> None:
    with fake_cluster(2, 1) as cluster:
        killed = cluster.servers[1]
        cluster.kill_server(1)
        assert killed.returncode == -signal.SIGKILL
        assert not cluster.poll()
        back = cluster.restart_server(1)
        assert cluster.servers == (cluster.servers[0], back)
        assert back is not killed
        assert back.returncode is None
        assert not exists(killed.pid)
        assert not cluster.poll()
        kill(back)
        with pytest.raises(ProcessFailed, match="server-1 was killed by SIGKILL"):
            cluster.poll()  # this time nobody has said so
    assert all_ended(cluster)


def test_a_server_that_died_by_itself_may_be_started_again(fake_cluster: MakeCluster) -> None:
    with fake_cluster(1, 1) as cluster:
        kill(cluster.servers[0])
        cluster.restart_server(0)
        assert not cluster.poll()


def test_a_server_that_runs_is_stopped_before_it_is_started_again(fake_cluster: MakeCluster) -> None:
    with fake_cluster(1, 1) as cluster:
        former = cluster.servers[0]
        cluster.restart_server(0)
        assert former.returncode == 143
        assert not cluster.poll()


def test_several_servers_may_be_down_at_once(fake_cluster: MakeCluster) -> None:
    with fake_cluster(3) as cluster:
        for index in (0, 2):
            cluster.kill_server(index)
        assert cluster.poll()  # there are no workers to wait for
        for index in (2, 0):
            cluster.restart_server(index, wait=False)
        cluster.wait_until_ready()
        assert [server.returncode for server in cluster.servers] == [None, None, None]


def test_a_server_comes_back_where_it_was(fake_cluster: MakeCluster) -> None:
    with fake_cluster(2, port=7070, checkpoint_dir="run", durability="log") as cluster:
        metrics = cluster.metrics
        for index in (0, 1):
            cluster.kill_server(index)
            cluster.restart_server(index, wait=False)
        cluster.wait_until_ready()
        assert cluster.metrics == metrics
    for server, one in zip(cluster.servers, metrics, strict=True):
        flags = flags_of(server)
        assert value(flags, "--port") == "7070"  # what the made-up server has said
        assert value(flags, "--metrics-port") == one.rpartition(":")[2]
        assert value(flags, "--checkpoint-dir") == str(Path("run").absolute())
        assert value(flags, "--shards") == "2"


# --- command lines and logs


def value(flags: list[str], name: str) -> str:
    """Return what counts of a flag: the last one."""
    return flags[len(flags) - flags[::-1].index(name)]


def test_servers_are_told_what_outlives_them(fake_cluster: MakeCluster, tmp_path: Path) -> None:
    cluster = fake_cluster(2, checkpoint_dir=tmp_path, durability="log", checkpoint_every="5s")
    with cluster:
        pass
    assert cluster.checkpoint_dir == str(tmp_path)
    for server in cluster.servers:
        flags = " ".join(flags_of(server))
        assert f"--checkpoint-dir {tmp_path} --durability log --checkpoint-every 5s" in flags


@pytest.mark.parametrize(
    ("place", "named"),
    [(None, None), ("s3://bucket/run", "s3://bucket/run"), ("run", str(Path("run").absolute()))],
)
def test_a_place_as_others_name_it(place: str | None, named: str | None) -> None:
    assert LocalCluster(checkpoint_dir=place).checkpoint_dir == named


def flags_of(child: Child) -> list[str]:
    child.failure()  # which waits for its end
    return child.log_tail().splitlines()[0].split()[1:]


def test_a_worker_is_told_its_job_and_how_many_they_are(fake_cluster: MakeCluster) -> None:
    cluster = fake_cluster(1, 2, worker="0", job=Path("some.toml"), overrides=("train.epochs=3",))
    with cluster:
        flags = " ".join(flags_of(cluster.workers[1]))
    assert "--server 127.0.0.1:7070 --name worker-1" in flags
    assert "--job some.toml --set train.epochs=3 --set train.workers=2" in flags
    assert "--metrics-port 0 --stop-with-stdin" in flags
    assert "--reconnect-for 60s" in flags


def test_a_worker_added_to_servers_alone_takes_the_cluster_s_job(fake_cluster: MakeCluster) -> None:
    with fake_cluster(1, worker="0") as cluster:
        worker = cluster.add_worker("late")
        flags = flags_of(worker)
        cluster.wait()
    assert worker.name == "late"
    assert "--job" not in flags
    assert "--set" not in flags


def test_more_flags_come_last_and_beat_the_others(fake_cluster: MakeCluster) -> None:
    cluster = fake_cluster(
        2, 1, worker="0", reconnect_for="2s", server_flags=("--port", "1"), worker_flags=("--name", "me")
    )
    with cluster:
        flags = flags_of(cluster.workers[0])
    for server in cluster.servers:
        assert flags_of(server)[-2:] == ["--port", "1"]
    assert "--reconnect-for 2s" in " ".join(flags)
    assert flags[-2:] == ["--name", "me"]


def test_servers_and_workers_have_the_same_token_and_certificates(fake_cluster: MakeCluster) -> None:
    access = Access("tokens", TLS("ca.pem", "cert.pem", "cert.key"))
    with fake_cluster(1, 1, worker="0", access=access) as cluster:
        words = " ".join(flags_of(cluster.workers[0]))
    for said in (words, " ".join(flags_of(cluster.servers[0]))):
        assert "--token-file tokens --tls-ca ca.pem --tls-cert cert.pem --tls-key cert.key" in said


def test_servers_are_told_whom_to_join(fake_cluster: MakeCluster) -> None:
    with fake_cluster(2) as cluster:
        pass
    coordinator, other = map(flags_of, cluster.servers)
    assert "--join" not in coordinator
    assert other[other.index("--join") + 1] == "127.0.0.1:7070"
    assert other[other.index("--shard") + 1] == "1"
    assert coordinator[coordinator.index("--shards") + 1] == "2"


def test_logs_are_passed_on_with_the_child_s_name(
    fake_cluster: MakeCluster, capfd: pytest.CaptureFixture[str]
) -> None:
    with fake_cluster(1, 1, worker="0", echo_logs=True) as cluster:
        cluster.wait()
    out, err = capfd.readouterr()
    assert "worker-0: why it ends\n" in err
    assert out == ""


def test_only_the_last_lines_of_a_log_are_kept() -> None:
    chatter = "for i in range(100_000): print(i)"
    child = Child("chatter", (sys.executable, "-c", chatter))
    assert child.failure().returncode == 0
    assert child.log_tail(2) == "99998\n99999"
    assert len(child.log_tail(1000).splitlines()) == 200
    child.end(0.0)


def test_bytes_that_are_no_text_and_a_line_without_end_are_survived() -> None:
    noise = "import sys; sys.stdout.buffer.write(b'\\xff' * 100_000)"
    child = Child("noise", (sys.executable, "-c", noise))
    assert child.failure().returncode == 0
    assert set(child.log_tail(200)) == {"\N{REPLACEMENT CHARACTER}", "\n"}
    child.end(0.0)


# --- the end of the parent

PARENT = """
import sys
from psctl import LocalCluster
fake = (sys.executable, {fake!r}, "wait")
with LocalCluster(2, 2, server_command=fake, worker_command=fake) as cluster:
    print("up", flush=True)
    cluster.wait()
"""


@pytest.mark.parametrize(
    ("number", "returncode"),
    [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, 143), (signal.SIGINT, -signal.SIGINT)],
)
def test_no_child_outlives_its_parent(
    number: signal.Signals, returncode: int, watch: socket.socket, temporary: Path
) -> None:
    script = PARENT.format(fake=str(Path(__file__).with_name("fake_daemon.py")))
    with subprocess.Popen(
        (sys.executable, "-c", script), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "up\n"
        children = [watch.accept()[0] for _ in range(4)]
        parent.send_signal(number)
        assert parent.wait() == returncode
    for child in children:
        with child:
            child.settimeout(60)
            assert child.recv(1) == b""  # its end of the connection is closed: it has ended
    assert list(temporary.iterdir()) == []


def test_the_former_handling_of_sigterm_is_restored(fake_cluster: MakeCluster) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with fake_cluster(1):
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before


def test_somebody_else_s_handling_of_sigterm_is_left_alone(fake_cluster: MakeCluster) -> None:
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with fake_cluster(1):
            assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)

import asyncio
import threading

from protocol.daemon.exposition import Exposition
from psctl.step_time import fetch_split, split_of
from psworker.metrics import WorkerMetrics


def test_a_worker_s_metrics_say_where_its_time_went() -> None:
    metrics = WorkerMetrics()
    with metrics.phase("compute"):
        pass
    loop = asyncio.new_event_loop()
    exposition = Exposition(metrics.registry, lambda: "", loop)
    address = exposition.listen("127.0.0.1", 0, 0)
    try:
        split = fetch_split(address)
        assert split is not None
        assert set(split) == {"compute"}
        assert split["compute"] > 0
    finally:
        exposition.close()
        loop.close()
    assert fetch_split(address) is None
    assert not [thread for thread in threading.enumerate() if thread.name == "metrics" and thread.is_alive()]


def test_other_metrics_are_left_out() -> None:
    page = (
        "# TYPE psworker_step_seconds histogram\n"
        'psworker_step_seconds_bucket{phase="push",le="+Inf"} 4\n'
        'psworker_step_seconds_count{phase="push"} 4\n'
        'psworker_step_seconds_sum{phase="push"} 2.5\n'
        "# TYPE psworker_loss gauge\n"
        "psworker_loss 1.0\n"
    )
    assert split_of(page) == {"push": 2.5}

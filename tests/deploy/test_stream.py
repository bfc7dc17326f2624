"""The example of a job that learns from a stream, with workers as the Deployment starts them."""

import signal
import tomllib

import pytest
import yaml

from protocol.addresses import split_address
from psworker.sync import connect
from tests.deploy.manifests import KUBERNETES
from tests.integration.daemons import daemons
from tests.kafka import running_kafka

JOB = KUBERNETES / "components" / "stream" / "stream.toml"


@pytest.mark.long
def test_its_workers_learn_from_kafka_until_they_are_stopped() -> None:
    with running_kafka() as kafka, daemons() as start:
        for partition in range(4):
            kafka.write(
                "clicks", partition, [b'{"seconds": 3, "pages": 1, "price": 0.5, "clicked": 1}', b"what"]
            )
        source = f"stream.source=kafka://{kafka.address}/clicks"
        address = start.server().addresses()["address"]
        workers = [start.worker(address, "--job", str(JOB), "--set", source) for _ in range(2)]
        for worker in workers:
            worker.wait_for("event=work.begins")
        with connect(address, "clicks", observe=True) as ps:
            while "w" not in ps.tensors() or not ps.pull("w").any():
                for worker in workers:
                    assert worker.process.poll() is None, worker.log()
        for worker in workers:
            worker.process.send_signal(signal.SIGTERM)
        for worker in workers:
            assert worker.exit_code() == 143, worker.log()
            assert "Traceback" not in worker.log()


def test_workers_may_reach_the_brokers() -> None:
    source = tomllib.loads(JOB.read_text())["stream"]["source"]
    host, port = split_address(source.removeprefix("kafka://").partition("/")[0])
    policy = yaml.safe_load((JOB.parent / "network.yaml").read_text())["spec"]
    (rule,) = policy["egress"]
    (to,) = rule["to"]
    assert to["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"] == host.split(".")[1]
    assert rule["ports"] == [{"protocol": "TCP", "port": port}]

"""An S3 server in this process, and an environment by which clients find it."""

import itertools
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

__all__ = ["S3", "s3", "s3_server"]


@dataclass(frozen=True, slots=True)
class S3:
    """An S3 server of this machine."""

    endpoint: str
    numbers: Iterator[int] = field(default_factory=itertools.count)

    def new_bucket(self) -> str:
        bucket = f"bucket-{next(self.numbers)}"
        self.request("PUT", bucket)
        return bucket

    def unfinished_uploads(self, bucket: str) -> int:
        return self.request("GET", f"{bucket}?uploads").count("<Upload>")

    def put(self, bucket: str, key: str, content: bytes) -> None:
        self.request("PUT", f"{bucket}/{key}", content)

    def request(self, method: str, path: str, content: bytes | None = None) -> str:
        request = urllib.request.Request(f"{self.endpoint}/{path}", content, method=method)
        request.add_header("Content-Type", "application/octet-stream")  # else it is taken for a form
        with urllib.request.urlopen(request) as reply:
            return str(reply.read(), "utf-8")


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3]:
    pytest.importorskip("s3fs", reason="needs s3fs; pip install 'asyncps[dev]'")
    moto = pytest.importorskip(
        "moto.server",
        reason="needs moto, flask and flask-cors; pip install 'asyncps[dev]'",
        exc_type=ImportError,
    )
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield S3(f"http://{host}:{port}")
    server.stop()


@pytest.fixture
def s3(s3_server: S3, monkeypatch: pytest.MonkeyPatch) -> S3:
    """The server, with an environment by which clients find it and nothing else."""
    settings = {
        "AWS_ENDPOINT_URL": s3_server.endpoint,
        "AWS_ACCESS_KEY_ID": "nobody",
        "AWS_SECRET_ACCESS_KEY": "nothing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_CONFIG_FILE": "/dev/null",
        "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
        "AWS_EC2_METADATA_DISABLED": "true",
        "NO_PROXY": "127.0.0.1",
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    return s3_server

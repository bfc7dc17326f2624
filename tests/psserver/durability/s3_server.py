import itertools
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field


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

    def request(self, method: str, path: str) -> str:
        request = urllib.request.Request(f"{self.endpoint}/{path}", method=method)
        with urllib.request.urlopen(request) as reply:
            return str(reply.read(), "utf-8")

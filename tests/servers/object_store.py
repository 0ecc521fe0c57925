"""An S3-compatible server, as moto has it: what is put there is gone when it ends."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

import botocore.session
import fsspec.config
from botocore.exceptions import BotoCoreError

from tests.servers.mesh import free_port

__all__ = ["ObjectStore", "object_store"]

_BUCKET = "models"
# It takes any.
_KEYS = {"aws_access_key_id": "tester", "aws_secret_access_key": "none"}


@dataclass(frozen=True, slots=True)
class ObjectStore:
    port: int

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def url(self, path: str) -> str:
        """Of a path in its bucket, as fsspec has it."""
        return f"s3://{_BUCKET}/{path}"

    def triton_url(self, path: str) -> str:
        """The same for Triton, whose addresses name the server too."""
        return f"s3://http://{self.address}/{_BUCKET}/{path}"

    @property
    def environment(self) -> dict[str, str]:
        """What a client needs that takes its keys from there."""
        return {**{name.upper(): value for name, value in _KEYS.items()}, "AWS_DEFAULT_REGION": "us-east-1"}


@contextlib.contextmanager
def object_store() -> Iterator[ObjectStore]:
    """With a bucket; inside, fsspec's `s3://` is this server."""
    store = ObjectStore(free_port())
    before = fsspec.config.conf.get("s3")
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(store.port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        _make_bucket(store, server)
        fsspec.config.conf["s3"] = {
            "endpoint_url": f"http://{store.address}",
            "key": _KEYS["aws_access_key_id"],
            "secret": _KEYS["aws_secret_access_key"],
        }
        yield store
    finally:
        fsspec.config.conf.pop("s3", None)
        if before is not None:
            fsspec.config.conf["s3"] = before
        server.kill()
        server.wait()


def _make_bucket(store: ObjectStore, server: subprocess.Popen[bytes]) -> None:
    client = botocore.session.get_session().create_client(
        "s3", endpoint_url=f"http://{store.address}", region_name="us-east-1", **_KEYS
    )
    for _ in range(300):
        assert server.poll() is None, "moto's server ended"
        with contextlib.suppress(BotoCoreError):
            client.create_bucket(Bucket=_BUCKET)
            return
        time.sleep(0.1)
    raise RuntimeError("moto's server does not answer")

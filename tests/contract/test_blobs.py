"""What every blob store does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from weftd.stores.blobs.directory import DirectoryBlobs
from weftd.stores.blobs.port import Blobs


@pytest.fixture
def blobs(tmp_path: Path) -> Blobs:
    return DirectoryBlobs(tmp_path / "blobs")


def put(blobs: Blobs, tenant: str, data: bytes, *, of: str = "") -> str:
    writer = blobs.create(tenant, of=of)
    writer.write(data[:3])
    writer.write(memoryview(data)[3:])
    writer.sync()
    writer.publish()
    writer.abort()  # does nothing any more
    return writer.key


def get(blobs: Blobs, tenant: str, key: str, *, companion: bool = False) -> bytes:
    with blobs.open(tenant, key, companion=companion) as path:
        return path.read_bytes()


def test_what_was_written_is_read(blobs: Blobs) -> None:
    first, second = put(blobs, "acme", b"some bytes"), put(blobs, "acme", b"some bytes")
    assert first != second
    assert get(blobs, "acme", first) == b"some bytes"
    blobs.delete("acme", first)
    blobs.delete("acme", first)
    with pytest.raises(FileNotFoundError), blobs.open("acme", first):
        pass
    assert get(blobs, "acme", second) == b"some bytes"


@pytest.mark.parametrize("tenant", ["../../etc", "a/b", "租户", "x" * 5000, ""])
def test_a_tenant_of_any_name_has_its_own(blobs: Blobs, tmp_path: Path, tenant: str) -> None:
    key = put(blobs, tenant, b"secret")
    assert get(blobs, tenant, key) == b"secret"
    with pytest.raises(FileNotFoundError), blobs.open("other", key):
        pass
    blobs.delete("other", key)
    assert get(blobs, tenant, key) == b"secret"
    assert [path.name for path in tmp_path.iterdir()] == ["blobs"]


@pytest.mark.parametrize("key", ["", "..", "../x", "0" * 31, "0" * 32 + ".companion"])
def test_only_keys_that_it_made_are_looked_up(blobs: Blobs, key: str) -> None:
    with pytest.raises(ValueError, match="no key"), blobs.open("acme", key):
        pass


def test_an_aborted_blob_leaves_nothing(blobs: Blobs, tmp_path: Path) -> None:
    writer = blobs.create("acme")
    writer.write(b"half")
    writer.abort()
    writer.abort()
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_companion_is_replaced_and_goes_with_its_blob(blobs: Blobs) -> None:
    key = put(blobs, "acme", b"the file")
    put(blobs, "acme", b"derived 1", of=key)
    put(blobs, "acme", b"derived 2", of=key)
    assert get(blobs, "acme", key, companion=True) == b"derived 2"
    blobs.delete("acme", key, companion_only=True)
    assert get(blobs, "acme", key) == b"the file"
    put(blobs, "acme", b"derived 3", of=key)
    blobs.delete("acme", key)
    with pytest.raises(FileNotFoundError), blobs.open("acme", key, companion=True):
        pass


def test_a_synced_blob_can_be_read_before_it_is_published(blobs: Blobs) -> None:
    writer = blobs.create("acme")
    writer.write(b"recorded")
    writer.sync()
    assert get(blobs, "acme", writer.key) == b"recorded"


DIE = """
import os, sys
from pathlib import Path
from weftd.stores.blobs.directory import DirectoryBlobs
writer = DirectoryBlobs(Path(sys.argv[1])).create("acme")
writer.write(b"of the dead"); writer.sync()
print(writer.key, flush=True)
os._exit(9)
"""


def test_what_the_dead_left_is_settled_and_the_living_are_left_alone(blobs: Blobs, tmp_path: Path) -> None:
    def die() -> str:
        command = [sys.executable, "-c", DIE, str(tmp_path / "blobs")]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()

    recorded, unrecorded = die(), die()
    living = blobs.create("acme")
    living.write(b"goes on")
    blobs.recover(lambda key: key == recorded)
    assert get(blobs, "acme", recorded) == b"of the dead"
    with pytest.raises(FileNotFoundError), blobs.open("acme", unrecorded):
        pass
    living.sync()
    living.publish()
    assert get(blobs, "acme", living.key) == b"goes on"

"""The process that commits for another one: what becomes of writes when it, or that other, goes."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import psutil
import pytest
import sqlalchemy as sa
import uvloop
from sqlalchemy.exc import IntegrityError

from tests.servers.chat_room import until
from weft.v1.error_reason_pb2 import ERROR_REASON_TURN_NOT_FOUND
from weftd.errors import NotFound, Unavailable
from weftd.stores.records import write_process
from weftd.stores.records.engine import Records

ROOT = Path(__file__).parents[2]

# The hook that takes its place is for all files of a directory.
pytestmark = pytest.mark.filterwarnings("ignore:Overriding the .event_loop_policy.")


def insert(connection: sa.Connection, names: Sequence[str]) -> list[int]:
    """Stores each; returns for each how many came together."""
    for name in names:
        connection.execute(sa.text("INSERT INTO names VALUES (:name)"), {"name": name})
    return [len(names)] * len(names)


def whose(_connection: sa.Connection, items: Sequence[None]) -> list[int]:
    return [os.getpid()] * len(items)


@pytest.fixture(params=["asyncio", "uvloop"], autouse=True)
def event_loop_policy(request: pytest.FixtureRequest) -> asyncio.AbstractEventLoopPolicy:
    """Services run on the second."""
    return uvloop.EventLoopPolicy() if request.param == "uvloop" else asyncio.DefaultEventLoopPolicy()


@pytest.fixture(autouse=True)
def operations_of_this_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process imports the operations that it is given."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)


@pytest.fixture
async def apart(records: Records) -> AsyncIterator[Records]:
    await records.write(lambda c: c.execute(sa.text("CREATE TABLE names (name TEXT PRIMARY KEY)")))
    records.write_apart()
    await until(lambda: records.writer_pid is not None)
    yield records


async def names(records: Records) -> list[str]:
    return await records.read(lambda c: [*c.execute(sa.text("SELECT name FROM names")).scalars()])


async def test_it_commits_what_waits_together(apart: Records) -> None:
    assert await apart.write_batched(whose, None) == apart.writer_pid
    together = await asyncio.gather(*(apart.write_batched(insert, f"n{n}") for n in range(300)))
    assert max(together) > 50
    assert len(await names(apart)) == 300
    assert apart.writes_waiting == 0


async def test_one_that_fails_harms_no_other(apart: Records) -> None:
    await apart.write_batched(insert, "twice")
    results = await asyncio.gather(
        *(apart.write_batched(insert, name) for name in ("a", "twice", "b")), return_exceptions=True
    )
    assert [type(result) for result in results] == [int, IntegrityError, int]
    assert "twice" not in str(results[1]), "an error that is told must not tell what was to be stored"
    assert await names(apart) == ["twice", "a", "b"]


async def test_what_cannot_be_pickled_is_the_callers_error(apart: Records) -> None:
    with pytest.raises(TypeError):
        await apart.write_batched(insert, (name for name in "ab"))  # type: ignore[arg-type]  # the point
    await apart.write_batched(insert, "after")


def refuse(_connection: sa.Connection, items: Sequence[str]) -> list[str]:
    if "bad" in items:
        raise NotFound(ERROR_REASON_TURN_NOT_FOUND, "There is no such turn.")
    return list(items)


async def test_an_error_that_cannot_be_pickled_is_one_callers_too(apart: Records) -> None:
    results = await asyncio.gather(
        *(apart.write_batched(refuse, name) for name in ("a", "bad", "b")), return_exceptions=True
    )
    assert [str(result) for result in results] == ["a", "NotFound in the process that writes.", "b"]


async def test_nothing_else_is_open_in_it(apart: Records) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.set_inheritable(True)
        pid = apart.writer_pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        await until(lambda: apart.writer_pid not in (pid, None))
        assert not psutil.Process(apart.writer_pid).net_connections("tcp")


async def test_what_comes_as_it_dies_is_unavailable_or_done_here(records: Records) -> None:
    await records.write(lambda c: c.execute(sa.text("CREATE TABLE names (name TEXT PRIMARY KEY)")))
    for yields in range(6):
        other = Records(str(records.url))
        other.write_apart()
        await until(lambda other=other: other.writer_pid is not None)
        os.kill(other.writer_pid or 0, signal.SIGKILL)
        writes = []
        for _ in range(yields):
            writes.append(asyncio.create_task(other.write_batched(insert, f"{yields}-{len(writes)}")))
            await asyncio.sleep(0)
        await other.close()
        results = await asyncio.gather(*writes, return_exceptions=True)
        assert {type(result) for result in results} <= {int, Unavailable}
    assert len([t for t in threading.enumerate() if t.name == "records-write"]) == 1, "that of `records`"


async def test_killed_it_is_started_again_and_nothing_acknowledged_is_lost(apart: Records) -> None:
    acknowledged, lost = [], 0
    for round_ in range(5):
        pid = apart.writer_pid
        assert pid is not None
        writes = [asyncio.create_task(apart.write_batched(insert, f"{round_}-{n}")) for n in range(200)]
        await asyncio.sleep(0.003 * round_)
        os.kill(pid, signal.SIGKILL)
        for n, result in enumerate(await asyncio.gather(*writes, return_exceptions=True)):
            if isinstance(result, Unavailable):
                lost += 1
            else:
                assert isinstance(result, int)
                acknowledged.append(f"{round_}-{n}")
        # Meanwhile it is done here.
        await until(lambda pid=pid: apart.writer_pid != pid)
        assert await apart.write_batched(whose, None) in (os.getpid(), apart.writer_pid)
        await until(lambda: apart.writer_pid is not None)
    assert lost
    assert set(acknowledged) <= set(await names(apart))
    assert apart.writes_waiting == 0


async def test_a_frozen_one_is_replaced(apart: Records, monkeypatch: pytest.MonkeyPatch) -> None:
    pid = apart.writer_pid
    assert pid is not None
    monkeypatch.setattr(write_process, "_SILENCE_LIMIT_S", 0.3)
    await apart.write_batched(insert, "before")  # from now on
    os.kill(pid, signal.SIGSTOP)
    with pytest.raises(Unavailable):
        await apart.write_batched(insert, "nobody knows")
    monkeypatch.undo()
    await until(lambda: not psutil.pid_exists(pid))
    await apart.write_batched(insert, "after")


async def test_closing_commits_what_is_queued_and_leaves_no_process(apart: Records) -> None:
    other = Records(str(apart.url))
    other.write_apart()
    await until(lambda: other.writer_pid is not None)
    pid = other.writer_pid
    assert pid is not None
    writes = [asyncio.create_task(other.write_batched(insert, f"n{n}")) for n in range(500)]
    await asyncio.sleep(0)
    await other.close()
    assert len(await asyncio.gather(*writes)) == 500
    assert len(await names(apart)) == 500
    assert not psutil.pid_exists(pid)


OWNER = """
import asyncio, sys
from tests.unit.test_records_process import insert
from weftd.stores.records.engine import Records

async def main():
    records = Records(sys.argv[1])
    records.write_apart()
    while records.writer_pid is None:
        await asyncio.sleep(0.01)
    print(records.writer_pid, flush=True)
    for n in range(100_000):
        await records.write_batched(insert, f"n{n}")
        print(n, flush=True)

asyncio.run(main())
"""


async def test_it_ends_with_its_owner_and_keeps_what_was_acknowledged(records: Records) -> None:
    await records.write(lambda c: c.execute(sa.text("CREATE TABLE names (name TEXT PRIMARY KEY)")))
    acknowledged, child = await asyncio.to_thread(_kill_an_owner, str(records.url))
    await until(lambda: not psutil.pid_exists(child))
    assert len(await names(records)) >= acknowledged


def _kill_an_owner(url: str) -> tuple[int, int]:
    """How much it was acknowledged, and the process that committed for it."""
    with subprocess.Popen([sys.executable, "-c", OWNER, url], cwd=ROOT, stdout=subprocess.PIPE) as owner:
        assert owner.stdout is not None
        child = int(owner.stdout.readline())
        for _ in range(50):
            owner.stdout.readline()
        os.kill(child, signal.SIGTERM)  # as a service manager stops all of them: this one is still needed
        for _ in range(50):
            assert owner.stdout.readline()
        assert psutil.pid_exists(child)
        owner.kill()
        return 100 + len(owner.stdout.read().split()), child

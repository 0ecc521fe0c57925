"""A private PostgreSQL 15 cluster, and fresh databases in it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import sqlalchemy as sa

from weftd.stores.records.engine import Records
from weftd.stores.records.migrate import migrate

_DEBIAN = Path("/usr/lib/postgresql/15/bin")


class Postgres:
    """A running cluster; `database()` makes an empty database in it."""

    def __init__(self, program: Path, data: Path, port: int) -> None:
        self._program = program
        self._data = data
        self._port = port

    def url(self, database: str) -> str:
        return f"postgresql+psycopg://postgres@127.0.0.1:{self._port}/{database}"

    def database(self) -> str:
        """The URL of a new, empty database."""
        name = f"weft_{uuid.uuid4().hex[:12]}"
        engine = sa.create_engine(self.url("postgres"), isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
        with engine.connect() as connection:
            connection.exec_driver_sql(f"CREATE DATABASE {name}")
        return self.url(name)

    def start(self) -> None:
        options = f"-p {self._port} -k {self._data} -c listen_addresses=127.0.0.1 -c max_connections=100"
        log = self._data.parent / "log"
        _as_postgres(self._program / "pg_ctl", "-D", self._data, "-w", "-o", options, "-l", log, "start")

    def kill(self) -> None:
        """Kills every process of it with -9."""
        server = psutil.Process(int((self._data / "postmaster.pid").read_text().split()[0]))
        processes = [server, *server.children()]  # the first starts the others again, if it lives
        for each in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
        psutil.wait_procs(processes, timeout=10)

    def stop(self, mode: str = "fast") -> None:
        """ "fast" ends it cleanly, "immediate" as a crash does."""
        _as_postgres(self._program / "pg_ctl", "-D", self._data, "-m", mode, "-w", "stop")


@contextmanager
def running_postgres() -> Iterator[Postgres]:
    """A cluster in a directory of its own; skips where PostgreSQL 15 is missing, fails there in CI."""
    program = _find()
    with tempfile.TemporaryDirectory(prefix="weft-postgres-") as directory:
        root = Path(directory)
        root.chmod(0o755)
        home = root / "cluster"
        home.mkdir()
        if os.geteuid() == 0:
            shutil.chown(home, "postgres")
        data = home / "data"
        _as_postgres(
            program / "initdb", "-D", data, "-A", "trust", "-U", "postgres", "-E", "UTF8", "--no-sync"
        )
        server = Postgres(program, data, _free_port())
        server.start()
        try:
            yield server
        finally:
            server.stop("immediate")


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """One cluster for all tests of a session."""
    with running_postgres() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_database(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'records.db'}"
    server: Postgres = request.getfixturevalue("postgres")
    return server.database()


@pytest.fixture
async def records(empty_database: str) -> AsyncIterator[Records]:
    """Migrated records on each kind of database."""
    await asyncio.to_thread(migrate, empty_database)
    opened = Records(empty_database)
    yield opened
    await opened.close()


def _find() -> Path:
    if (_DEBIAN / "initdb").exists():
        return _DEBIAN
    found = shutil.which("initdb")
    if found:
        return Path(found).parent
    reason = "PostgreSQL 15 is not installed (initdb is neither in /usr/lib/postgresql/15/bin nor on PATH)"
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


def _as_postgres(*command: str | Path) -> None:
    """It refuses to run as root."""
    prefix = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
    done = subprocess.run(
        [*prefix, *map(str, command)], cwd="/", capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])

"""A real Milvus 2.3.5 server (PyPI `milvus`) and milvus-lite: one of each per test session."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

# The programs inside the package are packed; unpacked once (30 s) they serve every later session.
_UNPACKED = Path(__file__).parents[2] / ".cache" / "milvus-2.3.5"


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


class Milvus:
    """A server with its data in `directory`; it keeps its ports over `kill` and `start`."""

    def __init__(self, directory: Path) -> None:
        from milvus import MilvusServer, MilvusServerConfig, _initialize_data_files

        _UNPACKED.mkdir(parents=True, exist_ok=True)
        _initialize_data_files(str(_UNPACKED))
        (directory / "bin").symlink_to(_UNPACKED / "bin")
        config = MilvusServerConfig(data_dir=str(directory))
        keys = [key for key in config.configurable_items if key.endswith("_port")]
        *ports, metrics, etcd, etcd_peers = _free_ports(len(keys) + 3)
        self._server = MilvusServer(config, **dict(zip(keys, ports, strict=True)))
        for part in ("rootCoord", "proxy", "queryCoord", "queryNode", "indexNode", "dataCoord", "dataNode"):
            config.set(f"{part}.ip", "127.0.0.1")
        # Without a file of its own the etcd inside takes fixed ports, and a second server cannot start.
        etcd_file = directory / "etcd.yaml"
        etcd_file.write_text(
            "name: default\n"
            f"listen-client-urls: http://127.0.0.1:{etcd}\n"
            f"advertise-client-urls: http://127.0.0.1:{etcd}\n"
            f"listen-peer-urls: http://127.0.0.1:{etcd_peers}\n"
            f"initial-advertise-peer-urls: http://127.0.0.1:{etcd_peers}\n"
            f"initial-cluster: default=http://127.0.0.1:{etcd_peers}\n"
        )
        config.template_text = config.template_text.replace(
            "\netcd:\n", f"\netcd:\n  config:\n    path: {etcd_file}\n", 1
        )
        self._server.webservice_port = metrics
        config.resolve()
        self._root = Path(config.base_data_dir)
        self._environment = {
            **os.environ,
            "DEPLOY_MODE": "STANDALONE",
            "METRICS_PORT": str(metrics),
            "MILVUS_RUN_DIR": str(self._root / "run"),
            "LD_LIBRARY_PATH": f"{self._root / 'bin'}:{os.environ.get('LD_LIBRARY_PATH', '')}",
        }

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._server.listen_port}"

    def start(self) -> None:
        """Returns once the server says that it is well."""
        # The package's own start refuses a port that was in use a minute ago.
        with (self._root / "logs" / "milvus-stdout.log").open("ab") as output:
            self._server.server_proc = subprocess.Popen(
                [self._root / "bin" / "milvus", "run", "standalone"],
                cwd=self._root,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        self._server.wait_started()

    def kill(self) -> None:
        """As `kill -9` does."""
        self._server.server_proc.kill()
        self._server.server_proc.wait()

    def freeze(self) -> None:
        """It answers nothing any more, and lets nothing go, until `thaw`."""
        self._server.server_proc.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._server.server_proc.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        self.thaw()
        self._server.stop()


@contextmanager
def running_milvus(directory: Path) -> Iterator[Milvus]:
    """A server with its data in `directory`; killed on exit."""
    server = Milvus(directory)
    server.start()
    try:
        yield server
    finally:
        server.stop()


def _need(package: str) -> None:
    if importlib.util.find_spec(package) is None:
        message = f"the package {package} is not installed: it is in requirements/dev.txt"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)


@pytest.fixture(scope="session")
def milvus_uri() -> Iterator[str]:
    _need("milvus")
    directory = Path(tempfile.mkdtemp(prefix="weft-milvus-"))
    try:
        with running_milvus(directory) as server:
            yield f"http://{server.address}"
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="session")
def milvus_lite_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    _need("milvus_lite")
    return str(tmp_path_factory.mktemp("milvus-lite") / "milvus.db")

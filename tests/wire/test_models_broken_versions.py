"""Versions broken in every way there is: each refused with its reason, while the old one serves on."""

from __future__ import annotations

import asyncio
import tarfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import grpc
import pytest

from tests.servers.model_versions import (
    ARCHIVE_LIMIT,
    NUMBER_CONFIG,
    Versions,
    archive,
    number,
    serving,
    write_models,
)
from tests.servers.rpc_mesh import reason
from tests.servers.triton import RunningTriton, running_triton
from weftd.models.versions.trial import TrialLimits


def _member(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def _commented(name: str, comment: str) -> tarfile.TarInfo:
    info = _member(name, tarfile.DIRTYPE)
    info.pax_headers = {"comment": comment}
    return info


def _twice(first: str, second: str) -> bytes:
    """Both are files with the same content."""
    size = 512 + (len(number(9)) + 511) // 512 * 512
    return archive({first: number(9)})[:size] + archive({second: number(9)})


_MEMORY = "self.hoard = [np.zeros(1 << 32, np.uint8) for _ in range(4096)]"
_WITH = {"model.py": number(9)}

# What is sent for NUMBER, and what the refusal says of it.
BROKEN: dict[str, tuple[bytes, str]] = {
    "syntax error": (archive({"model.py": b"class ("}), "SyntaxError"),
    "no class": (archive({"model.py": b"x = 1"}), "TritonPythonModel"),
    "missing file": (archive({"weights.bin": b"x"}), "has no model.py"),
    "calls other models": (
        archive({"model.py": number(9, call="pb_utils.InferenceRequest(model_name='x').exec()")}),
        "calls other models",
    ),
    "missing module": (archive({"model.py": b"import nowhere_to_be_found"}), "ModuleNotFoundError"),
    "raises at load": (archive({"model.py": number(9, load="raise OSError('no weights')")}), "no weights"),
    "exits at load": (archive({"model.py": number(9, load="os._exit(3)")}), "status 3"),
    "crashes at load": (archive({"model.py": number(9, load="ctypes.string_at(0)")}), "signal 11"),
    "hangs at load": (archive({"model.py": number(9, load="time.sleep(999)")}), "more than 3 s to load"),
    "memory at load": (archive({"model.py": number(9, load=_MEMORY)}), "Unable to allocate"),
    "raises at the first call": (archive({"model.py": number(9, call="raise ValueError('boom')")}), "boom"),
    "exits at the first call": (archive({"model.py": number(9, call="os._exit(3)")}), "status 3"),
    "crashes at the first call": (archive({"model.py": number(9, call="ctypes.string_at(0)")}), "signal 11"),
    "hangs at the first call": (
        archive({"model.py": number(9, call="time.sleep(999)")}),
        "more than 2 s for a",
    ),
    "spins without end": (
        archive({"model.py": number(9, call="\n        while True: pass")}),
        "more than 2 s",
    ),
    "memory at the first call": (archive({"model.py": number(9, call=_MEMORY)}), "Unable to allocate"),
    "wrong name": (archive({"model.py": number(9).replace(b'"CODE"', b'"CODES"')}), "lacks the output CODE"),
    "wrong type": (
        archive({"model.py": number(9).replace(b"np.int32", b"np.float32")}),
        "float32, not int32",
    ),
    "wrong shape": (archive({"model.py": number("1, 2")}), "shape [2], not [1]"),
    "no answer": (archive({"model.py": number(9).replace(b"return [self", b"x = [self")}), "NoneType"),
    "other input": (
        archive({**_WITH, "config.pbtxt": NUMBER_CONFIG.replace('"N"', '"M"').encode()}),
        "lacks the input N",
    ),
    "other type in the configuration": (
        archive({**_WITH, "config.pbtxt": NUMBER_CONFIG.replace("INT32", "FP32").encode()}),
        "another input N",
    ),
    "a stream in the configuration": (
        archive(
            {
                **_WITH,
                "config.pbtxt": (NUMBER_CONFIG + "model_transaction_policy { decoupled: true }").encode(),
            }
        ),
        "stream",
    ),
    "other backend": (
        archive({**_WITH, "config.pbtxt": NUMBER_CONFIG.replace('"python"', '"onnx"').encode()}),
        "backend",
    ),
    "configuration that is none": (archive({**_WITH, "config.pbtxt": b"input {{{"}), "cannot be read"),
    "canary that is none": (archive({**_WITH, "canary.json": b"[]"}), "canary.json"),
    "canary of another model": (
        archive({**_WITH, "canary.json": b'{"TEXT": ["x"]}'}),
        "no input of the model",
    ),
    "escapes by dots": (archive({**_WITH, "../../escaped.py": b"x"}), "leads out"),
    "absolute name": (archive({**_WITH, "/tmp/weft-escaped.py": b"x"}), "absolute"),
    "link": (archive(_WITH, _member("weights", tarfile.SYMTYPE, "/etc/passwd")), "a link"),
    "hard link": (archive(_WITH, _member("weights", tarfile.LNKTYPE, "model.py")), "a link"),
    "device": (archive(_WITH, _member("zero", tarfile.CHRTYPE)), "a device"),
    "pipe": (archive(_WITH, _member("pipe", tarfile.FIFOTYPE)), "a device"),
    "file twice": (_twice("model.py", "./model.py"), "twice"),
    "Weft's own name": (archive({**_WITH, "weft_check.py": b"x"}), "a name that Weft uses"),
    "empty": (b"", "nothing was sent"),
    "archive without files": (archive({}), "is empty"),
    "no tar": (b"PK\3\4 this is a zip file, is it not?" * 100, "no whole tar"),
    "cut in a file": (archive({"model.py": number(9), "w": b"x" * 9000})[:5000], "cut off in"),
    "cut before the end": (archive(_WITH)[: 512 + (len(number(9)) + 511) // 512 * 512], "cut off"),
    "too big": (b"x" * (ARCHIVE_LIMIT + 1), "larger than"),
    "too big unpacked": (archive(_WITH, _member("sparse", tarfile.GNUTYPE_SPARSE)), ""),
    "long headers": (
        archive(_WITH, *(_commented(f"d{number}", "x" * 20_000) for number in range(20))),
        "headers of the tar file are too long",
    ),
    "a directory for the model": (archive({"model.py/x": b"x"}), "has no model.py"),
    "a directory for the configuration": (archive({**_WITH, "config.pbtxt/x": b"x"}), "is a directory"),
    "a directory for the canary": (archive({**_WITH, "canary.json/x": b"x"}), "is a directory"),
    "large canary": (archive({**_WITH, "canary.json": b" " * (1 << 20) + b"{}"}), "longer than 1 MiB"),
    "sequences in the configuration": (
        archive({**_WITH, "config.pbtxt": (NUMBER_CONFIG + "sequence_batching { }").encode()}),
        "by sequences",
    ),
    "too many files": (archive({**_WITH, **{f"f{i}": b"x" for i in range(100)}}), "more than 100"),
}
"""What is broken: the archive, and part of what is said of it."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningTriton]:
    directory = tmp_path_factory.mktemp("triton")
    with running_triton(write_models(directory / "source"), directory) as running:
        yield running


@pytest.fixture
async def versions(server: RunningTriton, tmp_path: Path) -> AsyncIterator[Versions]:
    async with serving(server, tmp_path, TrialLimits(load_s=3, call_s=2)) as served:
        yield served


async def _refused(call: object) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call  # type: ignore[misc]
    return raised.value


@pytest.mark.parametrize("what", BROKEN)
async def test_a_broken_version_is_refused_and_the_old_one_serves_on(what: str, versions: Versions) -> None:
    content, said = BROKEN[what]
    before, listed, files = await versions.called(), await versions.listed(), _files(versions)
    stubs, shared = set(versions.server.stubs()), _shared(versions)
    failed: list[str] = []
    ended = asyncio.Event()

    async def call() -> None:
        while not ended.is_set():
            if await versions.called() != before:
                failed.append("another answer")
            await asyncio.sleep(0.02)

    async with asyncio.TaskGroup() as group:
        group.create_task(call())
        error = await _refused(versions.publish("number", content))
        ended.set()
    assert (error.code().name, reason(error)) == ("FAILED_PRECONDITION", "MODEL_VERSION_REFUSED")
    assert said in str(error.details())
    assert not failed
    assert await versions.listed() == listed
    assert _files(versions) == files
    async with asyncio.timeout(10):  # the process of a version that did not load ends a moment later
        while not (set(versions.server.stubs()) <= stubs and _shared(versions) <= shared):
            await asyncio.sleep(0.05)
    assert not [each.model for each in await versions.triton.index() if "check" in each.model]


def _files(versions: Versions) -> list[str]:
    return sorted(map(str, [*versions.server.repository.rglob("*"), *versions.work.glob("*/*")]))


def _shared(versions: Versions) -> set[str]:
    """This server's files of shared memory; each stub is told the name of its own."""
    region = versions.server.stubs()[0].cmdline()[2]
    return {each.name for each in Path("/dev/shm").glob("-".join(region.split("-")[:3]) + "*")}

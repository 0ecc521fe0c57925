"""Archives, repositories, canaries: what a published version goes through before any Triton sees it."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.servers.model_versions import LETTERS_CONFIG, NUMBER_CONFIG, archive
from tests.servers.object_store import object_store
from weft.v1 import models_pb2 as pb
from weft.v1.error_reason_pb2 import ErrorReason
from weftd.errors import FailedPrecondition, Unavailable, reason_name
from weftd.models.extractive.model import ExtractiveModel
from weftd.models.port import ModelRegistry
from weftd.models.service import ModelService
from weftd.models.versions.archive import ArchiveLimits, unpack
from weftd.models.versions.canary import canary_inputs, check_outputs, read_canary
from weftd.models.versions.model_config import check_same, parse, pinned, pinned_to, text
from weftd.models.versions.refusal import VersionRefused
from weftd.models.versions.store import VersionStore
from weftd.triton.repository import Model, assemble

_LIMITS = ArchiveLimits(bytes=1 << 20, entries=20)


def unpacked(content: bytes, directory: Path) -> int:
    (directory / "sent.tar").write_bytes(content)
    return unpack(directory / "sent.tar", directory / "version", _LIMITS, reserved="mine.py")


def test_an_archive_becomes_a_directory(tmp_path: Path) -> None:
    script = tarfile.TarInfo("bin/run")
    script.mode = 0o4755
    folder = tarfile.TarInfo("./data/")
    folder.type = tarfile.DIRTYPE
    size = unpacked(archive({"./model.py": b"x = 1", "data/深/w.bin": b"w" * 3000}, folder, script), tmp_path)
    version = tmp_path / "version"
    assert size == 3005
    assert (version / "model.py").read_bytes() == b"x = 1"
    assert (version / "data/深/w.bin").stat().st_size == 3000
    assert (version / "bin/run").stat().st_mode & 0o7777 == 0o755
    assert (version / "model.py").stat().st_mode & 0o7777 == 0o644


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_form_of_tar_is_read(tmp_path: Path, form: int) -> None:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w", format=form) as tar:
        info = tarfile.TarInfo("a" * 60 + "/" + "b" * 60)
        info.size = 3
        tar.addfile(info, io.BytesIO(b"abc"))
    assert unpacked(target.getvalue(), tmp_path) == 3


def test_every_cut_of_an_archive_is_refused(tmp_path: Path) -> None:
    whole = archive({"model.py": b"x" * 700, "w": b"y" * 700})
    ends = 2 * 3 * 512  # two headers and two files of two blocks; then the end
    for size in [*range(0, ends, 333), ends - 512, ends, ends + 512]:
        directory = tmp_path / str(size)
        directory.mkdir()
        with pytest.raises(VersionRefused):
            unpacked(whole[:size], directory)


@pytest.mark.parametrize(
    "member", ["/etc/x", "../x", "a/../../x", "a//../../x", "a\nb", "d/" * 20 + "x", "mine.py"]
)
def test_names_that_are_refused(tmp_path: Path, member: str) -> None:
    with pytest.raises(VersionRefused):
        unpacked(archive({member: b"x"}), tmp_path)
    assert not list(tmp_path.parent.glob("x"))


def test_a_file_is_no_directory_too(tmp_path: Path) -> None:
    with pytest.raises(VersionRefused, match="twice"):
        unpacked(archive({"a": b"x", "a/b": b"x"}), tmp_path)


def test_a_header_of_gigabytes_takes_no_memory(tmp_path: Path) -> None:
    info = tarfile.TarInfo("pax")
    info.type, info.size = tarfile.XHDTYPE, 2 << 30
    with pytest.raises(VersionRefused, match="too long"):
        unpacked(info.tobuf() + bytes(4096), tmp_path)


def test_compressed_archives_are_no_tar(tmp_path: Path) -> None:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w:gz"):
        pass
    with pytest.raises(VersionRefused, match="no whole tar"):
        unpacked(target.getvalue(), tmp_path)


@pytest.fixture(params=["directory", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[VersionStore]:
    if request.param == "directory":
        yield VersionStore(str(tmp_path / "repository"))
        return
    with object_store() as objects:
        yield VersionStore(objects.url("models"))


def _version(directory: Path) -> Path:
    (directory / "data").mkdir(parents=True)
    (directory / "model.py").write_bytes(b"code")
    (directory / "data" / "w.bin").write_bytes(b"w" * 100)
    return directory


def test_versions_in_a_store(store: VersionStore, tmp_path: Path) -> None:
    assert store.models() == []
    assert store.read("m", "config.pbtxt") is None
    store.write("m--check-1", b"c", "config.pbtxt")
    store.put(_version(tmp_path / "sent"), "m--check-1", 7)
    assert not (tmp_path / "sent").exists()
    assert (store.models(), store.versions("m--check-1")) == (["m--check-1"], [7])
    assert store.size("m--check-1", 7) == 104
    store.write("m", b"config", "config.pbtxt")
    store.move("m--check-1", 7, "m")
    assert (store.versions("m--check-1"), store.versions("m")) == ([], [7])
    assert store.read("m", "7", "data", "w.bin") == b"w" * 100
    assert store.copy("m", 7, "m", 12) == 104
    assert store.versions("m") == [12, 7]
    store.remove("m", "7")
    store.remove("m", "7")
    store.remove("m--check-1")
    assert (store.versions("m"), store.models()) == ([12], ["m"])
    assert store.read("m", "12", "model.py") == b"code"


def test_what_is_no_version_is_none(store: VersionStore, tmp_path: Path) -> None:
    for name in ("0", "01", "1a", "new", "9"):
        store.write("m", b"x", name, "model.py")
    store.write("m", b"x", "5")
    assert store.versions("m") == [9]


def test_a_store_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        VersionStore("nowhere://bucket/models")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(Unavailable):
        VersionStore(str(tmp_path / "file")).write("m", b"x", "config.pbtxt")


def test_a_bucket_that_is_missing_is_not_made() -> None:
    with object_store() as objects:
        store = VersionStore("s3://mistyped/models")
        for _ in range(2):
            with pytest.raises(Unavailable, match="model repository"):
                store.write("m", b"x", "config.pbtxt")
        assert VersionStore(objects.url("models")).models() == []


def test_the_version_is_pinned_and_comments_do_not_matter() -> None:
    config = parse(f'# a comment\nname: "number"\n{NUMBER_CONFIG}'.encode())
    assert pinned(config) == 0
    changed = parse(text(pinned_to(config, 12)))
    assert (pinned(changed), changed.name) == (12, "")
    check_same(changed, config, "number")
    with pytest.raises(VersionRefused):
        check_same(config, parse(LETTERS_CONFIG.encode()), "number")


@pytest.mark.parametrize(
    ("dims", "given", "shape"),
    [
        ("1", 5, [1]),
        ("1", [5], [1]),
        ("-1", [1, 2, 3], [3]),
        ("2, 2", [[1, 2], [3, 4]], [2, 2]),
        ("-1", 5, [1]),
    ],
)
@pytest.mark.parametrize("batch", [0, 8])
def test_canary_inputs(dims: str, given: Any, shape: list[int], batch: int) -> None:
    config = parse(
        f'max_batch_size: {batch} input [ {{ name: "X" data_type: TYPE_FP32 dims: [ {dims} ] }}, '
        '{ name: "T" data_type: TYPE_STRING dims: [ 1 ] }, '
        '{ name: "O" data_type: TYPE_INT64 dims: [ 1 ] optional: true } ]'.encode()
    )
    inputs = canary_inputs(config, {"X": given})
    rows = [1] if batch else []
    assert inputs.keys() == {"X", "T"}
    assert (inputs["X"].shape, inputs["X"].dtype) == (tuple(rows + shape), np.float32)
    assert inputs["T"].tolist() == ([[b"canary"]] if batch else [b"canary"])


@pytest.mark.parametrize(
    "content", [b"", b"[1]", b"\xff", b"[" * 100_000, b'{"N": "many"}', b'{"M": 1}', b'{"N": [1, 2]}']
)
def test_canaries_that_do_not_fit(content: bytes) -> None:
    with pytest.raises(VersionRefused):
        canary_inputs(parse(NUMBER_CONFIG.encode()), read_canary(content))


def test_answers_that_do_not_fit() -> None:
    config = parse(NUMBER_CONFIG.encode())
    good = {"CODE": np.array([1], np.int32), "VERSION": np.array([1], np.int32)}
    check_outputs(config, good)
    wrong: list[dict[str, Any]] = [
        {"CODE": good["CODE"]},
        {**good, "MORE": good["CODE"]},
        {**good, "CODE": np.array([1], np.int64)},
        {**good, "CODE": np.array([1, 2], np.int32)},
        {**good, "CODE": np.array([[1]], np.int32)},
    ]
    for outputs in wrong:
        with pytest.raises(VersionRefused):
            check_outputs(config, outputs)
    check_outputs(parse(LETTERS_CONFIG.encode()), {"CODE": good["CODE"]})


async def test_without_a_triton_there_is_no_repository() -> None:
    service = ModelService(ModelRegistry([ExtractiveModel()]))
    context: Any = None
    nothing: Any = None
    calls = [
        service.ListModelVersions(pb.ListModelVersionsRequest(), context),
        service.RollbackModel(pb.RollbackModelRequest(), context),
        service.PublishModel(nothing, context),
        anext(service.WatchModels(pb.WatchModelsRequest(), context)),
    ]
    for call in calls:
        with pytest.raises(FailedPrecondition) as raised:
            await call  # type: ignore[misc]
        assert reason_name(ErrorReason.ValueType(raised.value.reason)) == "NO_MODEL_REPOSITORY"


def test_a_published_version_stays_the_one_that_a_local_triton_serves(tmp_path: Path) -> None:
    own = tmp_path / "models" / "embedder"

    def assembled(before: bytes) -> int:
        (own / "config.pbtxt").write_bytes(before)
        assemble([Model("embedder")], tmp_path / "models")
        return pinned(parse((own / "config.pbtxt").read_bytes()))

    assemble([Model("embedder")], tmp_path / "models")
    config = parse((own / "config.pbtxt").read_bytes())
    assert assembled(text(pinned_to(config, 3))) == 0  # it is not there
    (own / "3").mkdir()
    assert assembled(text(pinned_to(config, 3))) == 3
    (own / "3" / "config.pbtxt").write_bytes(b"")
    config.parameters["mine"].string_value = "kept"
    assert assembled(text(pinned_to(config, 3))) == 3
    assert parse((own / "config.pbtxt").read_bytes()).parameters["mine"].string_value == "kept"

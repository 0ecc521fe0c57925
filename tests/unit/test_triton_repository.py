"""The local server's repository: what is renewed, what stays, and what the settings change."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from weftd import local_triton
from weftd.compose import CannotStart
from weftd.settings import Settings
from weftd.triton.installation import Installation, TritonMissing
from weftd.triton.repository import Model, assemble

_CONFIG = """
# what it is
name: "small"
backend: "python"
max_batch_size: 4
dynamic_batching { default_queue_policy { max_queue_size: 7 } }
instance_group [ { kind: KIND_CPU count: 3 } ]
parameters [ { key: "directory" value: { string_value: "" } } ]
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    version = tmp_path / "source" / "small" / "1"
    (version / "__pycache__").mkdir(parents=True)
    (version / "model.py").write_text("first")
    (version / "__pycache__" / "model.pyc").write_text("compiled")
    (version.parent / "config.pbtxt").write_text(_CONFIG)
    (version.parent / "README.md").write_text("for people")
    return tmp_path / "source"


def _config(repository: Path) -> model_config_pb2.ModelConfig:
    written = (repository / "small" / "config.pbtxt").read_text()
    return text_format.Parse(written, model_config_pb2.ModelConfig())


def test_an_empty_repository_gets_version_1_and_its_configuration(source: Path, tmp_path: Path) -> None:
    assemble([Model("small")], tmp_path / "models", source)
    files = sorted(str(each.relative_to(tmp_path / "models")) for each in tmp_path.glob("models/**/*.*"))
    assert files == ["small/1/model.py", "small/config.pbtxt"]
    config = _config(tmp_path / "models")
    assert (config.max_batch_size, config.instance_group[0].count) == (4, 3)


def test_the_operators_settings_are_in_the_configuration(source: Path, tmp_path: Path) -> None:
    model = Model("small", 10, 2, "gpu", {"directory": '/models/"quoted"\\dir'})
    assemble([model], tmp_path / "models", source)
    config = _config(tmp_path / "models")
    assert config.max_batch_size == 10
    assert config.instance_group[0].count == 2
    assert config.instance_group[0].kind == model_config_pb2.ModelInstanceGroup.KIND_GPU
    assert config.parameters["directory"].string_value == '/models/"quoted"\\dir'
    # An idle model never waits for others to fill the batch, and a full queue is refused.
    assert config.dynamic_batching.max_queue_delay_microseconds == 0
    assert config.dynamic_batching.default_queue_policy.max_queue_size == 7


def test_version_1_is_renewed_and_published_versions_stay(source: Path, tmp_path: Path) -> None:
    models = tmp_path / "models"
    assemble([Model("small")], models, source)
    (models / "small" / "2").mkdir()
    (models / "small" / "2" / "model.py").write_text("published")
    (models / "other" / "1").mkdir(parents=True)
    (models / "small" / "1" / "old.py").write_text("of an older Weft")
    (source / "small" / "1" / "model.py").write_text("second")
    assemble([Model("small", 1)], models, source)
    assert (models / "small" / "1" / "model.py").read_text() == "second"
    assert not (models / "small" / "1" / "old.py").exists()
    assert (models / "small" / "2" / "model.py").read_text() == "published"
    assert (models / "other" / "1").is_dir()
    assert _config(models).max_batch_size == 1


def test_what_is_the_same_is_not_written(source: Path, tmp_path: Path) -> None:
    models = tmp_path / "models"
    assemble([Model("small")], models, source)
    before = {each: each.stat().st_ino for each in models.rglob("*")}
    assemble([Model("small")], models, source)
    assert {each: each.stat().st_ino for each in models.rglob("*")} == before


def test_what_a_kill_left_half_done_is_mended(source: Path, tmp_path: Path) -> None:
    models = tmp_path / "models"
    (models / "small").mkdir(parents=True)
    (tmp_path / "staging").mkdir()
    (tmp_path / "staging" / "half").touch()
    assemble([Model("small")], models, source)
    assert [each.name for each in (models / "small" / "1").iterdir()] == ["model.py"]
    assert not (tmp_path / "staging").exists()


def test_an_unknown_parameter_is_an_error(source: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no parameter colour"):
        assemble([Model("small", parameters={"colour": "red"})], tmp_path / "models", source)


def test_only_configured_models_are_served(tmp_path: Path) -> None:
    def names(**values: object) -> list[str]:
        return [each.name for each in local_triton.models(Settings(data=tmp_path, **values))]  # type: ignore[arg-type]

    assert names() == ["embedder"]
    assert names(reranker=tmp_path, llm=tmp_path) == ["embedder", "reranker", "llm"]


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_weft_s_own_models_take_all_settings(tmp_path: Path, device: str) -> None:
    settings = Settings(
        data=tmp_path / "data",
        reranker=tmp_path / "cross",
        llm=tmp_path / "llm",
        embedder=tmp_path / "bge",
        threads=3,
        batch_size=5,
        device=device,  # type: ignore[arg-type]
    )
    assemble(local_triton.models(settings), tmp_path / "models")
    kind = {"cpu": "KIND_CPU", "gpu": "KIND_GPU"}[device]
    for name, count in (("embedder", 3), ("reranker", 3), ("llm", 1)):
        written = (tmp_path / "models" / name / "config.pbtxt").read_text()
        config = text_format.Parse(written, model_config_pb2.ModelConfig())
        (group,) = config.instance_group
        assert model_config_pb2.ModelInstanceGroup.Kind.Name(group.kind) == kind
        assert group.count == (count if device == "cpu" else 1)
        assert config.max_batch_size == (0 if name == "llm" else 5)
        assert config.parameters["directory"].string_value.startswith(str(tmp_path))
        assert (tmp_path / "models" / name / "1" / "model.py").is_file()


@pytest.mark.parametrize(
    "change",
    [
        {"triton_url": "grpc://127.0.0.1"},
        {"triton_repository": "s3://bucket/models"},
    ],
)
def test_a_setting_that_cannot_be_is_said(
    tmp_path: Path, change: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Installation, "find", lambda _python: None)
    with pytest.raises(CannotStart, match="WEFT_TRITON_"):
        local_triton.triton_process(Settings(data=tmp_path, **change))  # type: ignore[arg-type]


def test_a_python_without_triton_says_what_to_do(tmp_path: Path) -> None:
    for python in (tmp_path / "none" / "python", Path(sys.executable), Path("/bin/false"), tmp_path):
        with pytest.raises(TritonMissing, match="make triton"):
            Installation.find(python)


def test_a_python_with_numpy_2_is_refused(tmp_path: Path) -> None:
    python = tmp_path / "python"
    answer = {
        "package": "/p/pytriton/__init__.py",
        "libraries": "",
        "version": "3.11",
        "bin": "",
        "numpy": "2.4.6",
    }
    python.write_text(f"#!/bin/sh\necho '{json.dumps(answer)}'\n")
    python.chmod(0o755)
    with pytest.raises(TritonMissing, match=r"numpy 2\.4\.6.*make triton"):
        Installation.find(python)


def test_the_server_gets_no_secret_of_the_mesh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEFT_RECORDS_URL", "postgresql+psycopg://weft:secret@host/weft")
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    paths = (Path("s"), Path("b"), Path("t"), Path("c"))
    installed = Installation(*paths, "/lib/of/python", "/bin/of/models", has_torch=False)
    environment = installed.environment()
    assert not [name for name in environment if name.startswith("WEFT_")]
    assert "PYTHONPATH" not in environment
    assert environment["CUDA_VISIBLE_DEVICES"] == "1"
    assert environment["PATH"].startswith("/bin/of/models:")
    assert environment["LD_LIBRARY_PATH"].startswith("/lib/of/python")

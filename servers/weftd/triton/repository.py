"""The local server's models: Weft's own are version 1, set up as the operator asked; later ones stay."""

from __future__ import annotations

import filecmp
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

__all__ = ["Model", "assemble"]

SOURCE: Final = Path(__file__).parents[1] / "triton_models"
_HEADER: Final = "# Written by Weft at each start of `weft triton`: the settings say what is in it.\n"
_IGNORED: Final = ("__pycache__",)


@dataclass(frozen=True, slots=True)
class Model:
    """How one of `triton_models` is served. `batch_size` None: as its own configuration says, and likewise
    0 `instances`. `parameters` are the model's own, by name; each must be in its configuration."""

    name: str
    batch_size: int | None = None
    instances: int = 0
    device: Literal["cpu", "gpu"] = "cpu"
    parameters: Mapping[str, str] = field(default_factory=dict)


def assemble(models: Iterable[Model], repository: Path, source: Path = SOURCE) -> None:
    """Puts `models` into `repository`: version 1 and the configuration are renewed where they differ.

    Versions above 1 and models that are not named are left alone; a version that was published stays the one
    that is served, with the configuration that it brought. Nobody may serve from it meanwhile; what a
    kill leaves half done the next call mends. OSError where it cannot be written, ValueError for a parameter
    that the model does not know.
    """
    staging = repository.parent / "staging"
    for model in models:
        own = repository / model.name
        own.mkdir(parents=True, exist_ok=True)
        if not _same(source / model.name / "1", own / "1"):
            shutil.rmtree(staging, ignore_errors=True)
            shutil.copytree(source / model.name / "1", staging, ignore=shutil.ignore_patterns(*_IGNORED))
            shutil.rmtree(own / "1", ignore_errors=True)
            staging.rename(own / "1")
        config = _config(model, source)
        if named := _published(own):
            if (own / str(named) / "config.pbtxt").exists():
                continue  # the version that is served brought its own
            config.version_policy.specific.versions.append(named)
        text = _HEADER + text_format.MessageToString(config)
        if _read(own / "config.pbtxt") != text:
            fresh = repository.parent / "config.pbtxt.new"
            fresh.write_text(text)
            fresh.replace(own / "config.pbtxt")


def _config(model: Model, source: Path) -> model_config_pb2.ModelConfig:
    written = (source / model.name / "config.pbtxt").read_text()
    config = text_format.Parse(written, model_config_pb2.ModelConfig())
    config.name = model.name
    if model.batch_size is not None:
        # What is to be taken alone is still queued, and refused, by the batcher.
        config.max_batch_size = model.batch_size
        config.dynamic_batching.SetInParent()
    (group,) = config.instance_group
    group.count = model.instances or group.count
    group.kind = group.KIND_GPU if model.device == "gpu" else group.KIND_CPU
    for name, value in model.parameters.items():
        if name not in config.parameters:
            raise ValueError(f"The model {model.name} has no parameter {name} in its config.pbtxt.")
        config.parameters[name].string_value = value
    return config


def _published(own: Path) -> int:
    """The version that the configuration names, where it is none of Weft's own; else 0."""
    try:
        config = text_format.Parse(_read(own / "config.pbtxt"), model_config_pb2.ModelConfig())
    except text_format.ParseError:
        return 0
    named = max(config.version_policy.specific.versions, default=1)
    return named if named > 1 and (own / str(named)).is_dir() else 0


def _read(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def _same(left: Path, right: Path) -> bool:
    """Whether two directories hold the same files."""
    files = _files(left)
    return files == _files(right) and not any(filecmp.cmpfiles(left, right, files, shallow=False)[1:])


def _files(directory: Path) -> list[str]:
    return sorted(
        os.path.relpath(Path(root) / name, directory)
        for root, folders, names in os.walk(directory)
        if not any(ignored in root for ignored in _IGNORED)
        for name in names
    )

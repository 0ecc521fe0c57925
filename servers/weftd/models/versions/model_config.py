"""A model's `config.pbtxt`: whose tensors stay, and which version it serves.

The version that is served is pinned in it (`version_policy { specific { versions: N } }`): a file that is
exchanged as a whole, in a directory and in an object store, so that no half of a version is ever served, also
by a Triton that starts anew in the middle of a publish.
"""

from __future__ import annotations

from typing import Any, Final

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from weftd.models.versions.refusal import VersionRefused

__all__ = ["CHECK_FILE", "check_same", "checking", "model_file", "parse", "pinned", "pinned_to", "text"]

CHECK_FILE: Final = "weft_check.py"
"""Name of `guarded_model.py` in a version's directory while it is checked."""

Config = Any  # model_config_pb2.ModelConfig: its stubs are not typed


def parse(content: bytes) -> Config:
    """VersionRefused where `content` is no model configuration."""
    try:
        return text_format.Parse(content, model_config_pb2.ModelConfig())
    except (text_format.ParseError, UnicodeDecodeError) as error:
        raise VersionRefused(f"its config.pbtxt cannot be read: {str(error)[:200]}") from None


def text(config: Config) -> bytes:
    """As `parse` reads it."""
    return text_format.MessageToBytes(config)


def check_same(config: Config, before: Config, model: str) -> None:
    """VersionRefused where callers of the version before could not call this one."""
    if config.name not in ("", model):
        raise VersionRefused(f"its config.pbtxt is for the model {config.name[:64]!r}")
    if config.backend != "python":
        raise VersionRefused('its config.pbtxt has another backend than "python"')
    for kind in ("input", "output"):
        now, was = (_tensors(each, kind) for each in (config, before))
        if missing := was.keys() - now.keys():
            raise VersionRefused(f"its config.pbtxt lacks the {kind} {min(missing)}")
        for name in now:
            if now[name] != was.get(name):
                raise VersionRefused(f"its config.pbtxt has another {kind} {name} than the version before")
    if config.model_transaction_policy.decoupled != before.model_transaction_policy.decoupled:
        raise VersionRefused(
            "its config.pbtxt answers with a stream where the version before does not, or not"
        )
    if config.HasField("sequence_batching") != before.HasField("sequence_batching"):
        raise VersionRefused(
            "its config.pbtxt batches by sequences where the version before does not, or not"
        )
    if bool(config.max_batch_size) != bool(before.max_batch_size):
        raise VersionRefused("its config.pbtxt takes batches where the version before does not, or not")


def _tensors(config: Config, kind: str) -> dict[str, tuple[int, tuple[int, ...], bool]]:
    return {
        each.name: (each.data_type, tuple(each.dims), bool(getattr(each, "optional", False)))
        for each in getattr(config, kind)
    }


def model_file(config: Config) -> str:
    """The file that Triton loads from a version's directory."""
    return config.default_model_filename or "model.py"


def pinned(config: Config) -> int:
    """The version that is to be served; 0 where the highest is."""
    versions = config.version_policy.specific.versions
    return max(versions) if versions else 0


def pinned_to(config: Config, version: int) -> Config:
    """The same configuration for `version` alone."""
    changed = model_config_pb2.ModelConfig()
    changed.CopyFrom(config)
    changed.ClearField("name")  # the directory names it
    changed.version_policy.Clear()
    changed.version_policy.specific.versions.append(version)
    return changed


def checking(config: Config, version: int, load_limit_s: float, call_limit_s: float) -> Config:
    """The same for a check: one instance, which answers at once, with the limits for `guarded_model.py`."""
    changed = pinned_to(config, version)
    changed.ClearField("scheduling_choice")
    changed.ClearField("model_warmup")
    for group in changed.instance_group:
        group.count = 1
    values = {"file": model_file(config), "load_limit_s": load_limit_s, "call_limit_s": call_limit_s}
    for name, value in values.items():
        changed.parameters[f"weft_check_{name}"].string_value = str(value)
    changed.default_model_filename = CHECK_FILE
    return changed

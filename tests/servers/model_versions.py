"""ModelService over a real Triton whose models have versions, and archives to publish."""

from __future__ import annotations

import io
import tarfile
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np

from tests.servers.triton import RunningTriton
from weft.v1 import models_pb2 as pb
from weft.v1 import models_pb2_grpc
from weftd.inference.triton.client import Triton
from weftd.inference.triton.generator import TritonGenerator
from weftd.keys import ensure_keys
from weftd.models.extractive.model import ExtractiveModel
from weftd.models.port import ModelRegistry
from weftd.models.served import ServedModel
from weftd.models.service import ModelService
from weftd.models.versions.archive import ArchiveLimits
from weftd.models.versions.publishing import Publishing
from weftd.models.versions.store import VersionStore
from weftd.models.versions.trial import TrialLimits
from weftd.rpc.auth import TokenVerifier, mint
from weftd.rpc.drain import Drain
from weftd.rpc.health import Health
from weftd.rpc.interceptor import CallInterceptor
from weftd.rpc.server import Service, bind, build_server

ARCHIVE_LIMIT = 8 << 20

_IMPORTS = """import os, time, threading, ctypes
import numpy as np
import triton_python_backend_utils as pb_utils

"""

# NUMBER: N INT32 [1] comes back as CODE INT32 [1], the number that stands in the code, and VERSION INT32 [1].
NUMBER_CONFIG = """backend: "python"
max_batch_size: 0
input [ { name: "N" data_type: TYPE_INT32 dims: [ 1 ] } ]
output [
  { name: "CODE" data_type: TYPE_INT32 dims: [ 1 ] },
  { name: "VERSION" data_type: TYPE_INT32 dims: [ 1 ] }
]
instance_group [ { kind: KIND_CPU count: 1 } ]
"""
_NUMBER = (
    _IMPORTS
    + """
class TritonPythonModel:
    def initialize(self, args):
        self.version = int(args["model_version"])
        {load}

    def execute(self, requests):
        return [self._answer(request) for request in requests]

    def _answer(self, request):
        {call}
        return pb_utils.InferenceResponse([
            pb_utils.Tensor("CODE", np.array([{code}], np.int32)),
            pb_utils.Tensor("VERSION", np.array([self.version], np.int32)),
        ])
"""
)

# LETTERS (decoupled): N INT32 [1]; so many answers, CODE and VERSION as above, one each PAUSE_MS FP32 [1].
LETTERS_CONFIG = NUMBER_CONFIG.replace(
    "input [ ",
    "model_transaction_policy { decoupled: true }\n"
    'input [ { name: "PAUSE_MS" data_type: TYPE_FP32 dims: [ 1 ] }, ',
)
_LETTERS = (
    _IMPORTS
    + """
def tensor(request, name):
    return pb_utils.get_input_tensor_by_name(request, name).as_numpy()[0]


class TritonPythonModel:
    def initialize(self, args):
        self.version = int(args["model_version"])

    def execute(self, requests):
        for request in requests:
            threading.Thread(target=self.write, args=(request,), daemon=True).start()

    def write(self, request):
        sender = request.get_response_sender()
        pause_s = float(tensor(request, "PAUSE_MS")) / 1000
        for _ in range(max(1, int(tensor(request, "N")))):
            if sender.is_cancelled():
                break
            sender.send(pb_utils.InferenceResponse([
                pb_utils.Tensor("CODE", np.array([{code}], np.int32)),
                pb_utils.Tensor("VERSION", np.array([self.version], np.int32)),
            ]))
            time.sleep(pause_s)
        {end}
"""
)
_END = "sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)"


def number(code: int | str, *, load: str = "pass", call: str = "pass") -> bytes:
    """The file `model.py` of a NUMBER; `load` and `call` are statements that it runs."""
    return _NUMBER.format(code=code, load=load, call=call).encode()


def letters(code: int, *, end: str = _END) -> bytes:
    """The file `model.py` of a LETTERS."""
    return _LETTERS.format(code=code, end=end).encode()


def write_model(repository: Path, name: str, config: str, code: bytes) -> None:
    """A model with its version 1; `code` is the file `model.py`."""
    (repository / name / "1").mkdir(parents=True)
    (repository / name / "config.pbtxt").write_text(config)
    (repository / name / "1" / "model.py").write_bytes(code)


def write_models(directory: Path) -> Path:
    """A repository with NUMBER and LETTERS, their version 1 with the code 1."""
    write_model(directory, "number", NUMBER_CONFIG, number(1))
    write_model(directory, "letters", LETTERS_CONFIG, letters(1))
    return directory


def archive(files: Mapping[str, bytes], *more: tarfile.TarInfo) -> bytes:
    """A tar file of `files`, then of `more` without content."""
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        for info in more:
            tar.addfile(info)
    return target.getvalue()


def messages(model: str, content: bytes, piece: int = 64 << 10) -> Iterable[pb.PublishModelRequest]:
    """What a client sends."""
    yield pb.PublishModelRequest(model=model)
    for start in range(0, len(content), piece):
        yield pb.PublishModelRequest(data=content[start : start + piece])


@dataclass
class Versions:
    """The service on a server, its Triton, and metadata with an operator's token and with a user's."""

    triton: Triton
    server: RunningTriton
    stub: models_pb2_grpc.ModelServiceStub
    publishing: Publishing
    drain: Drain
    work: Path
    operator: tuple[tuple[str, str], ...]
    member: tuple[tuple[str, str], ...]

    async def publish(self, model: str, content: bytes) -> pb.PublishModelResponse:
        return await self.stub.PublishModel(messages(model, content), metadata=self.operator)

    async def rollback(self, model: str, version: int = 0) -> pb.RollbackModelResponse:
        request = pb.RollbackModelRequest(model=model, version=version)
        return await self.stub.RollbackModel(request, metadata=self.operator)

    async def listed(self) -> dict[str, tuple[int, list[int]]]:
        answer = await self.stub.ListModelVersions(pb.ListModelVersionsRequest(), metadata=self.operator)
        return {each.model: (each.served, [*each.versions]) for each in answer.models}

    async def called(self) -> tuple[int, int]:
        """The code and the version that answer a call of NUMBER."""
        answer = await self.triton.infer("number", {"N": np.array([1], np.int32)})
        assert answer.version == str(answer.outputs["VERSION"][0])
        return int(answer.outputs["CODE"][0]), int(answer.version)


def publishing_at(
    triton: Triton, repository: Path | str, work: Path, drain: Drain, limits: TrialLimits | None = None
) -> Publishing:
    """With small limits of what is sent."""
    return Publishing(
        triton,
        VersionStore(str(repository)),
        work,
        drain,
        archive_limits=ArchiveLimits(bytes=ARCHIVE_LIMIT, entries=100),
        trial_limits=limits,
    )


@asynccontextmanager
async def serving(
    server: RunningTriton,
    directory: Path,
    limits: TrialLimits | None = None,
    *,
    llm: bool = False,
    repository: str = "",
) -> AsyncIterator[Versions]:
    """ModelService with `publishing` over `server`; its model `llm` is the one that writes, or none.

    `repository` is where the server has its models, if not in a directory of its own.
    """
    keys = directory / "jwks.json"
    ensure_keys(keys)
    triton, drain = Triton(server.address), Drain(grace_s=1)
    publishing = publishing_at(triton, repository or server.repository, directory / "work", drain, limits)
    model = ServedModel(TritonGenerator(triton), "triton") if llm else ExtractiveModel()
    service = ModelService(ModelRegistry([model]), publishing)
    verifier = TokenVerifier(issuer="weft", audience="weft", jwks_file=keys)
    name = "weft.v1.ModelService"
    add = models_pb2_grpc.add_ModelServiceServicer_to_server
    grpc_server = build_server(
        [Service(name, service, add)], CallInterceptor(verifier, drain), Health([name])
    )
    port = bind(grpc_server, "127.0.0.1:0")
    await grpc_server.start()

    def bearer(role: str) -> tuple[tuple[str, str], ...]:
        made = mint(keys, issuer="weft", audience="weft", tenant="t", subject="u", roles=(role,), ttl_s=600)
        return (("authorization", f"Bearer {made}"),)

    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = models_pb2_grpc.ModelServiceStub(channel)
        yield Versions(
            triton, server, stub, publishing, drain, directory / "work", bearer("operator"), bearer("member")
        )
    await grpc_server.stop(0)
    await triton.close()

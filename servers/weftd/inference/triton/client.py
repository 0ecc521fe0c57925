"""Calls to a Triton server, on behalf of the running RPC.

    triton = Triton("127.0.0.1:8001")
    answer = await triton.infer("embedder", {"TEXT": np.array([["hello"]], object)})
    answer.outputs["EMBEDDING"], answer.version

Written on the stubs of `tritonclient` and not on its client: that one asks for no final response of a
decoupled model, and its streams cannot be closed one by one.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from typing import Any, Final, NoReturn

import grpc
import numpy as np
import numpy.typing as npt
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc
from tritonclient.utils import (
    deserialize_bytes_tensor,
    np_to_triton_dtype,
    serialize_byte_tensor,
    triton_to_np_dtype,
)

from weft.v1.error_reason_pb2 import (
    ERROR_REASON_BACKEND_UNAVAILABLE,
    ERROR_REASON_MODEL_BROKEN,
    ERROR_REASON_MODEL_REFUSED,
    ERROR_REASON_OVERLOADED,
)
from weftd.errors import DeadlineExceeded, FailedPrecondition, ResourceExhausted, Unavailable, WeftError
from weftd.rpc import caller

__all__ = ["Answer", "Served", "Tensors", "Triton"]

Tensors = Mapping[str, npt.NDArray[Any]]

_OPTIONS: Final = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.enable_http_proxy", 0),
]
_ADMIN_LIMIT_S: Final = 10.0
# Loading imports torch and reads weights.
_LOAD_LIMIT_S: Final = 600.0
# Of a call without a deadline, as jobs make them: a server that froze answers never.
_ANSWER_LIMIT_S: Final = 60.0
# A decoupled model sends something each second, if only a response without outputs. A stream whose process
# was killed never ends in Triton: its silence is all that tells.
_SILENCE_LIMIT_S: Final = 5.0
_UNKNOWN: Final = re.compile("unknown model|is not (found|ready|available)|no available versions")
_FINAL: Final = "triton_final_response"


@dataclass(frozen=True, slots=True)
class Answer:
    """One response: its tensors by name, and the version of the model that gave it."""

    outputs: dict[str, npt.NDArray[Any]]
    version: str


@dataclass(frozen=True, slots=True)
class Served:
    """What the repository says of one version of a model. `state` is "READY", "LOADING", "UNAVAILABLE", …"""

    model: str
    version: str
    state: str
    reason: str


class Triton:
    """One Triton. Each error is a `WeftError`: Unavailable where it or the model does not answer (to be tried
    again), ResourceExhausted where the model's queue is full, FailedPrecondition where it refused the input,
    DeadlineExceeded where the caller's time is up. A call ends when its task is cancelled.
    """

    def __init__(self, address: str) -> None:
        """`address` is the host:port of its gRPC."""
        self.address = address
        self._channel = grpc.aio.insecure_channel(address, options=_OPTIONS)
        self._stub: Any = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)

    async def infer(self, model: str, inputs: Tensors, *, outputs: tuple[str, ...] = ()) -> Answer:
        """One answer of a model that gives one, by the version that is served. `outputs` empty: all."""
        request = _request(model, inputs, outputs)
        current = caller.current_or_none()
        left_s = _time_left_s(current)
        try:
            response = await self._stub.ModelInfer(
                request, metadata=_metadata(current), timeout=min(left_s, _ANSWER_LIMIT_S)
            )
        except grpc.aio.AioRpcError as error:
            if error.code() == grpc.StatusCode.DEADLINE_EXCEEDED and left_s > _ANSWER_LIMIT_S:
                raise _broken(model, f"did not answer within {_ANSWER_LIMIT_S:.0f} s") from None
            _raise(error.code(), error.details() or "", model)
        return _answer(response)

    async def stream(self, model: str, inputs: Tensors) -> AsyncGenerator[Answer, None]:
        """The answers of a decoupled model, as they come. Closing it cancels the request at once.

        Unavailable after five seconds of silence: the model sends something each second, if only a response
        without outputs, which is not yielded.
        """
        request = _request(model, inputs, ())
        request.parameters["triton_enable_empty_final_response"].bool_param = True
        current = caller.current_or_none()
        call = self._stub.ModelStreamInfer(
            metadata=_metadata(current), timeout=current.time_left_s() if current else None
        )
        try:
            async with asyncio.timeout(_SILENCE_LIMIT_S):
                await call.write(request)
            while True:
                async with asyncio.timeout(_SILENCE_LIMIT_S):
                    response = await call.read()
                if response is grpc.aio.EOF:
                    raise _broken(model, "broke off before its end")
                if response.error_message:
                    _raise(None, response.error_message, model)
                is_last = response.infer_response.parameters[_FINAL].bool_param
                if is_last:
                    # A request that is cancelled just now Triton never lets go of, nor of the version of the
                    # model that answered it: so it is ended before the caller can leave.
                    async with asyncio.timeout(_SILENCE_LIMIT_S):
                        await call.done_writing()
                        await call.read()
                if response.infer_response.outputs:
                    yield _answer(response.infer_response)
                if is_last:
                    return
        except TimeoutError:
            raise _broken(model, f"said nothing for {_SILENCE_LIMIT_S:.0f} s") from None
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError) as error:
            if isinstance(error, grpc.aio.AioRpcError):
                _raise(error.code(), error.details() or "", model)
            _raise(await call.code(), await call.details() or "", model)
        finally:
            call.cancel()

    async def is_ready(self, model: str = "") -> bool:
        """Whether a model, or with none the server itself, takes calls now. False where nobody answers."""
        try:
            if not model:
                answer = await self._stub.ServerLive(service_pb2.ServerLiveRequest(), timeout=_ADMIN_LIMIT_S)
                return bool(answer.live)
            asked = service_pb2.ModelReadyRequest(name=model)
            return bool((await self._stub.ModelReady(asked, timeout=_ADMIN_LIMIT_S)).ready)
        except grpc.aio.AioRpcError:
            return False

    async def config(self, model: str) -> model_config_pb2.ModelConfig:
        """The configuration that a loaded model runs with."""
        asked = service_pb2.ModelConfigRequest(name=model)
        return (await self._admin(self._stub.ModelConfig, asked, model)).config

    async def index(self) -> list[Served]:
        """Every version of every model that the repository knows."""
        answer = await self._admin(self._stub.RepositoryIndex, service_pb2.RepositoryIndexRequest(), "")
        return [Served(each.name, each.version, each.state, each.reason) for each in answer.models]

    async def load(self, model: str) -> None:
        """Loads a model, or what is new of it. Where that fails what was served is served on."""
        asked = service_pb2.RepositoryModelLoadRequest(model_name=model)
        await self._admin(self._stub.RepositoryModelLoad, asked, model, _LOAD_LIMIT_S)

    async def unload(self, model: str) -> None:
        """Asks for a model to be unloaded; it is gone from the index' READY ones some time after."""
        asked = service_pb2.RepositoryModelUnloadRequest(model_name=model)
        await self._admin(self._stub.RepositoryModelUnload, asked, model)

    async def _admin(self, method: Any, request: Any, model: str, limit_s: float = _ADMIN_LIMIT_S) -> Any:
        try:
            return await method(request, timeout=limit_s)
        except grpc.aio.AioRpcError as error:
            if error.code() == grpc.StatusCode.DEADLINE_EXCEEDED:  # ours: the caller's may be far
                raise _detailed(_unserved(model), f"no answer within {limit_s:.0f} s") from None
            _raise(error.code(), error.details() or "", model)

    async def close(self) -> None:
        """Closes the connection; calls that run are cancelled."""
        await self._channel.close()


def _request(model: str, inputs: Tensors, outputs: tuple[str, ...]) -> Any:
    request = service_pb2.ModelInferRequest(model_name=model)
    for name, array in inputs.items():
        request.inputs.add(name=name, datatype=np_to_triton_dtype(array.dtype), shape=array.shape)
        if array.dtype == np.object_:
            packed = serialize_byte_tensor(array)
            request.raw_input_contents.append(packed.item() if packed.size else b"")
        else:
            request.raw_input_contents.append(np.ascontiguousarray(array).tobytes())
    for name in outputs:
        request.outputs.add(name=name)
    return request


def _answer(response: Any) -> Answer:
    outputs: dict[str, npt.NDArray[Any]] = {}
    for tensor, raw in zip(response.outputs, response.raw_output_contents, strict=True):
        if tensor.datatype == "BYTES":
            flat = deserialize_bytes_tensor(raw)
        else:
            flat = np.frombuffer(raw, triton_to_np_dtype(tensor.datatype))
        outputs[tensor.name] = flat.reshape(tuple(tensor.shape))
    return Answer(outputs, response.model_version)


def _time_left_s(current: caller.Caller | None) -> float:
    left_s = current.time_left_s() if current else None
    return float("inf") if left_s is None else left_s


def _metadata(current: caller.Caller | None) -> tuple[tuple[str, str], ...]:
    """Triton joins the trace; the token is not its business."""
    if current is None:
        return ()
    return tuple(caller.onward().items())


def _raise(code: grpc.StatusCode | None, details: str, model: str) -> NoReturn:
    """`code` is None for an error that came inside a stream: Triton sends its words alone."""
    error: WeftError
    match code:
        case _ if "maximum queue size" in details:
            error = ResourceExhausted(
                ERROR_REASON_OVERLOADED,
                f"The model {model} has as much to do as it may queue. Try again in a second.",
                metadata={"model": model},
            )
        case None if _UNKNOWN.search(details):
            error = _unserved(model)
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            error = DeadlineExceeded()
        case grpc.StatusCode.INVALID_ARGUMENT:
            error = FailedPrecondition(
                ERROR_REASON_MODEL_REFUSED,
                f"The model {model} did not take the request.",
                metadata={"model": model},
            )
        case grpc.StatusCode.UNAVAILABLE | grpc.StatusCode.NOT_FOUND | grpc.StatusCode.CANCELLED:
            error = _unserved(model)
        case _:
            error = _broken(model, "failed")
    raise _detailed(error, details) from None


def _detailed(error: WeftError, details: str) -> WeftError:
    error.detail = details[:500]
    return error


def _unserved(model: str) -> Unavailable:
    return Unavailable(
        ERROR_REASON_BACKEND_UNAVAILABLE,
        f"Triton does not serve {model or 'its repository'} just now. Try again in a second.",
        metadata={"backend": "triton", "model": model},
    )


def _broken(model: str, what: str) -> Unavailable:
    return Unavailable(
        ERROR_REASON_MODEL_BROKEN,
        f"The model {model} {what}. Try again in a second.",
        metadata={"model": model},
    )

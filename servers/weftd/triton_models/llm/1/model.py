"""The language model as Triton serves it: README.md says what the tensors mean."""

from __future__ import annotations

import json
import threading
from typing import Any

import numpy as np
import triton_python_backend_utils as pb

if int(np.__version__.partition(".")[0]) >= 2:
    raise RuntimeError(
        f"This Python has numpy {np.__version__}, with which Triton's stub reads zeros. Install numpy<2."
    )

from .causal import Asked, Busy, Causal, Failed, Piece, Refused

# A cancel waits so long to be heard, apart from the time of a token: once for each open text and once more.
# To ask for one takes Triton 0.1 ms.
_POLL_S = 0.001
_MOST_POLL_S = 0.005
_METRICS_S = 0.1
# Weft gives a stream up that was silent for 5 s: where this process is killed, Triton never ends it.
_BEAT_S = 1.0
_FINAL = pb.TRITONSERVER_RESPONSE_COMPLETE_FINAL


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        config = json.loads(args["model_config"])
        values = {name: each["string_value"] for name, each in config["parameters"].items()}
        if not values["directory"]:
            raise pb.TritonModelException("The parameter `directory` of config.pbtxt names no model.")
        on_gpu = args["model_instance_kind"] == "GPU"
        device = f"cuda:{args['model_instance_device_id']}" if on_gpu else "cpu"
        self._causal = Causal.configured(values, device)
        self._open: set[_Answer] = set()
        self._closing = threading.Event()
        self._metrics = _Metrics({"model": args["model_name"], "version": args["model_version"]})
        self._threads = [
            threading.Thread(target=work, daemon=True) for work in (self._watch, self._beat, self._measure)
        ]
        for thread in self._threads:
            thread.start()

    def execute(self, requests: list[Any]) -> None:
        for request in requests:
            answer = _Answer(request.get_response_sender(), self._open)
            try:
                asked = _asked(request)
                with answer.lock:  # the first piece may come before `begin` has returned
                    answer.text = self._causal.begin(asked, answer.take)
                    self._open.add(answer)
            except Busy:
                # The words of Triton's own queues, for who knows those.
                answer.fail(pb.TritonError("Exceeds maximum queue size", pb.TritonError.UNAVAILABLE))
            except (Refused, ValueError, TypeError, KeyError) as error:
                answer.fail(pb.TritonError(f"refused: {error}", pb.TritonError.INVALID_ARG))

    def finalize(self) -> None:
        self._closing.set()
        for thread in self._threads:
            thread.join()
        self._causal.close()

    def _watch(self) -> None:
        """Stops the texts that nobody waits for any more."""
        while not self._closing.wait(min(_POLL_S * (1 + len(self._open)), _MOST_POLL_S)):
            for answer in list(self._open):
                if answer.is_cancelled():
                    self._causal.cancel(answer.text)
                    answer.end()

    def _beat(self) -> None:
        while not self._closing.wait(_BEAT_S):
            for answer in list(self._open):
                answer.beat()

    def _measure(self) -> None:
        while not self._closing.wait(_METRICS_S):
            self._metrics.set(self._causal)


class _Answer:
    """One request's way back.

    Nothing may be asked of a sender after its final response: Triton dies of it. Hence the lock.
    """

    def __init__(self, sender: Any, among: set[_Answer]) -> None:
        self.lock = threading.RLock()
        self.text: Any = None
        self._sender = sender
        self._among = among
        self._ended = False

    def take(self, piece: Piece | Failed) -> None:
        if isinstance(piece, Failed):
            self.fail(pb.TritonError(f"failed: {piece}", pb.TritonError.INTERNAL))
            return
        outputs = [
            pb.Tensor("TEXT", np.array([piece.text.encode()], object)),
            pb.Tensor("FINISH_REASON", np.array([piece.finish_reason.encode()], object)),
            pb.Tensor("PROMPT_TOKENS", np.array([piece.prompt_tokens], np.int32)),
            pb.Tensor("COMPLETION_TOKENS", np.array([piece.completion_tokens], np.int32)),
        ]
        self._send(pb.InferenceResponse(outputs), final=bool(piece.finish_reason))

    def fail(self, error: Any) -> None:
        self._send(pb.InferenceResponse(error=error), final=True)

    def end(self) -> None:
        self._send(None, final=True)

    def beat(self) -> None:
        """Says that the text is still thought about: a response with nothing in it."""
        self._send(pb.InferenceResponse([]), final=False)

    def is_cancelled(self) -> bool:
        with self.lock:
            return not self._ended and bool(self._sender.is_cancelled())

    def _send(self, response: Any, *, final: bool) -> None:
        with self.lock:
            if self._ended:
                return
            if final:
                self._ended = True
                self._among.discard(self)
                self._sender.send(*filter(None, [response]), flags=_FINAL)
            else:
                self._sender.send(response)


class _Metrics:
    """What the model did, among Triton's own metrics."""

    def __init__(self, labels: dict[str, str]) -> None:
        def gauge(name: str, about: str) -> Any:
            family = pb.MetricFamily(name=f"weft_llm_{name}", description=about, kind=pb.MetricFamily.GAUGE)
            self._families.append(family)
            return family.Metric(labels=labels)

        self._families: list[Any] = []
        self._values: dict[str, float] = {}
        self._metrics = {
            "open": gauge("texts_open", "Texts that are written or wait"),
            "tokens": gauge("tokens_total", "Tokens made"),
            "finished": gauge("texts_finished_total", "Texts written to their end"),
            "cancelled": gauge("texts_cancelled_total", "Texts stopped because nobody waited for them"),
            "refused": gauge("texts_refused_total", "Requests refused"),
            "failed": gauge("texts_failed_total", "Texts that broke off"),
            "late_tokens": gauge("tokens_late_total", "Tokens made for a text after it had left the batch"),
            "stopped_at": gauge(
                "stopped_timestamp_seconds", "When the last cancelled text had left the batch"
            ),
        }

    def set(self, causal: Causal) -> None:
        for name, value in {"open": causal.open, **vars(causal.counts)}.items():
            if value != self._values.get(name):  # each is a call to Triton
                self._values[name] = value
                self._metrics[name].set(value)


def _asked(request: Any) -> Asked:
    given = {tensor.name(): tensor.as_numpy().reshape(-1) for tensor in request.inputs()}

    def text(name: str) -> str:
        return str(given[name][0].decode()) if name in given else ""

    def number(name: str) -> float | None:
        return float(given[name][0]) if name in given else None

    messages = json.loads(text("MESSAGES"))
    return Asked(
        messages=[{"role": str(each["role"]), "content": str(each["content"])} for each in messages],
        prefix=text("PREFIX"),
        temperature=number("TEMPERATURE"),
        top_p=number("TOP_P"),
        max_tokens=max(1, int(number("MAX_TOKENS") or 1024)),
        stop=tuple(each.decode() for each in given.get("STOP", ())),
    )

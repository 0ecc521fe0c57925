"""Small models for Triton, without torch or weights: what tests of calls, streams and versions need."""

from __future__ import annotations

from pathlib import Path
from typing import Final

__all__ = ["COUNT", "ECHO", "SLOW", "VERSIONED", "write_model"]

_CPU: Final = "instance_group [ { kind: KIND_CPU count: %d } ]\n"

# ECHO: TEXT BYTES [1] (batched) comes back as TEXT_BACK, with the pid of the stub as PID INT32 [1].
# "fail" raises; "die" ends the stub; "sleep S" answers after so many seconds.
ECHO: Final = "echo"
# SLOW: as ECHO, 1 instance, batches of one, a queue of 2.
SLOW: Final = "slow"
# COUNT (decoupled): N INT32 [1], PAUSE_MS FP32 [1]; answers I INT32 [1] from 0 to N - 1, one each PAUSE_MS.
# N of 0 is answered with one response: MADE INT32 [1] as all that were ever sent, CANCELLED INT32 [1] as
# the streams that a cancel ended, RUNNING INT32 [1] as those that run.
COUNT: Final = "count"
# VERSIONED: X FP32 [1] (batched) comes back as Y = X + 1000 * version, and VERSION INT32 [1].
VERSIONED: Final = "versioned"

_IMPORTS: Final = """import os
import threading
import time

import numpy as np
import triton_python_backend_utils as pb_utils

"""

_ECHO_CONFIG: Final = """backend: "python"
max_batch_size: 8
dynamic_batching {}
input [ { name: "TEXT" data_type: TYPE_STRING dims: [ 1 ] } ]
output [
  { name: "TEXT_BACK" data_type: TYPE_STRING dims: [ 1 ] },
  { name: "PID" data_type: TYPE_INT32 dims: [ 1 ] }
]
"""

_ECHO_CODE: Final = """
class TritonPythonModel:
    def execute(self, requests):
        return [self._answer(request) for request in requests]

    def _answer(self, request):
        texts = pb_utils.get_input_tensor_by_name(request, "TEXT").as_numpy()
        for each in texts.flat:
            if each == b"fail":
                return pb_utils.InferenceResponse(error=pb_utils.TritonError("as asked"))
            if each == b"die":
                os._exit(7)
            if each.startswith(b"sleep "):
                time.sleep(float(each.split()[1]))
        pids = np.full(texts.shape, os.getpid(), np.int32)
        return pb_utils.InferenceResponse([pb_utils.Tensor("TEXT_BACK", texts), pb_utils.Tensor("PID", pids)])
"""

_SLOW_CONFIG: Final = _ECHO_CONFIG.replace("max_batch_size: 8", "max_batch_size: 1").replace(
    "dynamic_batching {}", "dynamic_batching { default_queue_policy { max_queue_size: 2 } }"
)

_COUNT_CONFIG: Final = """backend: "python"
max_batch_size: 0
model_transaction_policy { decoupled: true }
input [
  { name: "N" data_type: TYPE_INT32 dims: [ 1 ] },
  { name: "PAUSE_MS" data_type: TYPE_FP32 dims: [ 1 ] }
]
output [
  { name: "I" data_type: TYPE_INT32 dims: [ 1 ] },
  { name: "MADE" data_type: TYPE_INT32 dims: [ 1 ] },
  { name: "CANCELLED" data_type: TYPE_INT32 dims: [ 1 ] },
  { name: "RUNNING" data_type: TYPE_INT32 dims: [ 1 ] }
]
"""

_COUNT_CODE: Final = """
def _tensor(name, value):
    return pb_utils.Tensor(name, np.array([value], np.int32))


class TritonPythonModel:
    def initialize(self, args):
        self.lock = threading.Lock()
        self.made = self.cancelled = self.running = 0

    def execute(self, requests):
        for request in requests:
            count = int(pb_utils.get_input_tensor_by_name(request, "N").as_numpy()[0])
            pause_s = float(pb_utils.get_input_tensor_by_name(request, "PAUSE_MS").as_numpy()[0]) / 1000
            sender = request.get_response_sender()
            if count:
                self._add(running=1)
                threading.Thread(target=self._count, args=(sender, count, pause_s), daemon=True).start()
            else:
                self._send(sender, 0)
                sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def _count(self, sender, count, pause_s):
        for i in range(count):
            ends = time.monotonic() + pause_s
            beat_at = time.monotonic() + 1
            while not sender.is_cancelled() and time.monotonic() < ends:
                time.sleep(0.001)
                if time.monotonic() > beat_at:
                    sender.send(pb_utils.InferenceResponse([]))  # it lives
                    beat_at += 1
            if sender.is_cancelled():
                self._add(cancelled=1)
                break
            self._add(made=1)
            self._send(sender, i)
        self._add(running=-1)
        sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def _add(self, made=0, cancelled=0, running=0):
        with self.lock:
            self.made += made
            self.cancelled += cancelled
            self.running += running

    def _send(self, sender, i):
        numbers = {"I": i, "MADE": self.made, "CANCELLED": self.cancelled, "RUNNING": self.running}
        sender.send(pb_utils.InferenceResponse([_tensor(*each) for each in numbers.items()]))
"""

_VERSIONED_CONFIG: Final = """backend: "python"
max_batch_size: 8
dynamic_batching {}
input [ { name: "X" data_type: TYPE_FP32 dims: [ 1 ] } ]
output [
  { name: "Y" data_type: TYPE_FP32 dims: [ 1 ] },
  { name: "VERSION" data_type: TYPE_INT32 dims: [ 1 ] }
]
"""

_VERSIONED_CODE: Final = """
class TritonPythonModel:
    def initialize(self, args):
        self.version = int(args["model_version"])

    def execute(self, requests):
        answers = []
        for request in requests:
            x = pb_utils.get_input_tensor_by_name(request, "X").as_numpy()
            answers.append(pb_utils.InferenceResponse([
                pb_utils.Tensor("Y", x + 1000 * self.version),
                pb_utils.Tensor("VERSION", np.full(x.shape, self.version, np.int32)),
            ]))
        return answers
"""

_MODELS: Final = {
    ECHO: (_ECHO_CONFIG, _ECHO_CODE),
    SLOW: (_SLOW_CONFIG, _ECHO_CODE),
    COUNT: (_COUNT_CONFIG, _COUNT_CODE),
    VERSIONED: (_VERSIONED_CONFIG, _VERSIONED_CODE),
}


def write_model(kind: str, directory: Path, version: int = 1, instances: int = 1) -> Path:
    """Writes the model `kind` into `directory` (its name is the model's); returns `directory`."""
    config, code = _MODELS[kind]
    (directory / str(version)).mkdir(parents=True)
    (directory / "config.pbtxt").write_text(config + _CPU % instances)
    (directory / str(version) / "model.py").write_text(_IMPORTS + code)
    return directory

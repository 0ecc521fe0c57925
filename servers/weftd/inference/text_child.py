"""The process that a language model runs in: `PYTHON text_child.py PARENT CODE`, by the models' own Python.

CODE is the version directory of the llm in `triton_models/`, whose `causal.py` does the work. Lines of JSON.
In: first what `Causal` takes, then `{"id", "messages", …}` begins a text, `{"cancel": id}` stops one, and
`{"counts": true}` asks what was done. Out: `{"ready": context}` or `{"failed": why}` first; then
`{"id", "piece": {…}}`, `{"id", "refused"}`, `{"id", "busy"}`, `{"id", "broken"}` and `{"counts": {…}}`;
`{"beat": true}` each second, for a process that froze says nothing.
It ends with its input, and with its parent. It imports nothing of Weft: its Python has other libraries.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import queue
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

_PR_SET_PDEATHSIG = 1
_TOGETHER_S = 0.002
_BEAT_S = 1.0


def main() -> None:
    parent, code = int(sys.argv[1]), sys.argv[2]
    _end_with(parent)
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not mix with the answers
    answers: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()

    def say(**message: Any) -> None:
        answers.put(message)

    sys.path.insert(0, str(Path(code).parent))
    try:
        causal = importlib.import_module(f"{Path(code).name}.causal")
        model = causal.Causal(**json.loads(sys.stdin.buffer.readline()))
    except ImportError as error:
        why = f"{sys.executable} has not what a language model needs ({error}). Run `make llm`."
        out.write(json.dumps({"failed": why}).encode() + b"\n")
        return out.flush()
    except Exception as error:
        out.write(json.dumps({"failed": str(error)}).encode() + b"\n")
        return out.flush()
    threading.Thread(target=_write, args=(answers, out), daemon=True).start()
    say(ready=model.context)
    threading.Thread(target=_beat, args=(say,), daemon=True).start()
    _serve(causal, model, say)
    os._exit(0)  # threads of torch need not be waited for


def _write(answers: queue.SimpleQueue[dict[str, Any]], out: BinaryIO) -> None:
    """What came meanwhile goes out together: a system call for each piece would be the model's time."""
    while True:
        lines = [answers.get()]
        while not answers.empty():
            lines.append(answers.get())
        out.write(b"".join(json.dumps(line, ensure_ascii=False).encode() + b"\n" for line in lines))
        out.flush()
        time.sleep(_TOGETHER_S)


def _beat(say: Any) -> None:
    while True:
        time.sleep(_BEAT_S)
        say(beat=True)


def _serve(causal: Any, model: Any, say: Any) -> None:
    texts: dict[int, Any] = {}
    lock = threading.Lock()
    # Reading a long prompt takes time, in which a cancel must be heard.
    beginning = ThreadPoolExecutor(1)

    def begin(number: int, asked: dict[str, Any]) -> None:
        def take(piece: Any) -> None:
            if isinstance(piece, causal.Failed):
                say(id=number, broken=str(piece))
            else:
                say(id=number, piece=vars(piece))
            if isinstance(piece, causal.Failed) or piece.finish_reason:
                with lock:
                    texts.pop(number, None)

        with lock:
            if number not in texts:
                return  # it was cancelled before it had begun
        try:
            text = model.begin(causal.Asked(**asked), take)
        except causal.Busy as error:
            say(id=number, busy=str(error))
            return
        except Exception as error:
            say(id=number, refused=f"refused: {error}")
            return
        with lock:
            if number in texts:
                texts[number] = text
                return
        model.cancel(text)  # or it has ended already, which is as good

    for line in sys.stdin.buffer:
        message = json.loads(line)
        if "cancel" in message:
            with lock:
                text = texts.pop(message["cancel"], None)
            if text is not None:
                model.cancel(text)
        elif "counts" in message:
            say(counts=vars(model.counts) | {"open": model.open})
        else:
            number = message.pop("id")
            texts[number] = None
            beginning.submit(begin, number, message)


def _end_with(parent: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it was gone before we asked
            os._exit(1)


if __name__ == "__main__":
    main()

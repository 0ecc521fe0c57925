"""Runs the server as its guardian: `python -I -S launch.py PARENT_PID SHM_PREFIX GRACE_S PROGRAM ARGUMENT…`.

However the server, its Python stubs or the guardian's own parent end: no process of it and no shared memory
of it stays. SIGTERM lets the server finish for GRACE_S; the parent's death does not. The exit status is the
server's. Only the standard library is imported: it starts in 20 ms and takes 8 MB.
"""

import contextlib
import ctypes
import os
import signal
import sys
import time
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_LOOK_EVERY_S = 0.5
_PAUSE_S = 0.01
_SIGNALS = {signal.SIGTERM, signal.SIGINT, signal.SIGCHLD}


def main(parent: int, prefix: str, grace_s: float, command: list[str]) -> int:
    kernel = ctypes.CDLL(None)
    # They are waited for, and interrupt nothing.
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    kernel.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    # The stubs of a killed server become our children: we end them, and see them end.
    kernel.prctl(_PR_SET_CHILD_SUBREAPER, 1)
    own = os.getpid()
    server = os.fork()
    if server == 0:
        os.setsid()
        kernel.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        if os.getppid() != own:
            os._exit(1)
        os.execv(command[0], command)
    end_at = float("inf")
    status = None
    while status is None:
        seen = signal.sigtimedwait(_SIGNALS, _LOOK_EVERY_S)
        if os.getppid() != parent or time.monotonic() > end_at:
            _kill(server)
        elif seen is not None and seen.si_signo != signal.SIGCHLD and end_at == float("inf"):
            os.kill(server, signal.SIGTERM)
            end_at = time.monotonic() + grace_s
        status = _reap(server)
    _kill(server)
    with contextlib.suppress(ChildProcessError):
        while True:
            if os.waitpid(-1, os.WNOHANG)[0] == 0:
                _kill_children(own)
                time.sleep(_PAUSE_S)
    for left in Path("/dev/shm").glob(f"{prefix}*"):
        left.unlink(missing_ok=True)
    return os.waitstatus_to_exitcode(status)


def _reap(server: int) -> int | None:
    """The server's status, if it has ended; orphans that we were given are reaped beside."""
    while True:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == server:
            return status
        if pid == 0:
            return None


def _kill(server: int) -> None:
    """The server and all that it started: they are one process group."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(server, signal.SIGKILL)


def _kill_children(own: int) -> None:
    """What a model started in a session of its own, and what is being given to us meanwhile."""
    for child in Path(f"/proc/{own}/task/{own}/children").read_text().split():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(child), signal.SIGKILL)


if __name__ == "__main__":
    code = main(int(sys.argv[1]), sys.argv[2], float(sys.argv[3]), sys.argv[4:])
    sys.exit(code if code >= 0 else 128 - code)

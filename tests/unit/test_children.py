"""How long a process that ended waits for its next start."""

from __future__ import annotations

import time

import pytest

from weftd.children import RestartPause


def test_a_process_that_keeps_ending_waits_longer_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    pause = RestartPause(5.0)
    waited = []
    for _ in range(9):
        pause.started()
        now += 4
        waited.append(pause.ended())
    assert waited == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0, 10.0]
    pause.started()
    now += 6
    assert pause.ended() == 0.1, "it ran for a while"
    now += 100
    assert pause.ended() == 0.2, "it was long in starting, and never ran"

"""When a stream counts as one that nobody reads."""

from __future__ import annotations

import asyncio

import pytest

from weftd.errors import ResourceExhausted, reason_name
from weftd.rpc.stall import StallGuard


async def test_one_message_that_waits_all_the_time_ends_it() -> None:
    with pytest.raises(ResourceExhausted) as raised, StallGuard() as guard:
        guard.writing = 1
        for _ in range(5):  # the first finds it waiting, four more find it still there
            guard._look()
        await asyncio.sleep(60)
    assert reason_name(raised.value.reason) == "OVERLOADED"
    task = asyncio.current_task()
    assert task is not None and not task.cancelling()


async def test_slow_messages_and_long_pauses_between_them_do_not() -> None:
    with StallGuard() as guard:
        for number in range(1, 20):
            guard.writing = number
            for _ in range(4):
                guard._look()
        guard.writing = 0
        for _ in range(20):
            guard._look()
        await asyncio.sleep(0)


async def test_a_cancel_from_outside_stays_one() -> None:
    async def send() -> None:
        with StallGuard() as guard:
            guard.writing = 1
            await asyncio.sleep(60)

    sending = asyncio.create_task(send())
    await asyncio.sleep(0)
    sending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sending

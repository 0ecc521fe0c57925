"""Turns in one process: what ends them before their answer does."""

from __future__ import annotations

import asyncio
import time

import pytest

from tests.servers.chat_room import (
    WORDS,
    ScriptedModel,
    ScriptedSearch,
    chat_room,
    first_deltas,
    kept,
    question,
    read_all,
    reason_of,
    resume,
    until,
)
from weftd import errors
from weftd.stores.records.engine import Records

CLOSED_WITHIN_S = 0.05


async def assert_closed(model: ScriptedModel, since: float) -> None:
    """The model's generator was closed in time, and wrote nothing afterwards."""
    await until(lambda: model.open == 0)
    assert model.closed_at[-1] - since < CLOSED_WITHIN_S
    written = model.written
    model.allow()
    await asyncio.sleep(0.01)
    assert model.written == written


async def test_a_turn_that_is_not_resumable_ends_when_its_reader_leaves(records: Records) -> None:
    model = ScriptedModel(paced=True)
    async with chat_room(records, model) as turns:
        events = turns.ask("acme", question(), None)
        await first_deltas(events, model, 2)
        left = time.monotonic()
        await events.aclose()
        await assert_closed(model, left)
        await until(lambda: turns.running == 0)
        again = await read_all(resume(turns))
    assert again[-1].reason == "TURN_CANCELLED"
    assert (await kept(records))[1] == ("assistant", "".join(WORDS[:2]), "cancelled")


async def test_a_resumable_turn_waits_its_grace(records: Records) -> None:
    model = ScriptedModel(paced=True)
    async with chat_room(records, model, resume_grace_s=0.1) as turns:
        events = turns.ask("acme", question(resumable=True), None)
        await first_deltas(events, model, 1)
        left = time.monotonic()
        await events.aclose()
        await until(lambda: model.open == 0)
        assert 0.09 < model.closed_at[-1] - left < 1.1
        await until(lambda: turns.running == 0)
        assert (await read_all(resume(turns)))[-1].reason == "TURN_CANCELLED"


async def test_one_of_two_readers_may_leave(records: Records) -> None:
    model = ScriptedModel(paced=True)
    async with chat_room(records, model) as turns:
        first, second = turns.ask("acme", question(), None), resume(turns)
        await first_deltas(first, model, 1)
        assert (await anext(second)).seq == 1
        await first.aclose()
        model.allow()
        assert [event.type for event in await read_all(second)][-1] == "done"


@pytest.mark.parametrize("resumable", [False, True])
async def test_cancel_ends_a_turn_at_once(records: Records, resumable: bool) -> None:
    model = ScriptedModel(paced=True)
    async with chat_room(records, model) as turns:
        events = turns.ask("acme", question(resumable=resumable), None)
        await first_deltas(events, model, 2)
        asked = time.monotonic()
        assert await turns.cancel("acme", "c1", "r1") == "cancelled"
        await assert_closed(model, asked)
        rest = await read_all(events)
        assert [(event.type, event.reason) for event in rest] == [("error", "TURN_CANCELLED")]
        assert await turns.cancel("acme", "c1", "r1") == "ended"
        assert await read_all(resume(turns, after_seq=2)) == rest
    assert (await kept(records))[1] == ("assistant", "".join(WORDS[:2]), "cancelled")


async def test_cancel_ends_the_search_too(records: Records) -> None:
    search = ScriptedSearch()
    search.stuck = True
    async with chat_room(records, search=search) as turns:
        reading = asyncio.create_task(read_all(turns.ask("acme", question(), None)))
        await until(lambda: bool(search.requests))
        asked = time.monotonic()
        await turns.cancel("acme", "c1", "r1")
        assert search.closed_at[-1] - asked < CLOSED_WITHIN_S
        assert [(event.reason, event.seq) for event in await reading] == [("TURN_CANCELLED", 1)]


async def test_a_passed_deadline_ends_a_resumable_turn_too(records: Records) -> None:
    model = ScriptedModel(paced=True)
    async with chat_room(records, model) as turns:
        deadline = asyncio.get_running_loop().time() + 0.2
        events = turns.ask("acme", question(resumable=True), deadline)
        got = await first_deltas(events, model, 1) + await read_all(events)
        assert got[-1].reason == "DEADLINE_EXCEEDED"
        assert model.closed_at[-1] - deadline < CLOSED_WITHIN_S
        assert await read_all(resume(turns)) == got


async def test_a_reader_that_goes_at_its_deadline_takes_the_turn_along(records: Records) -> None:
    model = ScriptedModel(paced=True)
    async with chat_room(records, model) as turns:
        deadline = asyncio.get_running_loop().time() + 0.02
        events = turns.ask("acme", question(resumable=True), deadline)
        await first_deltas(events, model, 1)
        await events.aclose()
        await until(lambda: turns.running == 0)
        assert (await read_all(resume(turns)))[-1].reason == "DEADLINE_EXCEEDED"


async def test_a_turn_lasts_so_long_at_most(records: Records) -> None:
    async with chat_room(records, ScriptedModel(paced=True), max_turn_s=0.05) as turns:
        events = await read_all(turns.ask("acme", question(), None))
    assert [event.reason for event in events] == ["DEADLINE_EXCEEDED"]


async def test_deleting_a_conversation_ends_its_turn(records: Records) -> None:
    model = ScriptedModel(paced=True)
    async with chat_room(records, model) as turns:
        events = turns.ask("acme", question(), None)
        await first_deltas(events, model, 1)
        asked = time.monotonic()
        await turns.delete("acme", "c1")
        await assert_closed(model, asked)
        assert (await read_all(events))[-1].reason == "TURN_CANCELLED"
        assert await reason_of(resume(turns)) == "CONVERSATION_NOT_FOUND"
        with pytest.raises(errors.NotFound):
            await turns.delete("acme", "c1")

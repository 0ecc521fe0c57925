"""Two processes on one database: any of them answers for any turn, and takes over what the other left.

Two rooms stand for them; a room whose worker is taken out of the list of the living stands for one that was
killed: its task is still there, as that of a process which only seemed dead would be.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest
import sqlalchemy as sa

from tests.servers.chat_room import (
    WORDS,
    ScriptedModel,
    ScriptedSearch,
    chat_room,
    question,
    read_all,
    text_of,
    until,
)
from weft.v1 import error_reason_pb2
from weft.v1.chat_pb2 import ChatEvent
from weftd import errors
from weftd.chat import writer
from weftd.chat.room import ChatTurns
from weftd.rpc.drain import Drain
from weftd.stores.records import conversations, turn_log, turns
from weftd.stores.records.conversation_tables import chat_workers
from weftd.stores.records.engine import Records

TEXT = "".join(WORDS)


@pytest.fixture
async def other_records(empty_database: str, records: Records) -> AsyncIterator[Records]:
    opened = Records(empty_database)
    yield opened
    await opened.close()


async def bury(records: Records, turns: ChatTurns) -> None:
    """The worker's heart has stopped."""
    await records.write(
        lambda c: c.execute(sa.delete(chat_workers).where(chat_workers.c.worker_id == turns.worker))
    )


async def test_a_turn_of_another_process_is_followed_while_it_runs(
    records: Records, other_records: Records
) -> None:
    model = ScriptedModel(paced=True)
    async with chat_room(records, model) as here, chat_room(other_records) as there:
        async with aclosing(here.ask("acme", question(resumable=True), None)) as events:
            model.allow(1)
            first = await anext(events)
            tail = asyncio.create_task(read_all(there.resume("acme", "c1", "r1", 0, True, None)))
            again = asyncio.create_task(read_all(there.ask("acme", question(after_seq=1), None)))
            with pytest.raises(errors.FailedPrecondition) as busy:
                await read_all(there.ask("acme", question(request_id="r2"), None))
            assert busy.value.metadata == {"request_id": "r1"}
            model.allow()
            whole = [first, *await read_all(events)]
        assert await tail == whole
        assert await again == whole[1:]
    assert text_of(whole) == TEXT
    assert len(model.requests) == 1


async def test_identical_requests_to_two_processes_start_one_turn(
    records: Records, other_records: Records
) -> None:
    model = ScriptedModel()
    async with chat_room(records, model) as here, chat_room(other_records, model) as there:
        for number in range(10):
            name = f"c{number}"
            first, second = await asyncio.gather(
                read_all(here.ask("acme", question(conversation_id=name), None)),
                read_all(there.ask("acme", question(conversation_id=name), None)),
            )
            assert first == second
            assert text_of(first) == TEXT
    assert len(model.requests) == 10


async def test_cancel_reaches_the_process_that_runs_it(records: Records, other_records: Records) -> None:
    model = ScriptedModel(paced=True)
    async with chat_room(records, model, beat_s=0.05) as here, chat_room(other_records) as there:
        reading = asyncio.create_task(read_all(here.ask("acme", question(), None)))
        await until(lambda: model.open == 1)
        assert await there.cancel("acme", "c1", "r1") == "cancelled"
        assert [event.reason for event in await reading] == ["TURN_CANCELLED"]
        assert model.open == 0
        assert await there.cancel("acme", "c1", "r1") == "ended"


async def test_deleting_reaches_it_too(records: Records, other_records: Records) -> None:
    model = ScriptedModel(paced=True)
    async with chat_room(records, model, beat_s=0.05) as here, chat_room(other_records) as there:
        reading = asyncio.create_task(read_all(here.ask("acme", question(), None)))
        await until(lambda: model.open == 1)
        await there.delete("acme", "c1")
        assert (await reading)[-1].reason == "TURN_CANCELLED"
        await until(lambda: model.open == 0)


@pytest.mark.parametrize("stopped_after", [0, 1, 3])
async def test_a_model_that_can_continue_goes_on_where_the_dead_process_stopped(
    records: Records, other_records: Records, stopped_after: int
) -> None:
    before, after = ScriptedModel(paced=True), ScriptedModel(can_continue=True)
    search = ScriptedSearch()
    async with (
        chat_room(records, before, beat_s=60) as dead,
        chat_room(other_records, after, search) as alive,
    ):
        events = dead.ask("acme", question(resumable=True, top_k=3), None)
        reading = asyncio.create_task(read_all(events))
        before.allow(stopped_after)
        await until(lambda: before.written == stopped_after and before.open == 1)
        got = await stored_events(records, stopped_after)
        await bury(records, dead)
        rest = await read_all(alive.resume("acme", "c1", "r1", len(got), True, None))
        assert text_of(got) + text_of(rest) == TEXT
        assert [event.seq for event in rest] == list(range(len(got) + 1, len(got) + len(rest) + 1))
        assert rest[-1].type == "done"
        assert after.requests[0].prefix == text_of(got)
        assert search.requests[0].top_k == 3
        # The one that only seemed dead makes no event any more, and its reader gets those of the other.
        before.allow()
        assert text_of(await reading) == TEXT
        await until(lambda: before.open == 0)
        page = await records.read(lambda c: conversations.page(c, "acme", "c1", 10))
        assert [(row.content, row.status) for row in page[1:]] == [(TEXT, "complete")]


async def stored_events(records: Records, words: int) -> list[ChatEvent]:
    """The events of the turn, once they hold so many words."""

    def look(connection: sa.Connection) -> list[ChatEvent]:
        turn = turns.find(connection, "acme", "c1", "r1")
        return [] if turn is None else turn_log.events_after(connection, turn.turn_id, 0, 100)

    async with asyncio.timeout(10):
        while text_of(events := await records.read(look)) != "".join(WORDS[:words]):
            await asyncio.sleep(0.005)
    return events


async def test_otherwise_the_stored_events_are_followed_by_interrupted(
    records: Records, other_records: Records
) -> None:
    before = ScriptedModel(paced=True)
    async with chat_room(records, before, beat_s=60) as dead, chat_room(other_records) as alive:
        async with aclosing(dead.ask("acme", question(resumable=True), None)) as events:
            before.allow(1)
            first = await anext(events)
            await bury(records, dead)
            resumed = await read_all(alive.resume("acme", "c1", "r1", 0, True, None))
        assert resumed[0] == first
        assert [(event.type, event.reason, event.seq) for event in resumed[1:]] == [
            ("error", "INTERRUPTED", 2)
        ]
        page = await records.read(lambda c: conversations.page(c, "acme", "c1", 10))
        assert [(row.content, row.status) for row in page[1:]] == [(WORDS[0], "interrupted")]


async def test_a_new_question_does_not_wait_for_a_dead_process(
    records: Records, other_records: Records
) -> None:
    before = ScriptedModel(paced=True)
    async with (
        chat_room(records, before, beat_s=60) as dead,
        chat_room(other_records) as alive,
        aclosing(dead.ask("acme", question(resumable=True), None)) as events,
    ):
        before.allow(1)
        await anext(events)
        await bury(records, dead)
        assert text_of(await read_all(alive.ask("acme", question(request_id="r2"), None))) == TEXT
        before.allow(1)
        assert [event.reason for event in await read_all(events)] == ["INTERRUPTED"]


async def test_a_stopped_process_leaves_its_turns_at_once(records: Records, other_records: Records) -> None:
    before, after = ScriptedModel(paced=True), ScriptedModel(can_continue=True)
    drain = Drain(0.1)
    async with chat_room(other_records, after) as alive:
        async with chat_room(records, before, drain=drain) as stopping:
            async with aclosing(stopping.ask("acme", question(resumable=True), None)) as events:
                before.allow(1)
                first = await anext(events)
            drain.begin()
        assert before.open == 0
        started = time.monotonic()
        rest = await read_all(alive.resume("acme", "c1", "r1", first.seq, True, None))
        assert time.monotonic() - started < 2
    assert first.content + text_of(rest) == TEXT


async def test_a_turn_whose_end_could_not_be_stored_is_left_to_others(
    records: Records, other_records: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "_STORE_PATIENCE_S", 0.0)
    before, after = ScriptedModel(paced=True), ScriptedModel(can_continue=True)
    async with chat_room(records, before, beat_s=0.05) as here, chat_room(other_records, after) as there:
        async with aclosing(here.ask("acme", question(resumable=True), None)) as events:
            before.allow(1)
            first = await anext(events)
            real = records.write_batched

            async def broken(*_args: object, **_options: object) -> None:
                raise errors.Unavailable(error_reason_pb2.ERROR_REASON_BACKEND_UNAVAILABLE, "gone")

            monkeypatch.setattr(records, "write_batched", broken)
            before.allow(1)
            with pytest.raises(errors.Unavailable):
                await read_all(events)
            assert before.open == 0
            monkeypatch.setattr(records, "write_batched", real)
        rest = await read_all(there.resume("acme", "c1", "r1", first.seq, True, None))
        assert first.content + text_of(rest) == TEXT

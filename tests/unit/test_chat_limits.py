"""What a chat process refuses before it runs."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest

from tests.servers.chat_room import ScriptedModel, chat_room, question, read_all, until
from weftd import errors
from weftd.errors import reason_name
from weftd.stores.records.engine import Records


async def test_one_tenant_cannot_take_all_places(records: Records) -> None:
    model = ScriptedModel(paced=True)
    async with chat_room(records, model, max_turns=3, max_tenant_turns=2) as turns:
        reading = [
            asyncio.create_task(read_all(turns.ask("acme", question(conversation_id=f"c{n}"), None)))
            for n in range(2)
        ]
        await until(lambda: model.open == 2)
        with pytest.raises(errors.ResourceExhausted) as raised:
            await read_all(turns.ask("acme", question(conversation_id="c3"), None))
        assert (reason_name(raised.value.reason), raised.value.retry_after_s) == ("OVERLOADED", 1.0)
        reading.append(asyncio.create_task(read_all(turns.ask("other", question(), None))))
        await until(lambda: model.open == 3)
        model.allow()
        assert [(await each)[-1].type for each in reading] == ["done"] * 3
        await until(lambda: turns.running == 0)
        assert (await read_all(turns.ask("acme", question(conversation_id="c3"), None)))[-1].type == "done"


async def test_a_new_turn_with_after_seq_is_refused_before_it_runs(records: Records) -> None:
    model = ScriptedModel()
    async with chat_room(records, model) as turns:
        with pytest.raises(errors.InvalidArgument) as raised:
            await read_all(turns.ask("acme", question(after_seq=7), None))
        assert set(raised.value.fields) == {"after_seq"}
        assert not model.requests
        await until(lambda: turns.running == 0)
        assert (await read_all(turns.ask("acme", question(), None)))[-1].type == "done"


async def test_a_turn_beside_another_is_told_when_to_come_again(records: Records) -> None:
    model = ScriptedModel(paced=True)
    async with chat_room(records, model) as turns, aclosing(turns.ask("acme", question(), None)) as events:
        model.allow(1)
        await anext(events)
        with pytest.raises(errors.FailedPrecondition) as raised:
            await read_all(turns.ask("acme", question(request_id="r2"), None))
        assert (reason_name(raised.value.reason), raised.value.retry_after_ms) == ("TURN_RUNNING", 1000)

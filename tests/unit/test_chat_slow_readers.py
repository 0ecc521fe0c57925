"""A turn whose readers fall behind."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

from tests.servers.chat_room import ScriptedModel, chat_room, first_deltas, question, read_all, text_of, until
from weftd.stores.records.engine import Records


async def test_deltas_come_together_while_every_reader_is_behind(records: Records) -> None:
    """None is lost, and whoever has caught up gets each apart again."""
    words = [f"word{number} " for number in range(2_000)]
    model = ScriptedModel(words, paced=True)
    async with chat_room(records, model) as turns, aclosing(turns.ask("acme", question(), None)) as events:
        got = await first_deltas(events, model, 3)
        for _ in range(900):  # nobody reads
            model.allow(1)
            await asyncio.sleep(0.001)
        await until(lambda: model.written == 903)
        while text_of(got) != "".join(words[:903]):
            got.append(await anext(events))
        assert len(got) < 100
        assert max(len(event.content) for event in got) > 1_000
        apart = await first_deltas(events, model, 50)
        assert [event.content for event in apart] == words[903:953]
        model.allow(2_000)
        got += apart + await read_all(events)
        assert text_of(got) == "".join(words)
        assert [event.seq for event in got] == list(range(1, len(got) + 1))


async def test_a_reader_that_keeps_up_gets_each_delta_beside_one_that_does_not(records: Records) -> None:
    words = [f"word{number} " for number in range(700)]
    model = ScriptedModel(words, paced=True)
    async with (
        chat_room(records, model) as turns,
        aclosing(turns.ask("acme", question(), None)) as events,
        aclosing(turns.resume("acme", "c1", "r1", 0, False, None)) as slow,
    ):
        got = await first_deltas(events, model, 1)
        late = [await anext(slow)]
        got += await first_deltas(events, model, 699)
        assert [event.content for event in got] == words
        (turn,) = turns._running.values()
        assert len(turn._events) <= 512  # the slow one reads the others from the store
        got += await read_all(events)
        late += await read_all(slow)
    assert late == got


async def test_a_reader_far_behind_learns_that_the_conversation_was_deleted(records: Records) -> None:
    model = ScriptedModel([f"word{number} " for number in range(700)], paced=True)
    async with (
        chat_room(records, model) as turns,
        aclosing(turns.ask("acme", question(), None)) as events,
        aclosing(turns.resume("acme", "c1", "r1", 0, False, None)) as slow,
    ):
        await first_deltas(events, model, 1)
        await anext(slow)
        await first_deltas(events, model, 699)
        await turns.delete("acme", "c1")
        async with asyncio.timeout(5):
            rest = await read_all(slow)
    assert (rest[-1].type, rest[-1].reason) == ("error", "TURN_CANCELLED")

"""PostgreSQL killed and started again in the middle of an answer."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest

from tests.servers.chat_room import WORDS, ScriptedModel, chat_room, question, read_all, text_of
from tests.servers.postgres import running_postgres
from weftd import errors
from weftd.stores.records import conversations
from weftd.stores.records.engine import Records
from weftd.stores.records.migrate import migrate

TEXT = "".join(WORDS)


async def test_a_turn_outlasts_its_database() -> None:
    with running_postgres() as server:
        url = server.database()
        await asyncio.to_thread(migrate, url)
        records = Records(url)
        model = ScriptedModel(paced=True)
        async with chat_room(records, model, beat_s=0.1) as turns:
            async with aclosing(turns.ask("acme", question(), None)) as events:
                model.allow(1)
                got = [await anext(events)]
                await asyncio.to_thread(server.stop, "immediate")
                model.allow(2)
                with pytest.raises(errors.Unavailable) as raised:
                    await read_all(turns.ask("acme", question(conversation_id="c2"), None))
                assert raised.value.metadata == {"backend": "records"}
                await asyncio.to_thread(server.start)
                model.allow()
                got += await read_all(events)
            assert text_of(got) == TEXT
            assert [event.seq for event in got] == list(range(1, len(got) + 1))
            assert await read_all(turns.resume("acme", "c1", "r1", 0, True, None)) == got
            page = await records.read(lambda c: conversations.page(c, "acme", "c1", 10))
            assert [row.content for row in page][1:] == [TEXT]
            model.allow()
            assert text_of(await read_all(turns.ask("acme", question(conversation_id="c2"), None))) == TEXT
        await records.close()

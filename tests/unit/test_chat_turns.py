"""Turns in one process: what a reader gets, and how a turn ends."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.servers.chat_room import (
    WORDS,
    chat_room,
    question,
    read_all,
    text_of,
)
from weftd.stores.records import conversations
from weftd.stores.records.engine import Records
from weftd.stores.records.migrate import migrate


@pytest.fixture
async def records(tmp_path: Path) -> AsyncIterator[Records]:
    url = f"sqlite:///{tmp_path / 'records.db'}"
    migrate(url)
    opened = Records(url)
    yield opened
    await opened.close()


async def stored(
    records: Records, conversation_id: str = "c1", tenant: str = "acme"
) -> list[tuple[str, str, str]]:
    rows = await records.read(lambda c: conversations.page(c, tenant, conversation_id, 100))
    return [(row.role, row.content, row.status) for row in rows]


async def test_an_answer_is_deltas_then_refs_then_done(records: Records) -> None:
    async with chat_room(records) as turns:
        events = await read_all(turns.ask("acme", question(), None))
    assert text_of(events) == "".join(WORDS)
    assert [event.type for event in events][-2:] == ["refs", "done"]
    assert {event.type for event in events[:-2]} == {"delta"}
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    assert [reference.id for reference in events[-2].references] == [1, 2]
    assert events[-1].usage.total_tokens == 12
    assert await stored(records) == [
        ("user", "请介绍一下RAG技术", "complete"),
        ("assistant", "".join(WORDS), "complete"),
    ]

"""What the records keep of conversations, the same on SQLite and on PostgreSQL."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.servers.chat_room import until
from tests.servers.postgres import Postgres
from weft.v1.chat_pb2 import ChatEvent, RateAnswerRequest
from weft.v1.common_pb2 import Message, Reference
from weftd.stores.records import conversations, handover, new_turns, turn_log, turns, workers
from weftd.stores.records.engine import Records
from weftd.stores.records.migrate import migrate
from weftd.stores.records.new_turns import Begun, Busy, NewTurn
from weftd.stores.records.turn_log import Append, End
from weftd.stores.records.turns import StoredTurn

STALE_MS = 3_000


@pytest.fixture(params=["sqlite", "sqlite, its writer a process", "postgresql"])
async def records(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Records]:
    server: Postgres | None = None
    if request.param == "postgresql":
        server = request.getfixturevalue("postgres")
    url = server.database() if server else f"sqlite:///{tmp_path / 'records.db'}"
    await asyncio.to_thread(migrate, url)
    opened = Records(url)
    if "process" in request.param:
        # It imports the operations of this file.
        monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]), prepend=os.pathsep)
        opened.write_apart()
        await until(lambda: opened.writer_pid is not None)
    yield opened
    await opened.close()


def all_live(_connection: object, _tenant: str, document_ids: Collection[str]) -> Collection[str]:
    return document_ids


BEGIN = partial(
    new_turns.begin,
    interrupted=ChatEvent(type="error", reason="INTERRUPTED"),
    stale_ms=STALE_MS,
    most_history=20,
)
END = partial(turn_log.end, live_documents=all_live)
NOW = time.time_ns() // 1_000_000


def new_turn(request_id: str = "r1", *, tenant: str = "acme", worker: str = "w1", **more: Any) -> NewTurn:
    values: dict[str, Any] = {
        "tenant": tenant,
        "conversation_id": "c1",
        "request_id": request_id,
        "question": "谁创立了它？",
        "fingerprint": b"0123456789abcdef",
        "options": b"\x00\xff",
        "earlier": (),
        "worker": worker,
        "now_ms": NOW,
    }
    return NewTurn(**(values | more))


def delta(seq: int, content: str = "text ") -> ChatEvent:
    return ChatEvent(type="delta", content=content, seq=seq)


def serialized(events: Sequence[ChatEvent]) -> list[bytes]:
    return [event.SerializeToString() for event in events]


async def beat(records: Records, *names: str) -> None:
    for name in names:
        await records.write(lambda c, name=name: workers.beat(c, name))


async def begin(records: Records, new: NewTurn) -> Begun | Busy | StoredTurn:
    return await records.write_batched(BEGIN, new)


async def append(records: Records, turn_id: int, worker: str, after: int, *events: ChatEvent) -> bool:
    return await records.write_batched(turn_log.append, Append(turn_id, worker, after, serialized(events)))


async def begun(records: Records, new: NewTurn) -> Begun:
    result = await begin(records, new)
    assert isinstance(result, Begun)
    return result


async def finish(
    records: Records, turn_id: int, *, text: str = "Answer.", quotes: int = 1, **more: Any
) -> None:
    references = [
        Reference(id=n, dataset_id="ds", document_id=f"doc{n}", content=f"quoted {n}")
        for n in range(1, quotes + 1)
    ]
    events = [
        ChatEvent(type="delta", content=text, seq=1),
        ChatEvent(type="refs", references=references, seq=2),
        ChatEvent(type="done", seq=3),
    ]
    ending = End("acme", Append(turn_id, "w1", 0, serialized(events)), "complete", text, references, NOW)
    assert await records.write_batched(END, ending) == set()
    assert await records.write_batched(END, ending) == set(), "the same commit again changes nothing"


async def test_one_turn_for_a_request_and_one_that_runs(records: Records) -> None:
    await beat(records, "w1", "w2")
    results = await asyncio.gather(
        *(
            begin(records, new_turn(request_id, worker=worker))
            for request_id in ("r1", "r2")
            for worker in ("w1", "w2")
        )
    )
    kinds = [type(result) for result in results]
    assert kinds.count(Begun) == 1
    assert kinds.count(StoredTurn) == 1
    assert kinds.count(Busy) == 2
    assert isinstance(await begin(records, new_turn("r1", tenant="other")), Begun)


async def test_two_processes_begin_one_turn(records: Records) -> None:
    await beat(records, "w1", "w2")
    other = Records(records.url.render_as_string(hide_password=False))
    try:
        for number in range(20):
            conversation = f"c{number}"
            results = await asyncio.gather(
                begin(records, new_turn("same", conversation_id=conversation, worker="w1")),
                begin(other, new_turn("same", conversation_id=conversation, worker="w2")),
                begin(other, new_turn("else", conversation_id=conversation, worker="w2")),
            )
            assert sum(isinstance(result, Begun) for result in results) == 1
            page = await records.read(
                lambda c, conversation=conversation: conversations.page(c, "acme", conversation, 10)
            )
            assert [row.role for row in page] == ["user", "assistant"]
    finally:
        await other.close()


async def test_only_the_owner_goes_on_and_only_where_it_stopped(records: Records) -> None:
    await beat(records, "w1")
    turn_id = (await begun(records, new_turn())).turn_id

    assert await append(records, turn_id, "w1", 0, delta(1), delta(2))
    assert await append(records, turn_id, "w1", 0, delta(1), delta(2)), (
        "the same commit again changes nothing"
    )
    assert not await append(records, turn_id, "w2", 2, delta(3))
    assert not await append(records, turn_id, "w1", 1, delta(2, "other"), delta(3))
    assert await append(records, turn_id, "w1", 2, delta(3))
    stored = await records.read(lambda c: turn_log.events_after(c, turn_id, 1, 100))
    assert stored == [delta(2), delta(3)]


async def test_many_turns_at_once_each_get_their_own_answer(records: Records) -> None:
    await beat(records, "w1", "w2")
    known = await begun(records, new_turn("r0", conversation_id="c0"))
    await finish(records, known.turn_id, text="Earlier.")
    news = [new_turn(f"r{n}", conversation_id=f"c{n % 300}", question=f"q{n}") for n in range(600)]
    results = await asyncio.gather(*(begin(records, new) for new in news))
    assert [type(result) for result in results] == [StoredTurn, *[Begun] * 299, *[Begun], *[Busy] * 299]
    running = {n: result.turn_id for n, result in enumerate(results) if isinstance(result, Begun)}
    assert len(set(running.values())) == 300
    follow_up = results[300]
    assert isinstance(follow_up, Begun)
    assert [message.content for message in follow_up.history] == ["谁创立了它？", "Earlier."]
    kept = await asyncio.gather(
        *(
            append(records, turn_id, "w1" if n % 2 else "w2", 0, delta(1, f"d{n}"))
            for n, turn_id in running.items()
        )
    )
    assert kept == [bool(n % 2) for n in running]
    endings = [
        End(
            "acme",
            Append(turn_id, "w1", 1, serialized([delta(2)])),
            "complete",
            f"a{n}",
            [Reference(id=1, document_id=f"d{n}")],
            NOW,
        )
        for n, turn_id in running.items()
    ]
    ended = await asyncio.gather(*(records.write_batched(END, each) for each in endings))
    assert ended == [set() if n % 2 else None for n in running]
    page = await records.read(lambda c: conversations.page(c, "acme", "c7", 10))
    assert [(row.content, row.status) for row in page] == [("q7", "complete"), ("a7", "complete")]
    assert [reference.document_id for reference in page[1].references] == ["d7"]
    page = await records.read(lambda c: conversations.page(c, "acme", "c8", 10))
    assert [(row.content, row.status) for row in page] == [("q8", "complete"), ("", "running")]


async def test_an_ended_turn_is_read_back_as_it_was(records: Records) -> None:
    await beat(records, "w1")
    turn = await begun(records, new_turn(earlier=[Message(role="system", content="Be kind.")]))
    assert [message.content for message in turn.history] == ["Be kind."]
    await finish(records, turn.turn_id, text="答案 [1]。")
    question, answer = await records.read(lambda c: conversations.page(c, "acme", "c1", 10))
    assert (question.role, question.content, question.created_at_ms) == ("user", "谁创立了它？", NOW)
    assert (answer.role, answer.content, answer.status) == ("assistant", "答案 [1]。", "complete")
    assert [reference.content for reference in answer.references] == ["quoted 1"]
    stored = await records.read(lambda c: turns.find(c, "acme", "c1", "r1"))
    assert stored is not None
    assert (stored.status, stored.last_seq, stored.options) == ("complete", 3, b"\x00\xff")
    follow_up = await begun(records, new_turn("r2"))
    assert [message.role for message in follow_up.history] == ["system", "user", "assistant"]


async def test_a_turn_that_is_taken_back_leaves_nothing(records: Records) -> None:
    await beat(records, "w1")
    await begun(records, new_turn())
    await records.write(lambda c: turns.withdraw(c, "acme", "c1", "r1", "w1"))
    assert await records.read(lambda c: conversations.read(c, "acme", "c1")) is None
    turn = await begun(records, new_turn())
    await finish(records, turn.turn_id)
    await begun(records, new_turn("r2"))
    await records.write(lambda c: turns.withdraw(c, "acme", "c1", "r2", "w1"))
    assert len(await records.read(lambda c: conversations.page(c, "acme", "c1", 10))) == 2
    third = await begun(records, new_turn("r3"))
    assert len(third.history) == 2


async def test_a_dead_owners_turn_is_taken_over_once(records: Records) -> None:
    await beat(records, "w1", "w2", "w3")
    turn_id = (await begun(records, new_turn())).turn_id
    await append(records, turn_id, "w1", 0, delta(1, "Half an "))

    async def take_over(worker: str) -> handover.TakenOver | None:
        key = ("acme", "c1", "r1")
        return await records.write(
            lambda c: handover.take_over(c, key, worker, stale_ms=STALE_MS, most_history=20)
        )

    assert await take_over("w2") is None, "its owner is alive"
    await records.write(lambda c: workers.retire(c, "w1"))
    taken = [each for each in await asyncio.gather(take_over("w2"), take_over("w3")) if each]
    assert [(each.last_seq, each.text, each.question) for each in taken] == [(1, "Half an ", "谁创立了它？")]
    assert not await append(records, turn_id, "w1", 1, delta(2))


async def test_a_dead_owners_turn_does_not_lock_its_conversation(records: Records) -> None:
    await beat(records, "w2")
    dead = await begun(records, new_turn(worker="dead"))
    await append(records, dead.turn_id, "dead", 0, delta(1, "Half"))
    second = await begun(records, new_turn("r2", worker="w2"))
    assert [message.content for message in second.history] == ["谁创立了它？", "Half"]
    events = await records.read(lambda c: turn_log.events_after(c, dead.turn_id, 0, 10))
    assert [(event.type, event.reason, event.seq) for event in events] == [
        ("delta", "", 1),
        ("error", "INTERRUPTED", 2),
    ]
    page = await records.read(lambda c: conversations.page(c, "acme", "c1", 10))
    assert [row.status for row in page] == ["complete", "interrupted", "complete", "running"]


async def test_cancelling_where_the_owner_is_elsewhere_or_dead(records: Records) -> None:
    async def cancel(request_id: str) -> str | None:
        return await records.write(
            lambda c: handover.request_cancel(
                c,
                "acme",
                "c1",
                request_id,
                event=ChatEvent(type="error", reason="TURN_CANCELLED"),
                stale_ms=STALE_MS,
                now_ms=NOW,
            )
        )

    await beat(records, "w1")
    turn_id = (await begun(records, new_turn())).turn_id
    assert await cancel("r1") == "asked"
    assert await records.read(lambda c: workers.running_of(c, "w1")) == {turn_id: True}
    await records.write(lambda c: workers.retire(c, "w1"))
    assert await cancel("r1") == "cancelled"
    assert await cancel("r1") == "ended"
    assert await cancel("no such") is None


async def test_what_nobody_comes_back_for_is_ended(records: Records) -> None:
    await begun(records, new_turn(worker="dead", now_ms=NOW - 700_000))
    await beat(records, "w1")
    await begun(records, new_turn(conversation_id="c2", now_ms=NOW - 700_000))

    async def close() -> int:
        return await records.write(
            lambda c: handover.close_orphans(
                c,
                event=ChatEvent(type="error", reason="INTERRUPTED"),
                older_ms=600_000,
                stale_ms=STALE_MS,
            )
        )

    assert [await close(), await close()] == [1, 0]


async def test_lists_have_pages_and_keep_to_the_tenant(records: Records) -> None:
    await beat(records, "w1")
    for number in range(5):
        # Two of them at the same moment.
        await begun(records, new_turn(conversation_id=f"c{number}", now_ms=NOW + number // 2))
    await begun(records, new_turn(conversation_id="theirs", tenant="other"))
    listed: list[str] = []
    after = None
    while True:
        page = await records.read(lambda c, after=after: conversations.latest(c, "acme", 2, after))
        if not page:
            break
        listed += [row.conversation_id for row in page]
        after = (page[-1].updated_at_ms, page[-1].conversation_id)
    assert listed == ["c4", "c3", "c2", "c1", "c0"]


async def test_messages_have_pages(records: Records) -> None:
    await beat(records, "w1")
    for number in range(3):
        turn = await begun(records, new_turn(f"r{number}", question=f"q{number}"))
        await finish(records, turn.turn_id, text=f"a{number}")
    first = await records.read(lambda c: conversations.page(c, "acme", "c1", 4))
    rest = await records.read(lambda c: conversations.page(c, "acme", "c1", 4, first[-1].position))
    assert [row.content for row in first + rest] == ["q0", "a0", "q1", "a1", "q2", "a2"]


async def test_a_rating_is_replaced_and_taken_back(records: Records) -> None:
    await beat(records, "w1")
    await finish(records, (await begun(records, new_turn())).turn_id)

    async def rated(rating: str) -> str:
        request = RateAnswerRequest(conversation_id="c1", request_id="r1", rating=rating, comment="好")
        assert await records.write(lambda c: conversations.rate(c, "acme", request, NOW))
        page = await records.read(lambda c: conversations.page(c, "acme", "c1", 10))
        assert page[0].rating == ""
        return page[1].rating

    assert [await rated("up"), await rated("down"), await rated("")] == ["up", "down", ""]
    request = RateAnswerRequest(conversation_id="c1", request_id="r9", rating="up")
    assert not await records.write(lambda c: conversations.rate(c, "acme", request, NOW))


async def test_delete_leaves_no_row(records: Records) -> None:
    await beat(records, "w1")
    turn = await begun(records, new_turn())
    await finish(records, turn.turn_id)
    request = RateAnswerRequest(conversation_id="c1", request_id="r1", rating="up")
    await records.write(lambda c: conversations.rate(c, "acme", request, NOW))
    assert not await records.write(lambda c: conversations.delete(c, "other", "c1"))
    assert await records.write(lambda c: conversations.delete(c, "acme", "c1"))
    assert not await records.write(lambda c: conversations.delete(c, "acme", "c1"))
    tables = ("conversations", "messages", "turns", "turn_events", "answer_references", "ratings")
    for table in tables:
        count = await records.read(lambda c, t=table: c.exec_driver_sql(f"SELECT count(*) FROM {t}").scalar())
        assert (table, count) == (table, 0)


async def test_a_deleted_documents_quotes_are_forgotten(records: Records) -> None:
    await beat(records, "w1")
    turn = await begun(records, new_turn())
    await finish(records, turn.turn_id, quotes=3)

    async def forget(tenant: str, dataset_id: str, *document_ids: str) -> int:
        return await records.write(
            lambda c: conversations.forget_references(c, tenant, dataset_id, document_ids)
        )

    async def quoted() -> tuple[list[str], list[str]]:
        page = await records.read(lambda c: conversations.page(c, "acme", "c1", 10))
        events = await records.read(lambda c: turn_log.events_after(c, turn.turn_id, 0, 10))
        return (
            [reference.document_id for reference in page[1].references],
            [reference.document_id for reference in events[1].references],
        )

    assert await forget("other", "ds") == 0
    assert await forget("acme", "ds", "doc2") == 1
    assert await quoted() == (["doc1", "doc3"], ["doc1", "doc3"])
    assert await forget("acme", "ds") == 1
    assert await quoted() == ([], [])
    assert await forget("acme", "ds") == 0


async def test_a_silent_worker_is_dead(records: Records) -> None:
    await beat(records, "w1", "w1")
    assert await records.read(lambda c: workers.is_alive(c, "w1", STALE_MS))
    assert not await records.read(lambda c: workers.is_alive(c, "w1", 0))
    assert not await records.read(lambda c: workers.is_alive(c, "", STALE_MS))

"""Turns in one process: what a reader gets."""

from __future__ import annotations

import asyncio
import time
from contextlib import aclosing
from typing import Any

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
    text_of,
    until,
)
from weft.v1 import error_reason_pb2 as reasons
from weft.v1.chat_pb2 import RateAnswerRequest
from weft.v1.common_pb2 import Message
from weftd import errors
from weftd.rpc.drain import Drain
from weftd.stores.records import conversations, handover
from weftd.stores.records.engine import Records

TEXT = "".join(WORDS)


async def test_an_answer_is_deltas_then_refs_then_done(records: Records) -> None:
    async with chat_room(records) as turns:
        events = await read_all(turns.ask("acme", question(), None))
    assert text_of(events) == TEXT
    assert [event.type for event in events][-2:] == ["refs", "done"]
    assert {event.type for event in events[:-2]} == {"delta"}
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    assert [reference.id for reference in events[-2].references] == [1, 2]
    assert events[-1].usage.total_tokens == 12
    assert await kept(records) == [
        ("user", "请介绍一下RAG技术", "complete"),
        ("assistant", TEXT, "complete"),
    ]


async def test_every_delta_comes_at_once_when_nothing_is_behind(records: Records) -> None:
    model = ScriptedModel(paced=True)
    async with chat_room(records, model) as turns, aclosing(turns.ask("acme", question(), None)) as events:
        assert [event.content for event in await first_deltas(events, model, 5)] == list(WORDS)


async def test_without_stream_the_text_is_one_delta(records: Records) -> None:
    async with chat_room(records) as turns:
        events = await read_all(turns.ask("acme", question(stream=False), None))
    assert [event.type for event in events] == ["delta", "refs", "done"]
    assert events[0].content == TEXT


async def test_options_reach_search_and_model(records: Records) -> None:
    model, search = ScriptedModel(), ScriptedSearch(found=9)
    async with chat_room(records, model, search) as turns:
        asked = question(top_k=7, temperature=0.2, dataset_ids=["a", "b"], model_id="m")
        events = await read_all(turns.ask("acme", asked, None))
        await read_all(turns.ask("acme", question(conversation_id="c2"), None))
    assert search.requests[0].top_k == 7
    assert list(search.requests[0].filters.dataset_ids) == ["a", "b"]
    assert (model.requests[0].temperature, model.requests[0].model_id) == (0.2, "m")
    assert model.requests[0].grounded
    assert len(events[-2].references) == 7
    assert search.requests[1].top_k == 5
    assert not model.requests[1].HasField("temperature")


async def test_small_talk_rests_on_no_passage(records: Records) -> None:
    model = ScriptedModel(["Hello."])
    model.finish_reason = "small_talk"
    async with chat_room(records, model) as turns:
        events = await read_all(turns.ask("acme", question("hello"), None))
    assert [len(event.references) for event in events] == [0, 0, 0]


async def test_a_document_deleted_meanwhile_leaves_no_reference(records: Records) -> None:
    async with chat_room(records, live_documents=lambda _connection, _tenant, _ids: set()) as room:
        events = await read_all(room.ask("acme", question(), None))
        again = await read_all(room.resume("acme", "c1", "r1", 0, False, None))
    assert [event.type for event in events][-2:] == ["refs", "done"]
    assert not events[-2].references
    assert again[-2:] == events[-2:]


async def test_what_was_missing_is_said(records: Records) -> None:
    search = ScriptedSearch()
    search.degraded = ["dense"]
    async with chat_room(records, search=search) as turns:
        events = await read_all(turns.ask("acme", question(use_graph_rag=True), None))
        assert [list(event.degraded) for event in events[-2:]] == [["dense", "graph"]] * 2
        search.error = errors.Unavailable(reasons.ERROR_REASON_BACKEND_UNAVAILABLE, "no search")
        events = await read_all(turns.ask("acme", question(conversation_id="c2"), None))
        assert list(events[-1].degraded) == ["retrieval"]
        assert text_of(events) == TEXT


@pytest.mark.parametrize(
    "error",
    [
        errors.NotFound(reasons.ERROR_REASON_DATASET_NOT_FOUND, "no such dataset"),
        errors.FailedPrecondition(reasons.ERROR_REASON_EMBEDDER_CHANGED, "index again"),
    ],
)
async def test_what_fails_before_the_first_event_can_be_asked_again(
    records: Records, error: errors.WeftError
) -> None:
    search = ScriptedSearch()
    search.error = error
    async with chat_room(records, search=search) as turns:
        with pytest.raises(type(error)):
            await read_all(turns.ask("acme", question(), None))
        assert await records.read(lambda c: conversations.latest(c, "acme", 10)) == []
        search.error = None
        assert text_of(await read_all(turns.ask("acme", question(), None))) == TEXT


async def test_a_heartbeat_beside_a_failure_does_not_hide_its_reason(
    records: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    search = ScriptedSearch()
    search.error = errors.FailedPrecondition(reasons.ERROR_REASON_EMBEDDER_CHANGED, "index again")
    write, beating = records.write, False

    async def write_then_beat(operation: Any, *, durable: bool = False) -> Any:
        nonlocal beating
        result = await write(operation, durable=durable)
        if not beating:
            beating = True
            await turns._upkeep.beat()
            beating = False
        return result

    async with chat_room(records, search=search, beat_s=60) as turns:
        monkeypatch.setattr(records, "write", write_then_beat)
        assert await reason_of(turns.ask("acme", question(), None)) == "EMBEDDER_CHANGED"
        monkeypatch.undo()


async def test_a_model_that_fails_in_the_middle_ends_the_turn_with_its_reason(records: Records) -> None:
    model = ScriptedModel(WORDS[:2])
    model.error = errors.Unavailable(reasons.ERROR_REASON_MODEL_BROKEN, "It broke off.")
    async with chat_room(records, model) as turns:
        events = await read_all(turns.ask("acme", question(), None))
        assert (events[-1].type, events[-1].reason) == ("error", "MODEL_BROKEN")
        assert await read_all(resume(turns)) == events
    assert (await kept(records))[1] == ("assistant", "".join(WORDS[:2]), "failed")


async def test_a_fault_is_told_without_its_text(records: Records) -> None:
    model = ScriptedModel(WORDS[:1])
    model.error = ZeroDivisionError("secret")
    async with chat_room(records, model) as turns:
        events = await read_all(turns.ask("acme", question(), None))
    assert events[-1].reason == "INTERNAL"
    assert "secret" not in events[-1].message


async def test_the_same_request_again_never_starts_a_second_turn(records: Records) -> None:
    model = ScriptedModel()
    async with chat_room(records, model) as turns:
        both = await asyncio.gather(
            *(read_all(turns.ask("acme", question(), None)) for _ in range(2)),
        )
        assert both[0] == both[1]
        assert await read_all(turns.ask("acme", question(after_seq=2), None)) == both[0][2:]
        assert await read_all(resume(turns, after_seq=1)) == both[0][1:]
        assert await read_all(resume(turns, after_seq=len(both[0]))) == []
        assert await reason_of(resume(turns, after_seq=99)) == "INVALID_FIELD"
        assert await reason_of(turns.ask("acme", question("Another?"), None)) == "REQUEST_ID_REUSED"
    assert len(model.requests) == 1
    assert len(await kept(records)) == 2


async def test_the_same_id_with_another_question_is_refused_while_it_runs(records: Records) -> None:
    model = ScriptedModel(paced=True)
    async with chat_room(records, model) as turns, aclosing(turns.ask("acme", question(), None)) as events:
        await first_deltas(events, model, 1)
        assert await reason_of(turns.ask("acme", question("Another?"), None)) == "REQUEST_ID_REUSED"


async def test_one_turn_at_a_time_in_a_conversation(records: Records) -> None:
    model = ScriptedModel(paced=True)
    async with chat_room(records, model) as turns, aclosing(turns.ask("acme", question(), None)) as events:
        await first_deltas(events, model, 1)
        assert await reason_of(turns.ask("acme", question(request_id="r2"), None)) == "TURN_RUNNING"
        # Another tenant's conversation of the same name is another one.
        model.allow()
        assert text_of(await read_all(turns.ask("other", question(request_id="r2"), None))) == TEXT
        await read_all(events)
        assert text_of(await read_all(turns.ask("acme", question(request_id="r2"), None))) == TEXT


@pytest.mark.parametrize("cut", range(1, 8))
async def test_a_connection_cut_after_any_event_loses_nothing(records: Records, cut: int) -> None:
    model = ScriptedModel(paced=True)
    async with chat_room(records, model) as turns:
        events = turns.ask("acme", question(resumable=True), None)
        got = []
        async with aclosing(events):
            while len(got) < cut:
                model.allow(1)
                got.append(await anext(events))
        rest = asyncio.create_task(read_all(resume(turns, after_seq=got[-1].seq)))
        model.allow()
        got += await rest
    assert text_of(got) == TEXT
    assert [event.seq for event in got] == list(range(1, len(got) + 1))
    assert got[-1].type == "done"
    assert len(model.requests) == 1


async def test_too_many_turns_are_refused_with_a_hint(records: Records) -> None:
    model = ScriptedModel(paced=True)
    async with chat_room(records, model, max_turns=1) as turns:
        async with aclosing(turns.ask("acme", question(), None)) as events:
            await first_deltas(events, model, 1)
            with pytest.raises(errors.ResourceExhausted) as raised:
                await read_all(turns.ask("acme", question(conversation_id="c2"), None))
            assert raised.value.reason == reasons.ERROR_REASON_OVERLOADED
            assert raised.value.retry_after_s
        model.allow()
        await until(lambda: turns.running == 0)
        await read_all(turns.ask("acme", question(conversation_id="c2"), None))


async def test_a_draining_server_takes_no_new_turn_and_ends_what_runs(records: Records) -> None:
    model, drain = ScriptedModel(paced=True), Drain(1.0)
    async with chat_room(records, model, drain=drain) as turns:
        events = turns.ask("acme", question(), None)
        await first_deltas(events, model, 1)
        drain.begin()
        assert drain.open_calls == 1
        assert await reason_of(turns.ask("acme", question(conversation_id="c2"), None)) == "DRAINING"
        model.allow()
        assert (await read_all(events))[-1].type == "done"
        await until(lambda: drain.open_calls == 0)


async def test_a_turn_that_outlasts_the_drain_goes_on_elsewhere(records: Records) -> None:
    """At once, and no failed call of the stopping server becomes its end."""
    model, drain = ScriptedModel(paced=True, can_continue=True), Drain(1.0)
    async with chat_room(records, model, drain=drain) as turns, chat_room(records, model) as other:
        events = turns.ask("acme", question(), None)
        await first_deltas(events, model, 1)
        await drain.end()
        assert model.open == 0
        assert await reason_of(events) == "DRAINING"
        model.allow()
        rest = await read_all(resume(other, after_seq=1))
        assert rest[-1].type == "done"
        assert len(model.requests) == 2


async def test_another_tenant_finds_nothing(records: Records) -> None:
    async with chat_room(records) as turns:
        await read_all(turns.ask("acme", question(), None))
        for name in ("c1", "no such"):
            found = []
            for call in (
                read_all(resume(turns, tenant="other", conversation_id=name)),
                turns.cancel("other", name, "r1"),
                turns.delete("other", name),
                turns.rate("other", RateAnswerRequest(conversation_id=name, request_id="r1", rating="up")),
            ):
                with pytest.raises(errors.NotFound) as raised:
                    await call
                found.append((errors.reason_name(raised.value.reason), raised.value.message))
            assert {reason for reason, _ in found} == {"CONVERSATION_NOT_FOUND"}
            assert all(message == found[0][1].replace("c1", name) for _, message in found)
        assert await reason_of(resume(turns, request_id="r9")) == "TURN_NOT_FOUND"


async def test_events_expire_and_messages_stay(records: Records) -> None:
    async with chat_room(records) as turns:
        await read_all(turns.ask("acme", question(), None))
        far = time.time_ns() // 1_000_000 + 1
        assert await records.write(lambda c: handover.expire_events(c, far)) == 1
        assert await records.write(lambda c: handover.expire_events(c, far)) == 0
        assert await reason_of(resume(turns)) == "REPLAY_EXPIRED"
        assert await reason_of(turns.ask("acme", question(), None)) == "REPLAY_EXPIRED"
    assert len(await kept(records)) == 2


async def test_an_acknowledged_event_can_still_be_read_again(records: Records) -> None:
    model = ScriptedModel(paced=True)
    async with chat_room(records, model) as turns, aclosing(turns.ask("acme", question(), None)) as events:
        got = await first_deltas(events, model, 3)
        turns.acknowledge("acme", "c1", "r1", 2)
        other = asyncio.create_task(read_all(resume(turns)))
        model.allow()
        got += await read_all(events)
        assert await other == got


async def test_history_comes_from_the_store_and_counts_once(records: Records) -> None:
    model = ScriptedModel(["Answer."])
    async with chat_room(records, model) as turns:
        await read_all(turns.ask("acme", question("Who built it?"), None))
        again = question("And when?", request_id="r2")
        del again.messages[:]
        for role, content in [("user", "Who built it?"), ("assistant", "Answer."), ("user", "And when?")]:
            again.messages.append(Message(role=role, content=content))
        await read_all(turns.ask("acme", again, None))
    said = [message.content for message in model.requests[1].messages]
    assert said == ["Who built it?", "Answer.", "And when?"]
    assert len(await kept(records)) == 4


async def test_a_new_conversation_may_bring_its_history(records: Records) -> None:
    model = ScriptedModel(["Answer."])
    asked = question()
    del asked.messages[:]
    for role, content in [("user", "First?"), ("assistant", "Yes."), ("user", "Second?")]:
        asked.messages.append(Message(role=role, content=content))
    async with chat_room(records, model) as turns:
        await read_all(turns.ask("acme", asked, None))
    assert [message.content for message in model.requests[0].messages] == ["First?", "Yes.", "Second?"]
    assert [content for _, content, _ in await kept(records)] == ["First?", "Yes.", "Second?", "Answer."]
    (conversation,) = await records.read(lambda c: conversations.latest(c, "acme", 10))
    assert conversation.title == "First?"


async def test_a_running_answer_is_among_the_messages(records: Records) -> None:
    model = ScriptedModel(paced=True)
    async with chat_room(records, model) as turns, aclosing(turns.ask("acme", question(), None)) as events:
        await first_deltas(events, model, 2)
        assert (await kept(records))[1] == ("assistant", "".join(WORDS[:2]), "running")
        (listed,) = await records.read(lambda c: conversations.latest(c, "acme", 10))
        assert listed.running_request_id == "r1"

"""Turns begun, those of many callers at once.

The rules that hold over all processes are kept here by the database: one running turn in a
conversation, and one turn for a request id.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import sqlalchemy as sa

from weft.v1.chat_pb2 import ChatEvent
from weft.v1.common_pb2 import Message
from weftd.stores.records.conversation_tables import conversations
from weftd.stores.records.statement import RowsStatement
from weftd.stores.records.turn_log import close_ownerless
from weftd.stores.records.turns import TURN_COLUMNS, StoredTurn, history
from weftd.stores.records.workers import is_alive

__all__ = ["Begun", "Busy", "NewTurn", "begin"]

Conversation: TypeAlias = tuple[str, str]
"""Tenant and id."""


class NewTurn(NamedTuple):
    """What a turn is begun with. `earlier` counts only where the conversation is new."""

    tenant: str
    conversation_id: str
    request_id: str
    question: str
    fingerprint: bytes
    options: bytes
    earlier: Sequence[Message]
    worker: str
    now_ms: int

    @property
    def conversation(self) -> Conversation:
        return self.tenant, self.conversation_id


class Begun(NamedTuple):
    """The turn was begun. `history` are the messages before the question, the oldest first."""

    turn_id: int
    history: list[Message]


class Busy(NamedTuple):
    """Another turn of the conversation is running."""

    request_id: str


class _Asked(NamedTuple):
    """A turn that can begin, with what is said in its conversation: its question comes last."""

    new: NewTurn
    said: list[Message]


_THERE = RowsStatement(
    f"SELECT {', '.join(map(str, TURN_COLUMNS))}, turns.tenant, turns.conversation_id"
    " FROM (VALUES {rows}) AS v, turns"
    " WHERE turns.tenant = v.column1 AND turns.conversation_id = v.column2"
    " AND (turns.request_id = v.column3 OR turns.status = 'running')",
    "(?, ?, ?)",
)
_CONVERSATIONS = RowsStatement(
    "INSERT INTO conversations"
    " (tenant, conversation_id, title, created_at_ms, updated_at_ms, next_position)"
    " VALUES {rows}"
    " ON CONFLICT (tenant, conversation_id) DO UPDATE SET updated_at_ms = excluded.updated_at_ms,"
    " next_position = conversations.next_position + excluded.next_position"
    " RETURNING tenant, conversation_id, next_position",
    "(?, ?, ?, ?, ?, ?)",
)
_TURNS = RowsStatement(
    "INSERT INTO turns (tenant, conversation_id, request_id, fingerprint, status, owner,"
    " cancel_requested, options, position, last_seq, started_at_ms, replayable)"
    " VALUES {rows} ON CONFLICT DO NOTHING RETURNING tenant, conversation_id, turn_id",
    "(?, ?, ?, ?, 'running', ?, FALSE, ?, ?, 0, ?, TRUE)",
)
_MESSAGES = RowsStatement(
    "INSERT INTO messages"
    " (tenant, conversation_id, position, created_at_ms, role, content, request_id, status)"
    " VALUES {rows}",
    "(?, ?, ?, ?, ?, ?, ?, 'complete')",
)


def begin(
    connection: sa.Connection,
    news: Sequence[NewTurn],
    *,
    interrupted: ChatEvent,
    stale_ms: int,
    most_history: int,
) -> list[Begun | StoredTurn | Busy]:
    """Begins turns and stores their questions; makes a conversation where it is new.

    The StoredTurn where that request id has one already. A running turn whose worker beat last more than
    `stale_ms` ago is ended with the event `interrupted` first: it must not lock its conversation.
    """
    results: dict[int, Begun | StoredTurn | Busy] = {}
    while waiting := [at for at in range(len(news)) if at not in results]:
        # One of a conversation at a time: the next one finds what this one began.
        places = {news[at].conversation: at for at in reversed(waiting)}
        there = _there(connection, [news[at] for at in places.values()])
        asked = []
        # In one order for all processes, or each waits for rows that the other holds.
        for conversation, at in sorted(places.items()):
            in_the_way = _in_the_way(connection, news[at], there.get(conversation, []), interrupted, stale_ms)
            if in_the_way is None:
                asked.append(_Asked(news[at], _said(connection, news[at])))
            else:
                results[at] = in_the_way
        # Where another process began one since we looked it is missing: look again.
        for conversation, begun in _begin(connection, asked, most_history).items():
            results[places[conversation]] = begun
    return [results[at] for at in range(len(news))]


def _there(connection: sa.Connection, news: Sequence[NewTurn]) -> dict[Conversation, list[StoredTurn]]:
    """The turns that run in those conversations, or have those request ids."""
    found: dict[Conversation, list[StoredTurn]] = {}
    rows = [(*new.conversation, new.request_id) for new in news]
    for *columns, tenant, conversation_id in _THERE.all(connection, rows):
        found.setdefault((tenant, conversation_id), []).append(StoredTurn(*columns))
    return found


def _in_the_way(
    connection: sa.Connection,
    new: NewTurn,
    there: Sequence[StoredTurn],
    interrupted: ChatEvent,
    stale_ms: int,
) -> StoredTurn | Busy | None:
    """Why `new` cannot begin beside the turns that are `there`; those of dead workers are ended."""
    for stored in there:
        if stored.request_id == new.request_id:
            return stored
    for running in there:
        if is_alive(connection, running.owner, stale_ms):
            return Busy(running.request_id)
        close_ownerless(
            connection,
            new.tenant,
            running.turn_id,
            running.owner,
            status="interrupted",
            event=interrupted,
            now_ms=new.now_ms,
        )
    return None


def _said(connection: sa.Connection, new: NewTurn) -> list[Message]:
    question = Message(role="user", content=new.question)
    if not new.earlier:
        return [question]
    known = sa.select(conversations.c.tenant).filter_by(
        tenant=new.tenant, conversation_id=new.conversation_id
    )
    return [question] if connection.execute(known).first() else [*new.earlier, question]


def _begin(
    connection: sa.Connection, asked: Sequence[_Asked], most_history: int
) -> dict[Conversation, Begun]:
    """Stores turns of different conversations with their questions, where no other turn runs there."""
    answers_at = {
        (tenant, conversation_id): next_position - 1
        for tenant, conversation_id, next_position in _CONVERSATIONS.all(
            connection,
            [(*new.conversation, _title(said), new.now_ms, new.now_ms, len(said) + 1) for new, said in asked],
        )
    }
    turn_ids = {
        (tenant, conversation_id): turn_id
        for tenant, conversation_id, turn_id in _TURNS.all(
            connection,
            [
                (
                    *new.conversation,
                    new.request_id,
                    new.fingerprint,
                    new.worker,
                    new.options,
                    answers_at[new.conversation],
                    new.now_ms,
                )
                for new, _ in asked
            ],
        )
    }
    begun: dict[Conversation, Begun] = {}
    messages = []
    for new, said in asked:
        if new.conversation not in turn_ids:
            continue
        first = answers_at[new.conversation] - len(said)
        before = (
            said[:-1]
            if first == 0
            else history(connection, *new.conversation, before=first, most=most_history)
        )
        begun[new.conversation] = Begun(turn_ids[new.conversation], before)
        messages += [
            (*new.conversation, position, new.now_ms, message.role, message.content, new.request_id)
            for position, message in enumerate(said, first)
        ]
    _MESSAGES.count(connection, messages)
    return begun


def _title(said: Sequence[Message]) -> str:
    return next(message.content for message in said if message.role == "user").strip()[:80]

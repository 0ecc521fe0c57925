"""ChatService: what comes over the wire, and who asks."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import grpc.aio
from google.protobuf.timestamp_pb2 import Timestamp

from weft.v1 import chat_pb2, chat_pb2_grpc
from weftd.chat import checks
from weftd.chat.converse import converse
from weftd.chat.room import ChatTurns, no_conversation
from weftd.rpc import caller
from weftd.stores.records import conversations
from weftd.stores.records.conversations import ConversationRow, MessageRow
from weftd.stores.records.engine import Records

__all__ = ["ChatService"]

Context = grpc.aio.ServicerContext[Any, Any]


class ChatService(chat_pb2_grpc.ChatServiceServicer):
    def __init__(self, turns: ChatTurns, records: Records) -> None:
        self._turns = turns
        self._records = records

    async def StreamChat(
        self, request: chat_pb2.StreamChatRequest, context: Context
    ) -> AsyncIterator[chat_pb2.ChatEvent]:
        current = caller.current()
        request.request_id = request.request_id or current.request_id
        request.conversation_id = request.conversation_id or f"conv_{request.request_id}"
        checks.check_turn(request)
        async with aclosing(self._turns.ask(current.tenant, request, current.deadline)) as events:
            async for event in events:
                yield event

    async def Converse(
        self, request_iterator: AsyncIterator[chat_pb2.ConverseRequest], context: Context
    ) -> AsyncIterator[chat_pb2.ConverseResponse]:
        current = caller.current()
        stream = converse(self._turns, current.tenant, request_iterator, current.deadline)
        async with aclosing(stream) as responses:
            async for response in responses:
                yield response

    async def ResumeChat(
        self, request: chat_pb2.ResumeChatRequest, context: Context
    ) -> AsyncIterator[chat_pb2.ChatEvent]:
        current = caller.current()
        checks.check_ids(request.conversation_id, request.request_id)
        resumed = self._turns.resume(
            current.tenant,
            request.conversation_id,
            request.request_id,
            request.after_seq,
            request.resumable,
            current.deadline,
        )
        async with aclosing(resumed) as events:
            async for event in events:
                yield event

    async def CancelTurn(
        self, request: chat_pb2.CancelTurnRequest, context: Context
    ) -> chat_pb2.CancelTurnResponse:
        checks.check_ids(request.conversation_id, request.request_id)
        status = await self._turns.cancel(
            caller.current().tenant, request.conversation_id, request.request_id
        )
        return chat_pb2.CancelTurnResponse(status=status)

    async def ListConversations(
        self, request: chat_pb2.ListConversationsRequest, context: Context
    ) -> chat_pb2.ListConversationsResponse:
        size = checks.page_size(request.page_size, default=20, most=100)
        after = checks.latest_after(request.page_token)
        tenant = caller.current().tenant
        rows = await self._records.read(
            lambda connection: conversations.latest(connection, tenant, size + 1, after)
        )
        token = ""
        if len(rows) > size:
            token = checks.latest_token(rows[size - 1].updated_at_ms, rows[size - 1].conversation_id)
        return chat_pb2.ListConversationsResponse(
            conversations=[_conversation(row) for row in rows[:size]], next_page_token=token
        )

    async def GetConversation(
        self, request: chat_pb2.GetConversationRequest, context: Context
    ) -> chat_pb2.GetConversationResponse:
        size = checks.page_size(request.page_size, default=100, most=200)
        after = checks.position_after(request.page_token)
        conversation_id = request.conversation_id
        checks.check_ids(conversation_id)
        tenant = caller.current().tenant
        row, messages = await self._records.read(
            lambda connection: (
                conversations.read(connection, tenant, conversation_id),
                conversations.page(connection, tenant, conversation_id, size + 1, after),
            )
        )
        if row is None:
            raise no_conversation(conversation_id)
        return chat_pb2.GetConversationResponse(
            conversation=_conversation(row),
            messages=[_message(message) for message in messages[:size]],
            next_page_token=str(messages[size - 1].position) if len(messages) > size else "",
        )

    async def DeleteConversation(
        self, request: chat_pb2.DeleteConversationRequest, context: Context
    ) -> chat_pb2.DeleteConversationResponse:
        checks.check_ids(request.conversation_id)
        await self._turns.delete(caller.current().tenant, request.conversation_id)
        return chat_pb2.DeleteConversationResponse()

    async def RateAnswer(
        self, request: chat_pb2.RateAnswerRequest, context: Context
    ) -> chat_pb2.RateAnswerResponse:
        checks.check_ids(request.conversation_id, request.request_id)
        checks.check_rating(request)
        await self._turns.rate(caller.current().tenant, request)
        return chat_pb2.RateAnswerResponse()


def _conversation(row: ConversationRow) -> chat_pb2.Conversation:
    return chat_pb2.Conversation(
        conversation_id=row.conversation_id,
        title=row.title,
        created_at=_timestamp(row.created_at_ms),
        updated_at=_timestamp(row.updated_at_ms),
        running_request_id=row.running_request_id,
    )


def _message(row: MessageRow) -> chat_pb2.StoredMessage:
    return chat_pb2.StoredMessage(
        message_id=f"msg_{row.position}",
        role=row.role,
        content=row.content,
        request_id=row.request_id,
        created_at=_timestamp(row.created_at_ms),
        status=row.status,
        references=row.references,
        rating=row.rating,
    )


def _timestamp(at_ms: int) -> Timestamp:
    return Timestamp(seconds=at_ms // 1000, nanos=at_ms % 1000 * 1_000_000)

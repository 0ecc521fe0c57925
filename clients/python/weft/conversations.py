"""Conversations that the server keeps."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Literal

from weft.connection import Connection, pages
from weft.v1.chat_pb2 import (
    Conversation,
    DeleteConversationRequest,
    DeleteConversationResponse,
    GetConversationRequest,
    ListConversationsRequest,
    RateAnswerRequest,
    StoredMessage,
)
from weft.v1.chat_pb2_grpc import ChatServiceStub


class Conversations:
    """`weft.conversations`."""

    def __init__(self, connection: Connection, timeout_s: float) -> None:
        self._connection = connection
        self._timeout_s = timeout_s

    def list(self) -> AsyncIterator[Conversation]:
        """Every conversation of the tenant, the latest first."""

        async def fetch(page_token: str) -> tuple[list[Conversation], str]:
            page = await self._connection.unary(
                self._stub.ListConversations,
                ListConversationsRequest(page_size=100, page_token=page_token),
                timeout_s=self._timeout_s,
            )
            return [*page.conversations], page.next_page_token

        return pages(fetch)

    async def get(self, conversation_id: str) -> Conversation:
        """One conversation. NotFound."""
        answer = await self._connection.unary(
            self._stub.GetConversation,
            GetConversationRequest(conversation_id=conversation_id, page_size=1),
            timeout_s=self._timeout_s,
        )
        return answer.conversation

    def messages(self, conversation_id: str) -> AsyncIterator[StoredMessage]:
        """Every message of a conversation, the oldest first. NotFound."""

        async def fetch(page_token: str) -> tuple[list[StoredMessage], str]:
            page = await self._connection.unary(
                self._stub.GetConversation,
                GetConversationRequest(conversation_id=conversation_id, page_size=200, page_token=page_token),
                timeout_s=self._timeout_s,
            )
            return [*page.messages], page.next_page_token

        return pages(fetch)

    async def delete(self, conversation_id: str) -> None:
        """Deletes a conversation with all its messages; a turn that runs is stopped. NotFound."""
        await self._connection.unary(
            self._stub.DeleteConversation,
            DeleteConversationRequest(conversation_id=conversation_id),
            timeout_s=self._timeout_s,
            if_gone=DeleteConversationResponse(),
        )

    async def rate(
        self,
        conversation_id: str,
        request_id: str,
        rating: Literal["up", "down", ""],
        comment: str = "",
    ) -> None:
        """Rates the answer of a turn; "" takes the rating back. NotFound."""
        await self._connection.unary(
            self._stub.RateAnswer,
            RateAnswerRequest(
                conversation_id=conversation_id, request_id=request_id, rating=rating, comment=comment
            ),
            timeout_s=self._timeout_s,
        )

    @property
    def _stub(self) -> ChatServiceStub:
        return ChatServiceStub(self._connection.channel)

"""The one class that a program needs: `Weft`."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Sequence
from types import TracebackType
from typing import Literal, Self

from weft.connection import Connection, Token, pages
from weft.conversations import Conversations
from weft.converse import Converse
from weft.knowledge import Knowledge
from weft.search import search_request, search_stream
from weft.turn import Turn, cancel_turn, turn_request
from weft.v1.chat_pb2 import ResumeChatRequest, StreamChatRequest
from weft.v1.common_pb2 import Message
from weft.v1.models_pb2 import ListModelsRequest, Model
from weft.v1.models_pb2_grpc import ModelServiceStub
from weft.v1.retrieval_pb2 import SearchResponse
from weft.v1.retrieval_pb2_grpc import RetrievalServiceStub

SearchType = Literal["hybrid", "dense", "lexical"]


class Weft:
    """A client of Weft.

        async with Weft("127.0.0.1:8080", token=token) as weft:
            async for event in weft.chat("conv_1", "What does the contract say about notice?"):
                match event:
                    case Delta(text):
                        print(text, end="", flush=True)

    Args:
        address: "host:port", or a URL; else the environment's WEFT_ADDRESS, else 127.0.0.1:8080.
        token: a bearer token, or a function (async or not) that returns one and is asked before each
            call and when one was refused; else the environment's WEFT_TOKEN.
        tls: whether to encrypt; with `root_certificates` (PEM) those instead of the system's.
        timeout_s: for calls that answer once.
        resume_for_s: how long a lost connection is tried to be made again in the middle of an answer.

    Calls raise `weft.errors.WeftError` and its kinds. Those that may be repeated are, with pauses,
    while that can help. One `Weft` serves any number of tasks of one event loop.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        token: Token | None = None,
        tls: bool = False,
        root_certificates: bytes | None = None,
        timeout_s: float = 30.0,
        resume_for_s: float = 30.0,
    ) -> None:
        self._connection = Connection(address, token, tls=tls, root_certificates=root_certificates)
        self._timeout_s = timeout_s
        self._resume_for_s = resume_for_s
        self.conversations = Conversations(self._connection, timeout_s)
        self.knowledge = Knowledge(self._connection, timeout_s)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Stops the turns that run and closes the connection."""
        await self._connection.close()

    def chat(
        self,
        conversation_id: str,
        question: str | Sequence[Message],
        *,
        timeout_s: float = 300.0,
        request_id: str | None = None,
        dataset_ids: Sequence[str] = (),
        top_k: int = 0,
        temperature: float | None = None,
        model_id: str = "",
        use_graph_rag: bool = False,
        use_cache: bool = False,
        stream: bool = True,
    ) -> Turn:
        """Asks a question; the answer is the events of the `Turn`.

        `conversation_id` is your choice (letters, digits and `_ - . : @`); empty makes a new one. A
        sequence of messages is a whole history with the question last. The same `request_id` again
        goes on with the turn and never starts a second. All datasets are searched unless
        `dataset_ids` names some; `top_k` is how many passages the answer may rest on (0: five).
        """
        request = turn_request(
            conversation_id,
            question,
            request_id=request_id,
            dataset_ids=dataset_ids,
            top_k=top_k,
            temperature=temperature,
            model_id=model_id,
            use_graph_rag=use_graph_rag,
            use_cache=use_cache,
            stream=stream,
        )
        return self._turn(request, timeout_s)

    def resume(
        self, conversation_id: str, request_id: str, *, after_seq: int = 0, timeout_s: float = 300.0
    ) -> Turn:
        """Goes on with a turn of another program or of before, after the event `after_seq`. NotFound."""
        request = ResumeChatRequest(
            conversation_id=conversation_id, request_id=request_id, after_seq=after_seq, resumable=True
        )
        return self._turn(request, timeout_s)

    async def cancel(self, conversation_id: str, request_id: str) -> bool:
        """Stops a turn, whoever reads it; False where it had ended before. NotFound."""
        return await cancel_turn(self._connection, conversation_id, request_id, timeout_s=self._timeout_s)

    def converse(self) -> Converse:
        """Many turns on one stream: `async with weft.converse() as talk: talk.ask(…)`."""
        return Converse(self._connection, self._resume_for_s)

    async def search(
        self,
        query: str,
        *,
        top_k: int = 0,
        dataset_ids: Sequence[str] = (),
        document_ids: Sequence[str] = (),
        uploaded_from: str = "",
        uploaded_to: str = "",
        search_type: SearchType = "hybrid",
    ) -> SearchResponse:
        """Finds passages, best first. `uploaded_from` and `_to` are days or instants, as "2024-01-31"."""
        request = search_request(
            query, top_k, dataset_ids, document_ids, uploaded_from, uploaded_to, search_type
        )
        stub = RetrievalServiceStub(self._connection.channel)
        return await self._connection.unary(stub.Search, request, timeout_s=self._timeout_s)

    def search_stream(
        self,
        queries: AsyncIterable[str],
        *,
        top_k: int = 0,
        dataset_ids: Sequence[str] = (),
        search_type: SearchType = "hybrid",
    ) -> AsyncIterator[tuple[str, SearchResponse]]:
        """Searches while someone types: each query with what was found for it.

        A query that a newer one overtakes is never answered. Ends after the last query's answer.
        """
        requests = (
            (query, search_request(query, top_k, dataset_ids, (), "", "", search_type))
            async for query in queries
        )
        return search_stream(self._connection, requests)

    def models(self) -> AsyncIterator[Model]:
        """The language models that are configured, the default one first."""
        stub = ModelServiceStub(self._connection.channel)

        async def fetch(page_token: str) -> tuple[list[Model], str]:
            page = await self._connection.unary(
                stub.ListModels, ListModelsRequest(page_token=page_token), timeout_s=self._timeout_s
            )
            return [*page.models], page.next_page_token

        return pages(fetch)

    def _turn(self, request: StreamChatRequest | ResumeChatRequest, timeout_s: float) -> Turn:
        return Turn(self._connection, request, timeout_s=timeout_s, resume_for_s=self._resume_for_s)

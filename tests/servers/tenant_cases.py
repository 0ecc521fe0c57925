"""For each method of the contract: requests that name what another tenant has."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from google.api import httpbody_pb2
from google.protobuf.message import Message

from weft.v1 import chat_pb2, knowledge_pb2, models_pb2, retrieval_pb2
from weft.v1.common_pb2 import Message as ChatMessage

SECRET = "Kumquatzin"
TEXT = f"# {SECRET}\n\nThe {SECRET} vault of Osterlund opens with the number 48151623.\n"
OWN_TEXT = "# Garden\n\nThe vault of the garden at Peverell opens with an iron key.\n"
OWN_QUESTION = "What opens the vault?"
QUESTION = f"With which number does the {SECRET} vault of Osterlund open?"


@dataclass(frozen=True)
class Ids:
    """One of each kind, all of the length that its kind has."""

    conversation: str
    request: str
    running_conversation: str
    running_request: str
    dataset: str
    document: str
    index_request: str
    conversations_page: str = ""
    datasets_page: str = ""
    documents_page: str = ""

    def never(self) -> Ids:
        """Ids of the same shape that nobody has."""
        return Ids(*(_other(value) for value in vars(self).values()))


def _other(value: str) -> str:
    prefix, separator, last = value.rpartition("_" if "_" in value else "-")
    return prefix + separator + uuid.uuid4().hex[: len(last)].ljust(len(last), "0")


Make = Callable[[Ids, Ids], list[Message]]


@dataclass(frozen=True)
class Case:
    """`make` is given another tenant's ids and the caller's own. `reason`: why it is refused; empty: the
    caller gets something of its own, as for an id that never was."""

    make: Make
    reason: str = ""


def one(make: Callable[[Ids, Ids], Message], reason: str = "") -> Case:
    return Case(lambda foreign, own: [make(foreign, own)], reason)


def _ask(**more: Any) -> chat_pb2.StreamChatRequest:
    return chat_pb2.StreamChatRequest(
        messages=[ChatMessage(role="user", content=OWN_QUESTION)], model_id="extractive", **more
    )


def _turns(request: Any, then: Callable[[Any], Message] = lambda named: named) -> list[Case]:
    """Of a request that names a turn."""
    return [
        one(
            lambda f, _: then(request(conversation_id=f.conversation, request_id=f.request)),
            "CONVERSATION_NOT_FOUND",
        ),
        one(
            lambda f, _: then(request(conversation_id=f.running_conversation, request_id=f.running_request)),
            "CONVERSATION_NOT_FOUND",
        ),
        one(
            lambda f, own: then(request(conversation_id=own.conversation, request_id=f.request)),
            "TURN_NOT_FOUND",
        ),
    ]


def _search(**filters: Any) -> retrieval_pb2.SearchRequest:
    return retrieval_pb2.SearchRequest(query=QUESTION, filters=retrieval_pb2.SearchFilters(**filters))


_SEARCHES: list[tuple[Callable[[Ids, Ids], retrieval_pb2.SearchRequest], str]] = [
    (lambda f, _: _search(dataset_ids=[f.dataset]), "DATASET_NOT_FOUND"),
    (lambda f, own: _search(dataset_ids=[own.dataset, f.dataset]), "DATASET_NOT_FOUND"),
    (lambda f, _: _search(document_ids=[f.document]), "DOCUMENT_NOT_FOUND"),
    (lambda f, own: _search(dataset_ids=[own.dataset], document_ids=[f.document]), "DOCUMENT_NOT_FOUND"),
    (lambda f, own: _search(dataset_ids=[f.dataset], document_ids=[own.document]), "DATASET_NOT_FOUND"),
    (lambda f, _: _search(), ""),
]


def _form(dataset_id: str) -> httpbody_pb2.HttpBody:
    parts = [("dataset_id", "", dataset_id), ("file", '; filename="own.md"', OWN_TEXT)]
    lines = [
        f'--x\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n{value}\r\n'
        for name, more, value in parts
    ]
    body = "".join(lines) + "--x--\r\n"
    return httpbody_pb2.HttpBody(content_type="multipart/form-data; boundary=x", data=body.encode())


_kb = knowledge_pb2
CASES: dict[str, list[Case]] = {
    "ChatService.StreamChat": [
        one(lambda f, _: _ask(dataset_ids=[f.dataset]), "DATASET_NOT_FOUND"),
        one(lambda f, _: _ask(conversation_id=f.conversation)),
        one(lambda f, own: _ask(conversation_id=own.conversation, request_id=f.request)),
        one(lambda f, _: _ask(conversation_id=f.running_conversation, request_id=f.running_request)),
    ],
    "ChatService.Converse": [
        *_turns(chat_pb2.ResumeChatRequest, lambda named: chat_pb2.ConverseRequest(resume=named)),
        *_turns(chat_pb2.CancelTurnRequest, lambda named: chat_pb2.ConverseRequest(interrupt=named)),
        one(
            lambda f, own: chat_pb2.ConverseRequest(
                turn=_ask(conversation_id=own.conversation, request_id="r-own", dataset_ids=[f.dataset])
            ),
            "DATASET_NOT_FOUND",
        ),
        one(
            lambda f, _: chat_pb2.ConverseRequest(
                turn=_ask(conversation_id="by-converse", request_id=f.request)
            )
        ),
        one(
            lambda f, _: chat_pb2.ConverseRequest(
                ack=chat_pb2.Acknowledgement(
                    conversation_id=f.running_conversation, request_id=f.running_request, seq=1
                )
            )
        ),
    ],
    "ChatService.ResumeChat": _turns(chat_pb2.ResumeChatRequest),
    "ChatService.CancelTurn": _turns(chat_pb2.CancelTurnRequest),
    "ChatService.RateAnswer": _turns(
        lambda **names: chat_pb2.RateAnswerRequest(rating="down", comment="no", **names)
    ),
    "ChatService.ListConversations": [
        one(lambda f, _: chat_pb2.ListConversationsRequest()),
        one(lambda f, _: chat_pb2.ListConversationsRequest(page_token=f.conversations_page)),
    ],
    "ChatService.GetConversation": [
        one(
            lambda f, _: chat_pb2.GetConversationRequest(conversation_id=f.conversation),
            "CONVERSATION_NOT_FOUND",
        )
    ],
    "ChatService.DeleteConversation": [
        one(
            lambda f, _: chat_pb2.DeleteConversationRequest(conversation_id=f.conversation),
            "CONVERSATION_NOT_FOUND",
        )
    ],
    "RetrievalService.Search": [one(make, reason) for make, reason in _SEARCHES],
    "RetrievalService.StreamSearch": [
        one(
            lambda f, own, make=make: retrieval_pb2.StreamSearchRequest(  # type: ignore[misc]
                query_id=1, search=make(f, own)
            ),
            reason,
        )
        for make, reason in _SEARCHES
    ],
    "KnowledgeService.CreateDataset": [
        one(lambda f, _: _kb.CreateDatasetRequest(dataset_id=f.dataset, name="own")),
        one(lambda f, _: _kb.CreateDatasetRequest(request_id=f.request)),
    ],
    "KnowledgeService.ListDatasets": [
        one(lambda f, _: _kb.ListDatasetsRequest()),
        one(lambda f, _: _kb.ListDatasetsRequest(page_token=f.datasets_page)),
    ],
    "KnowledgeService.DeleteDataset": [
        one(lambda f, _: _kb.DeleteDatasetRequest(dataset_id=f.dataset), "DATASET_NOT_FOUND")
    ],
    "KnowledgeService.ListDocuments": [
        one(lambda f, _: _kb.ListDocumentsRequest(dataset_id=f.dataset), "DATASET_NOT_FOUND"),
        one(lambda f, own: _kb.ListDocumentsRequest(dataset_id=own.dataset, page_token=f.documents_page)),
    ],
    "KnowledgeService.DeleteDocument": [
        one(
            lambda f, _: _kb.DeleteDocumentRequest(dataset_id=f.dataset, document_id=f.document),
            "DATASET_NOT_FOUND",
        ),
        one(
            lambda f, own: _kb.DeleteDocumentRequest(dataset_id=own.dataset, document_id=f.document),
            "DOCUMENT_NOT_FOUND",
        ),
        one(
            lambda f, own: _kb.DeleteDocumentRequest(dataset_id=f.dataset, document_id=own.document),
            "DATASET_NOT_FOUND",
        ),
    ],
    "KnowledgeService.Upload": [
        Case(
            lambda f, _: [
                _kb.UploadRequest(header=_kb.UploadHeader(dataset_id=f.dataset, name="own.md")),
                _kb.UploadRequest(data=OWN_TEXT.encode()),
            ]
        )
    ],
    "KnowledgeService.UploadForm": [one(lambda f, _: _form(f.dataset))],
    "KnowledgeService.BuildIndex": [
        one(lambda f, _: _kb.BuildIndexRequest(dataset_id=f.dataset), "DATASET_NOT_FOUND"),
        one(
            lambda f, _: _kb.BuildIndexRequest(dataset_id=f.dataset, request_id=f.index_request),
            "DATASET_NOT_FOUND",
        ),
        one(lambda f, own: _kb.BuildIndexRequest(dataset_id=own.dataset, request_id=f.index_request)),
    ],
    "KnowledgeService.GetStatus": [
        one(lambda f, _: _kb.GetStatusRequest(dataset_id=f.dataset), "DATASET_NOT_FOUND")
    ],
    # Neither takes an id of anything that a tenant has.
    "ModelService.Generate": [],
    "ModelService.ListModels": [],
    # Models are the mesh's, not a tenant's.
    "ModelService.PublishModel": [],
    "ModelService.ListModelVersions": [],
    "ModelService.RollbackModel": [],
    "ModelService.WatchModels": [],
}

FILES = (chat_pb2, retrieval_pb2, knowledge_pb2, models_pb2)
METHODS: dict[str, Any] = {
    f"{service.name}.{method.name}": method
    for file in FILES
    for service in file.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}

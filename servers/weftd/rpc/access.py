"""Which role a call needs: the whole table."""

from __future__ import annotations

from collections.abc import Set
from typing import Final

from weft.v1 import error_reason_pb2
from weftd.errors import PermissionDenied
from weftd.rpc.auth import ROLES

# What is not listed here needs `member`.
_NEEDED: Final = {
    "/weft.v1.KnowledgeService/CreateDataset": "editor",
    "/weft.v1.KnowledgeService/DeleteDataset": "editor",
    "/weft.v1.KnowledgeService/DeleteDocument": "editor",
    "/weft.v1.KnowledgeService/Upload": "editor",
    "/weft.v1.KnowledgeService/UploadForm": "editor",
    "/weft.v1.KnowledgeService/BuildIndex": "editor",
    "/weft.v1.ModelService/PublishModel": "operator",
    "/weft.v1.ModelService/ListModelVersions": "operator",
    "/weft.v1.ModelService/RollbackModel": "operator",
    "/weft.v1.ModelService/WatchModels": "operator",
}

_OPEN: Final = ("/grpc.health.", "/grpc.reflection.")


def is_open(method: str) -> bool:
    """Health and reflection: they need no token and say nothing of any tenant."""
    return method.startswith(_OPEN)


def role_needed(method: str) -> str:
    """The least role that may call `method`, a full name as in "/weft.v1.ChatService/StreamChat"."""
    return _NEEDED.get(method, "member")


def check_role(needed: str, roles: Set[str]) -> None:
    """PermissionDenied ROLE_MISSING unless `roles` has `needed` or a higher one."""
    if roles.isdisjoint(ROLES[ROLES.index(needed) :]):
        raise PermissionDenied(
            error_reason_pb2.ERROR_REASON_ROLE_MISSING,
            f"This call needs the role {needed}. Ask an administrator for a token that has it.",
            metadata={"role": needed},
        )

"""The edge's own refusals over HTTP, in the shape of every error over REST."""

from __future__ import annotations

from google.protobuf.json_format import MessageToDict
from starlette.responses import JSONResponse, Response

from weftd.errors import WeftError
from weftd.rpc.status import to_status

__all__ = ["plain_error", "refused"]


def plain_error(status: int, code: int, message: str) -> Response:
    """For what has no reason; `code` is one of google.rpc.Code."""
    return JSONResponse({"code": code, "message": message, "details": []}, status_code=status)


def refused(status: int, error: WeftError) -> Response:
    """With the error's reason, and when to come again where it says so."""
    headers = {} if error.retry_after_s is None else {"retry-after": str(round(error.retry_after_s) or 1)}
    content = MessageToDict(to_status(error), preserving_proto_field_name=True)
    return JSONResponse(content, status_code=status, headers=headers)

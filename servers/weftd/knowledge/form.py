"""An upload as a multipart form, read in pieces as it comes. Blocking: it runs on a thread."""

from __future__ import annotations

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser

from weft.v1 import error_reason_pb2
from weftd.errors import InvalidArgument
from weftd.knowledge.filenames import header_parameters
from weftd.knowledge.intake import Intake

__all__ = ["Form", "malformed"]

_HEADER_LIMIT_BYTES = 16 << 10
_FIELD_LIMIT_BYTES = 1 << 10


def malformed(what: str) -> InvalidArgument:
    return InvalidArgument(
        {"body": what},
        reason=error_reason_pb2.ERROR_REASON_UPLOAD_MALFORMED,
        message=f"The upload is {what}. Send multipart/form-data with fields `file` and `dataset_id`.",
    )


class Form:
    """Hands the parts named `file` to an intake and keeps the field `dataset_id`; others are passed over."""

    def __init__(self, content_type: str, intake: Intake) -> None:
        """`content_type` as the request's header has it. UPLOAD_MALFORMED for another type."""
        kind, parameters = header_parameters(content_type.encode())
        boundary = parameters.get("boundary", "")
        if kind != "multipart/form-data" or not boundary:
            raise malformed("not a multipart form")
        self._intake = intake
        self._dataset_id = bytearray()
        self._header_name = b""
        self._header_value = b""
        self._disposition: dict[str, str] = {}
        self._is_file = False
        self._whole = False
        try:
            self._parser = MultipartParser(
                boundary.encode(),
                {
                    "on_part_begin": self._begin_part,
                    "on_header_field": self._take_header_name,
                    "on_header_value": self._take_header_value,
                    "on_header_end": self._end_header,
                    "on_headers_finished": self._begin_body,
                    "on_part_data": self._take_body,
                    "on_part_end": self._end_part,
                    "on_end": self._end,
                },
                max_header_size=_HEADER_LIMIT_BYTES,
            )
        except FormParserError:
            raise malformed("a form with too long a boundary") from None

    def feed(self, data: bytes) -> None:
        """The next bytes of the body."""
        try:
            self._parser.write(data)
        except FormParserError:
            raise malformed("a broken form") from None

    def finish(self) -> str:
        """The form's dataset_id, empty without one. UPLOAD_MALFORMED where the end or a file is missing."""
        if not self._whole:
            raise malformed("cut off")
        if not self._intake.files:
            raise malformed("a form without a file")
        try:
            return self._dataset_id.decode().strip()
        except UnicodeDecodeError:
            raise InvalidArgument({"dataset_id": "is not UTF-8"}) from None

    def _begin_part(self) -> None:
        self._disposition = {}
        self._is_file = False

    def _take_header_name(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def _take_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def _end_header(self) -> None:
        if self._header_name.lower() == b"content-disposition":
            self._disposition = header_parameters(self._header_value)[1]
        self._header_name = self._header_value = b""

    def _begin_body(self) -> None:
        name = self._disposition.get("filename", "")
        self._is_file = self._disposition.get("name") == "file"
        if self._is_file:
            self._intake.begin_file(name)
        elif self._disposition.get("name") == "dataset_id" and self._dataset_id:
            raise InvalidArgument({"dataset_id": "came twice: send one, for all files"})

    def _take_body(self, data: bytes, start: int, end: int) -> None:
        if self._is_file:
            self._intake.data(memoryview(data)[start:end])
        elif self._disposition.get("name") == "dataset_id":
            self._dataset_id += data[start:end]
            if len(self._dataset_id) > _FIELD_LIMIT_BYTES:
                raise InvalidArgument({"dataset_id": "is longer than 128 characters"})

    def _end_part(self) -> None:
        if self._is_file:
            self._intake.end_file()
        self._is_file = False

    def _end(self) -> None:
        self._whole = True

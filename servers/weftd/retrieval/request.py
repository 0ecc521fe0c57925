"""What a search request asks for, checked."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from weft.v1 import common_pb2, retrieval_pb2
from weftd.errors import InvalidArgument
from weftd.retrieval.search import ROUTES

_QUERY_CHARACTERS = 4_000
_TOP_K = 100
_DEFAULT_TOP_K = 5
_IDS = 1_000
_ID_CHARACTERS = 256
_DAY = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)
_INSTANT = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)", re.ASCII)
_SEARCH_TYPES = {"": ROUTES, "hybrid": ROUTES, "dense": ("dense",), "lexical": ("lexical",)}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Query:
    """Both ends of the time are included, in milliseconds since 1970; None sets no end."""

    text: str
    limit: int
    routes: tuple[str, ...]
    dataset_ids: tuple[str, ...]
    document_ids: tuple[str, ...]
    from_ms: int | None
    to_ms: int | None


def read(request: retrieval_pb2.SearchRequest) -> Query:
    """Raises `InvalidArgument` that names every bad field."""
    wrong: dict[str, str] = {}
    if not request.query.strip():
        wrong["query"] = "is empty: say what to look for"
    elif len(request.query) > _QUERY_CHARACTERS:
        wrong["query"] = f"has {len(request.query)} characters; {_QUERY_CHARACTERS} are the most"
    if request.top_k > _TOP_K:
        wrong["top_k"] = f"is {request.top_k}; {_TOP_K} is the most"
    if request.search_type not in _SEARCH_TYPES:
        wrong["search_type"] = 'is none of "hybrid", "dense", "lexical"'
    filters = request.filters
    for name, ids in (("dataset_ids", filters.dataset_ids), ("document_ids", filters.document_ids)):
        if len(ids) > _IDS:
            wrong[f"filters.{name}"] = f"names {len(ids)}; {_IDS} are the most"
        elif not all(0 < len(each) <= _ID_CHARACTERS for each in ids):
            wrong[f"filters.{name}"] = f"has an id that is empty or longer than {_ID_CHARACTERS} characters"
    from_ms, to_ms = _range(filters.date_range, wrong)
    if wrong:
        raise InvalidArgument(wrong)
    return Query(
        text=request.query,
        limit=request.top_k or _DEFAULT_TOP_K,
        routes=_SEARCH_TYPES[request.search_type],
        dataset_ids=tuple(dict.fromkeys(filters.dataset_ids)),
        document_ids=tuple(dict.fromkeys(filters.document_ids)),
        from_ms=from_ms,
        to_ms=to_ms,
    )


def _range(dates: common_pb2.DateRange, wrong: dict[str, str]) -> tuple[int | None, int | None]:
    ends: dict[str, int | None] = {"start": None, "end": None}
    for name, text in (("start", dates.start), ("end", dates.end)):
        try:
            ends[name] = _milliseconds(text, is_end=name == "end") if text else None
        except ValueError:
            wrong[f"filters.date_range.{name}"] = 'is neither a day ("2024-01-31") nor RFC 3339'
    start, end = ends["start"], ends["end"]
    if start is not None and end is not None and start > end:
        wrong["filters.date_range"] = "ends before it starts"
    return start, end


def _milliseconds(text: str, *, is_end: bool) -> int:
    if _DAY.fullmatch(text):
        instant = datetime.fromisoformat(text).replace(tzinfo=UTC)
        length = timedelta(days=1) if is_end else timedelta()
        return (instant - _EPOCH + length) // timedelta(milliseconds=1) - is_end
    if _INSTANT.fullmatch(text):
        return (datetime.fromisoformat(text.upper()) - _EPOCH) // timedelta(milliseconds=1)
    raise ValueError(text)

"""Every field of a search request, right and wrong."""

import pytest

from weft.v1 import common_pb2, retrieval_pb2
from weftd.errors import InvalidArgument
from weftd.retrieval.request import read


def dates(start: str = "", end: str = "") -> retrieval_pb2.SearchFilters:
    return retrieval_pb2.SearchFilters(date_range=common_pb2.DateRange(start=start, end=end))


def test_what_is_left_out_has_its_default() -> None:
    query = read(retrieval_pb2.SearchRequest(query="q"))
    assert (query.limit, query.routes) == (5, ("dense", "lexical"))
    assert (query.dataset_ids, query.document_ids, query.from_ms, query.to_ms) == ((), (), None, None)


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (retrieval_pb2.SearchRequest(), "query"),
        (retrieval_pb2.SearchRequest(query=" \n\t　"), "query"),
        (retrieval_pb2.SearchRequest(query="x" * 4001), "query"),
        (retrieval_pb2.SearchRequest(query="q", top_k=101), "top_k"),
        (retrieval_pb2.SearchRequest(query="q", search_type="graph"), "search_type"),
        (
            retrieval_pb2.SearchRequest(query="q", filters=retrieval_pb2.SearchFilters(dataset_ids=[""])),
            "filters.dataset_ids",
        ),
        (
            retrieval_pb2.SearchRequest(
                query="q", filters=retrieval_pb2.SearchFilters(document_ids=["d"] * 1001)
            ),
            "filters.document_ids",
        ),
        (retrieval_pb2.SearchRequest(query="q", filters=dates("yesterday")), "filters.date_range.start"),
        (retrieval_pb2.SearchRequest(query="q", filters=dates("2024-02-30")), "filters.date_range.start"),
        (
            retrieval_pb2.SearchRequest(query="q", filters=dates(end="2024-01-01T00:00:00")),
            "filters.date_range.end",
        ),
        (retrieval_pb2.SearchRequest(query="q", filters=dates(end="20240101")), "filters.date_range.end"),
        (
            retrieval_pb2.SearchRequest(query="q", filters=dates("2024-01-02", "2024-01-01")),
            "filters.date_range",
        ),
    ],
)
def test_a_bad_field_is_named(request_: retrieval_pb2.SearchRequest, field: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        read(request_)
    assert list(refused.value.fields) == [field]


def test_every_bad_field_is_named_at_once() -> None:
    with pytest.raises(InvalidArgument) as refused:
        read(retrieval_pb2.SearchRequest(top_k=1000, search_type="x", filters=dates("x", "y")))
    assert set(refused.value.fields) == {
        "query",
        "top_k",
        "search_type",
        "filters.date_range.start",
        "filters.date_range.end",
    }


@pytest.mark.parametrize(
    ("start", "end", "from_ms", "to_ms"),
    [
        ("1970-01-01", "1970-01-01", 0, 86_399_999),
        ("1970-01-01T00:00:01Z", "", 1_000, None),
        ("", "1970-01-01T01:00:00.5+01:00", None, 500),
        ("1970-01-02t00:00:00z", "1970-01-02T00:00:00Z", 86_400_000, 86_400_000),
        ("0001-01-01", "9999-12-31", -62_135_596_800_000, 253_402_300_799_999),
    ],
)
def test_both_ends_are_included(start: str, end: str, from_ms: int | None, to_ms: int | None) -> None:
    query = read(retrieval_pb2.SearchRequest(query="q", filters=dates(start, end)))
    assert (query.from_ms, query.to_ms) == (from_ms, to_ms)


def test_a_query_may_have_4000_characters_of_any_script() -> None:
    assert read(retrieval_pb2.SearchRequest(query="深" * 4000, top_k=100)).limit == 100

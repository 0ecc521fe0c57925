"""How an index job cuts its work, and the ids and pages of the catalogue."""

from __future__ import annotations

import pytest

from weftd.errors import InvalidArgument
from weftd.knowledge.ids import check_dataset_id, page_size, page_token, read_page_token
from weftd.knowledge.index_steps import batches


def test_batches_cover_every_passage_once_and_are_full() -> None:
    counts = [("a", 1), ("b", 0), ("c", 300), ("d", 50), ("e", 2)]
    made = list(batches(iter(counts)))
    sizes = [sum(piece.stop - piece.start for piece in batch) for batch in made]
    assert sizes == [128, 128, 97]
    covered = [
        (piece.document_id, n) for batch in made for piece in batch for n in range(piece.start, piece.stop)
    ]
    assert covered == [(name, n) for name, total in counts for n in range(total)]


def test_no_passages_no_batches() -> None:
    assert list(batches(iter([("a", 0)]))) == []


def test_a_page_token_comes_back_as_it_was() -> None:
    assert read_page_token(page_token(12, "ds_é"), int, str) == (12, "ds_é")
    assert read_page_token("", int) is None


@pytest.mark.parametrize(
    "token", ["x", "e30=", "WzFd", page_token(1), page_token("a", 1), page_token(-1, "a"), "é"]
)
def test_a_forged_page_token_is_refused(token: str) -> None:
    with pytest.raises(InvalidArgument, match="page_token"):
        read_page_token(token, int, str)


def test_pages_are_20_by_default_and_100_at_most() -> None:
    assert (page_size(0), page_size(100)) == (20, 100)
    with pytest.raises(InvalidArgument):
        page_size(101)


@pytest.mark.parametrize("dataset_id", ["", "a b", "ä", "a/b", "x" * 129, "a\n", "\0"])
def test_what_no_dataset_can_be_called(dataset_id: str) -> None:
    with pytest.raises(InvalidArgument):
        check_dataset_id(dataset_id)


def test_what_a_dataset_can_be_called() -> None:
    check_dataset_id("Team:plans-2026_q1.v2@eu")

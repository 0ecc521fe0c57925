from weftd.retrieval.fuse import fuse
from weftd.stores.passages.port import Hit, Passage


def hits(*names: str) -> list[Hit]:
    return [Hit(Passage("ds", name, 0, name, None, "", name, 0), 0.5) for name in names]


def names(found: list[Hit]) -> list[str]:
    return [hit.passage.document_id for hit in found]


def test_what_both_routes_find_comes_before_what_one_finds() -> None:
    found = fuse({"dense": hits("a", "both", "c"), "lexical": hits("x", "both", "z")}, 10)
    assert names(found)[0] == "both"
    assert len(found) == 5


def test_the_first_of_each_route_is_among_the_first_three() -> None:
    found = fuse({"dense": hits("best", "a", "b"), "lexical": hits("exact", "x", "y")}, 3)
    assert {"best", "exact"} <= set(names(found))


def test_scores_are_from_0_to_1_and_fall() -> None:
    found = fuse({"dense": hits("a", "b", "c"), "lexical": hits("a", "c", "d")}, 10)
    scores = [hit.score for hit in found]
    assert scores[0] == 1
    assert scores == sorted(scores, reverse=True)
    assert all(0 < score <= 1 for score in scores)


def test_one_route_keeps_its_order() -> None:
    assert names(fuse({"lexical": hits("a", "b", "c")}, 2)) == ["a", "b"]
    assert fuse({"dense": []}, 5) == []
    assert fuse({}, 5) == []


def test_passages_of_one_document_are_apart() -> None:
    first, second = (Hit(Passage("ds", "d", ordinal, "d", None, "", "x", 0), 1.0) for ordinal in (0, 1))
    assert len(fuse({"dense": [first, second], "lexical": [second]}, 5)) == 2

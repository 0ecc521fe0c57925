"""Which units of the passages say most about what is asked."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .question import Question
from .units import Passage, Unit
from .words import coverage

_CONTEXT_SHARE = 0.6
_LIST_CONTEXT_SHARE = 0.9  # "advantages" is the heading, not in the items
_LIST_BONUS = 0.2
_BEFORE_SHARE = 0.3
_SHAPE_BONUS = 0.15
_DEFINITION_BONUS = 0.25
_COSINE_SHARE = 0.5
_RANK_SHARE = 0.1
_SHORT_WORDS = 3
_SHORT_PENALTY = 0.3
_CODE_PENALTY = 0.2
_DEFINITION = re.compile(r"(?:是|指|即|称为|为)|\b(?:is|are|was|were|means|refers to|stands for)\b")


# Of units with the question, by passage and order.
Cosines = Mapping[tuple[int, int], float]


@dataclass(frozen=True, slots=True)
class Ranked:
    unit: Unit
    score: float


def rank(question: Question, passages: Sequence[Passage], cosines: Cosines | None = None) -> list[Ranked]:
    """All units that can be quoted, the best first. `cosines`: of some units, by passage and order."""
    ranked = [
        Ranked(unit, _score(question, passages, unit, cosines or {}))
        for passage in passages
        for unit in passage.units
        if unit.kind != "heading"
    ]
    ranked.sort(key=lambda entry: (-entry.score, entry.unit.passage, entry.unit.order))
    return ranked


def _score(question: Question, passages: Sequence[Passage], unit: Unit, cosines: Cosines) -> float:
    units = passages[unit.passage].units
    own = coverage(question.wanted, unit.words)
    with_context = coverage(question.wanted, unit.words | unit.context)
    before = units[unit.order - 1].words if unit.order else frozenset()
    with_before = coverage(question.wanted, unit.words | unit.context | before)
    share = _LIST_CONTEXT_SHARE if question.form == "list" else _CONTEXT_SHARE
    score = own + share * (with_context - own) + _BEFORE_SHARE * (with_before - with_context)
    score += _COSINE_SHARE * cosines.get((unit.passage, unit.order), 0.0)
    score += _RANK_SHARE * (1 - unit.passage / len(passages))
    if question.shape is not None and own + with_context > 0 and _has_shape(question, unit):
        score += _SHAPE_BONUS
    if question.form == "list" and unit.kind in ("item", "row"):
        score += _LIST_BONUS
    if question.form == "explain" and _defines(question, unit):
        score += _DEFINITION_BONUS
    if unit.kind == "sentence" and len(unit.words) <= _SHORT_WORDS:
        score -= _SHORT_PENALTY
    if unit.kind == "code":
        score -= _CODE_PENALTY
    return score


def _has_shape(question: Question, unit: Unit) -> bool:
    """Whether the unit has what the question asks for in it beside what the question says itself."""
    assert question.shape is not None
    return any(match.group() not in question.text for match in question.shape.finditer(unit.text))


def _defines(question: Question, unit: Unit) -> bool:
    """Whether the unit begins with what is asked about and goes on with "is"."""
    match = _DEFINITION.search(unit.text, 0, 120)
    if match is None:
        return False
    head = unit.text[: match.start()].lower()
    return any(word in head for word, value in question.wanted.items() if value >= 0.6)

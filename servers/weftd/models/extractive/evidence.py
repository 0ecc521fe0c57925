"""Do the passages hold the answer? A logistic model over a few measures of what they share with the question.

Weights are fitted by `bench/fit_answerable.py`. There is one row for each kind of question: Chinese ones;
those with names in them, where a passage *about* the name is the best sign; and those without. The latter two
with and without an embedder; with one that knows Chinese nothing has been measured yet.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from .question import Question
from .units import Passage, Unit
from .words import coverage

Profile = Literal["chinese", "named", "named_dense", "plain", "plain_dense"]

FEATURES: dict[Profile, tuple[str, ...]] = {
    "chinese": ("window", "pairs"),
    "named": ("all", "phrases", "subject"),
    "named_dense": ("all", "phrases", "subject", "cosine"),
    "plain": ("window", "all"),
    "plain_dense": ("window", "all", "cosine"),
}
# One weight for each feature, and the bias last. The answer is given where the sum is 0 or more.
WEIGHTS: dict[Profile, tuple[float, ...]] = {
    "chinese": (9.29, 3.88, -7.15),
    "named": (5.01, 1.78, 8.27, -5.21),
    "named_dense": (3.95, 1.62, 6.82, 6.59, -7.93),
    "plain": (4.17, 4.92, -4.95),
    "plain_dense": (1.89, 4.60, 9.32, -8.24),
}


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is measured, all 0 to 1.

    `window`: weight of the question's words in the two neighbouring units, with their headings, that hold
    most of it. `all`: in all passages together. `phrases`: weight of its names, quotes and numbers that stand
    in some passage as they are. `subject`: weight of the longest subject of a passage that it names. `pairs`:
    share of its pairs of Chinese characters in the passage that holds most.
    """

    window: float
    all: float
    phrases: float
    subject: float
    pairs: float
    named: bool
    chinese: bool

    def profile(self, cosine: float | None) -> Profile:
        if self.chinese:
            return "chinese"
        if self.named:
            return "named" if cosine is None else "named_dense"
        return "plain" if cosine is None else "plain_dense"

    def features(self, cosine: float | None) -> list[float]:
        """In the order of `FEATURES`. `cosine`: of the question with its best sentence, None if not known."""
        measures = {name: getattr(self, name) for name in ("window", "all", "phrases", "subject", "pairs")}
        measures["cosine"] = cosine
        return [measures[name] for name in FEATURES[self.profile(cosine)]]

    def score(self, cosine: float | None) -> float:
        """Log-odds against the threshold: the passages hold the answer where it is 0 or more."""
        *factors, bias = WEIGHTS[self.profile(cosine)]
        return bias + sum(
            factor * value for factor, value in zip(factors, self.features(cosine), strict=True)
        )


def gather(question: Question, passages: Sequence[Passage]) -> Evidence:
    everything = frozenset().union(*(passage.words for passage in passages))
    return Evidence(
        window=max((_window(question, passage.units) for passage in passages), default=0.0),
        all=coverage(question.wanted, everything),
        phrases=_phrases(question, passages),
        subject=max((_subject(question, passage) for passage in passages), default=0.0),
        pairs=max((_pairs(question, passage) for passage in passages), default=0.0),
        named=bool(question.phrases),
        chinese=question.chinese,
    )


def _window(question: Question, units: Sequence[Unit]) -> float:
    best = 0.0
    for position, unit in enumerate(units):
        following = units[position + 1].words if position + 1 < len(units) else frozenset()
        best = max(best, coverage(question.wanted, unit.words | following | unit.context))
    return best


def _phrases(question: Question, passages: Sequence[Passage]) -> float:
    total = found = 0.0
    for phrase in question.phrases:
        value = sum(question.wanted.get(word, 0.1) for word in phrase)
        total += value
        text = f" {' '.join(phrase)} "
        found += value * any(text in passage.stem_text for passage in passages)
    return found / total if total else 0.0


def _subject(question: Question, passage: Passage) -> float:
    total = sum(question.wanted.values())
    named = (subject for subject in passage.subjects if question.stems.issuperset(subject))
    return (
        max(
            (sum(question.wanted.get(word, 0.0) for word in subject) / total for subject in named),
            default=0.0,
        )
        if total
        else 0.0
    )


def _pairs(question: Question, passage: Passage) -> float:
    if not question.pairs:
        return 0.0
    return sum(pair in passage.folded for pair in question.pairs) / len(question.pairs)

"""The answer: chosen units, word for word, as Markdown with their sources."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

from .markdown import code_block, escape
from .question import Form, Question
from .ranking import Ranked
from .units import Passage, Unit
from .words import coverage

# How many places of the passages an answer draws on, and how many units of one place it tells in a row.
_PLACES: dict[Form, int] = {"fact": 3, "list": 4, "explain": 3, "overview": 4}
_RUN: dict[Form, int] = {"fact": 1, "list": 3, "explain": 4, "overview": 2}
_RUN_CHARACTERS = 600
_LIST_ITEMS = 12
# Another place is told where it scores nearly as high as the best, or has much of what that one lacks.
_CLOSE = 0.9
_USEFUL = 0.6
_NEW_WEIGHT = 0.25
_SAME = 0.8

_HESITANT = {True: "文档中最相关的内容：", False: "The closest that the documents say:"}
NO_ANSWER = {
    True: "文档中没有找到这个问题的答案。可以换个说法再问，或者上传包含相关内容的文档。",
    False: "The documents do not hold the answer to this question. Put it in other words, or upload a "
    "document that covers it.",
}
NO_PASSAGES = {
    True: "没有找到可以回答这个问题的文档。请先上传相关文档并建立索引，然后再问我。",
    False: "There are no documents to answer this question from. Upload some and index them, then ask again.",
}


def compose(
    question: Question, passages: Sequence[Passage], ranked: Sequence[Ranked], *, hesitant: bool
) -> str:
    """Markdown. `ranked`: as `rank` gives it, not empty. `hesitant`: the answer may be beside the point."""
    places = [_around(question, passages, unit) for unit in _choose(question, ranked)]
    blocks = [_block(passages, place) for place in _without_repeats(places)]
    as_list = len(blocks) > 2 and all("\n" not in block for block in blocks)
    text = "\n".join(f"- {block}" for block in blocks) if as_list else "\n\n".join(blocks)
    return f"{_HESITANT[question.chinese]}\n\n{text}" if hesitant else text


def _choose(question: Question, ranked: Sequence[Ranked]) -> list[Unit]:
    """The best unit, and others nearly as good or that hold words of the question that are still missing."""
    if question.form == "overview":
        openings = [entry.unit for entry in ranked if entry.unit.order <= 1 and entry.unit.kind != "code"]
        first = {unit.passage: unit for unit in sorted(openings, key=lambda unit: -unit.order)}
        return [first[passage] for passage in sorted(first)][: _PLACES["overview"]] or [ranked[0].unit]
    chosen = [ranked[0].unit]
    covered = set(chosen[0].words | chosen[0].context)
    for entry in ranked[1:]:
        if len(chosen) == _PLACES[question.form]:
            break
        gain = coverage(question.wanted, covered | entry.unit.words) - coverage(question.wanted, covered)
        share = entry.score / ranked[0].score if ranked[0].score > 0 else 1.0
        if (share >= _CLOSE or (gain >= _NEW_WEIGHT and share >= _USEFUL)) and not any(
            _same(entry.unit, unit) for unit in chosen
        ):
            chosen.append(entry.unit)
            covered |= entry.unit.words
    return chosen


def _around(question: Question, passages: Sequence[Passage], unit: Unit) -> list[Unit]:
    """The unit and what belongs to it: an explanation goes on, a colon opens a list, a list is told whole."""
    units = passages[unit.passage].units
    as_list = question.form == "list" and unit.kind == "item"
    start = unit.order
    while as_list and start and units[start - 1].kind == "item":
        start -= 1
    run = [units[start]]
    size = len(run[0].text)
    opens_list = run[0].text.rstrip().endswith((":", "：")) and run[0].kind == "sentence"
    for following in units[start + 1 :]:
        size += len(following.text)
        belongs = following.kind == "sentence" == run[-1].kind and len(run) < _RUN[question.form]
        if as_list or opens_list:
            belongs = following.kind in ("item", "row", "code") and len(run) <= _LIST_ITEMS
        if not belongs or size > _RUN_CHARACTERS:
            break
        run.append(following)
    return run if unit in run else [unit]


def _without_repeats(places: Sequence[list[Unit]]) -> Iterator[list[Unit]]:
    told: list[Unit] = []
    for place in places:
        new = [unit for unit in place if not any(_same(unit, other) for other in told)]
        told += new
        if new:
            yield new


def _same(one: Unit, other: Unit) -> bool:
    if (one.passage, one.order) == (other.passage, other.order):
        return True
    return len(one.words & other.words) >= _SAME * len(one.words | other.words)


def _block(passages: Sequence[Passage], place: Sequence[Unit]) -> str:
    """Units of one passage: sentences as one paragraph, items and rows as a list, code as it was."""
    source = f"[{passages[place[0].passage].number}]"
    lines: list[str] = []
    sentences = ""
    for unit in place:
        if unit.kind == "sentence" or (len(place) == 1 and unit.kind != "code"):
            gap = "" if not sentences or unit.text[:1] > "\u2e7f" else " "
            sentences += gap + (escape(unit.text, opens_line=not sentences))
            continue
        if sentences:
            lines.append(sentences)
            sentences = ""
        lines.append(
            code_block(unit.text) if unit.kind == "code" else f"- {escape(unit.text, opens_line=True)}"
        )
    if sentences:
        lines.append(sentences)
    if lines[-1].endswith(("```", "~~~")):
        lines.append(source)
    else:
        lines[-1] += f" {source}"
    return _join(lines)


def _join(lines: Sequence[str]) -> str:
    """Blank lines around all but neighbouring items."""
    text = lines[0]
    for before, line in pairwise(lines):
        text += ("\n" if before.startswith("- ") and line.startswith("- ") else "\n\n") + line
    return text

"""Passages taken apart into what an answer is made of: sentences, list items, table rows, blocks of code."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import PurePath
from typing import Literal

from weft.v1.common_pb2 import Reference
from weftd.text.headings import find_headings
from weftd.text.language import is_chinese
from weftd.text.sentences import split_sentences
from weftd.text.tokens import fold

from .markdown import plain
from .words import stems

Kind = Literal["sentence", "item", "row", "code", "heading"]

_MAX_UNIT_CHARACTERS = 320
_FENCE = re.compile(r"^\s*(```+|~~~+)")
_HEADING = re.compile(r"^\s*(#{1,6})\s+(?=\S)")
_ITEM = re.compile(r"^\s*(?:[-*+•·▪●]|\d{1,3}[.)、]|[（(][一二三四五六七八九十\d]{1,3}[)）])\s*(?=\S)")
_PLAIN_LEVEL = 7  # below all of Markdown's
_TABLE_LINE = re.compile(r"^\s*\|.*\|\s*$")
_TABLE_RULE = re.compile(r"^[\s|:-]+$")
_EMPTY = ("", "NaN")  # what spreadsheets' empty cells become
_CELL_BORDER = re.compile(r"(?<!\\)\|")
_WIDE = r"[\u3000-\u303f\u3400-\u9fff\uff00-\uffef]"
_BROKEN_LINE = re.compile(rf"(?<={_WIDE})\s*\n\s*(?={_WIDE})")
_CLAUSE = re.compile(r"(?<=[，；、,;])(?!\d)")
_LEAD = re.compile(r"^\W*(.{2,60}?)(?:\s+(?:is|was|are|were|refers)\b|,|\s\()")
_IN_PARENTHESES = re.compile(r"\(.*?\)|（.*?）")


@dataclass(frozen=True, slots=True)
class Unit:
    """`text` as the passage has it, with white space evened out and without Markdown's marks.

    `words` are its stems, `context` those of the headings above it and of the file's name.
    """

    passage: int
    order: int
    kind: Kind
    text: str
    words: frozenset[str]
    context: frozenset[str]


@dataclass(frozen=True, slots=True)
class Passage:
    """`subjects`: the words of the file name, of the heading, and of what the first sentence speaks of.
    `stem_text`: all words with single spaces around them, to look phrases up in. `folded`: all characters, to
    look pairs of them up in.
    """

    number: int
    units: tuple[Unit, ...]
    subjects: tuple[tuple[str, ...], ...]
    words: frozenset[str]
    stem_text: str
    folded: str


def take_apart(index: int, reference: Reference) -> Passage:
    """Passage number `index` (from 0) of the request."""
    name = _IN_PARENTHESES.sub(
        "", PurePath(reference.name).stem if "." in reference.name[-6:] else reference.name
    )
    above = frozenset(stems(name)) | frozenset(stems(reference.heading))
    units: list[Unit] = []
    headings: dict[int, frozenset[str]] = {}
    for kind, text in _pieces(reference.content):
        if kind == "heading":
            mark = _HEADING.match(text)
            level = len(mark.group(1)) if mark else _PLAIN_LEVEL
            text = text[mark.end() if mark else 0 :].strip(" #\t")
            headings = {of: words for of, words in headings.items() if of < level}
            headings[level] = frozenset(stems(text))
        words = frozenset(stems(text))
        context = above.union(*headings.values())
        if words:
            units.append(Unit(index, len(units), kind, text, words, context))
    first = next((unit.text for unit in units if unit.kind == "sentence"), "")
    lead = _LEAD.match(first)
    subjects = [name, _IN_PARENTHESES.sub("", reference.heading), lead.group(1) if lead else ""]
    everything = f"{reference.name}\n{reference.heading}\n{reference.content}"
    return Passage(
        number=reference.id,
        units=tuple(units),
        subjects=tuple(tuple(found) for subject in subjects if (found := stems(subject))),
        words=above.union(*(unit.words for unit in units)),
        stem_text=f" {' '.join(stems(everything))} ",
        folded=fold(everything),
    )


def _pieces(content: str) -> Iterator[tuple[Kind, str]]:
    """The parts of `content` in order."""
    for kind, block in _blocks(content):
        if kind == "code":
            yield "code", "\n".join(block)
        elif kind == "table":
            yield from (("row", row) for row in _rows(block))
        elif kind == "heading":
            yield "heading", block[0]
        else:
            text = "\n".join(block)
            item = _ITEM.match(text)
            text = plain(text[item.end() :] if item else text)
            for sentence in split_sentences(_BROKEN_LINE.sub("", text)):
                for part in _short(" ".join(sentence.split())):
                    yield ("item" if item else "sentence"), part


def _blocks(content: str) -> Iterator[tuple[str, list[str]]]:
    """Lines that belong together, with what they are: code, table, heading (Markdown's or plain), item or
    text."""
    fence = ""
    kinds: list[tuple[str, int, str]] = []
    number = 0
    lines = content.splitlines()
    for line, is_heading in zip(lines, find_headings(lines), strict=True):
        mark = _FENCE.match(line)
        if fence:
            if mark and mark.group(1).startswith(fence):
                fence = ""
            else:
                kinds.append(("code", number, line))
            continue
        if mark:
            fence = mark.group(1)
            number += 1
        elif _TABLE_LINE.match(line):
            kinds.append(("table", 0, line))
        elif is_heading or _HEADING.match(line):
            number += 1
            kinds.append(("heading", number, line))
        elif not line.strip():
            number += 1
        else:
            number += bool(_ITEM.match(line))
            follows_item = bool(kinds) and kinds[-1][:2] == ("item", number)
            kinds.append(("item" if _ITEM.match(line) or follows_item else "text", number, line))
    for (kind, _), entries in groupby(kinds, key=lambda entry: entry[:2]):
        yield kind, [line for *_, line in entries]


def _rows(lines: list[str]) -> Iterator[str]:
    """Each row of a Markdown table: "column: cell; column: cell", or the cells alone without a header."""
    cells = [[cell.strip() for cell in _CELL_BORDER.split(line.strip()[1:-1])] for line in lines]
    ruled = len(lines) > 1 and bool(_TABLE_RULE.match(lines[1]))
    header = ["" if name.startswith("Unnamed:") else name for name in cells[0]] if ruled else []
    for row in cells[2:] if ruled else cells:
        filled = [
            (header[i] if i < len(header) else "", cell) for i, cell in enumerate(row) if cell not in _EMPTY
        ]
        if not filled or all(_TABLE_RULE.match(cell) for _, cell in filled):
            continue
        colon, semicolon = ("：", "；") if is_chinese(" ".join(row + header)) else (": ", "; ")
        yield plain(semicolon.join(f"{name}{colon}{cell}" if name else cell for name, cell in filled))


def _short(sentence: str) -> Iterator[str]:
    """`sentence`, cut between clauses where it is longer than a reader wants to see quoted."""
    if len(sentence) <= _MAX_UNIT_CHARACTERS:
        yield from [sentence] if sentence else []
        return
    part = ""
    for clause in _CLAUSE.split(sentence):
        if part and len(part) + len(clause) > _MAX_UNIT_CHARACTERS:
            yield part.strip()
            part = ""
        part += clause
        while len(part) > 2 * _MAX_UNIT_CHARACTERS:
            space = part.rfind(" ", 1, _MAX_UNIT_CHARACTERS)
            end = space if space > 0 else _MAX_UNIT_CHARACTERS
            yield part[:end].strip()
            part = part[end:]
    yield part.strip()

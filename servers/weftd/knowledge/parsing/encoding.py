"""In which encoding a text is: UTF-8, UTF-16, UTF-32 with a mark, or GB18030 (which holds GBK and GB2312)."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from pathlib import Path

from weftd.knowledge.parsing.section import Refused

__all__ = ["detect", "looks_binary", "read_text", "stays_valid"]

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # begins with UTF-16's, so it comes first
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_SAMPLE_BYTES = 64 << 10
_READ_CHARS = 64 << 10
# Han characters, their punctuation and full-width forms; and Latin letters with marks and typographic signs.
_HAN = "\u4e00-\u9fff\u3000-\u303f\uff00-\uffee\u2010-\u2026"
_CHINESE = re.compile(f"[{_HAN}·]")
_STOPS = re.compile("[ \n,.，。、]")
_COMMON = re.compile(f"[{_HAN}\xa0-\u017f]")


def looks_binary(head: bytes) -> bool:
    """Whether the first bytes are no text in any encoding that `detect` knows."""
    return _guess(head) is None and _control_share(head) > 0.02


def detect(path: Path) -> str:
    """The codec of a whole file, which then decodes without an error. Raises `Refused` ENCODING_UNKNOWN."""
    with path.open("rb") as file:
        head = file.read(_SAMPLE_BYTES)
    guess = _guess(head)
    candidates = [guess] if guess else []
    # A long English text may turn Chinese after the sample.
    candidates += [other for other in ("utf-8", "gb18030") if guess in (None, "utf-8") and other != guess]
    for codec in candidates:
        if stays_valid(path, codec) and (codec == guess or head.isascii()):
            return codec
    raise Refused(
        "ENCODING_UNKNOWN",
        "The encoding of the text was not recognised, or it is damaged. Save it as UTF-8 and upload that.",
    )


def stays_valid(path: Path, codec: str) -> bool:
    """Whether the codec decodes the whole file without an error."""
    try:
        for _ in read_text(path, codec):
            pass
    except UnicodeError:
        return False
    return True


def read_text(path: Path, codec: str) -> Iterator[str]:
    """The text in blocks of at most 64 Ki characters, with `\\n` line ends. Raises `UnicodeError`."""
    with path.open(encoding=codec, errors="strict") as file:
        while block := file.read(_READ_CHARS):
            yield block


def _guess(head: bytes) -> str | None:
    for mark, codec in _MARKS:
        if head.startswith(mark):
            return codec
    # A lone NUL is dirt in a UTF-8 text; many are the upper halves of UTF-16.
    if (
        head.count(0) <= len(head) // 20
        and _decode(head, "utf-8") is not None
        and _control_share(head) <= 0.02
    ):
        return "utf-8"
    scores = {codec: _plausibility(head, codec) for codec in ("utf-16-le", "utf-16-be", "gb18030")}
    best = max(scores, key=lambda codec: scores[codec])
    return best if scores[best] >= 0.5 else None


def _decode(head: bytes, codec: str) -> str | None:
    try:
        # The sample may end within a character.
        return codecs.getincrementaldecoder(codec)().decode(head, final=False)
    except UnicodeError:
        return None


def _plausibility(head: bytes, codec: str) -> float:
    """0 to 1: how much `head` looks like Chinese or English in this encoding."""
    text = _decode(head, codec)
    if not text or _control_share(text.encode("utf-8", "replace")) > 0.02:
        return 0.0
    if codec == "gb18030":
        # Most is in the old GB2312 set, traditional texts too. Texts of other encodings read as this one are
        # full of rare characters, or of kana.
        strange = [char for char in text if not char.isascii()]
        good = sum(_is_gb2312(char) - 2 * ("\u3040" <= char <= "\u30ff") for char in strange)
        return good / len(strange) if strange else 0.0
    # Any pair of bytes may be a Han character; a space or a full stop does not come by chance.
    return sum(map(_is_common, text)) / len(text) if _STOPS.search(text) else 0.0


def _is_common(char: str) -> bool:
    return char.isascii() or _COMMON.match(char) is not None


def _is_gb2312(char: str) -> bool:
    if not _CHINESE.match(char):
        return False
    try:
        char.encode("gb2312")
    except UnicodeEncodeError:
        return False
    return True


def _control_share(data: bytes) -> float:
    """The share of control characters, NUL and the usual white space aside."""
    controls = sum(data.count(code) for code in range(1, 32) if code not in (9, 10, 12, 13, 27))
    return (controls + data.count(127)) / max(1, len(data))

"""Names of uploaded files, as browsers, curl and libraries write them into a form's headers."""

from __future__ import annotations

import re
import unicodedata
from urllib.parse import unquote_to_bytes

__all__ = ["clean_name", "header_parameters"]

_PARAMETER = re.compile(rb';\s*([^\s=;"]+)\s*=\s*("(?:[^"\\]|\\.)*"|[^;]*)')
_CONTINUED = re.compile(r"(?P<name>[^*]+)(?:\*(?P<part>\d+))?(?P<encoded>\*)?")
# What the living standard has browsers write for these three, and nothing else.
_BROWSER_ESCAPES = ((b"%22", b'"'), (b"%0D", b"\r"), (b"%0A", b"\n"))


def header_parameters(value: bytes) -> tuple[str, dict[str, str]]:
    """A header such as Content-Disposition as its value, in lower case, and its parameters.

    Text may be raw UTF-8 or GB18030, with browsers' escapes for quotes, or encoded as RFC 5987 and RFC 2231
    say (`name*=`, `name*0=`), which goes before the plain form.
    """
    kind = value.partition(b";")[0].strip().decode("latin-1").lower()
    plain: dict[str, bytes] = {}
    pieces: dict[str, dict[int, tuple[bool, bytes]]] = {}
    for key, raw in _PARAMETER.findall(value):
        match = _CONTINUED.fullmatch(key.decode("latin-1").lower())
        if match is None:
            continue
        name, encoded = match["name"], match["encoded"] is not None
        if encoded or match["part"] is not None:
            pieces.setdefault(name, {})[int(match["part"] or 0)] = (encoded, _unquoted(raw))
        else:
            plain[name] = _unquoted(raw)
    parameters = {name: _decode(_browser_text(raw)) for name, raw in plain.items()}
    parameters.update({name: _extended(parts) for name, parts in pieces.items()})
    return kind, parameters


def _unquoted(raw: bytes) -> bytes:
    raw = raw.strip()
    if len(raw) >= 2 and raw.startswith(b'"') and raw.endswith(b'"'):
        # Only a quote is escaped: old browsers sent Windows paths as they are.
        return raw[1:-1].replace(b'\\"', b'"')
    return raw


def _browser_text(raw: bytes) -> bytes:
    for escape, character in _BROWSER_ESCAPES:
        raw = raw.replace(escape, character)
    return raw


def _extended(parts: dict[int, tuple[bool, bytes]]) -> str:
    charset, joined = "utf-8", b""
    for number in sorted(parts):
        encoded, raw = parts[number]
        if not encoded:
            joined += raw
            continue
        if number == min(parts) and raw.count(b"'") >= 2:
            declared, _, raw = raw.split(b"'", 2)
            charset = declared.decode("latin-1") or charset
        joined += unquote_to_bytes(raw)
    return _decode(joined, charset)


def _decode(raw: bytes, charset: str = "utf-8") -> str:
    for encoding in (charset, "utf-8", "gb18030"):
        try:
            return raw.decode(encoding)
        except (UnicodeDecodeError, LookupError):
            continue
    return raw.decode("latin-1")


def clean_name(name: str) -> str:
    """The last part of a path, composed (NFC), without control or formatting characters. May be empty."""
    last = re.split(r"[/\\]", unicodedata.normalize("NFC", name))[-1]
    kept = "".join(c for c in last if unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Zl", "Zp"))
    cleaned = kept.strip()
    return "" if cleaned in (".", "..") else cleaned

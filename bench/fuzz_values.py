"""Values of the contract's fields and bodies of its messages, with something wrong in one in eight."""

from __future__ import annotations

import json
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from hypothesis import strategies as st

__all__ = [
    "IDS",
    "as_json",
    "bodies",
    "fields_of",
    "garbled",
    "garbling",
    "junk",
    "numbers",
    "often_garbled",
    "rarely",
    "texts",
]

IDS = ("c-1", "c-2", "r-1", "r-2", "ds-1", "ds-2", "doc_1", "extractive")
_ODD_TEXT = (
    *("", " ", "\0", "a\0b", ".", "..", "../../etc/passwd", "-1", "1e999", "NaN", "true", "null", "%00%ff"),
    *("\ud800", "\udfff\ud800", "\u202e\ufeff", "🦊" * 40, "é" * 129, "a" * 128, "a" * 129, "a" * 33_000),
    *("' OR 1=1 --", "{{7*7}}", "${jndi:ldap://x}", "<script>", "\r\nX-Evil: 1", '" AND ( * NEAR', "*?[]^~:"),
    *(
        "9" * 400,
        "2024-02-30",
        "0001-01-01",
        "9999-12-31",
        "vector",
        "graph",
        "lexical",
        "dense",
        "up",
        "user",
        "a" * 1_000_000,
    ),
)
texts = st.one_of(st.sampled_from(IDS), st.sampled_from(_ODD_TEXT), st.text(max_size=30))
numbers = st.one_of(
    st.integers(-2, 60),
    st.sampled_from((2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**63, -(2**63) - 1, 10**400, 0.5, -0.0, 1e308)),
    st.floats(),
)
junk = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
_TYPES: dict[int, st.SearchStrategy[Any]] = {
    FieldDescriptor.CPPTYPE_STRING: texts,
    FieldDescriptor.CPPTYPE_BOOL: st.booleans(),
}


def rarely(odd: st.SearchStrategy[Any], usual: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """One in eight is odd."""
    return st.integers(0, 7).flatmap(lambda n: odd if n == 7 else usual)


def _value(field: FieldDescriptor, depth: int) -> st.SearchStrategy[Any]:
    if field.name == "role":
        one: st.SearchStrategy[Any] = st.just("user") | texts
    elif field.message_type is not None:
        one = fields_of(field.message_type, depth + 1)
    else:
        one = _TYPES.get(field.cpp_type, numbers)
    usual = st.lists(one, max_size=4) if field.is_repeated else one
    return rarely(junk, usual)


_MADE: dict[tuple[str, int], st.SearchStrategy[dict[str, Any]]] = {}


def fields_of(message: Descriptor, depth: int = 0) -> st.SearchStrategy[dict[str, Any]]:
    """JSON objects that are nearly messages of this type."""
    key = (message.full_name, depth)
    if key not in _MADE:
        if depth > 4:
            return junk
        likely = {
            field.name: _value(field, depth)
            for field in message.fields
            if field.name in ("messages", "role", "content", "query", "conversation_id", "dataset_id")
        }
        others = {field.name: _value(field, depth) for field in message.fields if field.name not in likely}
        made = st.fixed_dictionaries(likely, optional=others)
        extra = st.dictionaries(st.text(max_size=12), junk, max_size=2)
        _MADE[key] = rarely(st.builds(lambda good, more: {**good, **more}, made, extra), made)
    return _MADE[key]


def garbled(data: bytes, how: tuple[str, int, bytes]) -> bytes:
    """`how`: the way, where, and with what."""
    kind, at, more = how
    at = at % (len(data) + 1)
    match kind:
        case "cut":
            return data[:at]
        case "insert":
            return data[:at] + more + data[at:]
        case "overwrite":
            return data[:at] + more + data[at + len(more) :]
        case "twice":
            return data + data
        case "deep":
            return b"[" * 100_000
        case _:
            return data


_HOW = st.tuples(
    st.sampled_from(("cut", "insert", "overwrite", "twice", "deep")),
    st.integers(0, 1 << 20),
    st.binary(max_size=12) | st.sampled_from((b"\0", b"\xff\xfe", b"\xed\xa0\x80", b"{", b'"', b"\r\n\r\n")),
)
_AS_IT_IS = st.just(("", 0, b""))
garbling = rarely(_HOW, _AS_IT_IS)
often_garbled = st.one_of(_HOW, _AS_IT_IS)


def as_json(value: Any) -> bytes:
    return json.dumps(value).encode()


def bodies(message: Descriptor) -> st.SearchStrategy[bytes]:
    """JSON bodies that are nearly messages of this type."""
    return st.builds(lambda fields, how: garbled(as_json(fields), how), fields_of(message), garbling)

"""The language models for Triton: pieces of text without Triton or torch, and the variant for vLLM."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from google.protobuf import text_format
from tokenizers import Tokenizer
from tritonclient.grpc import model_config_pb2

from tests.servers.tiny_llm import write_tiny_llm
from weftd.inference.model_code import MODELS, load

pieces = load("llm", "pieces")
plain = load("llm", "plain")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    directory = write_tiny_llm(tmp_path_factory.mktemp("tiny"))
    return Tokenizer.from_file(str(directory / "tokenizer.json"))


@pytest.mark.parametrize("text", ["今年的绩效很好 ok", "🦜 crème brûlée", " a  b\n"])
def test_characters_are_whole_and_none_is_lost(tokenizer: Tokenizer, text: str) -> None:
    tokens = tokenizer.encode(text, add_special_tokens=False).ids
    assert len(tokens) > len(text.split())
    characters = pieces.Characters(tokenizer, tokenizer.encode("年假 how?").ids)
    shown = [characters.feed(token) for token in tokens]
    assert "".join(shown) == text
    assert not any("\ufffd" in each for each in shown)


def test_a_character_that_is_cut_off_is_left_out(tokenizer: Tokenizer) -> None:
    tokens = tokenizer.encode("ok 绩", add_special_tokens=False).ids
    characters = pieces.Characters(tokenizer, [])
    assert "".join(characters.feed(token) for token in tokens[:-1]).strip() == "ok"


def test_what_people_say_is_no_mark_of_a_turn() -> None:
    added = [("<|end|>", True), ("<|end|>x", True), ("<tool>", False)]
    tokens = {n: SimpleNamespace(content=text, special=special) for n, (text, special) in enumerate(added)}
    said = "a<|end|><|end|>xb<tool><|begin|>"
    marks = plain.marks(SimpleNamespace(added_tokens_decoder=tokens))
    assert plain.plain(said, marks) == "a< |end|>< |end|>xb<tool><|begin|>"
    assert plain.plain(said, plain.marks(SimpleNamespace(added_tokens_decoder={}))) == said


@pytest.mark.parametrize("size", [1, 2, 5])
@pytest.mark.parametrize(
    ("text", "stops", "shown"),
    [
        ("one two three", ["two"], "one "),
        ("one two three", ["three", "two"], "one "),
        ("aaab", ["aab"], "a"),
        ("one\n\nuser: hi", ["\n\nuser"], "one"),
        ("on the way to tw", ["two"], "on the way to tw"),
        ("年假需要提前五天", ["提前五"], "年假需要"),
        ("whole", [], "whole"),
        ("whole", [""], "whole"),
    ],
)
def test_a_stop_text_never_shows_in_part(text: str, stops: list[str], shown: str, size: int) -> None:
    watch = pieces.Stops(stops)
    seen, stopped = "", False
    for start in range(0, len(text), size):
        more, stopped = watch.feed(text[start : start + size])
        seen += more
        assert shown.startswith(seen)
        if stopped:
            break
    assert (seen if stopped else seen + watch.end()) == shown


def config(name: str) -> model_config_pb2.ModelConfig:
    text = (MODELS / name / "config.pbtxt").read_text()
    return text_format.Parse(text, model_config_pb2.ModelConfig())


def test_the_variant_for_vllm_has_the_same_tensors() -> None:
    ours, other = config("llm"), config("llm_vllm")
    assert (other.input, other.output) == (ours.input, ours.output)
    assert other.model_transaction_policy.decoupled and other.name == "llm"


def test_the_variant_for_vllm_differs_in_its_model_only() -> None:
    compile(version("llm_vllm", "causal.py"), "causal.py", "exec")


def version(name: str, file: str) -> str:
    return Path(MODELS / name / "1" / file).read_text()

"""The embedding model that comes with Weft, and a tiny one made here."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from weftd.inference.onnx_embedder import OnnxEmbedder, open_embedder

HIDDEN, LAYERS, HEADS, WIDE, POSITIONS = 8, 2, 2, 16, 16
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]


def write_tokenizer(directory: Path, words: str) -> int:
    vocabulary = {word: index for index, word in enumerate([*SPECIAL, *dict.fromkeys(words.split())])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.enable_padding(length=POSITIONS)  # as published: the embedder pads by itself
    tokenizer.save(str(directory / "tokenizer.json"))
    return len(vocabulary)


def write_bert(directory: Path, words: str = "the cat sat on a mat", **config: Any) -> dict[str, Any]:
    """A BERT with random weights, as sentence-transformers lays it out; returns the weights."""
    directory.mkdir(parents=True, exist_ok=True)
    size = write_tokenizer(directory, words)
    random = np.random.default_rng(7)

    def weights(*shape: int) -> Any:
        return random.normal(0, 0.3, shape).astype(np.float32)

    tensors = {
        "embeddings.word_embeddings.weight": weights(size, HIDDEN),
        "embeddings.position_embeddings.weight": weights(POSITIONS, HIDDEN),
        "embeddings.token_type_embeddings.weight": weights(2, HIDDEN),
    }
    shapes = {"attention.output.dense": (HIDDEN, HIDDEN), "intermediate.dense": (WIDE, HIDDEN)}
    shapes |= {"output.dense": (HIDDEN, WIDE)}
    shapes |= {f"attention.self.{part}": (HIDDEN, HIDDEN) for part in ("query", "key", "value")}
    norms = ["embeddings.LayerNorm"]
    for layer in range(LAYERS):
        prefix = f"encoder.layer.{layer}."
        norms += [f"{prefix}attention.output.LayerNorm", f"{prefix}output.LayerNorm"]
        for name, shape in shapes.items():
            tensors |= {f"{prefix}{name}.weight": weights(*shape), f"{prefix}{name}.bias": weights(shape[0])}
    for name in norms:
        tensors |= {f"{name}.weight": 1 + weights(HIDDEN), f"{name}.bias": weights(HIDDEN)}
    save_file(tensors, directory / "model.safetensors")
    written = {
        "model_type": "bert",
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "layer_norm_eps": 1e-12,
        "max_position_embeddings": POSITIONS,
        "hidden_act": "gelu",
    }
    (directory / "config.json").write_text(json.dumps(written | config))
    return tensors


def reference(tensors: dict[str, Any], ids: list[int]) -> Any:
    """The token states of one text by the textbook (Devlin et al., 2019), in numpy."""
    from math import erf

    def linear(value: Any, name: str) -> Any:
        return value @ tensors[f"{name}.weight"].T + tensors[f"{name}.bias"]

    def norm(value: Any, name: str) -> Any:
        centred = value - value.mean(-1, keepdims=True)
        scaled = centred / np.sqrt(centred.var(-1, keepdims=True) + 1e-12)
        return scaled * tensors[f"{name}.weight"] + tensors[f"{name}.bias"]

    state = tensors["embeddings.word_embeddings.weight"][ids]
    state = state + tensors["embeddings.position_embeddings.weight"][: len(ids)]
    state = norm(state + tensors["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
    for layer in range(LAYERS):
        prefix = f"encoder.layer.{layer}."
        parts = [linear(state, f"{prefix}attention.self.{part}") for part in ("query", "key", "value")]
        query, key, value = (part.reshape(len(ids), HEADS, -1).transpose(1, 0, 2) for part in parts)
        scores = query @ key.transpose(0, 2, 1) / np.sqrt(HIDDEN / HEADS)
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        shares /= shares.sum(-1, keepdims=True)
        mixed = (shares @ value).transpose(1, 0, 2).reshape(len(ids), HIDDEN)
        attended = linear(mixed, f"{prefix}attention.output.dense") + state
        state = norm(attended, f"{prefix}attention.output.LayerNorm")
        wide = linear(state, f"{prefix}intermediate.dense")
        wide = wide * 0.5 * (1 + np.vectorize(erf)(wide / np.sqrt(2)))
        state = norm(linear(wide, f"{prefix}output.dense") + state, f"{prefix}output.LayerNorm")
    return state


def unit(vector: Any) -> Any:
    return vector / np.linalg.norm(vector)


@pytest.fixture
async def tiny(tmp_path: Path) -> AsyncIterator[OnnxEmbedder]:
    write_bert(tmp_path / "tiny")
    embedder = open_embedder(tmp_path / "tiny", tmp_path / "cache", 2)
    yield embedder
    await embedder.close()


@pytest.fixture(scope="module")
def minilm(tmp_path_factory: pytest.TempPathFactory) -> OnnxEmbedder:
    return open_embedder(None, tmp_path_factory.mktemp("models"), 2)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
async def test_a_bert_is_converted_exactly(tmp_path: Path, pooling: str) -> None:
    tensors = write_bert(tmp_path / "tiny")
    (tmp_path / "tiny" / "1_Pooling").mkdir()
    settings = {"pooling_mode_cls_token": pooling == "cls"}
    (tmp_path / "tiny" / "1_Pooling" / "config.json").write_text(json.dumps(settings))
    embedder = open_embedder(tmp_path / "tiny", tmp_path / "cache", 2)
    assert (embedder.dim, embedder.max_tokens) == (HIDDEN, POSITIONS)
    vectors = await embedder.embed(["the cat sat", "mat", "the the the the a on"])  # padded together
    texts = [[2, 4, 5, 6, 3], [2, 9, 3], [2, 4, 4, 4, 4, 8, 7, 3]]
    for vector, ids in zip(vectors, texts, strict=True):
        states = reference(tensors, ids)
        wanted = unit(states[0] if pooling == "cls" else states.mean(axis=0))
        assert np.abs(vector - wanted).max() < 1e-5
    await embedder.close()


async def test_vectors_are_of_unit_length_in_the_order_of_the_texts(tiny: OnnxEmbedder) -> None:
    texts = [" ".join(["cat", "mat", "sat", "the"][number % 4 :] * (number % 5)) for number in range(2_500)]
    vectors = await tiny.embed(texts)
    assert vectors.shape == (2_500, HIDDEN)
    assert vectors.dtype == np.float32
    assert np.abs(np.linalg.norm(vectors, axis=1) - 1).max() < 1e-5
    for number in (0, 1, 2, 3, 777, 2_499):
        (alone,) = await tiny.embed([texts[number]])
        assert np.abs(alone - vectors[number]).max() < 1e-5


async def test_no_text_an_empty_text_and_a_text_that_is_too_long(tiny: OnnxEmbedder) -> None:
    assert (await tiny.embed([])).shape == (0, HIDDEN)
    assert np.isfinite(await tiny.embed([""])).all()
    cut, longer = await tiny.embed(["cat " * (POSITIONS - 2), "cat " * 10_000])
    assert np.abs(cut - longer).max() < 1e-5


async def test_spans_of_tokens_are_of_the_text_and_uncut(tiny: OnnxEmbedder) -> None:
    text = "the cat, " + "mat " * 100
    spans = tiny.token_spans(text)
    assert [text[start:end] for start, end in spans[:4]] == ["the", "cat", ",", "mat"]
    assert len(spans) == 103
    assert tiny.token_spans("") == []


async def test_a_cancelled_embedding_stops(tiny: OnnxEmbedder) -> None:
    task = asyncio.create_task(tiny.embed(["cat"] * 200_000))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (await tiny.embed(["cat"])).shape == (1, HIDDEN)


async def test_the_model_id_is_that_of_the_files(tmp_path: Path) -> None:
    write_bert(tmp_path / "a")
    first = open_embedder(tmp_path / "a", tmp_path / "cache", 1)
    again = open_embedder(tmp_path / "a", tmp_path / "cache", 2)
    assert first.model_id == again.model_id
    assert len(list((tmp_path / "cache").iterdir())) == 1
    tensors = write_bert(tmp_path / "a")
    tensors["embeddings.LayerNorm.bias"][0] += 1
    save_file(tensors, tmp_path / "a" / "model.safetensors")
    assert open_embedder(tmp_path / "a", tmp_path / "cache", 1).model_id != first.model_id


async def test_a_model_with_an_onnx_file_is_pooled_here(tmp_path: Path) -> None:
    """Token states out, as an exported BGE-M3 gives them; here: the embedding table."""
    (tmp_path / "onnx").mkdir()
    (tmp_path / "1_Pooling").mkdir()
    size = write_tokenizer(tmp_path, "请 说 明 cat")
    table = np.random.default_rng(3).normal(size=(size, HIDDEN)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "input_ids"], ["last_hidden_state"])],
        "table",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["b", "s"])],
        [helper.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, ["b", "s", HIDDEN])],
        [numpy_helper.from_array(table, "table")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, str(tmp_path / "onnx" / "model.onnx"))
    mean = open_embedder(tmp_path, tmp_path / "cache", 1)
    (vector, _) = await mean.embed(["cat cat", "cat"])
    assert np.abs(vector - unit(table[[2, 7, 7, 3]].mean(axis=0))).max() < 1e-5
    (tmp_path / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}')
    cls = open_embedder(tmp_path, tmp_path / "cache", 1)
    assert np.abs((await cls.embed(["cat"]))[0] - unit(table[2])).max() < 1e-5
    assert cls.model_id != mean.model_id


async def test_languages_are_those_of_the_tokenizer_unless_stated(tmp_path: Path) -> None:
    write_bert(tmp_path / "english")
    write_bert(
        tmp_path / "chinese", " ".join("请根据公司的规章制度，说明员工申年假需要提前几天以及谁负责审批？")
    )
    english = open_embedder(tmp_path / "english", tmp_path / "cache", 1)
    chinese = open_embedder(tmp_path / "chinese", tmp_path / "cache", 1)
    assert chinese.supports("你好")
    assert not english.supports("你好，请介绍一下RAG技术")
    assert english.supports("What does 阿里巴巴 sell, and where is it?")
    (tmp_path / "english" / "weft.json").write_text('{"east_asian": true}')
    assert open_embedder(tmp_path / "english", tmp_path / "cache", 1).supports("你好")


def missing(directory: Path) -> str:
    with pytest.raises(ValueError) as refused:
        open_embedder(directory, directory / "cache", 1)
    return str(refused.value)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    assert "tokenizer.json" in missing(tmp_path / "nowhere")
    write_tokenizer(tmp_path, "cat")
    assert "model.onnx" in missing(tmp_path)
    write_bert(tmp_path)
    (tmp_path / "config.json").unlink()
    assert "config.json" in missing(tmp_path)
    write_bert(tmp_path, model_type="xlm-roberta")
    assert "xlm-roberta" in missing(tmp_path)
    write_bert(tmp_path, num_hidden_layers=LAYERS + 1)
    assert "encoder.layer.2" in missing(tmp_path)
    (tmp_path / "config.json").write_text("{")
    assert "config.json" in missing(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"cut off")
    write_tokenizer(tmp_path, "cat")
    (tmp_path / "config.json").write_text('{"hidden_size": 8}')
    assert str(tmp_path) in missing(tmp_path)
    (tmp_path / "model.onnx").write_bytes(b"not a model")
    assert str(tmp_path) in missing(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    assert str(tmp_path) in missing(tmp_path)
    assert not list(tmp_path.glob("cache/*.onnx"))


async def test_minilm_knows_what_is_alike_in_english(minilm: OnnxEmbedder) -> None:
    assert (minilm.dim, minilm.max_tokens) == (384, 256)
    assert minilm.model_id.startswith("all-MiniLM-L6-v2@")
    assert not minilm.supports("公司的年假制度是什么？")
    texts = ["A cat sits on the mat.", "A kitten rests on a rug.", "The bank raised its interest rates."]
    cat, kitten, bank = await minilm.embed(texts)
    assert cat @ kitten > 0.5 > 0.2 > cat @ bank
    # Published by the model's authors in its card's example, by torch, to four digits.
    first, second = await minilm.embed(["This is an example sentence", "Each sentence is converted"])
    assert first[:3] == pytest.approx([0.0676, 0.0635, 0.0487], abs=2e-4)
    assert second[:3] == pytest.approx([0.0864, 0.1027, 0.0054], abs=2e-4)

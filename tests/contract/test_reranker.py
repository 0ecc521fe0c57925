"""A tiny cross-encoder made here: in process, and on a real Triton."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save_file

from tests.servers.encoders import HIDDEN, reference, serving, write_bert, write_tokenizer
from tests.servers.triton import RunningTriton
from weftd.errors import Unavailable
from weftd.inference.onnx_reranker import open_reranker
from weftd.inference.port import Reranker
from weftd.inference.triton.client import Triton
from weftd.inference.triton.reranker import TritonReranker

QUERY = "the cat"
PASSAGES = ["a cat sat", "mat", "", "the mat sat on the cat", "unheard of", "on " * 40]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("weights") / "tiny"
    write_bert(directory, scores=1)
    return directory


@pytest.fixture(scope="module")
def triton(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningTriton]:
    with serving("reranker", weights, tmp_path_factory.mktemp("triton"), batch_size=4) as running:
        yield running


@pytest.fixture(params=["in process", "triton"])
async def reranker(request: pytest.FixtureRequest, weights: Path, tmp_path: Path) -> AsyncIterator[Reranker]:
    if request.param == "triton":
        client = Triton(request.getfixturevalue("triton").address)
        yield await TritonReranker.connect(client, weights)
        await client.close()
        return
    local = open_reranker(weights, tmp_path / "cache", 2, batch_size=4)
    yield local
    await local.close()


# BertForSequenceClassification, pairs cut as sentence-transformers' CrossEncoder cuts them.
CROSS_ENCODER = """
import json, sys, torch
from transformers import BertForSequenceClassification, PreTrainedTokenizerFast
directory, query, passages = map(json.loads, sys.argv[1:])
tokenizer = PreTrainedTokenizerFast(tokenizer_file=directory + "/tokenizer.json", pad_token="[PAD]")
tokens = tokenizer([query] * len(passages), passages, padding=True, truncation="longest_first",
    max_length=16, return_tensors="pt", return_token_type_ids=True)
model = BertForSequenceClassification.from_pretrained(directory, attn_implementation="eager").eval()
with torch.no_grad():
    print(json.dumps(torch.sigmoid(model(**tokens).logits[:, 0]).tolist()))
"""


@pytest.fixture(scope="module")
def torch_scores(weights: Path) -> Any:
    return np.array(reference(CROSS_ENCODER, str(weights), QUERY, PASSAGES))


async def test_scores_are_those_of_torch(reranker: Reranker, torch_scores: Any) -> None:
    assert np.ptp(torch_scores) > 0.05  # or equal scores would prove nothing
    scores = await reranker.score(QUERY, PASSAGES)
    assert (scores.shape, scores.dtype) == ((len(PASSAGES),), np.float32)
    assert np.abs(scores - torch_scores).max() < 1e-5


async def test_a_score_is_that_of_the_pair_whoever_else_asks(reranker: Reranker) -> None:
    together = await reranker.score(QUERY, PASSAGES)
    alone = await asyncio.gather(*(reranker.score(QUERY, [passage]) for passage in PASSAGES * 10))
    assert np.abs(np.concatenate(alone) - np.tile(together, 10)).max() < 1e-5
    assert ((together >= 0) & (together <= 1)).all()


async def test_no_passage_an_empty_query_and_one_that_is_too_long(reranker: Reranker) -> None:
    assert (await reranker.score(QUERY, [])).shape == (0,)
    assert np.isfinite(await reranker.score("", PASSAGES)).all()
    assert np.isfinite(await reranker.score("cat " * 10_000, PASSAGES)).all()
    assert np.isfinite(await reranker.score("half a character \ud83d", ["cat", "\udfff"])).all()


async def test_a_cancelled_reranking_stops(reranker: Reranker) -> None:
    task = asyncio.create_task(reranker.score(QUERY, ["cat"] * 20_000))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (await reranker.score(QUERY, ["cat"])).shape == (1,)
    assert reranker.waiting == 0


async def test_it_knows_its_languages_and_answers_a_ping(reranker: Reranker) -> None:
    assert reranker.supports("What does 阿里巴巴 sell, and where is it?")
    assert not reranker.supports("公司的年假制度是什么？")
    await reranker.ping()


async def test_an_exported_cross_encoder_is_taken_as_it_is(tmp_path: Path) -> None:
    """One logit for a pair out, as an exported bge-reranker gives it; here: of the first token."""
    size = write_tokenizer(tmp_path, "cat mat")
    table = np.random.default_rng(3).normal(size=(size, 1)).astype(np.float32)
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["states"]),
        helper.make_node("ReduceMax", ["states"], ["logits"], axes=[1], keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "table",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["b", "s"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["b", 1])],
        [numpy_helper.from_array(table, "table")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, str(tmp_path / "model.onnx"))
    reranker = open_reranker(tmp_path, tmp_path / "cache", 1)
    (score,) = await reranker.score("cat", ["cat"])
    assert score == pytest.approx(1 / (1 + np.exp(-table[[2, 4, 3], 0].max())), abs=1e-6)
    await reranker.close()


def refused(directory: Path) -> str:
    with pytest.raises(ValueError) as error:
        open_reranker(directory, directory / "cache", 1)
    return str(error.value)


def test_what_is_no_cross_encoder_is_refused(tmp_path: Path) -> None:
    assert "tokenizer.json" in refused(tmp_path)
    write_bert(tmp_path)  # a sentence encoder
    assert "classifier.weight" in refused(tmp_path)
    tensors = write_bert(tmp_path, scores=3)
    assert "several scores" in refused(tmp_path)
    tensors["classifier.weight"] = np.zeros((1, HIDDEN + 1), np.float32)
    tensors["classifier.bias"] = np.zeros(1, np.float32)
    save_file(tensors, tmp_path / "model.safetensors")
    assert str(tmp_path) in refused(tmp_path)


async def test_a_triton_that_does_not_answer_is_named(weights: Path) -> None:
    client = Triton("127.0.0.1:9")
    with pytest.raises(Unavailable, match=r"reranker is not served by Triton at 127.0.0.1:9"):
        await TritonReranker.connect(client, weights, limit_s=0.2)
    await client.close()

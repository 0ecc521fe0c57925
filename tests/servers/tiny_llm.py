"""A causal language model made here (random weights, a real tokenizer), and a Triton that serves it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from tests.servers.triton import MODELS_PYTHON, RunningTriton, running_triton
from weftd.triton.repository import Model, assemble

CONTEXT = 8192
_HIDDEN, _WIDE, _LAYERS, _HEADS, _KV_HEADS = 64, 128, 2, 4, 2
_SPECIAL = ("<|end|>", "<|begin|>")
_TEMPLATE = (
    "{% for message in messages %}<|begin|>{{ message.role }}\n{{ message.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|begin|>assistant\n{% endif %}"
)
_CORPUS = [
    "The thread that is drawn through the warp is called the weft, and together they make the mesh.",
    "Annual leave must be asked for five working days ahead; the head of the department agrees to it.",
    "纬线穿过经线，织成一张网。员工申请年假需要提前五个工作日，由部门负责人审批。",
    "退货应在签收后七天内提出，运费由卖家承担。请根据下面编号的段落回答问题。",
]


def write_tiny_llm(directory: Path, *, endless: bool = True, seed: int = 7) -> Path:
    """A Llama of 0.2 million weights, as Hugging Face lays it out; its texts mean nothing.

    It writes whole characters only, English and Chinese. `endless`: it never ends by itself, else soon.
    """
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer = _tokenizer()
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": _SPECIAL[0],
        "chat_template": _TEMPLATE,
        "model_max_length": CONTEXT,
    }
    _write(directory / "tokenizer_config.json", settings)
    end = tokenizer.token_to_id(_SPECIAL[0])
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": tokenizer.get_vocab_size(),
        "hidden_size": _HIDDEN,
        "intermediate_size": _WIDE,
        "num_hidden_layers": _LAYERS,
        "num_attention_heads": _HEADS,
        "num_key_value_heads": _KV_HEADS,
        "max_position_embeddings": CONTEXT,
        "tie_word_embeddings": False,
        "dtype": "float32",
        "bos_token_id": None,
        "eos_token_id": end,
    }
    _write(directory / "config.json", config)
    _write(directory / "generation_config.json", {"eos_token_id": end, "do_sample": False})
    save_file(_weights(tokenizer, end, endless, seed), directory / "model.safetensors", {"format": "pt"})
    return directory


def _tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(_CORPUS, trainer)
    tokenizer.add_special_tokens([AddedToken(each, special=True) for each in _SPECIAL])
    return tokenizer


def _weights(tokenizer: Tokenizer, end: int, endless: bool, seed: int) -> dict[str, npt.NDArray[np.float32]]:
    random = np.random.default_rng(seed)

    def drawn(*shape: int, scale: float = 0.15) -> npt.NDArray[np.float32]:
        return random.normal(0, scale, shape).astype(np.float32)

    size = tokenizer.get_vocab_size()
    embeddings, head = drawn(size, _HIDDEN, scale=1), drawn(size, _HIDDEN, scale=0.3)
    # The first number of a token's vector is the same everywhere: with it the head can forbid tokens.
    embeddings[:, 0] = 4
    head[:, 0] = [0.0 if _whole(tokenizer.decode([token])) else -10.0 for token in range(size)]
    head[end, 0] = -10.0 if endless else 1.0
    head_size = _HIDDEN // _HEADS
    tensors = {
        "model.embed_tokens.weight": embeddings,
        "lm_head.weight": head,
        "model.norm.weight": np.ones(_HIDDEN, np.float32),
    }
    shapes = {
        "self_attn.q_proj": (_HIDDEN, _HIDDEN),
        "self_attn.k_proj": (_KV_HEADS * head_size, _HIDDEN),
        "self_attn.v_proj": (_KV_HEADS * head_size, _HIDDEN),
        "self_attn.o_proj": (_HIDDEN, _HIDDEN),
        "mlp.gate_proj": (_WIDE, _HIDDEN),
        "mlp.up_proj": (_WIDE, _HIDDEN),
        "mlp.down_proj": (_HIDDEN, _WIDE),
    }
    for layer in range(_LAYERS):
        prefix = f"model.layers.{layer}."
        for name, shape in shapes.items():
            weight = drawn(*shape)
            if name in ("self_attn.o_proj", "mlp.down_proj"):
                weight[0] = 0
            tensors[f"{prefix}{name}.weight"] = weight
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{prefix}{norm}.weight"] = np.ones(_HIDDEN, np.float32)
    return tensors


def _whole(text: str) -> bool:
    return bool(text) and "\ufffd" not in text and text.isprintable()


def _write(path: Path, value: object) -> None:
    path.write_text(json.dumps(value), "utf-8")


def need_llm() -> None:
    """Skips where the models' environment has no torch; fails there in CI."""
    for package in ("torch", "transformers"):
        if not any(MODELS_PYTHON.parents[1].glob(f"lib/python*/site-packages/{package}")):
            missing = f"{MODELS_PYTHON} has no {package}. Run `make llm`."
            if os.environ.get("CI"):
                pytest.fail(missing)
            pytest.skip(missing)


@contextlib.contextmanager
def llm_on_triton(weights: Path, directory: Path, *, embedder: bool = False) -> Iterator[RunningTriton]:
    """A Triton that serves `weights` as llm, set up as `weft triton` does it, and Weft's embedder if asked.

    No canary calls it, so the model's counts are of the test's own calls alone.
    """
    models = [Model("llm", parameters={"directory": str(weights)})]
    if embedder:
        models.append(Model("embedder", parameters={"cache": str(directory / "cache")}))
    assemble(models, directory / "models")
    with running_triton(directory / "models", directory / "served") as running:
        yield running


def llm_counts(metrics_url: str) -> dict[str, float]:
    """What the model on Triton did: `Counts` of its causal.py and `open`, a tenth of a second old at most."""
    with urllib.request.urlopen(metrics_url, timeout=5) as answer:
        found = re.findall(r"^weft_llm_(\w+)\{[^}]*\} (\S+)$", answer.read().decode(), re.MULTILINE)
    named = {f"texts_{name}_total": name for name in ("finished", "cancelled", "refused", "failed")}
    named |= {"texts_open": "open", "tokens_total": "tokens", "tokens_late_total": "late_tokens"}
    named["stopped_timestamp_seconds"] = "stopped_at"
    return {named[name]: float(value) for name, value in found}

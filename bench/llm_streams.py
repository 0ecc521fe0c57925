"""Tokens a second of sixteen streams at once against one, of a tiny causal model.

    .venv/bin/python -m bench.llm_streams

On a Triton and in a process of Weft's own, without the rest of the mesh; each figure is the best of three.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from contextlib import aclosing
from pathlib import Path

import uvloop

from bench.setting import conditions, table
from tests.servers.tiny_llm import llm_on_triton, write_tiny_llm
from tests.servers.triton import MODELS_PYTHON
from weftd.inference.port import TextGenerator, TextMessage, TextRequest
from weftd.inference.text_process import TextProcess
from weftd.inference.triton.client import Triton
from weftd.inference.triton.generator import TritonGenerator

TOKENS = 400
STREAMS = (1, 4, 16)
ROUNDS = 3
MARK = 4.0
REQUEST = TextRequest(
    [TextMessage(role="user", content="How is annual leave asked for? 年假怎么申请？")],
    temperature=0.8,
    top_p=0.9,
    max_tokens=TOKENS,
)


async def written(generator: TextGenerator) -> None:
    async with aclosing(generator.generate(REQUEST)) as pieces:
        last = [piece async for piece in pieces][-1]
    assert last.completion_tokens == TOKENS


async def speed(generator: TextGenerator, streams: int) -> float:
    began_s = time.perf_counter()
    await asyncio.gather(*(written(generator) for _ in range(streams)))
    return streams * TOKENS / (time.perf_counter() - began_s)


async def measured(where: str, generator: TextGenerator) -> list[object]:
    await speed(generator, 2)
    speeds = [max([await speed(generator, streams) for _ in range(ROUNDS)]) for streams in STREAMS]
    return [where, *(f"{each:.0f}" for each in speeds), f"{speeds[-1] / speeds[0]:.1f}"]


async def rows(address: str, weights: Path) -> list[list[object]]:
    triton = Triton(address)
    found = [await measured("Triton", TritonGenerator(triton))]
    await triton.close()
    process = TextProcess(MODELS_PYTHON, weights)
    await process.open()
    found.append(await measured("in its own process", process))
    await process.close()
    return found


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="weft-bench-") as directory:
        weights = write_tiny_llm(Path(directory) / "tiny")
        with llm_on_triton(weights, Path(directory) / "triton") as triton:
            found = uvloop.run(rows(triton.address, weights))
    table(["llm", *(f"{each} streams, tokens/s" for each in STREAMS), "16 against 1"], found)
    print(f"The mark: at least {MARK:.0f}.")
    print(conditions())


if __name__ == "__main__":
    main()

"""Many texts through a model, in portions of like length."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from weftd.inference.batching import Limits

T = TypeVar("T")
T_contra = TypeVar("T_contra", contravariant=True)
Floats = npt.NDArray[np.float32]

# So many are put in order at a time: the event loop is not kept from others for long.
_WINDOW = 1_024


class Runner(Protocol[T_contra]):
    """Runs portions that keep to `limits`, and takes `at_once` of them."""

    @property
    def limits(self) -> Limits: ...

    @property
    def at_once(self) -> int: ...

    async def run(self, items: Sequence[T_contra], length: int) -> Any:
        """A sequence of one row for each of `items`; `length`: bytes of the longest."""
        ...


async def in_portions(
    items: Sequence[T], length_of: Callable[[T], int], rows: Floats, runner: Runner[T]
) -> Floats:
    """Fills `rows`, one for each of `items`, and returns them.

    The longest go first, for the last ones are then quick. Cancelled, it drops the portions that have not
    begun.
    """
    for start in range(0, len(items), _WINDOW):
        window = items[start : start + _WINDOW]
        await _run_window(window, list(map(length_of, window)), rows[start:], runner)
    return rows


def text_bytes(text: str) -> int:
    """What stands for the number of tokens before there are any, in every script."""
    return len(text.encode("utf-8", "replace"))


def pair_bytes(pair: tuple[str, str]) -> int:
    """The same of question and passage."""
    return text_bytes(pair[0]) + text_bytes(pair[1])


async def _run_window(items: Sequence[T], lengths: Sequence[int], rows: Floats, runner: Runner[T]) -> None:
    portions = _portions(lengths, runner.limits)
    left = iter(portions)

    async def work() -> None:
        for portion in left:
            rows[portion] = await runner.run([items[index] for index in portion], lengths[portion[0]])

    if len(portions) == 1:
        return await work()
    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(min(runner.at_once, len(portions))):
                group.create_task(work())
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None  # the caller asked for one thing, and hears one reason


def _portions(lengths: Sequence[int], limits: Limits) -> list[list[int]]:
    portions: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True):
        portion = portions[-1] if portions else []
        count = len(portion) + 1
        if portion and count <= limits.size and count * lengths[portion[0]] <= limits.bytes:
            portion.append(index)
        else:
            portions.append([index])
    return portions

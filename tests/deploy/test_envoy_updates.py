"""A changed contract, route, limit or server is taken up by the real Envoy with no stream cut."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from google.api import annotations_pb2
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from structlog.testing import capture_logs

from tests.deploy.envoy_backend import Edge, Seen, backend, running_edge, until
from tests.servers.live_contract import live_mesh, with_call
from weftd.envoy import EnvoyError

pytestmark = pytest.mark.asyncio(loop_scope="module")
STREAMS = 20


@pytest_asyncio.fixture(loop_scope="module")
async def edge(tmp_path: Path) -> AsyncIterator[Edge]:
    async with running_edge(tmp_path) as running:
        yield running


def moved(descriptors: bytes, old: str, new: str) -> bytes:
    """The contract with one call's REST path changed."""
    files = FileDescriptorSet.FromString(descriptors)
    for file in files.file:
        for service in file.service:
            for method in service.method:
                rule = method.options.Extensions[annotations_pb2.http]
                if rule.get == old:
                    rule.get = new
    return files.SerializeToString()


async def rest_status(edge: Edge, path: str) -> int:
    async with edge.http() as http:
        return (await http.get(path)).status_code


async def test_a_changed_contract_leaves_open_streams_alone(edge: Edge) -> None:
    old, new = "/api/v1/conversations", "/api/v1/chats"
    async with AsyncExitStack() as streams:
        open_streams = [await streams.enter_async_context(edge.conversation()) for _ in range(STREAMS)]
        for say in open_streams:
            assert await say("before") == "before"
        assert (await rest_status(edge, old), await rest_status(edge, new)) == (200, 404)
        await edge.changed(descriptors=moved(edge.config.descriptors, old, new))
        assert (await rest_status(edge, old), await rest_status(edge, new)) == (404, 200)
        for say in open_streams:
            assert await say("after") == "after"


async def test_a_new_call_is_served_under_a_hundred_open_streams_and_none_is_cut(tmp_path: Path) -> None:
    by_update, by_file = "SuggestWords", "SuggestNames"
    async with live_mesh(tmp_path, [by_update, by_file]) as mesh:
        streams = await mesh.open(100)
        assert not await mesh.answers(by_update)
        both = with_call(with_call(mesh.config.descriptors, by_update), by_file)
        one = with_call(mesh.config.descriptors, by_update)
        await mesh.envoy.update(replace(mesh.config, descriptors=one))
        await mesh.answers_within(by_update, time.monotonic())
        assert not await mesh.answers(by_file)
        with capture_logs() as logs:
            mesh.contract.write_bytes(both[:-3])  # an upgrade is not there as a whole at once
            await until(lambda: said(logs, "contract not taken up"), True)
            mesh.contract.write_bytes(both)
            await mesh.answers_within(by_file, time.monotonic())
            await until(lambda: said(logs, "contract changed"), True)
        assert await mesh.answers(by_update)
        assert await mesh.finish(streams) == 0


async def said(logs: Sequence[Mapping[str, Any]], event: str) -> bool:
    return any(line["event"] == event for line in logs)


async def test_changed_limits_origins_and_audience_leave_open_streams_alone(edge: Edge) -> None:
    async with edge.conversation() as say:
        assert await say("before") == "before"
        await edge.changed(requests_per_minute=2, allowed_origins=("https://new.example",))
        assert [await rest_status(edge, "/api/v1/conversations") for _ in range(3)] == [200, 200, 429]
        await edge.changed(requests_per_minute=1000, audience="another")
        assert await rest_status(edge, "/api/v1/conversations") == 401
        assert await say("after") == "after"


async def test_a_server_more_or_less_leaves_the_streams_of_the_others_alone(edge: Edge) -> None:
    first = edge.config.services["chat"]
    other = Seen()
    async with edge.conversation() as say, backend(other) as second:
        assert await say("before") == "before"
        await edge.changed(services={**edge.config.services, "chat": (*first, second)})
        assert await say("between") == "between"
        for _ in range(50):
            assert await rest_status(edge, "/api/v1/conversations") == 200
        assert other.metadata
        await edge.changed(services={**edge.config.services, "chat": first})
        assert await say("after") == "after"
        assert await rest_status(edge, "/api/v1/conversations") == 200


async def test_a_server_that_dies_loses_no_call_that_may_be_sent_again(edge: Edge) -> None:
    lost: list[int] = []
    first = edge.config.services["retrieval"]

    async def search(http: httpx.AsyncClient, stop: asyncio.Event) -> None:
        while not stop.is_set():
            answer = await http.post("/api/v1/search", json={"query": "x"})
            if answer.status_code != 200:
                lost.append(answer.status_code)

    stop = asyncio.Event()
    async with edge.http() as http, asyncio.TaskGroup() as callers:
        for _ in range(3):
            other = Seen()
            async with backend(other) as second:
                await edge.changed(services={**edge.config.services, "retrieval": (*first, second)})
                if not callers._tasks:
                    for _ in range(8):
                        callers.create_task(search(http, stop))
                await until(lambda seen=other: enough(seen), True)
            # It is gone now, and Envoy has not been told.
            served = edge.seen.searches
            await until(lambda more=served: enough(edge.seen, more + 100), True)
        stop.set()
    assert lost == []


async def enough(seen: Seen, searches: int = 50) -> bool:
    return seen.searches >= searches


async def test_a_contract_that_cannot_be_is_refused_and_the_old_one_stays(edge: Edge) -> None:
    with pytest.raises(ValueError, match="descriptor set cannot be read"):
        await edge.changed(descriptors=edge.config.descriptors[:-3])
    with pytest.raises(ValueError, match="retrieval"):
        await edge.changed(services={**edge.config.services, "retrieval": ()})
    # What only Envoy finds: a file that another one imports is not there.
    files = FileDescriptorSet.FromString(edge.config.descriptors)
    kept = [file for file in files.file if file.name != "google/protobuf/timestamp.proto"]
    bad = FileDescriptorSet(file=kept).SerializeToString()
    with pytest.raises(EnvoyError, match=r"refused routes\.json.*envoy\.log"):
        await edge.changed(descriptors=bad)
    assert await rest_status(edge, "/api/v1/conversations") == 200
    await edge.changed(requests_per_minute=50)
    assert await rest_status(edge, "/api/v1/conversations") == 200


async def test_old_files_are_cleared_away(edge: Edge, tmp_path: Path) -> None:
    for i in range(4):
        new = f"/api/v1/chats{i}"
        await edge.changed(descriptors=moved(edge.config.descriptors, "/api/v1/conversations", new))
        assert await rest_status(edge, new) == 200
        await edge.changed(descriptors=moved(edge.config.descriptors, new, "/api/v1/conversations"))
    assert len(list((tmp_path / "envoy").glob("contract-*"))) <= 2

"""Limits per tenant and allowed origins at the real Envoy."""

from __future__ import annotations

from collections.abc import AsyncIterator

import grpc
import httpx
import pytest
import pytest_asyncio
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from tests.deploy.envoy_backend import Edge, bearer, running_edge, token
from weft.v1 import chat_pb2, chat_pb2_grpc

pytestmark = pytest.mark.asyncio(loop_scope="module")
PATH = "/api/v1/conversations"
ORIGIN = "https://app.example"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def edge(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Edge]:
    limits = {"requests_per_minute": 3, "tenant_requests_per_minute": {"small": 1, "large": 100}}
    async with running_edge(tmp_path_factory.mktemp("edge"), **limits) as running:
        yield running


async def statuses(edge: Edge, tenant: str, calls: int) -> list[int]:
    async with edge.http() as http:
        return [
            (await http.get(PATH, headers=bearer(token(tenant=tenant)))).status_code for _ in range(calls)
        ]


async def test_each_tenant_has_its_own_limit(edge: Edge) -> None:
    assert await statuses(edge, "one", 5) == [200, 200, 200, 429, 429]
    assert await statuses(edge, "two", 4) == [200, 200, 200, 429]


async def test_a_tenant_may_have_another_limit_than_the_rest(edge: Edge) -> None:
    assert await statuses(edge, "small", 2) == [200, 429]
    assert await statuses(edge, "large", 10) == [200] * 10


async def test_naming_another_tenant_does_not_change_whose_limit_it_is(edge: Edge) -> None:
    headers = bearer(token(tenant="sly"))
    async with edge.http() as http:
        got = [
            (await http.get(PATH, headers={**headers, "x-tenant-id": str(i)})).status_code for i in range(4)
        ]
    assert got == [200, 200, 200, 429]


async def test_a_limited_rest_client_is_told_when_to_come_back(edge: Edge) -> None:
    await statuses(edge, "rest", 3)
    async with edge.http() as http:
        answer = await http.get(PATH, headers=bearer(token(tenant="rest")))
    assert 1 <= int(answer.headers["retry-after"]) <= 60
    assert answer.json()["code"] == 8
    assert [detail.get("reason") for detail in answer.json()["details"]] == ["OVERLOADED", None]
    assert answer.json()["details"][1]["retry_delay"] == "1s"


async def test_a_limited_grpc_client_gets_the_status_with_details(edge: Edge) -> None:
    await statuses(edge, "grpc", 3)
    async with edge.channel() as channel:
        stub = chat_pb2_grpc.ChatServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            metadata = tuple(bearer(token(tenant="grpc")).items())
            await stub.ListConversations(chat_pb2.ListConversationsRequest(), metadata=metadata)
    assert failed.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    status = rpc_status.from_call(failed.value)
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    assert status.details[0].Unpack(info)
    assert status.details[1].Unpack(retry)
    assert (info.reason, info.domain, retry.retry_delay.seconds) == ("OVERLOADED", "weft", 1)
    assert "retry-after" in dict(failed.value.trailing_metadata() or ())


async def test_a_limited_page_gets_the_status_over_grpc_web(edge: Edge) -> None:
    await statuses(edge, "web", 3)
    web = {"content-type": "application/grpc-web+proto", "x-grpc-web": "1"}
    async with edge.http() as http:
        answer = await http.post(
            "/weft.v1.ChatService/ListConversations",
            content=bytes(5),
            headers={**bearer(token(tenant="web")), **web},
        )
    assert (answer.status_code, answer.headers["grpc-status"]) == (200, "8")
    assert answer.headers["grpc-status-details-bin"]
    assert answer.headers["content-type"].startswith("application/grpc-web")


async def test_the_page_and_health_are_not_limited(edge: Edge) -> None:
    await statuses(edge, "page", 4)
    async with edge.http() as http:
        http.headers.update(bearer(token(tenant="page")))
        assert (await http.get("/healthz")).status_code == 200
        assert (await http.get("/favicon.svg")).status_code == 404


async def preflight(edge: Edge, origin: str, path: str = "/api/v1/chat/stream") -> httpx.Response:
    asked = {
        "origin": origin,
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type,x-request-id,x-tenant-id",
    }
    async with edge.http() as http:
        http.headers.pop("authorization")
        return await http.options(path, headers=asked)


@pytest.mark.parametrize(
    "path", ["/api/v1/chat/stream", "/weft.v1.ChatService/StreamChat", "/api/v1/dev/token"]
)
async def test_an_allowed_origin_may_ask(edge: Edge, path: str) -> None:
    answer = await preflight(edge, ORIGIN, path)
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == ORIGIN
    allowed = answer.headers["access-control-allow-headers"].replace(" ", "").split(",")
    assert {"authorization", "content-type", "grpc-timeout", "x-grpc-web", "x-request-id"} <= set(allowed)
    assert "access-control-allow-credentials" not in answer.headers


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "https://app.example.evil", "http://app.example", "null"]
)
async def test_another_origin_may_not(edge: Edge, origin: str) -> None:
    answer = await preflight(edge, origin)
    assert "access-control-allow-origin" not in answer.headers
    async with edge.http() as http:
        real = await http.get(PATH, headers={**bearer(token(tenant="cors")), "origin": origin})
    assert "access-control-allow-origin" not in real.headers


async def test_an_allowed_origin_can_read_answers_and_refusals(edge: Edge) -> None:
    exposed = {"grpc-status", "grpc-message", "grpc-status-details-bin", "x-request-id", "retry-after"}
    async with edge.http() as http:
        good = await http.get(PATH, headers={**bearer(token(tenant="origin")), "origin": ORIGIN})
        bad = await http.get(PATH, headers={"authorization": "", "origin": ORIGIN})
    for answer, status in ((good, 200), (bad, 401)):
        assert answer.status_code == status
        assert answer.headers["access-control-allow-origin"] == ORIGIN
        assert set(answer.headers["access-control-expose-headers"].replace(" ", "").split(",")) == exposed

"""What a client writes into headers does no harm to others, who share Envoy's connections to the services."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest
import pytest_asyncio

from tests.deploy.envoy_backend import Edge, running_edge
from weft.v1 import retrieval_pb2

pytestmark = pytest.mark.asyncio(loop_scope="module")

SEARCH = "/weft.v1.RetrievalService/Search"
OK, INVALID_ARGUMENT, UNIMPLEMENTED = "0", "3", "12"


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def edge(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Edge]:
    async with running_edge(tmp_path_factory.mktemp("edge")) as running:
        yield running


async def call(edge: Edge, **headers: str) -> tuple[str, httpx.Response]:
    """The gRPC status of a search over gRPC-Web, and the whole answer."""
    message = retrieval_pb2.SearchRequest(query="x").SerializeToString()
    named = {"content-type": "application/grpc-web"} | {k.replace("_", "-"): v for k, v in headers.items()}
    async with edge.http() as http:
        answer = await http.post(
            SEARCH, content=b"\0" + len(message).to_bytes(4, "big") + message, headers=named
        )
    in_body = answer.content.rpartition(b"grpc-status:")[2].partition(b"\r\n")[0].decode()
    return answer.headers.get("grpc-status", in_body), answer


@pytest.mark.parametrize(
    ("header", "malformed", "good"),
    [
        ("grpc-encoding", "foo", "identity"),
        ("grpc-timeout", "5q", "5S"),
        ("grpc-previous-rpc-attempts", "x", "1"),
        ("grpc-retry-pushback-ms", "x", "1"),
        ("grpc-internal-encoding-request", "foo", "gzip"),
        ("grpc-trace-bin", "***", "AAAA"),
        ("x-of-another-client-bin", "***", "AAAA"),
        ("te", "foo", "trailers"),
        ("`", "x", "x"),
        ("x-odd!#$%&'*+^|~", "x", "x"),
    ],
)
async def test_a_malformed_header_spoils_no_other_call(
    edge: Edge, header: str, malformed: str, good: str
) -> None:
    await call(edge, **{header: malformed})
    for _ in range(3):
        assert (await call(edge, **{header: good}))[0] == OK


@pytest.mark.parametrize("wire", ["application/grpc", "application/grpc-web"])
async def test_what_is_wrong_with_a_header_is_said(edge: Edge, wire: str) -> None:
    status, answer = await call(edge, content_type=wire, grpc_timeout="5q")
    assert status == INVALID_ARGUMENT
    assert "grpc-timeout is up to 8 digits" in answer.headers["grpc-message"]
    status, answer = await call(edge, content_type=wire, grpc_encoding="br")
    assert status == UNIMPLEMENTED
    assert "gzip" in answer.headers["grpc-message"]
    status, answer = await call(edge, content_type=f"{wire}+json")
    assert status == UNIMPLEMENTED
    assert "protobuf" in answer.headers["grpc-message"]


async def test_json_to_a_grpc_path_is_told_where_it_goes(edge: Edge) -> None:
    _, answer = await call(edge, content_type="application/json")
    assert (answer.status_code, "/api/v1" in answer.json()["message"]) == (415, True)


@pytest.mark.parametrize("wire", ["application/grpc", "application/grpc-web"])
async def test_an_unknown_service_is_unimplemented(edge: Edge, wire: str) -> None:
    async with edge.http() as http:
        answer = await http.post("/nowhere.Service/Call", headers={"content-type": wire})
    assert answer.headers["grpc-status"] == UNIMPLEMENTED


@pytest.mark.parametrize("path", [SEARCH, "/api/v1/conversations", "/api/v1/search"])
@pytest.mark.parametrize("wire", ["application/grpc", "application/grpc-web+proto", "application/json"])
async def test_what_is_neither_rest_nor_grpc_is_unknown(edge: Edge, path: str, wire: str) -> None:
    """And no fault of a service that broke it off."""
    async with edge.http() as http:
        for verb in ("GET", "PUT"):
            answer = await http.request(verb, path, headers={"content-type": wire})
            told = answer.headers.get("grpc-status", UNIMPLEMENTED)
            assert told in (OK, UNIMPLEMENTED) and answer.status_code in (200, 404), (verb, answer.text)


@pytest.mark.parametrize("name", ["grpc-encoding", "grpc-timeout"])
async def test_a_header_that_comes_twice_spoils_no_other_call(edge: Edge, name: str) -> None:
    good, bad = {"grpc-encoding": ("gzip", "null"), "grpc-timeout": ("5S", "5q")}[name]
    seen = []
    async with edge.http() as http:
        for values in ([bad], [bad, good], [good, bad], [good, good], [good], []):
            headers = [*http.headers.items(), *((name, value) for value in values)]
            answer = await http.post("/api/v1/search", json={"query": "x"}, headers=headers)
            seen.append(answer.status_code)
    # Envoy reads the first of the one, and the other as a list, which is none.
    assert seen == ([501] * 2 + [200] * 4 if name == "grpc-encoding" else [400] * 4 + [200] * 2)

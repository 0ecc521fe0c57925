"""The page's HTTP server: what is cached, what is not, and the safe headers."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from weftd.edge import build_app, serve


@pytest.fixture
def built(tmp_path: Path) -> Path:
    page = tmp_path / "page"
    (page / "assets").mkdir(parents=True)
    (page / "index.html").write_text("<!doctype html><title>the page</title>")
    (page / "favicon.svg").write_text("<svg/>")
    (page / "assets" / "index-a1b2c3.js").write_text("export {}")
    (tmp_path / "secret.txt").write_text("not for the web")
    return page


@pytest.fixture
async def http(built: Path) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(build_app(built))
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8080") as client:
        yield client


async def test_the_page_is_asked_for_again_and_its_assets_are_kept(http: httpx.AsyncClient) -> None:
    page = await http.get("/")
    assert (page.status_code, page.text) == (200, "<!doctype html><title>the page</title>")
    assert page.headers["cache-control"] == "no-cache"
    asset = await http.get("/assets/index-a1b2c3.js")
    assert "javascript" in asset.headers["content-type"]
    assert asset.headers["cache-control"] == "public, max-age=31536000, immutable"
    assert (await http.get("/favicon.svg")).headers["cache-control"] == "no-cache"


async def test_an_unchanged_page_is_not_sent_again(http: httpx.AsyncClient) -> None:
    etag = (await http.get("/")).headers["etag"]
    again = await http.get("/", headers={"if-none-match": etag})
    assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize("path", ["/chat/conv_1", "/knowledge", "/chat/"])
async def test_a_path_of_the_page_itself_gets_the_page(http: httpx.AsyncClient, path: str) -> None:
    answer = await http.get(path)
    assert (answer.status_code, answer.headers["cache-control"]) == (200, "no-cache")
    assert "the page" in answer.text


@pytest.mark.parametrize("path", ["/assets/gone-1.js", "/robots.txt", "/../secret.txt", "/%2e%2e/secret.txt"])
async def test_a_file_that_is_not_there_is_not_found(http: httpx.AsyncClient, path: str) -> None:
    answer = await http.get(path)
    assert answer.status_code == 404
    assert answer.headers.get("cache-control") != "public, max-age=31536000, immutable"
    assert "not for the web" not in answer.text


@pytest.mark.parametrize("path", ["/api/v1/nothing", "/api/v1/dev/token"])
async def test_under_api_there_is_no_page(http: httpx.AsyncClient, path: str) -> None:
    for method in ("GET", "POST"):
        answer = await http.request(method, path)
        assert answer.status_code == 404
        assert answer.json()["code"] == 12


@pytest.mark.parametrize("path", ["/", "/assets/index-a1b2c3.js", "/assets/gone.js", "/healthz", "/api/x"])
async def test_every_answer_has_the_safe_headers(http: httpx.AsyncClient, path: str) -> None:
    headers = (await http.get(path)).headers
    policy = dict(part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["connect-src"] == policy["style-src"] == "'self'"
    assert policy["frame-ancestors"] == policy["base-uri"] == "'none'"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"


async def test_without_a_built_page_it_says_how_to_build_one_and_takes_it_up(tmp_path: Path) -> None:
    page = tmp_path / "page"
    transport = httpx.ASGITransport(build_app(page))
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:
        answer = await http.get("/")
        assert (answer.status_code, answer.headers["content-type"]) == (503, "text/html; charset=utf-8")
        assert "npm --prefix clients/web run build" in answer.text
        assert (await http.get("/healthz")).status_code == 200
        page.mkdir()
        (page / "index.html").write_text("built")
        assert (await http.get("/")).text == "built"


async def test_it_serves_until_it_is_cancelled(built: Path) -> None:
    ready: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    serving = asyncio.create_task(serve(build_app(built), "127.0.0.1", 0, on_ready=ready.set_result))
    port = await ready
    async with httpx.AsyncClient(trust_env=False) as http:
        answer = await http.get(f"http://127.0.0.1:{port}/")
    assert answer.status_code == 200
    assert "server" not in answer.headers
    serving.cancel()
    async with asyncio.timeout(5):
        with pytest.raises(asyncio.CancelledError):
            await serving
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0


async def test_a_taken_port_is_named(built: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(OSError, match=f"Port {port} on 127.0.0.1.*is taken.*choose another") as failed:
            await serve(build_app(built), "127.0.0.1", port)
    assert failed.value.errno is not None

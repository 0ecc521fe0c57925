"""The development token goes to our own page only."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from weftd.edge import DevToken, build_app

PATH = "/api/v1/dev/token"
OWN = "http://127.0.0.1:8080"


async def ask(headers: dict[str, str], *, method: str = "POST", **options: tuple[str, ...]) -> httpx.Response:
    app = build_app(Path("nowhere"), lambda: DevToken("made", 1_900_000_000), **options)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=OWN) as http:
        return await http.request(method, PATH, headers=headers)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"origin": OWN, "sec-fetch-site": "same-origin"},
        {"host": "localhost:8080", "origin": "http://localhost:8080"},
        {"host": "LOCALHOST:8080", "origin": "http://localhost:8080"},
        {"host": "[::1]:8080", "origin": "http://[::1]:8080"},
        {"host": "127.1.2.3"},
        {"host": "weft.localhost"},
    ],
)
async def test_our_own_page_gets_one(headers: dict[str, str]) -> None:
    answer = await ask(headers)
    assert answer.status_code == 200
    assert answer.json() == {"token": "made", "expires_at": 1_900_000_000}
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["content-type"] == "application/json"


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "rebound.example:8080", "origin": "http://rebound.example:8080"},
        {"host": "127.0.0.1.rebound.example"},
        {"host": "localhost.rebound.example"},
        {"host": "127.0.0.1@rebound.example"},
        {"host": "192.168.1.7:8080"},
        {"host": "[::1"},
        {"host": ""},
        {"origin": "https://evil.example"},
        {"origin": "http://localhost:3000"},
        {"origin": "http://127.0.0.1:9999"},
        {"origin": "null"},
        {"origin": ""},
        {"origin": "http://[::1"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"origin": OWN, "sec-fetch-site": "cross-site"},
    ],
)
async def test_whoever_else_asks_is_refused(headers: dict[str, str]) -> None:
    answer = await ask(headers)
    assert answer.status_code == 403
    assert answer.json()["code"] == 7
    assert answer.json()["message"]
    assert "made" not in answer.text


async def test_what_the_settings_allow_is_allowed() -> None:
    host = {"host": "weft.home:8080", "origin": "http://weft.home:8080"}
    assert (await ask(host)).status_code == 403
    assert (await ask(host, allowed_hosts=("weft.home",))).status_code == 200
    page = {"origin": "http://localhost:5173", "sec-fetch-site": "cross-site"}
    assert (await ask(page)).status_code == 403
    assert (await ask(page, allowed_origins=("http://localhost:5173",))).status_code == 200


@pytest.mark.parametrize("method", ["GET", "PUT", "OPTIONS"])
async def test_only_a_post_gets_one(method: str) -> None:
    answer = await ask({}, method=method)
    assert answer.status_code in (404, 405)
    assert "made" not in answer.text


async def test_where_it_is_off_there_is_no_such_path() -> None:
    app = build_app(Path("nowhere"))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=OWN) as http:
        answer = await http.post(PATH)
    assert answer.status_code == 404

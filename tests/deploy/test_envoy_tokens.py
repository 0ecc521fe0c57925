"""Tokens and tenants at the real Envoy."""

from __future__ import annotations

import base64
import hmac
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from joserfc.jwk import OctKey, RSAKey
from structlog.testing import capture_logs

from tests.deploy.envoy_backend import SECRET, Edge, bearer, running_edge, token, until, write_secret

pytestmark = pytest.mark.asyncio(loop_scope="module")

FIRST = RSAKey.generate_key(2048, {"kid": "first"})
SECOND = RSAKey.generate_key(2048, {"kid": "second"})
OTHER = OctKey.import_key("another secret that is long enough, too")
PATH = "/api/v1/conversations"


def write_keys(path: Path, *keys: RSAKey) -> None:
    public = [{**key.as_dict(private=False), "alg": "RS256", "use": "sig"} for key in keys]
    fresh = path.with_suffix(".new")
    write_secret(fresh, *public)
    fresh.replace(path)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def edge(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Edge]:
    directory = tmp_path_factory.mktemp("edge")
    write_keys(directory / "jwks.json", FIRST)
    async with running_edge(directory, jwks_file=directory / "jwks.json") as running:
        yield running


async def status(edge: Edge, headers: dict[str, str]) -> int:
    async with edge.http() as http:
        http.headers.pop("authorization")
        return (await http.get(PATH, headers=headers)).status_code


def handmade(header: dict[str, str], claims: dict[str, Any], secret: bytes | None = None) -> str:
    """What a library refuses to make: a token without a signature, or signed with a public key."""

    def part(value: bytes) -> str:
        return base64.urlsafe_b64encode(value).decode().rstrip("=")

    signed = f"{part(json.dumps(header).encode())}.{part(json.dumps(claims).encode())}"
    return f"{signed}.{part(hmac.digest(secret, signed.encode(), 'sha256')) if secret else ''}"


def cases() -> dict[str, dict[str, str]]:
    now = int(time.time())
    claims = {"iss": "weft", "aud": "weft", "sub": "ann", "tenant": "acme", "exp": now + 600}
    public = FIRST.as_pem(private=False)
    good = token()
    return {
        "none": {},
        "empty": {"authorization": ""},
        "no bearer": {"authorization": good},
        "basic": {"authorization": "Basic YTpi"},
        "rubbish": bearer("a.b.c"),
        "cut off": bearer(good[:-4]),
        "wrong signature": bearer(token(key=OTHER)),
        "wrong issuer": bearer(token(iss="elsewhere")),
        "wrong audience": bearer(token(aud="another")),
        "no issuer": bearer(token(iss=None)),
        "expired": bearer(token(exp=now - 30)),
        "no expiry": bearer(token(exp=None)),
        "not yet": bearer(token(nbf=now + 300)),
        "alg none": bearer(handmade({"alg": "none", "typ": "JWT"}, claims)),
        "unknown RSA key": bearer(token(key=SECOND, alg="RS256", kid="second")),
        "public key as secret": bearer(handmade({"alg": "HS256", "kid": "first"}, claims, public)),
    }


@pytest.mark.parametrize("case", list(cases()))
async def test_a_token_that_is_not_good_is_refused_with_the_reason(edge: Edge, case: str) -> None:
    async with edge.http() as http:
        http.headers.pop("authorization")
        answer = await http.get(PATH, headers=cases()[case])
    assert answer.status_code == 401
    assert answer.json()["code"] == 16
    assert answer.json()["details"][0] == {
        "@type": "type.googleapis.com/google.rpc.ErrorInfo",
        "reason": "TOKEN_INVALID",
        "domain": "weft",
    }
    assert "Bearer" in answer.json()["message"]


async def test_hs256_and_rs256_are_both_good(edge: Edge) -> None:
    assert await status(edge, bearer()) == 200
    assert await status(edge, bearer(token(kid="any"))) == 200
    assert await status(edge, bearer(token(aud=["other", "weft"]))) == 200
    assert await status(edge, bearer(token(key=FIRST, alg="RS256", kid="first"))) == 200
    assert await status(edge, bearer(token(key=FIRST, alg="RS256"))) == 200


async def test_a_token_in_the_query_does_not_count(edge: Edge) -> None:
    async with edge.http() as http:
        http.headers.pop("authorization")
        assert (await http.get(PATH, params={"access_token": token()})).status_code == 401


async def test_the_token_goes_on_to_the_service_with_its_tenant(edge: Edge) -> None:
    mine = token(tenant="globex")
    assert await status(edge, bearer(mine)) == 200
    seen = edge.seen.metadata[-1]
    assert seen["authorization"] == f"Bearer {mine}"
    assert seen["x-tenant-id"] == "globex"
    assert "x-weft-requested-tenant" not in seen


async def test_the_tenant_that_a_client_asks_for_is_copied_aside(edge: Edge) -> None:
    assert await status(edge, bearer(token(tenant="globex"), x_tenant_id="acme")) == 200
    seen = edge.seen.metadata[-1]
    assert (seen["x-tenant-id"], seen["x-weft-requested-tenant"]) == ("globex", "acme")


async def test_internal_headers_of_a_client_are_taken_away(edge: Edge) -> None:
    spoofed = {
        "x-weft-requested-tenant": "spoofed",
        "x-weft-wire": "spoofed",
        "x-weft-anything": "spoofed",
        "x-envoy-original-path": "/spoofed",
        "x-envoy-internal": "spoofed",
    }
    assert await status(edge, bearer(**spoofed)) == 200
    assert not [name for name, value in edge.seen.metadata[-1].items() if "spoofed" in value]


async def test_a_token_without_a_tenant_gets_none_from_the_client(edge: Edge) -> None:
    assert await status(edge, bearer(token(tenant=None), x_tenant_id="acme")) == 200
    assert "x-tenant-id" not in edge.seen.metadata[-1]


async def test_keys_change_while_a_stream_goes_on(edge: Edge) -> None:
    path = edge.config.jwks_file
    with_second = bearer(token(key=SECOND, alg="RS256", kid="second"))
    with_first = bearer(token(key=FIRST, alg="RS256", kid="first"))
    async with edge.conversation(token(key=FIRST, alg="RS256", kid="first")) as say:
        assert await say("before") == "before"
        write_keys(path, FIRST, SECOND)
        await until(lambda: status(edge, with_second), 200)
        assert await status(edge, with_first) == 200
        # In place, as an editor does.
        path.write_text(json.dumps({"keys": [{**SECOND.as_dict(private=False), "alg": "RS256"}]}))
        await until(lambda: status(edge, with_first), 401)
        assert await say("after") == "after"
    write_keys(path, FIRST)
    await until(lambda: status(edge, with_first), 200)


async def said(logs: list[Any], event: str) -> bool:
    return any(line["event"] == event for line in logs)


@pytest.mark.parametrize(
    "broken", ["", "{", "[]", '{"keys": []}', '{"keys": [3]}', '{"keys": [{"kty": "RSA"}]}', None]
)
async def test_broken_keys_leave_the_old_ones_in_force(edge: Edge, broken: str | None) -> None:
    path = edge.config.jwks_file
    with capture_logs() as logs:
        if broken is None:
            path.unlink()
        else:
            path.write_text(broken)
        await until(lambda: said(logs, "keys not taken up"), True)
    assert [line["file"] for line in logs if line["log_level"] == "error"] == [str(path)]
    assert await status(edge, bearer(token(key=FIRST, alg="RS256", kid="first"))) == 200
    write_keys(path, FIRST, SECOND)
    await until(lambda: status(edge, bearer(token(key=SECOND, alg="RS256", kid="second"))), 200)
    write_keys(path, FIRST)
    await until(lambda: status(edge, bearer(token(key=SECOND, alg="RS256", kid="second"))), 401)


async def test_no_secret_can_be_read_by_others(edge: Edge) -> None:
    directory = edge.config.access_log.parent / "envoy"
    for file in [directory, *directory.iterdir()]:
        if file.name != "envoy.log":
            assert file.stat().st_mode & 0o077 == 0, file
    assert SECRET not in (directory / "envoy.log").read_text()
    assert SECRET not in repr(edge.config)

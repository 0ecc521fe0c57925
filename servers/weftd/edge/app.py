"""The page, the token that it gets by itself on a developer's machine, and chat over WebSocket."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import BaseRoute, Mount, Route, WebSocketRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocket

from weftd.edge.chat_socket import ChatSockets
from weftd.edge.origin import refusal
from weftd.edge.page import Page
from weftd.edge.replies import plain_error

__all__ = ["DevToken", "build_app"]

_TOKEN_PATH = "/api/v1/dev/token"
_CHAT_PATH = "/api/v1/chat/ws"
_UNKNOWN = "There is no such call. See the API's documentation for paths and methods."

# The page is one bundle of our own: no inline script or style, nothing from elsewhere, in no frame.
_SAFE = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' data: blob:; font-src 'self'; connect-src 'self'; manifest-src 'self'; "
    "worker-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
}


@dataclass(frozen=True, slots=True)
class DevToken:
    """`expires_at` is in Unix seconds."""

    token: str
    expires_at: int


def build_app(
    page_dir: Path,
    dev_token: Callable[[], DevToken] | None = None,
    allowed_hosts: Collection[str] = (),
    allowed_origins: Collection[str] = (),
    chat: ChatSockets | None = None,
    draining: Callable[[], bool] = lambda: False,
) -> Starlette:
    """`page_dir` is what Vite built. `dev_token` makes a token for whoever asks; None: there is none.
    `chat` serves the sockets; None: none is taken. `draining`: whether requests should go elsewhere.

    It is given where `Host` is a loopback name or one of `allowed_hosts` (names without port), and the
    page that asks is our own or of one of `allowed_origins` ("http://localhost:5173").
    """
    routes: list[BaseRoute] = [Route("/healthz", _health(draining))]
    if dev_token is not None:
        routes.append(Route(_TOKEN_PATH, _give(dev_token, allowed_hosts, allowed_origins), methods=["POST"]))
    if chat is not None:
        routes.append(WebSocketRoute(_CHAT_PATH, chat.serve))
    routes.append(WebSocketRoute("/{path:path}", _no_socket))
    routes += [Mount("/api", _nothing), Mount("/", Page(page_dir))]
    return Starlette(routes=routes, middleware=[Middleware(_SafeHeaders)])


def _health(draining: Callable[[], bool]) -> Callable[[Request], Awaitable[Response]]:
    async def health(_: Request) -> Response:
        return PlainTextResponse("draining\n", 503) if draining() else PlainTextResponse("ok\n")

    return health


def _give(
    dev_token: Callable[[], DevToken], hosts: Collection[str], origins: Collection[str]
) -> Callable[[Request], Awaitable[Response]]:
    async def give(request: Request) -> Response:
        why_not = refusal(request.headers, hosts, origins)
        if why_not:
            return plain_error(403, 7, why_not)
        made = dev_token()
        return JSONResponse(
            {"token": made.token, "expires_at": made.expires_at},
            headers={"cache-control": "no-store"},
        )

    return give


async def _nothing(scope: Scope, receive: Receive, send: Send) -> None:
    """Under /api the page's own paths end: a program must not get HTML for an answer."""
    await plain_error(404, 12, _UNKNOWN)(scope, receive, send)


async def _no_socket(socket: WebSocket) -> None:
    await socket.send_denial_response(plain_error(404, 12, _UNKNOWN))


class _SafeHeaders:
    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [
                    *message["headers"],
                    *((k.encode(), v.encode()) for k, v in _SAFE.items()),
                ]
            await send(message)

        await self._app(scope, receive, sending)

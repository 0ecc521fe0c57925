"""`weft load` over WebSocket, against a socket that does what the question says."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from tests.servers.mesh import free_port
from weft.errors import Unauthenticated, Unavailable
from weft.v1.chat_pb2 import StreamChatRequest
from weft.v1.common_pb2 import Message
from weftd.load.socket import SocketCaller
from weftd.load.target import Target

ANSWER = [("delta", "灯塔"), ("refs", ""), ("done", "")]


class Mesh:
    def __init__(self) -> None:
        self.sockets = 0

    async def serve(self, socket: ServerConnection) -> None:
        self.sockets += 1
        with suppress(ConnectionClosed):
            if json.loads(await socket.recv()) != {"type": "start", "token": "good"}:
                await self.say(socket, type="error", reason="TOKEN_INVALID", message="No.")
                return
            async for text in socket:
                asked = json.loads(text)
                names = {name: asked[name] for name in ("conversation_id", "request_id")}
                match asked["messages"][-1]["content"]:
                    case "refused":
                        await self.say(socket, type="error", reason="OVERLOADED", message="No.", **names)
                        continue
                    case "cut":
                        await self.say(socket, type="delta", content="灯", seq=1, **names)
                        socket.transport.abort()
                    case "going":
                        await self.say(socket, type="go_away", reason="draining", grace_ms=10)
                    case "another's":
                        await self.say(socket, type="delta", content="x", conversation_id="o", request_id="o")
                for seq, (kind, content) in enumerate(ANSWER, 1):
                    await self.say(socket, type=kind, content=content, seq=seq, **names)

    async def say(self, socket: ServerConnection, **fields: object) -> None:
        await socket.send(json.dumps(fields))


@pytest.fixture
async def mesh() -> AsyncIterator[tuple[Mesh, Target]]:
    mesh = Mesh()
    async with serve(mesh.serve, "127.0.0.1", 0) as server:
        yield mesh, Target(f"127.0.0.1:{next(iter(server.sockets)).getsockname()[1]}")


async def heard(caller: SocketCaller, question: str) -> list[tuple[str, str]]:
    request = StreamChatRequest(conversation_id="c", request_id="r", messages=[Message(content=question)])
    return [(event.type, event.content or event.reason) async for event in caller.ask(request)]


async def test_a_socket_is_kept_from_turn_to_turn(mesh: tuple[Mesh, Target]) -> None:
    served, target = mesh
    caller = SocketCaller(target, "good")
    assert await heard(caller, "fine") == ANSWER
    assert await heard(caller, "refused") == [("error", "OVERLOADED")]
    assert await heard(caller, "another's") == ANSWER
    assert served.sockets == 1
    await caller.close()


@pytest.mark.parametrize("question", ["cut", "going"])
async def test_a_socket_that_is_lost_or_goes_away_is_followed_by_another(
    mesh: tuple[Mesh, Target], question: str
) -> None:
    served, target = mesh
    caller = SocketCaller(target, "good")
    with suppress(Unavailable):
        assert await heard(caller, question) == ANSWER
        assert question == "going"
    assert await heard(caller, "fine") == ANSWER
    assert served.sockets == 2
    await caller.close()


async def test_what_is_wrong_with_the_socket_is_raised(mesh: tuple[Mesh, Target]) -> None:
    with pytest.raises(Unauthenticated, match="TOKEN_INVALID"):
        await heard(SocketCaller(mesh[1], "bad"), "fine")
    with pytest.raises(Unavailable, match="does not answer at"):
        await heard(SocketCaller(Target(f"127.0.0.1:{free_port()}"), "good"), "fine")

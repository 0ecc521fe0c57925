"""`weft load` over TLS: a certificate is verified, by the given authority where there is one."""

from __future__ import annotations

import asyncio
import ipaddress
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from websockets.asyncio.server import ServerConnection, serve

from tests.servers.certificates import self_signed
from weft.errors import Unavailable
from weft.v1 import chat_pb2, chat_pb2_grpc
from weft.v1.common_pb2 import Message
from weftd.load import Transport
from weftd.load.target import Target, target
from weftd.load.transports import callers

REQUEST = chat_pb2.StreamChatRequest(conversation_id="c", request_id="r", messages=[Message(content="?")])
DONE = '{"type":"done","seq":1,"conversation_id":"c","request_id":"r"}'


ADDRESS = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
KEY, CERTIFICATE = self_signed(ADDRESS)


class Chat(chat_pb2_grpc.ChatServiceServicer):
    async def StreamChat(self, request: object, context: object) -> AsyncIterator[chat_pb2.ChatEvent]:
        yield chat_pb2.ChatEvent(type="done", seq=1)


@pytest.fixture
def server_side(tmp_path: Path) -> ssl.SSLContext:
    (tmp_path / "pem").write_bytes(KEY + CERTIFICATE)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "pem")
    return context


async def asked(transport: Transport, where: Target) -> list[str]:
    async with callers(transport, where, "good") as connect:
        return [event.type async for event in connect().ask(REQUEST)]


async def trusted_only_with_its_authority(transport: Transport, port: int) -> None:
    assert await asked(transport, Target(f"127.0.0.1:{port}", True, CERTIFICATE)) == ["done"]
    with pytest.raises(Unavailable, match="does not answer"):
        await asked(transport, Target(f"127.0.0.1:{port}", True, self_signed(ADDRESS)[1]))


async def test_grpc_over_tls() -> None:
    server = grpc.aio.server()
    chat_pb2_grpc.add_ChatServiceServicer_to_server(Chat(), server)
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([(KEY, CERTIFICATE)]))
    await server.start()
    try:
        await trusted_only_with_its_authority("grpc", port)
    finally:
        await server.stop(0)


async def test_rest_over_tls(server_side: ssl.SSLContext) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        body = b'data: {"type":"done","seq":1}\n\n'
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0, ssl=server_side) as server:
        await trusted_only_with_its_authority("rest", server.sockets[0].getsockname()[1])


async def test_a_socket_over_tls(server_side: ssl.SSLContext) -> None:
    async def answer(socket: ServerConnection) -> None:
        await socket.recv()
        await socket.recv()
        await socket.send(DONE)

    async with serve(answer, "127.0.0.1", 0, ssl=server_side) as server:
        await trusted_only_with_its_authority("ws", next(iter(server.sockets)).getsockname()[1])


def test_addresses() -> None:
    assert target("127.0.0.1:8080") == Target("127.0.0.1:8080")
    assert target("http://[::1]:80/") == Target("[::1]:80")
    assert target("https://weft.example", CERTIFICATE) == Target("weft.example:443", True, CERTIFICATE)
    for wrong in ("weft.example", "https://a/b", "ftp://a:1", "https://me@a", "", "a b:1"):
        with pytest.raises(ValueError, match="--address is"):
            target(wrong)
    with pytest.raises(ValueError, match="--ca is for TLS"):
        target("127.0.0.1:8080", CERTIFICATE)
    with pytest.raises(ValueError, match="no file of certificates"):
        target("https://weft.example", b"nothing")

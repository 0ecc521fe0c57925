"""The SDK against a real server whose connection is cut: what its user sees, and what the server does."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import grpc
import pytest
from cryptography import x509

from tests.servers.certificates import self_signed
from tests.servers.cut_chat import TEXT, Chat, Wire
from weft import (
    ChatEvent,
    DeadlineExceeded,
    Delta,
    Done,
    FailedPrecondition,
    NotFound,
    References,
    TurnEnded,
    Unauthenticated,
    Unavailable,
    Weft,
)
from weft.v1 import chat_pb2_grpc


@pytest.fixture
async def chat() -> Chat:
    return Chat()


@pytest.fixture
async def wire(chat: Chat) -> AsyncIterator[Wire]:
    server = grpc.aio.server()
    chat_pb2_grpc.add_ChatServiceServicer_to_server(chat, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with Wire(port) as wire:
        chat.cut = wire.cut
        yield wire
    await server.stop(None)


@pytest.fixture
async def weft(wire: Wire) -> AsyncIterator[Weft]:
    async with Weft(wire.address, token="t") as weft:
        yield weft


def text_of(events: list[ChatEvent]) -> str:
    return "".join(event.text for event in events if isinstance(event, Delta))


async def test_an_answer_is_typed_events(weft: Weft, chat: Chat) -> None:
    events = [event async for event in weft.chat("conv_1", "什么是RAG？", top_k=3, temperature=0.0)]
    assert text_of(events) == "".join(TEXT)
    match events[-2:]:
        case [References((reference,), ("graph",), 6), Done(usage, (), 7)]:
            assert (reference.name, usage.total_tokens) == ("a.pdf", 9)
        case other:
            pytest.fail(str(other))
    request = chat.requests[0]
    assert (request.conversation_id, request.top_k, request.resumable) == ("conv_1", 3, True)
    assert request.HasField("temperature")
    assert request.stream
    assert chat.cancelled == {}


@pytest.mark.parametrize("how", ["connection", "status", "reset", "end", "repeat", "gap"])
async def test_a_cut_after_any_event_goes_unnoticed(wire: Wire, chat: Chat, how: str) -> None:
    for seq in range(1, 7 if how != "gap" else 6):
        chat.cut_after = {seq: how}
        async with Weft(wire.address, token="t") as weft:
            events = [event async for event in weft.chat(f"conv_{seq}", "q")]
        assert text_of(events) == "".join(TEXT)
        assert [event.seq for event in events] == list(range(1, 8))
    assert len(chat.started) == len(chat.requests) - (0 if how == "repeat" else len(chat.started))
    assert chat.cancelled == {}


async def test_a_connection_cut_after_every_event(weft: Weft, wire: Wire, chat: Chat) -> None:
    chat.cut_after = dict.fromkeys(range(1, 7), "connection")
    turn = weft.chat("conv_1", "q")
    assert await turn.text() == "".join(TEXT)
    assert chat.started == [("conv_1", turn.request_id)]
    assert [request.after_seq for request in chat.requests] == list(range(7))
    assert wire.connections == 7


async def test_a_connection_that_stays_away_is_given_up(wire: Wire, chat: Chat) -> None:
    async with Weft(wire.address, token="t", resume_for_s=0.5) as weft:
        started = time.monotonic()
        with pytest.raises(Unavailable):
            async for event in weft.chat("conv_1", "endless"):
                if event.seq == 2:
                    wire.refuse = True
                    wire.cut()
        assert time.monotonic() - started < 3


async def test_a_connection_cut_before_the_first_event_is_waited_for(
    weft: Weft, wire: Wire, chat: Chat
) -> None:
    turn = asyncio.create_task(weft.chat("conv_1", "late").text())
    await asyncio.sleep(0.3)
    wire.refuse = True
    await asyncio.sleep(3)
    wire.refuse = False
    assert await turn == "".join(TEXT)
    assert len(chat.started) == 1


async def test_an_absent_server_is_soon_known_by_its_address() -> None:
    async with Weft("127.0.0.1:1", token="t") as weft:
        started = time.monotonic()
        with pytest.raises(Unavailable, match=r"127\.0\.0\.1:1 "):
            await weft.chat("conv_1", "q").text()
        with pytest.raises(Unavailable, match=r"127\.0\.0\.1:1 "):
            await weft.cancel("conv_1", "r")
        assert time.monotonic() - started < 8


async def test_errors_are_exceptions_before_and_within_an_answer(weft: Weft, chat: Chat) -> None:
    with pytest.raises(FailedPrecondition) as refused:
        await weft.chat("conv_1", "refused").text()
    assert refused.value.reason == "TURN_RUNNING"
    seen = []
    with pytest.raises(Unavailable) as broken:
        async for event in weft.chat("conv_1", "fails"):
            seen.append(event)  # noqa: PERF401
    assert (broken.value.reason, broken.value.message) == ("MODEL_BROKEN", "It broke.")
    assert seen == [Delta("Retrieval", 1)]
    assert len(chat.requests) == 2
    assert chat.cancelled == {}


async def test_a_passed_deadline(weft: Weft) -> None:
    with pytest.raises(DeadlineExceeded):
        await weft.chat("conv_1", "silent", timeout_s=0.2).text()


async def test_leaving_the_loop_cancels_the_turn(weft: Weft, chat: Chat) -> None:
    async def leave_by_break() -> float:
        async for event in weft.chat("conv_1", "endless"):
            if event.seq == 3:
                break
        return time.monotonic()

    async def leave_by_cancel() -> float:
        task = asyncio.create_task(weft.chat("conv_1", "endless").text())
        await asyncio.sleep(0.1)
        left_at = time.monotonic()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return left_at

    async def leave_by_error() -> float:
        with pytest.raises(ZeroDivisionError):
            async for _ in weft.chat("conv_1", "endless"):
                raise ZeroDivisionError
        return time.monotonic()

    async def leave_by_aclose() -> float:
        events = aiter(weft.chat("conv_1", "endless"))
        await anext(events)
        left_at = time.monotonic()
        await events.aclose()
        return left_at

    async def leave_by_timeout() -> float:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await weft.chat("conv_1", "silent").text()
        return time.monotonic()

    await weft.chat("conv_1", "warm up").text()
    for leave in (leave_by_break, leave_by_cancel, leave_by_error, leave_by_aclose, leave_by_timeout):
        chat.cancels.clear()
        left_at = await leave()
        async with asyncio.timeout(2):
            await chat.cancels.wait()
        assert max(chat.cancelled.values()) - left_at < 0.05, leave.__name__
    assert len(chat.cancelled) == 5


async def test_leaving_the_client_cancels_what_runs(wire: Wire, chat: Chat) -> None:
    async with Weft(wire.address, token="t") as weft:
        async for _ in weft.chat("conv_1", "endless"):
            break
        kept = weft.chat("conv_2", "endless")
        events = aiter(kept)
        await anext(events)
    assert len(chat.cancelled) == 2


async def test_a_program_that_is_interrupted_cancels_its_turn(wire: Wire, chat: Chat) -> None:
    async def program() -> None:
        async with Weft(wire.address, token="t") as weft:
            async for _ in weft.chat("conv_1", "endless"):
                pass

    task = asyncio.create_task(program())
    await asyncio.sleep(0.1)
    task.cancel()
    await asyncio.sleep(0)
    task.cancel()  # impatient
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(chat.cancelled) == 1


async def test_a_stopped_turn_says_so_to_its_reader(weft: Weft) -> None:
    turn = weft.chat("conv_1", "endless")
    with pytest.raises(TurnEnded) as ended:
        async for event in turn:
            if event.seq == 2:
                await turn.stop()
    assert ended.value.reason == "TURN_CANCELLED"


async def test_a_turn_goes_on_in_another_program(weft: Weft, chat: Chat) -> None:
    chat.cut_after = {5: "end"}
    events = [event async for event in weft.resume("conv_1", "r-1", after_seq=3)]
    assert [event.seq for event in events] == [4, 5, 6, 7]
    with pytest.raises(NotFound):
        await weft.resume("conv_1", "unknown").text()


async def test_a_refused_token_is_asked_for_again(wire: Wire, chat: Chat) -> None:
    chat.good_token = "new"
    tokens = iter(["old", "new", "new"])

    async def token() -> str:
        return next(tokens)

    async with Weft(wire.address, token=token) as weft:
        assert await weft.chat("conv_1", "q").text() == "".join(TEXT)
    assert chat.tokens == ["Bearer old", "Bearer new"]
    async with Weft(wire.address, token="old") as weft:
        with pytest.raises(Unauthenticated):
            await weft.chat("conv_1", "q").text()
    assert len(chat.tokens) == 3


async def test_address_and_token_come_from_the_environment(
    wire: Wire, chat: Chat, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WEFT_TOKEN", raising=False)
    monkeypatch.setenv("WEFT_ADDRESS", f"http://{wire.address}/")
    async with Weft() as weft:
        with pytest.raises(Unauthenticated, match="WEFT_TOKEN"):
            await weft.chat("conv_1", "q").text()
    monkeypatch.setenv("WEFT_TOKEN", "from-env")
    async with Weft() as weft:
        await weft.chat("conv_1", "q").text()
    assert chat.tokens == ["Bearer from-env"]


async def test_a_connection_can_be_encrypted(chat: Chat) -> None:
    key, certificate = self_signed(x509.DNSName("localhost"))
    server = grpc.aio.server()
    chat_pb2_grpc.add_ChatServiceServicer_to_server(chat, server)
    port = server.add_secure_port("localhost:0", grpc.ssl_server_credentials([(key, certificate)]))
    await server.start()
    async with Weft(f"https://localhost:{port}", token="t", root_certificates=certificate) as weft:
        assert await weft.chat("conv_1", "q").text() == "".join(TEXT)
    async with Weft(f"localhost:{port}", token="t", tls=True) as weft:
        with pytest.raises(Unavailable):  # nobody vouches for that certificate
            await weft.chat("conv_1", "q").text()
    await server.stop(None)

"""Versions of models on a real Triton: published under calls, gone back to, watched, refused to users."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from tests.servers.model_versions import (
    NUMBER_CONFIG,
    Versions,
    archive,
    letters,
    messages,
    number,
    publishing_at,
    serving,
    write_models,
)
from tests.servers.rpc_mesh import reason
from tests.servers.triton import RunningTriton, running_triton
from weft.v1 import models_pb2 as pb
from weftd.inference.triton.client import Triton
from weftd.models.versions import spool
from weftd.models.versions.trial import TrialLimits
from weftd.rpc.drain import Drain


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningTriton]:
    directory = tmp_path_factory.mktemp("triton")
    with running_triton(write_models(directory / "source"), directory) as running:
        yield running


@pytest.fixture
async def versions(server: RunningTriton, tmp_path: Path) -> AsyncIterator[Versions]:
    async with serving(server, tmp_path, TrialLimits(load_s=30, call_s=8)) as served:
        yield served


def nothing_left(versions: Versions) -> None:
    assert not [each.name for each in versions.server.repository.iterdir() if "check" in each.name]
    assert not [each.name for each in versions.work.iterdir() if each.is_dir()]
    assert not list(versions.server.repository.rglob("weft_check.py"))


async def failure(call: Any) -> tuple[str, str]:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call
    return raised.value.code().name, reason(raised.value)


async def test_a_published_version_answers_new_calls(versions: Versions) -> None:
    before = (await versions.called())[1]
    content = archive({"model.py": number(70), "data/x.bin": b"x" * 200_000})
    published = await versions.publish("number", content)
    assert (published.model, published.version) == ("number", before + 1)
    assert published.bytes == 200_000 + len(number(70))
    assert await versions.called() == (70, published.version)
    assert (await versions.listed())["number"][0] == published.version
    nothing_left(versions)


async def test_a_stream_ends_on_the_version_that_it_began_with(versions: Versions) -> None:
    began, going_on = asyncio.Event(), asyncio.Event()
    seen: list[tuple[int, int]] = []

    async def read() -> None:
        inputs = {"N": np.array([120], np.int32), "PAUSE_MS": np.array([50], np.float32)}
        async for answer in versions.triton.stream("letters", inputs):
            seen.append((int(answer.outputs["CODE"][0]), int(answer.version)))
            began.set()
        going_on.set()

    async with asyncio.TaskGroup() as group:
        group.create_task(read())
        await began.wait()
        published = await versions.publish("letters", archive({"model.py": letters(71)}))
        assert not going_on.is_set()
        inputs = {"N": np.array([1], np.int32), "PAUSE_MS": np.array([0], np.float32)}
        async for answer in versions.triton.stream("letters", inputs):
            assert (answer.outputs["CODE"][0], answer.version) == (71, str(published.version))
    assert len(seen) == 120
    assert len(set(seen)) == 1
    assert seen[0][1] < published.version


async def test_an_old_version_is_let_go_of_after_its_last_stream(versions: Versions) -> None:
    ended = asyncio.Event()

    async def read() -> None:
        inputs = {"N": np.array([10], np.int32), "PAUSE_MS": np.array([20], np.float32)}
        while not ended.is_set():
            async for _ in versions.triton.stream("letters", inputs):
                pass

    async with asyncio.TaskGroup() as group:
        for _ in range(16):
            group.create_task(read())
        for code in (75, 76, 77):
            await versions.publish("letters", archive({"model.py": letters(code)}))
        ended.set()
    async with asyncio.timeout(15):
        while len(versions.server.stubs("letters")) != 1:
            await asyncio.sleep(0.05)


async def test_a_stream_that_never_ends_is_refused(versions: Versions) -> None:
    error = await failure(versions.publish("letters", archive({"model.py": letters(9, end="pass")})))
    assert error == ("FAILED_PRECONDITION", "MODEL_VERSION_REFUSED")
    nothing_left(versions)


async def test_a_stream_may_be_silent_for_a_while_before_its_first_answer(versions: Versions) -> None:
    code = letters(78).replace(b"pause_s = ", b"time.sleep(6)\n        pause_s = ")
    await versions.publish("letters", archive({"model.py": code}))
    await versions.publish("letters", archive({"model.py": letters(79)}))


async def test_a_version_may_log_and_count(versions: Versions) -> None:
    load = (
        "self.made = pb_utils.MetricFamily(name='made', description='d', kind=pb_utils.MetricFamily.COUNTER)"
    )
    code = number(69, load=load, call="pb_utils.Logger.log_info('called'); self.made.Metric().increment(1)")
    await versions.publish("number", archive({"model.py": code}))
    assert (await versions.called())[0] == 69


@pytest.mark.parametrize("again", ["number", "letters"])
async def test_the_model_is_named_once(versions: Versions, again: str) -> None:
    before = await versions.listed()
    sent = [pb.PublishModelRequest(model=each) for each in ("number", again)]
    sent.append(pb.PublishModelRequest(data=archive({"model.py": number(1)})))
    assert (await failure(versions.stub.PublishModel(iter(sent), metadata=versions.operator)))[
        0
    ] == "INVALID_ARGUMENT"
    assert await versions.listed() == before


async def test_who_sends_nothing_is_not_waited_for(
    versions: Versions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool, "_SILENCE_LIMIT_S", 0.2)

    async def silence(*first: pb.PublishModelRequest) -> AsyncIterator[pb.PublishModelRequest]:
        for each in first:
            yield each
        await asyncio.Event().wait()

    for first, code in (
        ([], "INVALID_ARGUMENT"),
        ([pb.PublishModelRequest(model="number")], "FAILED_PRECONDITION"),
    ):
        call = versions.stub.PublishModel(silence(*first), metadata=versions.operator)
        assert (await failure(call))[0] == code
    nothing_left(versions)


async def test_canary_inputs_come_with_a_version_and_stay(versions: Versions) -> None:
    code = number(72, call="assert pb_utils.get_input_tensor_by_name(request, 'N').as_numpy()[0] == 5")
    refused = await failure(versions.publish("number", archive({"model.py": code})))
    assert refused == ("FAILED_PRECONDITION", "MODEL_VERSION_REFUSED")
    await versions.publish("number", archive({"model.py": code, "canary.json": b'{"N": 5}'}))
    await versions.publish("number", archive({"model.py": code.replace(b"72", b"73")}))


async def test_a_version_may_bring_parameters_and_going_back_takes_them_back(versions: Versions) -> None:
    code = number(
        "int(self.parameter)",
        load="import json; self.parameter = json.loads("
        "args['model_config'])['parameters'].get('code', {'string_value': '0'})['string_value']",
    )
    own = (NUMBER_CONFIG + 'parameters { key: "code" value { string_value: "74" } }').encode()
    canary = b'{"N": 1}'
    first = await versions.publish("number", archive({"model.py": code, "canary.json": canary}))
    assert (await versions.called())[0] == 0
    await versions.publish("number", archive({"model.py": code, "config.pbtxt": own}))
    assert (await versions.called())[0] == 74
    third = await versions.publish("number", archive({"model.py": code}))
    assert await versions.called() == (74, third.version)  # it takes over what the one before had
    back = await versions.rollback("number", first.version)
    assert (back.source_version, back.version) == (first.version, third.version + 1)
    assert await versions.called() == (0, back.version)


async def test_going_back_and_what_is_kept(versions: Versions) -> None:
    for code in range(80, 88):
        last = await versions.publish("number", archive({"model.py": number(code), "canary.json": b"{}"}))
    served, kept = (await versions.listed())["number"]
    assert served == last.version
    assert kept == [last.version - i for i in range(5)]
    back = await versions.rollback("number")
    assert (back.version, back.source_version) == (last.version + 1, last.version - 1)
    assert await versions.called() == (86, back.version)
    assert await failure(versions.rollback("number", 1)) == ("INVALID_ARGUMENT", "INVALID_FIELD")
    assert await versions.called() == (86, back.version)
    nothing_left(versions)


async def test_watching(versions: Versions) -> None:
    call = versions.stub.WatchModels(pb.WatchModelsRequest(), metadata=versions.operator)
    events = aiter(call)
    first = [await anext(events), await anext(events)]
    served = {event.model: event.version for event in first}
    assert served.keys() == {"letters", "number"}
    published = await versions.publish("number", archive({"model.py": number(90), "canary.json": b"{}"}))
    event = await asyncio.wait_for(anext(events), 2)
    assert (event.type, event.model, event.version, event.seq) == ("served", "number", published.version, 3)
    await versions.triton.unload("letters")
    event = await asyncio.wait_for(anext(events), 10)
    assert (event.type, event.model) == ("gone", "letters")
    await versions.triton.load("letters")
    event = await asyncio.wait_for(anext(events), 10)
    assert (event.type, event.model, event.version) == ("served", "letters", served["letters"])
    versions.drain.begin()
    assert await failure(asyncio.wait_for(anext(events), 5)) == ("UNAVAILABLE", "DRAINING")


async def test_only_operators(versions: Versions) -> None:
    calls: list[Callable[..., Any]] = [
        lambda metadata: versions.stub.PublishModel(messages("number", b""), metadata=metadata),
        lambda metadata: versions.stub.ListModelVersions(pb.ListModelVersionsRequest(), metadata=metadata),
        lambda metadata: versions.stub.RollbackModel(pb.RollbackModelRequest(), metadata=metadata),
        lambda metadata: anext(aiter(versions.stub.WatchModels(pb.WatchModelsRequest(), metadata=metadata))),
    ]
    for call in calls:
        assert await failure(call(versions.member)) == ("PERMISSION_DENIED", "ROLE_MISSING")


@pytest.mark.parametrize(
    ("sent", "refusal"),
    [
        ([], ("INVALID_ARGUMENT", "INVALID_FIELD")),
        ([pb.PublishModelRequest(data=b"x")], ("INVALID_ARGUMENT", "INVALID_FIELD")),
        ([pb.PublishModelRequest(model="../number")], ("INVALID_ARGUMENT", "INVALID_FIELD")),
        ([pb.PublishModelRequest(model="number--check-1")], ("INVALID_ARGUMENT", "INVALID_FIELD")),
        ([pb.PublishModelRequest(model="n" * 65)], ("INVALID_ARGUMENT", "INVALID_FIELD")),
        (
            [pb.PublishModelRequest(model="number"), pb.PublishModelRequest()],
            ("INVALID_ARGUMENT", "INVALID_FIELD"),
        ),
        ([pb.PublishModelRequest(model="nobody")], ("NOT_FOUND", "MODEL_NOT_FOUND")),
        (
            [pb.PublishModelRequest(model="number", data=b"x"), pb.PublishModelRequest(model="letters")],
            ("INVALID_ARGUMENT", "INVALID_FIELD"),
        ),
        (
            [pb.PublishModelRequest(model="number"), pb.PublishModelRequest(data=b"x" * (1 << 20) + b"x")],
            ("INVALID_ARGUMENT", "INVALID_FIELD"),
        ),
    ],
)
async def test_messages_that_are_wrong(
    versions: Versions, sent: list[pb.PublishModelRequest], refusal: tuple[str, str]
) -> None:
    assert await failure(versions.stub.PublishModel(iter(sent), metadata=versions.operator)) == refusal


async def test_two_publishes_at_once(versions: Versions) -> None:
    before = (await versions.called())[1]
    sending = asyncio.Event()

    async def slowly() -> AsyncIterator[pb.PublishModelRequest]:
        first, *rest = messages("number", archive({"model.py": number(91), "canary.json": b"{}"}))
        yield first
        await sending.wait()
        for message in rest:
            yield message

    first = versions.stub.PublishModel(slowly(), metadata=versions.operator)
    async with asyncio.timeout(10):
        while not (versions.work / "number").is_dir():
            await asyncio.sleep(0.01)
    second = await failure(versions.publish("number", archive({"model.py": number(92)})))
    assert second == ("RESOURCE_EXHAUSTED", "OVERLOADED")
    # Another model is published meanwhile.
    await versions.publish("letters", archive({"model.py": letters(93)}))
    sending.set()
    assert (await first).version == before + 1
    assert await versions.called() == (91, before + 1)


async def test_a_publish_that_is_left_leaves_nothing(versions: Versions) -> None:
    before, listed = await versions.called(), await versions.listed()

    async def half() -> AsyncIterator[pb.PublishModelRequest]:
        for message in list(messages("number", archive({"model.py": number(94), "w": b"x" * 500_000})))[:5]:
            yield message
        await asyncio.Event().wait()

    call = versions.stub.PublishModel(half(), metadata=versions.operator)
    async with asyncio.timeout(10):
        while not list(versions.work.glob("number/sent.tar")):
            await asyncio.sleep(0.01)
    call.cancel()
    async with asyncio.timeout(10):
        while (versions.work / "number").exists():
            await asyncio.sleep(0.01)
    assert (await versions.called(), await versions.listed()) == (before, listed)
    nothing_left(versions)


@pytest.mark.parametrize("at", ["sending", "checking", "placed"])
async def test_a_publish_killed_half_way(versions: Versions, tmp_path: Path, at: str) -> None:
    before, listed = await versions.called(), await versions.listed()
    code = number(95, load="time.sleep(20)" if at == "checking" else "pass")
    (tmp_path / "sent").write_bytes(archive({"model.py": code, "canary.json": b"{}"}))
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", __name__, at, versions.server.address, str(versions.server.repository),
        str(versions.work), str(tmp_path / "sent"),
        cwd=Path(__file__).parents[2], stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    async with asyncio.timeout(30):
        if at == "checking":
            while not any("check" in each.name for each in versions.server.repository.iterdir()):
                await asyncio.sleep(0.02)
            await asyncio.sleep(0.5)
        else:
            assert await process.stdout.readline() == b"now\n"
    process.kill()
    await process.wait()
    assert await versions.called() == before
    await versions.publishing.sweep()
    nothing_left(versions)
    assert (await versions.called(), await versions.listed()) == (before, listed)
    published = await versions.publish("number", archive({"model.py": number(96), "canary.json": b"{}"}))
    assert await versions.called() == (96, published.version)
    assert not [each.model for each in await versions.triton.index() if "check" in each.model]


async def _publish(at: str, address: str, repository: Path, work: Path, content: bytes) -> None:
    """A worker that says "now" when it is to be killed."""
    publishing = publishing_at(Triton(address), repository, work, Drain(1))
    if at == "placed":
        publishing._name = _stop  # type: ignore[method-assign]

    async def requests() -> AsyncIterator[pb.PublishModelRequest]:
        for message in messages("number", content, 100):
            yield message
            if at == "sending" and message.data:
                await _stop()

    await publishing.publish(requests())


async def _stop(*_: object) -> None:
    print("now", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_publish(*sys.argv[1:3], *map(Path, sys.argv[3:5]), Path(sys.argv[5]).read_bytes()))

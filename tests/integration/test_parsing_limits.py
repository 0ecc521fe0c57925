"""The child that reads a document: its limits, its end, and what it may not do to its parent."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from contextlib import aclosing
from pathlib import Path

import psutil
import pytest

from tests import documents
from tests.documents import Part
from weft.v1 import error_reason_pb2 as reasons
from weftd.errors import FailedPrecondition
from weftd.knowledge.parsing import runner
from weftd.knowledge.parsing.runner import parse_document
from weftd.knowledge.parsing.section import Limits, Section

PARTS = [Part("Tea", ["The tea house opens at nine."]), Part("茶馆", ["茶馆早上九点开门。"])]
WORD = (
    b'<w:document xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main">'
    b"<w:body>%s</w:body></w:document>"
)
MIB = 1 << 20


async def parsed(path: Path, name: str, limits: Limits | None = None) -> list[Section]:
    async with aclosing(parse_document(path, name, limits)) as sections:
        return [section async for section in sections]


async def refusal(path: Path, name: str, limits: Limits | None = None) -> str:
    with pytest.raises(FailedPrecondition) as refused:
        await parsed(path, name, limits)
    assert refused.value.message.endswith(".")
    assert children() == []
    return reasons.ErrorReason.Name(refused.value.reason).removeprefix("ERROR_REASON_")


def put(path: Path, content: bytes | str) -> None:
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def children() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if runner._CHILD in " ".join(child.cmdline())]


@pytest.fixture
def blob(tmp_path: Path) -> Path:
    return tmp_path / "blob"


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module that runs in the child's place: write what it does into this file."""
    monkeypatch.setattr(runner, "_CHILD", "parser_stand_in")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path / "parser_stand_in.py"


@pytest.mark.parametrize("ending", documents.MAKERS)
async def test_every_format_through_the_child(blob: Path, ending: str) -> None:
    put(blob, documents.MAKERS[ending](PARTS))
    text = "\n".join(section.text for section in await parsed(blob, "文件" + ending))
    assert "opens at nine." in text
    assert "茶馆早上九点开门。" in text
    assert children() == []


async def test_refusals_come_through(blob: Path) -> None:
    put(blob, b"")
    assert await refusal(blob, "x.txt") == "DOCUMENT_EMPTY"
    put(blob, documents.encrypted_pdf(PARTS))
    assert await refusal(blob, "x.pdf") == "DOCUMENT_ENCRYPTED"
    put(blob, documents.word(PARTS)[:-300])
    assert await refusal(blob, "x.docx") == "DOCUMENT_BROKEN"
    put(blob, documents.repacked(documents.word(PARTS), word__document_xml=b"<w:document>"))
    assert await refusal(blob, "x.docx") == "DOCUMENT_BROKEN"


async def test_a_missing_file_is_our_fault(blob: Path) -> None:
    with pytest.raises(FileNotFoundError):
        await parsed(blob, "x.txt")


async def test_sections_come_before_the_end(blob: Path) -> None:
    put(blob, documents.pdf([Part("Page", ["Some words. " * 200])] * 300))
    async with aclosing(parse_document(blob, "x.pdf")) as sections:
        async for section in sections:
            assert section.page == 1
            assert len(children()) == 1
            break
    assert children() == []


async def test_too_little_time(blob: Path) -> None:
    put(blob, b"<" * 3_000_000)
    began = time.monotonic()
    assert await refusal(blob, "x.html", Limits(time_s=0.5)) == "PARSER_LIMIT"
    assert time.monotonic() - began < 10


async def test_the_readers_time_does_not_count(stand_in: Path, blob: Path) -> None:
    put(
        stand_in,
        "import json, sys\n"
        "for page in (1, 2):\n"
        "    print(json.dumps({'page': page, 'heading': '', 'text': 'x'}), flush=True)\n"
        "print('{\"end\": true}')\n",
    )
    limits = Limits(time_s=3)
    pages = []
    async with aclosing(parse_document(blob, "x.txt", limits)) as sections:
        async for section in sections:
            pages.append(section.page)
            if section.page == 1:
                time.sleep(3.1)  # noqa: ASYNC251  # longer than the parser may take
    assert pages == [1, 2]


async def test_too_little_memory(blob: Path) -> None:
    paragraphs = b"<w:p><w:r><w:t>x</w:t></w:r></w:p>" * 400_000
    put(blob, documents.repacked(documents.word(PARTS), word__document_xml=WORD % paragraphs))
    assert await refusal(blob, "x.docx", Limits(memory_bytes=200 * MIB)) == "PARSER_LIMIT"


async def test_nested_too_deeply(blob: Path) -> None:
    deep = b"<w:p>" * 100_000 + b"</w:p>" * 100_000
    put(blob, documents.repacked(documents.word(PARTS), word__document_xml=WORD % deep))
    assert await refusal(blob, "x.docx") == "PARSER_LIMIT"
    put(blob, b"<div>" * 200_000 + b"deep")
    assert (await parsed(blob, "x.html"))[0].text.strip() == "deep"


async def test_more_text_than_allowed(blob: Path) -> None:
    page = Part("Page", ["Some words. " * 300])
    put(blob, documents.pdf([page] * 200))
    assert await refusal(blob, "x.pdf", Limits(unpacked_bytes=500_000)) == "DOCUMENT_TOO_LARGE"


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("print('no json at all')", "DOCUMENT_BROKEN"),
        ("print('[1, 2]')", "DOCUMENT_BROKEN"),
        ("print('{\"text\": 1}')", "DOCUMENT_BROKEN"),
        ('print(\'{"reason": "NO_SUCH"}\')', "DOCUMENT_BROKEN"),
        ("print('x' * 5_000_000)", "DOCUMENT_BROKEN"),
        ("print('{\"page\": 1', end='')", "DOCUMENT_BROKEN"),
        ("pass", "DOCUMENT_BROKEN"),
        ("raise SystemExit(3)", "DOCUMENT_BROKEN"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", "DOCUMENT_BROKEN"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "PARSER_LIMIT"),
        ("os.kill(os.getpid(), signal.SIGXCPU)", "PARSER_LIMIT"),
        ("time.sleep(600)", "PARSER_LIMIT"),
        ("os.close(1); time.sleep(600)", "PARSER_LIMIT"),
    ],
)
async def test_a_child_gone_wrong(stand_in: Path, blob: Path, code: str, reason: str) -> None:
    put(stand_in, f"import os, signal, time\n{code}\n")
    put(blob, b"x")
    assert await refusal(blob, "x.txt", Limits(time_s=2)) == reason


async def test_a_cancel_kills_the_child(stand_in: Path, blob: Path) -> None:
    put(stand_in, "import time\ntime.sleep(600)\n")
    task = asyncio.create_task(parsed(blob, "x.txt"))
    while not children():
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert children() == []


async def test_the_child_sees_no_secrets(stand_in: Path, blob: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEFT_KEY", "secret")
    put(
        stand_in,
        "import json, os\n"
        "print(json.dumps({'page': None, 'heading': '', 'text': ' '.join(os.environ)}))\n"
        "print('{\"end\": true}')\n",
    )
    assert "WEFT_KEY" not in (await parsed(blob, "x.txt"))[0].text


def test_a_child_does_not_outlive_its_parent(tmp_path: Path) -> None:
    path = tmp_path / "slow.html"
    path.write_bytes(b"<" * 20_000_000)
    program = (
        "import asyncio, sys\nfrom pathlib import Path\n"
        "from weftd.knowledge.parsing.runner import parse_document\n"
        "async def main():\n"
        "    async for _ in parse_document(Path(sys.argv[1]), 'slow.html'): pass\n"
        "asyncio.run(main())\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", program, str(path)])
    try:
        deadline = time.monotonic() + 30
        while not (family := psutil.Process(parent.pid).children()) or family[0].nice() != 19:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        os.kill(parent.pid, signal.SIGKILL)
        gone, alive = psutil.wait_procs(family, timeout=10)
        assert gone
        assert not alive
    finally:
        parent.kill()
        parent.wait()

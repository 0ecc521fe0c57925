"""Multipart forms, cut into pieces anywhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from weftd.errors import InvalidArgument, reason_name
from weftd.knowledge.form import Form
from weftd.knowledge.intake import Intake, UploadLimits
from weftd.stores.blobs.directory import DirectoryBlobs

TYPE = 'multipart/form-data; boundary="b-42"'


def body(*parts: tuple[str, bytes], end: bytes = b"--b-42--\r\n") -> bytes:
    made = b"".join(
        b"--b-42\r\nContent-Disposition: form-data; " + head.encode() + b"\r\n\r\n" + content + b"\r\n"
        for head, content in parts
    )
    return made + end


FILE = ('name="file"; filename="a.txt"', b"alpha\r\n--b-4\r\n-- not the end")
DATASET = ('name="dataset_id"', b"ds_1")


def read(tmp_path: Path, data: bytes, piece: int, limits: UploadLimits | None = None) -> tuple[str, Intake]:
    intake = Intake(DirectoryBlobs(tmp_path), "acme", limits or UploadLimits())
    form = Form(TYPE, intake)
    for start in range(0, len(data), piece):
        form.feed(data[start : start + piece])
    return form.finish(), intake


@pytest.mark.parametrize("piece", [1, 7, 64, 4096])
@pytest.mark.parametrize("parts", [(FILE, DATASET), (DATASET, FILE)], ids=["dataset-last", "dataset-first"])
def test_the_parts_are_found_wherever_the_body_is_cut(
    tmp_path: Path, parts: tuple[tuple[str, bytes], ...], piece: int
) -> None:
    dataset_id, intake = read(tmp_path, body(*parts), piece)
    assert dataset_id == "ds_1"
    (file,) = intake.files
    assert (file.name, file.size, file.refusal) == ("a.txt", len(FILE[1]), None)
    assert file.writer is not None
    file.writer.publish()
    with DirectoryBlobs(tmp_path).open("acme", file.writer.key) as path:
        assert path.read_bytes() == FILE[1]


def test_other_fields_are_passed_over(tmp_path: Path) -> None:
    dataset_id, intake = read(tmp_path, body(("name=note", b"x" * 100_000), FILE), 500)
    assert (dataset_id, len(intake.files)) == ("", 1)


def test_a_second_dataset_id_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="dataset_id"):
        read(tmp_path, body(DATASET, FILE, DATASET), 500)


def test_refusals_name_their_file_and_the_rest_go_on(tmp_path: Path) -> None:
    limits = UploadLimits(file_bytes=10, files=5)
    parts = [
        ('name="file"; filename="empty.txt"', b""),
        ('name="file"; filename="big.txt"', b"x" * 11),
        ('name="file"; filename="' + "n" * 256 + '"', b"x"),
        ('name="file"', b"x"),
        ('name="file"; filename="good.txt"', b"x" * 10),
    ]
    _, intake = read(tmp_path, body(*parts), 9, limits)
    assert [file.refusal[0] if file.refusal else "" for file in intake.files] == [
        "DOCUMENT_EMPTY",
        "DOCUMENT_TOO_LARGE",
        "INVALID_FIELD",
        "INVALID_FIELD",
        "",
    ]
    assert len(list((tmp_path / "incoming").iterdir())) == 1
    intake.abort()
    assert not list((tmp_path / "incoming").iterdir())


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not a form",
        body(FILE, end=b""),
        body(FILE)[:-30],
        body(DATASET),
        body(("x" * 20_000, b"")),
        b"--b-42\r\nno colon\r\n\r\n",
    ],
)
def test_what_is_no_whole_form_is_refused(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(InvalidArgument) as caught:
        read(tmp_path, data, 1000)
    assert reason_name(caught.value.reason) == "UPLOAD_MALFORMED"


@pytest.mark.parametrize(
    "kind", ["", "application/json", "multipart/form-data", "multipart/form-data; boundary="]
)
def test_only_a_multipart_form_is_taken(tmp_path: Path, kind: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        Form(kind, Intake(DirectoryBlobs(tmp_path), "acme", UploadLimits()))
    assert reason_name(caught.value.reason) == "UPLOAD_MALFORMED"


def test_too_many_files_and_too_long_a_dataset_id(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="more than 1 files"):
        read(tmp_path, body(FILE, FILE), 100, UploadLimits(files=1))
    with pytest.raises(InvalidArgument, match="dataset_id"):
        read(tmp_path, body(FILE, ("name=dataset_id", b"d" * 5000)), 100)

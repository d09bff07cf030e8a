"""`tocom classify`: folders, batches, files of answers that are gone on with."""

import asyncio
import csv
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from server import cli
from server.app import create_app
from server.engine import Engine
from server.errors import DeviceLost, SettingsError
from server.image_files import image_files
from server.offline_results import ResultFile
from server.settings import Settings


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven pictures in two folders, one that is broken, and what is no picture."""
    top = tmp_path_factory.mktemp("pictures")
    (top / "below").mkdir()
    (top / ".hidden").mkdir()
    noise = np.random.default_rng(0)
    for number in range(7):
        place = top / "below" if number % 2 else top
        pixels = noise.integers(0, 256, (40 + number, 60, 3), np.uint8)
        Image.fromarray(pixels).resize((240, 160)).save(place / f"{number}.jpg")
    (top / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno more")
    (top / "notes.txt").write_text("no picture")
    (top / ".hidden" / "secret.png").write_bytes(b"")
    return top


def test_a_folder_is_read_with_all_below_it_in_order(folder: Path):
    """By suffix, hidden places and other files left out, each file once."""
    names = [path.relative_to(folder).as_posix() for path in image_files([folder, folder])]
    below = [f"below/{n}.jpg" for n in (1, 3, 5)]
    assert names == [*(f"{n}.jpg" for n in (0, 2, 4, 6)), *below, "broken.png"]
    assert image_files([folder / "notes.txt"]) == [folder / "notes.txt"]


def test_a_folder_without_pictures_is_refused(tmp_path: Path):
    """Rather than doing nothing, successfully."""
    with pytest.raises(SettingsError, match="no images in this folder"):
        image_files([tmp_path])


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_an_interrupted_file_is_gone_on_with(
    folder: Path, tmp_path: Path, suffix: str, capsys: pytest.CaptureFixture[str]
):
    """Cut anywhere, even within a line, the same call makes the same file again."""
    output = tmp_path / f"answers.{suffix}"
    call = ["classify", str(folder), f"--output={output}", "--top-k=2", "--r=3"]
    call += ["--max-batch-size=3"]
    assert cli.main(call) == 1  # one is broken, and said to be
    whole = output.read_bytes()
    assert len(whole.splitlines()) == 8 + (suffix == "csv")
    capsys.readouterr()
    output.write_bytes(whole[: len(whole) * 2 // 3])
    assert cli.main(call) == 1
    again = output.read_bytes()
    (texts, scores), (texts_again, scores_again) = _apart(whole), _apart(again)
    assert texts_again == texts
    assert scores_again == pytest.approx(scores, abs=1e-5)  # another batch: other last digits
    assert "were there before; 1 could not be classified" in capsys.readouterr().err
    assert cli.main(call) == 1  # nothing left to do; what failed is not forgotten
    assert output.read_bytes() == again


def _apart(answers: bytes) -> tuple[list[str], list[float]]:
    """What stands between the scores, and the scores."""
    score = re.compile(r"0\.\d+(?:e-\d+)?")
    text = answers.decode()
    return score.split(text), [float(found) for found in score.findall(text)]


def test_a_file_never_mixes_degrees(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """Another r is refused and nothing is lost; --overwrite begins anew."""
    output, file = tmp_path / "answers.jsonl", str(folder / "0.jpg")
    assert cli.main(["classify", file, f"--output={output}", "--r=3"]) == 0
    before = output.read_bytes()
    assert cli.main(["classify", file, f"--output={output}", "--r=4"]) == 2
    assert "r=3, this call would add r=4" in capsys.readouterr().err
    assert output.read_bytes() == before
    assert cli.main(["classify", file, f"--output={output}", "--r=4", "--overwrite"]) == 0
    assert json.loads(output.read_text())["r"] == 4


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("answers.txt", None, r"name it .jsonl or .csv"),
        ("answers.jsonl", "no JSON\n", "no file of answers"),
        ("answers.csv", "a,b\n1,2\n", "has other columns"),
        ("answers.jsonl", "a diary without a last line break", "no file of answers"),
        ("answers.csv", "a table, without a last line break", "no file of answers"),
        ("answers.jsonl", "5\n", "no file of answers"),
        ("answers.jsonl", '{"model": "m", "r": 0}\n', "no file of answers"),
    ],
)
def test_what_is_no_file_of_answers_is_left_alone(
    tmp_path: Path, name: str, content: str | None, match: str
):
    """A wrong suffix, and files that somebody else wrote."""
    path = tmp_path / name
    if content is not None:
        path.write_text(content)
    with pytest.raises(SettingsError, match=match):
        ResultFile(path, 2, {"model": "m", "r": 0}, overwrite=False)
    assert (path.read_text() if path.exists() else None) == content


@pytest.mark.parametrize("cut", [1, 5, 12], ids=["one byte", "in the header", "all but a few"])
@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_the_very_first_line_may_be_cut_too(tmp_path: Path, suffix: str, cut: int):
    """What can be the beginning of a file of answers is begun anew, not refused."""
    path, run = tmp_path / f"answers.{suffix}", {"model": "m", "r": 0}
    answers = [{"file": "a.png", **run, "error": "no picture"}]
    for content in (None, "file" if suffix == "csv" else '{"file": "a'):
        if content is not None:
            path.write_text(content[:cut])
        output = ResultFile(path, 1, run, overwrite=False)
        assert output.done == set()
        output.write(answers)
        output.close()
        again = ResultFile(path, 1, run, overwrite=False)
        again.close()
        assert again.done == {"a.png"} and again.failed == 1


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_names_need_not_be_text_nor_one_line(tmp_path: Path, suffix: str):
    """Bytes that are no UTF-8, quotes and line breaks come back; a cut loses one row only."""
    path, run = tmp_path / f"answers.{suffix}", {"model": "m", "r": 0}
    names = ["plain.png", "\udcff.png", 'a "b", c.png', "two\nlines.png"]
    output = ResultFile(path, 1, run, overwrite=False)
    output.write({"file": name, **run, "error": "no, none"} for name in names)
    output.close()
    whole = path.read_bytes()
    for cut, expected in ((len(whole), names), (whole.index(b"lines.png"), names[:3])):
        path.write_bytes(whole[:cut])
        again = ResultFile(path, 1, run, overwrite=False)
        again.close()
        assert again.done == set(expected)


def test_a_file_whose_name_is_no_text_is_classified(folder: Path, tmp_path: Path):
    """To a file and to stdout, in every format."""
    odd = tmp_path / b"\xff.jpg".decode("utf-8", "surrogateescape")
    odd.write_bytes((folder / "0.jpg").read_bytes())
    assert cli.main(["classify", str(odd), f"--output={tmp_path / 'a.jsonl'}"]) == 0
    assert json.loads((tmp_path / "a.jsonl").read_text())["file"] == str(odd)
    program = [sys.executable, "-m", "server.cli", "classify", str(odd)]
    for form in ("text", "csv"):
        run = subprocess.run([*program, f"--format={form}"], capture_output=True, timeout=100)
        assert run.returncode == 0 and b"\xff.jpg" in run.stdout, run.stderr


def test_a_lost_device_is_no_fault_of_the_files(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """It ends the run, so that the same call can go on once the device is back."""

    def lost(engine: Engine, images: Sequence[Any], r: int) -> None:
        raise DeviceLost

    output = tmp_path / "answers.jsonl"
    with monkeypatch.context() as patch:
        patch.setattr(Engine, "run_blocking", lost)
        assert cli.main(["classify", str(folder / "0.jpg"), f"--output={output}"]) == 1
    assert output.read_text() == ""
    assert cli.main(["classify", str(folder / "0.jpg"), f"--output={output}"]) == 0


def test_a_file_that_is_too_large_is_not_read(folder: Path, capsys: pytest.CaptureFixture[str]):
    """The server's limit holds, and says how to mend it."""
    call = ["classify", str(folder / "0.jpg"), "--max-image-bytes=50", "--json"]
    assert cli.main(call) == 1
    assert "at most 50" in json.loads(capsys.readouterr().out)[0]["error"]


def test_answers_are_the_servers_own(folder: Path, tmp_path: Path):
    """The same classes and scores, photo by photo, at a degree other than r_source."""
    output = tmp_path / "answers.csv"
    files = image_files([folder])[:7]
    assert cli.main(["classify", *map(str, files), f"--output={output}", "--r=5"]) == 0
    with output.open(newline="") as stream:
        rows = {row["file"]: row for row in csv.DictReader(stream)}
    served = asyncio.run(_served(files))
    for file, result in zip(files, served, strict=True):
        assert result["r"] == 5
        for k, prediction in enumerate(result["predictions"], 1):
            assert rows[str(file)][f"label_{k}"] == prediction["label"]
            score = float(rows[str(file)][f"score_{k}"])
            assert score == pytest.approx(prediction["score"], abs=1e-6)


async def _served(files: Sequence[Path]) -> list[Any]:
    """What a server at r=5 says of each file."""
    settings = Settings(policy="static", static_r=5, idle_profiling=False, slo_ms=60_000)
    app = create_app(settings)
    transport = httpx.ASGITransport(app)
    results = []
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://localhost") as client,
    ):
        await app.state.starting
        for file in files:
            sent = {"file": (file.name, file.read_bytes(), "image/jpeg")}
            results += (await client.post("/classify", files=sent)).json()["results"]
    return results

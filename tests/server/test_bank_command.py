"""``tocom bank``: exit codes, JSON, what is refused; with the shipped model and a small one."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from server import cli
from server.bank_command import PARTS
from tests.core.test_reference_bank import K, research_state, write
from tocom_core.bank import Bank
from tocom_core.models import default_model_path

SHIPPED = default_model_path().parent


def run(*argv: str) -> int:
    """``tocom bank …``."""
    return cli.main(["bank", *argv])


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The model is too small to share."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Eight pictures without labels."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for number in range(8):
        pixels = generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


@pytest.mark.parametrize("part", PARTS)
def test_each_part_explains_itself(part: str, capsys: pytest.CaptureFixture[str]) -> None:
    """``--help`` of each is its own, not that of ``tocom serve``."""
    with pytest.raises(SystemExit) as stopped:
        run(part, "--help")
    assert stopped.value.code == 0
    assert f"usage: tocom bank {part}" in capsys.readouterr().out


def test_info_of_the_shipped_bank(capsys: pytest.CaptureFixture[str]) -> None:
    """By its folder, as JSON and as text."""
    assert run("info", str(SHIPPED), "--json") == 0
    told = json.loads(capsys.readouterr().out)
    bank = Bank.load(SHIPPED / "bank.safetensors")
    assert told["digest"] == bank.digest and told["provenance"] == bank.provenance
    assert len(told["groups"]) == bank.num_groups
    assert run("info", str(SHIPPED / "bank.safetensors")) == 0
    assert bank.backbone_digest in capsys.readouterr().out


def test_info_of_no_bank_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """A model's file, and a place where nothing is."""
    for place in (str(default_model_path()), str(tmp_path / "nothing.safetensors")):
        assert run("info", place) == 1
        shown = capsys.readouterr().err
        assert place in shown and shown.count("\n") == 1


def test_check_of_the_shipped_pair_with_images(
    capsys: pytest.CaptureFixture[str], pictures: Path
) -> None:
    """It fits; the agreement of each degree is told, with the bank and without."""
    argv = ["--json", f"--images={pictures}", "--count=6", "--degrees", "4", "16"]
    assert run("check", *argv) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["fits"] and told["agreement"]["images"] == 6
    assert [row["r"] for row in told["agreement"]["rows"]] == [4, 16]
    assert {finding["severity"] for finding in told["findings"]} <= {"ok", "note"}


def test_check_of_a_bank_for_another_model(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Exit code 1, with what is wrong and how to mend it; a missing file likewise."""
    other = tmp_path / "other.safetensors"
    Bank.from_reference_checkpoint(write(tmp_path / "c.pth", research_state()), K).save(other)
    for bank, about in (
        (other, "sizes"),
        (tmp_path / "missing.safetensors", "file"),
        ("none", "file"),
    ):
        assert run("check", f"--bank={bank}") == 1
        shown = capsys.readouterr().out
        assert "does not fit vit_mini_conv4_32" in shown and f"error    {about}" in shown
        assert "→" in shown


def test_strict_check_fails_on_warnings(
    capsys: pytest.CaptureFixture[str], pictures: Path, tmp_path: Path
) -> None:
    """A bank of other weights may fit; one whose deltas spoil the model does not."""
    from dataclasses import replace

    shipped = Bank.load(SHIPPED / "bank.safetensors")
    stranger = Bank(replace(shipped.header, backbone_digest="0" * 64, provenance={}))
    stranger.load_state_dict(shipped.state_dict())
    path = tmp_path / "stranger.safetensors"
    stranger.save(path)
    assert run("check", f"--bank={path}") == 0
    assert run("check", f"--bank={path}", "--strict") == 1
    assert "warning  backbone" in capsys.readouterr().out
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in stranger.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
    stranger.save(path)
    assert run("check", f"--bank={path}", f"--images={pictures}") == 1
    assert "it harms" in capsys.readouterr().out


def test_wrong_usage_is_exit_code_2(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Unknown flags, outputs that are there, an ending that is none."""
    there = tmp_path / "bank.safetensors"
    there.write_text("precious")
    for argv in (
        ["check", "--bnak=x"],
        ["check", "--count=0"],
        ["convert", "in.pth", str(there)],
        ["convert", "in.pth", str(tmp_path / "bank.pth")],
        ["export", str(tmp_path)],
        ["export", str(tmp_path / "new"), "--evaluation", str(there)],
    ):
        assert run(*argv) == 2, argv
        assert capsys.readouterr().err.count("\n") == 1
    assert there.read_text() == "precious"


def test_convert_writes_a_bank_once(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """The file is a bank; a second time needs --overwrite; a wrong K leaves what was there."""
    source = write(tmp_path / "checkpoint.pth", research_state())
    output = tmp_path / "bank.safetensors"
    argv = ["convert", str(source), str(output), "--scaling=0.2", "--no-prop-attn"]
    assert run(*argv, f"--num-groups={K}") == 0
    bank = Bank.load(output)
    assert (bank.num_groups, bank.scaling, bank.prop_attn) == (K, 0.2, False)
    assert "tocom bank convert" in bank.provenance["command"]
    assert run(*argv, f"--num-groups={K}") == 2
    assert "--overwrite" in capsys.readouterr().err
    assert run(*argv, "--num-groups=5", "--overwrite") == 1
    assert "do not split into 5 groups" in capsys.readouterr().err
    assert Bank.load(output).digest == bank.digest


def test_export_can_be_served_from(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """The folder's model and bank fit each other, and a stranger's file in it survives."""
    folder = tmp_path / "out"
    assert run("export", str(folder), "--with-model", "--license=apache-2.0") == 0
    assert "license: apache-2.0" in (folder / "README.md").read_text()
    assert "## Accuracy" in (folder / "README.md").read_text()
    assert run("check", f"--model={folder / 'model.safetensors'}", f"--bank={folder}") == 0
    (folder / "note.txt").write_text("mine")
    assert run("export", str(folder), "--overwrite") == 0
    assert (folder / "note.txt").read_text() == "mine"
    capsys.readouterr()


def test_export_refuses_accuracies_of_another_bank(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """A card tells no figures of something else, neither the model's own of another bank."""
    table = {"bank": {"digest": "0"}, "rows": [{"r": 1, "bank": True, "top1": 0.9}]}
    (tmp_path / "evaluation.json").write_text(json.dumps(table))
    assert run("export", str(tmp_path / "out"), f"--evaluation={tmp_path}") == 2
    assert "of another bank" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    shutil.copy(SHIPPED / "bank.safetensors", tmp_path / "own.safetensors")
    assert run("export", str(tmp_path / "out"), f"--bank={tmp_path / 'own.safetensors'}") == 0
    assert "## Accuracy" not in (tmp_path / "out" / "README.md").read_text()

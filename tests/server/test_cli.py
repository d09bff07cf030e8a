"""The command line: help, exit codes, one readable line for each failure."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image

from server import cli, serving
from tocom_core import __version__
from tocom_core.models import save_model

SHAPE = {"img_size": 32, "patch_size": 8, "depth": 2, "embed_dim": 48, "num_heads": 3}


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random model."""
    torch.manual_seed(0)
    arch = "vit_tiny_patch16_224"
    vit = timm.create_model(arch, pretrained=False, num_classes=3, **SHAPE)
    path = tmp_path_factory.mktemp("cli") / "model.safetensors"
    save_model(path, vit, ("cat", "dog", "tea"), model_args=SHAPE)
    return path


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """A picture on disk."""
    path = tmp_path / "picture.png"
    Image.new("RGB", (40, 30), "orange").save(path)
    return path


def test_help_lists_all_commands(capsys: pytest.CaptureFixture[str]) -> None:
    """Each subcommand is there with its purpose."""
    with pytest.raises(SystemExit) as stopped:
        cli.main(["--help"])
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    for name, command in cli.COMMANDS.items():
        assert f"  {name}" in shown and command.purpose in shown


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    """The distribution's name and version."""
    with pytest.raises(SystemExit) as stopped:
        cli.main(["--version"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out == f"tocom-serve {__version__}\n"


@pytest.mark.parametrize("argv", [[], ["srve"], ["classify"], ["classify", "a.jpg", "--top-k=0"]])
def test_wrong_usage_is_exit_code_2(argv: list[str]) -> None:
    """No command, an unknown one, or one without its arguments."""
    with pytest.raises(SystemExit) as stopped:
        cli.main(argv)
    assert stopped.value.code == 2


def test_wrong_setting_is_exit_code_2_and_names_the_nearest(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A misspelt flag is one line that says what was meant."""
    assert cli.main(["serve", "--max-batchsize=8"]) == 2
    shown = capsys.readouterr().err
    assert "--max-batch-size" in shown and "Traceback" not in shown


def test_help_and_wrong_settings_need_no_torch() -> None:
    """They answer at once, since nothing heavy is imported for them."""
    code = (
        "import sys; from server import cli\n"
        "for words in ('', 'serve ', 'classify ', 'bank check '):\n"
        "    argv = f'{words}--help'.split()\n"
        "    try: cli.main(argv)\n"
        "    except SystemExit as stopped: assert stopped.code == 0\n"
        "assert cli.main(['serve', '--port=high']) == 2\n"
        "assert 'torch' not in sys.modules, 'torch was imported'\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr


def test_missing_model_is_exit_code_1(capsys: pytest.CaptureFixture[str], picture: Path) -> None:
    """A path that is not there is one line without a traceback."""
    assert cli.main(["classify", str(picture), "--model=/nowhere/model.safetensors"]) == 1
    shown = capsys.readouterr().err
    assert shown.startswith("tocom: ") and "/nowhere/model.safetensors" in shown
    assert shown.count("\n") == 1


def test_classify_prints_classes(
    capsys: pytest.CaptureFixture[str], model_file: Path, picture: Path
) -> None:
    """Without a server: the likeliest classes of a file, as text."""
    assert cli.main(["classify", str(picture), f"--model={model_file}", "--top-k=2"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == f"{picture}: r=0"
    assert len(shown) == 3 and all("%" in line for line in shown[1:])


def test_classify_prints_json_and_goes_on_after_a_bad_file(
    capsys: pytest.CaptureFixture[str], model_file: Path, picture: Path
) -> None:
    """A bad and a missing file carry their error; the others are classified; the code is 1."""
    bad = picture.with_name("bad.jpg")
    bad.write_text("no image")
    files = [str(bad), str(picture.with_name("missing.jpg")), str(picture)]
    assert cli.main(["classify", *files, f"--model={model_file}", "--json", "--r=3"]) == 1
    unreadable, missing, good = json.loads(capsys.readouterr().out)
    assert "no JPEG, PNG" in unreadable["error"] and "No such file" in missing["error"]
    assert good["r"] == 3
    assert sum(p["score"] for p in good["predictions"]) == pytest.approx(1, abs=1e-5)


def test_classify_refuses_a_degree_that_is_not_there(
    capsys: pytest.CaptureFixture[str], model_file: Path, picture: Path
) -> None:
    """The message has the allowed range."""
    assert cli.main(["classify", str(picture), f"--model={model_file}", "--r=99"]) == 2
    assert "degrees 0 to 7" in capsys.readouterr().err


def test_address_that_is_not_ours_is_refused() -> None:
    """A name that does not resolve and a foreign address end in a readable OSError."""
    for host in ("no-such-host.invalid", "192.0.2.1"):
        with pytest.raises(OSError, match=r"cannot listen on .*choose another"):
            serving.bind(host, 0)


@pytest.mark.parametrize(
    ("host", "expected"), [("127.0.0.1", "http://127.0.0.1:"), ("0.0.0.0", "http://127.0.0.1:")]
)
def test_shown_address_can_be_used(host: str, expected: str) -> None:
    """Port 0 becomes the real port, and 'all addresses' one that a client can connect to."""
    with serving.bind(host, 0) as listener:
        url = serving.url_of(listener)
    assert url.startswith(expected) and int(url.rsplit(":", 1)[1]) > 0


def test_module_runs_as_a_program() -> None:
    """``python -m server.cli`` is the same command line, also in an empty folder."""
    environment = os.environ | {"PYTHONPATH": str(Path(cli.__file__).parents[1])}
    run = subprocess.run(
        [sys.executable, "-m", "server.cli", "--version"],
        capture_output=True,
        text=True,
        env=environment,
        timeout=60,
    )
    assert (run.returncode, run.stdout) == (0, f"tocom-serve {__version__}\n")

"""Flags from dataclasses."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

import pytest

from tocom_core.distill_options import DistillOptions
from tocom_core.evaluation import EvaluateOptions
from tocom_core.finetuning import FinetuneOptions
from tocom_core.options import command_line, option, parse_options


@dataclass(frozen=True, kw_only=True)
class Example:
    """One field of each kind."""

    place: Path = option(help="where")
    batch_size: int = option(8, help="100 % of it")
    rate: float = option(0.5, help="how fast")
    shuffle: bool = option(True, help="whether")
    name: str | None = option(None, help="what")
    degrees: tuple[int, ...] = option((0, 4), help="which")
    limit: float | None = option(None, help="how much")
    colour: Literal["red", "blue"] = option("red", help="of it")


def parse(*argv: str) -> Example:
    """Parse flags into an Example."""
    return parse_options(Example, argv, "example", "An example.")


def test_defaults() -> None:
    """Only what has no default must be given."""
    assert parse("--place", "x") == Example(place=Path("x"))


def test_every_kind_of_value() -> None:
    """Underscores become dashes; types come from the annotations."""
    given = "--place a/b --batch-size 3 --rate 1e-3 --no-shuffle --name n --degrees 1 2 3 --limit 2"
    assert parse(*given.split(), "--colour", "blue") == Example(
        place=Path("a/b"),
        batch_size=3,
        rate=1e-3,
        shuffle=False,
        name="n",
        degrees=(1, 2, 3),
        limit=2.0,
        colour="blue",
    )


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("", "--place"),
        ("--place x --batch-size two", "two"),
        ("--place x --batch 3", "--batch"),
        ("--place x --unknown 3", "--unknown"),
        ("--place x --colour green", "green"),
    ],
)
def test_bad_flags_exit_with_2(argv: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Missing, misspelt, shortened and mistyped flags are refused by name."""
    with pytest.raises(SystemExit) as caught:
        parse(*argv.split())
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("cls", [FinetuneOptions, DistillOptions, EvaluateOptions])
def test_every_option_is_documented(cls: type, capsys: pytest.CaptureFixture[str]) -> None:
    """``--help`` of each command names every flag with its help and default."""
    with pytest.raises(SystemExit) as caught:
        parse_options(cls, ["--help"], "tocom", "")
    assert caught.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for field in fields(cls):
        assert f"--{field.name.replace('_', '-')}" in text
        assert field.metadata["help"]


def test_command_line_names_the_data_folder_by_its_variable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A recorded command holds no path of one machine, and can be typed again."""
    monkeypatch.setenv("TOCOM_DATA", "/somewhere/data")
    argv = ["--data", "/somewhere/data/cifar10", "--output", "a b"]
    recorded = command_line("tocom train", argv)
    assert recorded == "tocom train --data $TOCOM_DATA/cifar10 --output 'a b'"

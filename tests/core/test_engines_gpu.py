"""The GPU benchmark, tried on the CPU: it runs, and what it computes from times is right."""

import json
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import engines_gpu, engines_gpu_variants
from benchmarks.engines_gpu_report import Cell, share_of_arithmetic, slower_degrees
from benchmarks.roofline import Device, Part, bound_s, forward_parts
from tests.core import zoo
from tocom_core import CompressedViT
from tocom_core.schedule import count_macs


def test_the_script_runs_on_a_cpu(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Tables, picture, and one JSON line with all of it."""
    monkeypatch.setattr(engines_gpu, "TURN_S", 0)
    monkeypatch.setattr(engines_gpu_variants, "LONG_ENOUGH_S", 0)
    files = ["--output", str(tmp_path / "gpu.json"), "--plot", str(tmp_path / "gpu.png")]
    options = ["--device", "cpu", "--quick", "--dtype", "float32", *files]
    monkeypatch.setattr(sys, "argv", ["engines_gpu.py", *options])
    engines_gpu.main()
    printed = capsys.readouterr().out
    assert "| timm |" in printed and "| eager, r=4 |" in printed and "| pipeline, r=4 |" in printed
    record = json.loads(printed.splitlines()[-1])
    assert record == json.loads((tmp_path / "gpu.json").read_text())
    assert {(row["batch"], row["variant"]) for row in record["rows"]} >= {
        (batch, f"eager, r={r}") for batch in (1, 3) for r in (0, 2, 4)
    }
    assert record["switches"][0]["switches"] == 50
    assert record["switches"][0]["done_p99_us"] >= record["switches"][0]["done_p50_us"] > 0
    assert (tmp_path / "gpu.png").stat().st_size > 1000


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without CUDA")
def test_without_cuda_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """And ends with an error."""
    monkeypatch.setattr(sys, "argv", ["engines_gpu.py"])
    with pytest.raises(SystemExit, match=r"no CUDA device.*--device cpu --quick"):
        engines_gpu.main()


def cell(path: str, r: int, *seconds: float, arithmetic: float = 1.0) -> Cell:
    """A measurement of nothing in particular."""
    return Cell("m", 1, f"{path}, r={r}", list(seconds), r, False, arithmetic, 0.1, {}, None)


def test_share_of_arithmetic_is_taken_round_by_round() -> None:
    """Beside the same path at r=0, whatever the other paths do."""
    cells = [
        cell("eager", 0, 9, 9, 9),
        cell("graphs", 0, 2, 4, 6),
        cell("graphs", 8, 1, 2, 4, arithmetic=2.5),
    ]
    assert share_of_arithmetic(cells[2], cells) == pytest.approx(2 / 2.5)
    assert share_of_arithmetic(cells[1], cells) is None


def test_degrees_that_do_not_pay_are_named() -> None:
    """Slower than any lower one by more than noise."""
    cells = [
        cell("graphs", 0, 2.0),
        cell("graphs", 4, 1.0),
        cell("graphs", 8, 1.5),
        cell("graphs", 12, 1.01),
        cell("eager", 0, 2.0),
        cell("eager", 4, 2.1),
    ]
    assert slower_degrees(cells) == {"graphs": [8], "eager": [4]}


def test_the_roofline_counts_all_products() -> None:
    """Its arithmetic is that of the schedule, the matching aside, at every degree."""
    model = CompressedViT(zoo.build("vit_tiny"))
    for r in range(model.max_r + 1):
        parts = forward_parts(model, r, batch=3, item=2)
        counted = sum(part.flops for part in parts if part.name != "matching")
        assert counted == pytest.approx(2 * 3 * count_macs(model.shape, r))


def test_a_part_is_bound_by_what_takes_longer() -> None:
    """Arithmetic or traffic, and the parts one after the other."""
    device = Device(flops_per_s=100, bytes_per_s=10)
    parts = [Part("a", flops=200, bytes=10), Part("b", flops=100, bytes=30)]
    assert bound_s(parts, device) == pytest.approx(2 + 3)

"""Where the time goes: spans to stages, traces of the real backends, the table."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.core import zoo
from tocom_core import CompressedViT
from tocom_core.stage_report import as_markdown, plot_stages, write_report
from tocom_core.stage_trace import StagedViT, session_seconds, trace_eager, trace_onnx
from tocom_core.stages import (
    STAGES,
    Breakdown,
    DeviceWork,
    Span,
    device_seconds,
    faster_half,
    own_seconds,
)


def normalize(images: Tensor, dtype: torch.dtype) -> Tensor:
    """What a loaded model does with bytes."""
    return images.to(dtype) / 255


def bytes_of(batch: int) -> Tensor:
    """Random images for the small models."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (batch, 3, 32, 32), dtype=torch.uint8, generator=generator)


@pytest.fixture
def model() -> CompressedViT:
    """Three blocks."""
    return CompressedViT(zoo.plain()().eval())


def test_inner_stages_are_taken_out_of_outer_ones() -> None:
    """Each moment counts once, for the innermost stage; what is in none is other."""
    spans = [
        Span("whole", 0, 100),
        Span("mlp", 10, 90),
        Span("attention", 10, 60),
        Span("merging", 40, 60),
        Span("matching", 40, 55),
        Span("head", 92, 99),
    ]
    seconds = own_seconds(spans[::-1])
    assert seconds == {
        "other": 13, "mlp": 30, "attention": 30, "merging": 5, "matching": 15, "head": 7
    }  # fmt: skip
    assert sum(seconds.values()) == 100


def test_stages_that_follow_each_other_add_up() -> None:
    """The same stage in every block is one line."""
    spans = [Span("whole", 0, 10), Span("mlp", 0, 4), Span("mlp", 4, 8)]
    assert own_seconds(spans) == {"other": 2, "mlp": 8}


def test_a_gpu_s_work_belongs_to_who_sent_it() -> None:
    """Kernels run later than they are sent; what no kernel fills is a gap."""
    spans = [Span("whole", 0, 100), Span("mlp", 10, 30), Span("attention", 10, 20)]
    work = [DeviceWork(12, 40), DeviceWork(25, 20), DeviceWork(26, 1), DeviceWork(50, 5)]
    seconds = device_seconds(spans, work)
    assert seconds == {"attention": 40, "mlp": 21, "other": 5, "gaps": 34}
    assert sum(seconds.values()) == 100


def test_a_hiccup_is_left_out() -> None:
    """Of five passes the three faster ones count, and stages still add up."""
    passes = [{"mlp": 1.0 * n, "other": 1.0} for n in (3, 1, 50, 2, 60)]
    assert faster_half(passes) == {"mlp": 2.0, "other": 1.0}


def test_nodes_belong_to_the_stage_in_their_name() -> None:
    """Also after a fusion has added to the name; nodes without a stage are other, like pauses."""

    def event(name: str, ts: int, dur: int) -> dict[str, Any]:
        return {"name": name, "ts": ts, "dur": dur}

    events = [
        event("session_initialization", 0, 50),
        event("model_run", 100, 50),
        event("attention/matmul_3_kernel_time", 100, 10),
        event("matching/matmul_9/MatmulTransposeFusion/_kernel_time", 112, 20),
        event("ReorderInput_kernel_time", 140, 5),
        event("model_run", 200, 8),
        event("mlp/add_kernel_time", 201, 6),
    ]
    first, second = session_seconds(events)
    assert first == pytest.approx({"attention": 10e-6, "matching": 20e-6, "other": 20e-6})
    assert second == pytest.approx({"mlp": 6e-6, "other": 2e-6})


@pytest.mark.parametrize("r", [0, 3])
@torch.no_grad()
def test_marks_change_no_answer(model: CompressedViT, r: int) -> None:
    """The marked model runs the same operations on the same parameters."""
    images = zoo.photos(model.vit, 2)
    staged = StagedViT(model).eval()
    assert torch.equal(staged(images, r), model(images, r))
    own = {id(parameter) for parameter in model.parameters()}
    assert {id(parameter) for parameter in staged.parameters()} == own


@pytest.mark.parametrize("backend", ["eager", "onnx"])
@pytest.mark.parametrize("r", [0, 3])
def test_stages_add_up_to_the_whole(
    backend: str, r: int, model: CompressedViT, tmp_path: Path
) -> None:
    """Both backends: every stage that ran has a time, none is negative, the sum is the whole."""
    path = tmp_path / "trace.json"
    trace = trace_eager if backend == "eager" else trace_onnx
    one = trace(model, normalize, bytes_of(3), r, 3, path)
    expected = {"preprocess", "stem", "attention", "mlp", "head", "other"}
    expected |= {"copy"} if backend == "eager" else set()
    expected |= {"matching", "merging"} if r else set()
    assert set(one.seconds) == expected
    assert all(value > 0 for stage, value in one.seconds.items() if stage != "other")
    assert one.seconds["other"] >= 0
    assert sum(one.seconds.values()) == pytest.approx(one.traced_s, rel=1e-9)
    assert one.untraced_s > 0
    recorded = json.loads(path.read_text())
    events = recorded["traceEvents"] if isinstance(recorded, dict) else recorded
    names = [event.get("name", "") for event in events]
    assert any("attention" in name for name in names)
    assert any("matching" in name for name in names) == bool(r)


def test_the_table_shows_every_stage(tmp_path: Path) -> None:
    """Markdown, CSV, JSON and picture tell the same; other is there even where it is nothing."""
    cells = [
        Breakdown("eager", 0, 1, {"mlp": 0.006, "attention": 0.002}, 0.008, 0.007),
        Breakdown("eager", 8, 1, {"mlp": 0.003, "matching": 0.001}, 0.004, 0.0035),
    ]
    header, _, first, second = as_markdown(cells).splitlines()
    assert header == (
        "| backend | r | batch | ms | ms traced | attention | matching | mlp | other |"
    )
    assert first.endswith("| 2.00 (25%) | 0.00 (0%) | 6.00 (75%) | 0.00 (0%) |")
    assert "| 3.50 | 4.00 |" in second
    write_report(tmp_path, cells, {"model": "m"})
    plot_stages(tmp_path / "stages.png", cells, "m")
    assert (tmp_path / "stages.md").read_text() == as_markdown(cells) + "\n"
    with (tmp_path / "stages.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["matching"]) for row in rows] == [0, 0.001]
    record = json.loads((tmp_path / "stages.json").read_text())
    assert record["cells"][0]["seconds"] == {"mlp": 0.006, "attention": 0.002}
    assert (tmp_path / "stages.png").read_bytes().startswith(b"\x89PNG")
    assert set(STAGES) >= set(record["cells"][1]["seconds"])

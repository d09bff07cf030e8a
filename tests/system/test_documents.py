"""The tables of docs/operations.md and the dashboard say what the code says."""

import json
import re
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
from prometheus_client import Metric

from server.agreement import AgreementEstimate, Comparison
from server.control_status import ControllerStatus, ShadowStatus
from server.machine_figures import GpuUse
from server.metrics import Metrics
from server.settings import Settings
from server.stats import BatchStats, RequestStats, SwitchStats
from tests.server.fake_table import level
from tests.system.machine import ROOT

OPERATIONS = (ROOT / "docs/operations.md").read_text()
DASHBOARD = json.loads((ROOT / "deploy/grafana/dashboards/tocom.json").read_text())


@pytest.fixture(scope="module")
def metrics() -> Metrics:
    """The metrics of a server that has done a little of everything, so that all labels show."""
    return busy_metrics()


def busy_metrics() -> Metrics:
    """Metrics that observed one record of each kind."""
    metrics = Metrics(slo_s=0.25)
    metrics.describe("0", {"name": "some model"}, {"arch": "some model"})
    metrics.observe_request("ok", 0.1)
    metrics.observe_image(RequestStats("ok", 0, 0.01, 0.01, 0.01, 0.03))
    metrics.observe_batch(BatchStats(r=0, size=1, merge_s=0.0, compute_s=0.01, started_at=0.0))
    metrics.observe_switch(SwitchStats(r_from=0, r_to=1, reason="latency", merge_s=0.1, at=0.0))
    metrics.observe_comparison(Comparison(1, True))
    status = ControllerStatus(
        "shadow",
        0,
        0,
        0,
        0,
        None,
        None,
        None,
        (level(0, 1.0, expected_accuracy=0.8),),
        (0,),
        ShadowStatus(0, "steady", None),
        {0: AgreementEstimate(1.0, 0.9, 1.0, 30)},
    )
    metrics.watch_control(
        state=lambda: status, arrival_rate=lambda: 0.0, profile_cells=lambda: (0, 0)
    )
    metrics.watch_queue(admitted=lambda: 0, capacity=256)
    metrics.watch_gpu(lambda: GpuUse(0.5, 1e9, 2e9, 5e8))
    metrics.watch(
        queue_depth=lambda: 0, in_flight=lambda: 0, r=lambda: 0, mode=lambda: "auto", ready=bool
    )
    return metrics


def settings_rows() -> list[str]:
    """The table of settings as it should stand in the documentation."""
    rows = ["| variable | default \\| others | meaning |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        default = "" if field.default is None else f"`{field.default}`"
        if get_origin(field.annotation) is Literal:
            default = " \\| ".join([default, *others(field.annotation, field.default)])
        description = (field.description or "").replace("|", "\\|")
        rows.append(f"| `TOCOM_{name.upper()}` | {default} | {description} |")
    return rows


def others(choices: Any, default: str) -> list[str]:
    """The other values that a setting may take."""
    return [f"`{choice}`" for choice in get_args(choices) if choice != default]


def metrics_rows(metrics: Metrics) -> list[str]:
    """The table of metrics as it should stand in the documentation."""
    rows = ["| metric | labels | type | meaning |", "|---|---|---|---|"]
    for family in metrics.registry.collect():
        if not family.name.startswith("process_"):
            suffix = {"counter": "_total", "info": "_info"}.get(family.type, "")
            name = f"`{family.name}{suffix}`"
            rows.append(f"| {name} | {labels(family)} | {family.type} | {family.documentation} |")
    return rows


def labels(family: Metric) -> str:
    """The labels of a metric; those of an info are what the server happens to serve."""
    if family.type == "info":
        return ""
    names = {name for sample in family.samples for name in sample.labels}
    return ", ".join(f"`{name}`" for name in sorted(names - {"le"}))


def table(name: str) -> list[str]:
    """The lines between two markers of the documentation."""
    found = re.search(f"<!-- {name} -->\n(.*?)\n<!-- end {name} -->", OPERATIONS, re.DOTALL)
    assert found is not None, f"docs/operations.md has no table between the marks {name!r}"
    return found[1].splitlines()


def test_every_setting_is_documented():
    """The table of settings has each field with its default and description, and no other."""
    expected = settings_rows()
    assert table("settings") == expected, "it should read:\n" + "\n".join(expected)


def test_every_metric_is_documented(metrics: Metrics):
    """The table of metrics has each metric with its type and meaning, and no other."""
    expected = metrics_rows(metrics)
    assert table("metrics") == expected, "it should read:\n" + "\n".join(expected)


def test_dashboard_knows_the_metrics(metrics: Metrics):
    """Every metric that a panel asks for is one that the server has."""
    samples = {
        f"{family.name}{suffix}"
        for family in metrics.registry.collect()
        for suffix in ("", "_total", "_info", "_bucket", "_sum", "_count")
    }
    queries = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
    used = {name for query in queries for name in re.findall(r"tocom_\w+", query)}
    assert len(used) > 10
    assert used <= samples


def test_every_threat_has_a_test():
    """Each line of the threat model names a test, and each test that it names is there."""
    text = (ROOT / "docs/security.md").read_text()
    found = re.search("<!-- threats -->\n(.*?)\n<!-- end threats -->", text, re.DOTALL)
    assert found is not None
    rows = [row for row in found[1].splitlines()[2:] if not row.startswith("| **")]
    assert len(rows) > 30
    for row in rows:
        tests = re.findall(r"`((?:core|server|integration|system)/\w+\.py)(?:::(\w+))?`", row)
        assert tests, f"no test in: {row}"
        for file, name in tests:
            assert f"def {name}" in (ROOT / "tests" / file).read_text(), f"{file} has no {name}"


def test_documented_files_exist():
    """Every file of the repository that the operations page names in code is there."""
    named = re.findall(r"`((?:deploy|docs|tests|server|benchmarks)/[\w./-]+)`", OPERATIONS)
    assert named
    assert [name for name in named if not Path(ROOT / name).exists()] == []

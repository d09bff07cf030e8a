"""The tables of docs/operations.md and the dashboard say what the code says."""

import re
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
import yaml
from prometheus_client import Metric

from deploy.grafana.sent_queries import targets
from server.agreement import AgreementEstimate, Comparison
from server.control_status import ControllerStatus, ShadowStatus
from server.machine_figures import GpuUse
from server.metrics import Metrics
from server.settings import Settings
from server.stats import BatchStats, RequestStats, SwitchStats
from tests.server.fake_table import level
from tests.system.machine import ROOT

OPERATIONS = (ROOT / "docs/operations.md").read_text()
RULES = [
    rule
    for file in sorted((ROOT / "deploy/prometheus/rules").glob("*.yml"))
    for group in yaml.safe_load(file.read_text())["groups"]
    for rule in group["rules"]
]
ALERTS = {rule["alert"]: rule for rule in RULES if "alert" in rule}
RECORDED = {rule["record"] for rule in RULES if "record" in rule}


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
        state=lambda: status,
        arrival_rate=lambda: 0.0,
        profile_cells=lambda: (0, 0),
        capacity_demand=lambda: 0.5,
    )
    metrics.watch_queue(admitted=lambda: 0, capacity=256)
    metrics.watch_gpus(lambda: {0: GpuUse(0.5, 1e9, 2e9, 5e8)})
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


def test_dashboard_and_rules_know_the_metrics(metrics: Metrics):
    """Every metric that a panel or rule asks for is one that the server or a rule has."""
    samples = {
        f"{family.name}{suffix}"
        for family in metrics.registry.collect()
        for suffix in ("", "_total", "_info", "_bucket", "_sum", "_count")
    }
    queries = [target.expr for target in targets()] + [rule["expr"] for rule in RULES]
    used = {name for query in queries for name in re.findall(r"[\w:]*tocom_[\w:]+", query)}
    assert len(used) > 10
    assert used <= samples | RECORDED


def test_every_alert_has_a_runbook():
    """Each alert links its own section of the documentation, and no section is of no alert."""
    for name, rule in ALERTS.items():
        link = f"docs/operations.md#{name.lower()}"
        assert rule["annotations"]["runbook_url"] == link
        assert rule["labels"]["severity"] in {"page", "ticket"}
    sections = dict(re.findall(r"^#### (Tocom\w+)\n\n(.+?)(?=\n#)", OPERATIONS, re.M | re.S))
    assert sections.keys() == ALERTS.keys()
    for name, text in sections.items():
        for part in ("**Means**", "**Look**", "**Do**"):
            assert part in text, f"the section of {name} lacks {part}"


def test_every_alert_is_seen_to_fire_and_not_to():
    """The cases for `promtool test rules` have both for each alert."""
    fires: set[str] = set()
    stays_quiet: set[str] = set()
    for file in (ROOT / "deploy/prometheus/tests").glob("*.yml"):
        for case in yaml.safe_load(file.read_text())["tests"]:
            for check in case.get("alert_rule_test", ()):
                (fires if check["exp_alerts"] else stays_quiet).add(check["alertname"])
    assert fires == stays_quiet == ALERTS.keys()


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

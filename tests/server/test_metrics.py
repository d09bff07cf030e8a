"""Metrics: records in, Prometheus out."""

import re
import shutil
import subprocess
from dataclasses import replace
from typing import Any

import pytest

from server.agreement import AgreementEstimate, Comparison
from server.control_status import ControllerStatus, ShadowStatus
from server.machine_figures import GpuUse
from server.metrics import Metrics
from server.stats import BatchStats, Outcome, RequestStats, SwitchStats
from tests.server.fake_table import level

MODES = ("auto", "pinned", "shadow")


def page(metrics: Metrics) -> str:
    """What a scraper without preferences gets."""
    return metrics.render()[0].decode()


def value(metrics: Metrics, sample: str) -> float:
    """One sample."""
    found = re.search(rf"^{re.escape(sample)} (\S+)$", page(metrics), re.M)
    assert found, f"{sample} is not on the page"
    return float(found[1])


def status(**figures: Any) -> ControllerStatus:
    """Return what the controller knows: two degrees, the higher one never evaluated."""
    known = ControllerStatus(
        mode="shadow",
        r=0,
        r_source=0,
        min_r=0,
        max_r=7,
        min_accuracy=None,
        pinned_ttl_s=None,
        last_change=None,
        levels=(level(0, 100.0, expected_accuracy=0.8), level(7, 150.0)),
        allowed=(0, 7),
        shadow=ShadowStatus(7, "queue", None),
        agreement={7: AgreementEstimate(0.9, 0.85, 0.95, 100)},
    )
    return replace(known, **figures)


def filled() -> Metrics:
    """Metrics that have seen one of everything."""
    metrics = Metrics(slo_s=0.123)
    metrics.describe("1.2.3", {"name": "tiny"}, {})
    metrics.watch(
        queue_depth=lambda: 3,
        in_flight=lambda: 2,
        r=lambda: 7,
        mode=lambda: "pinned",
        ready=lambda: True,
    )
    metrics.watch_control(
        state=status,
        arrival_rate=lambda: 42.0,
        profile_cells=lambda: (30, 106),
    )
    metrics.watch_queue(admitted=lambda: 5, capacity=64)
    metrics.observe_comparison(Comparison(7, True))
    metrics.observe_request("ok", 0.1)
    metrics.observe_request("shed", 0.001)
    metrics.observe_image(RequestStats("ok", 7, 0.01, 0.02, 0.03, 0.06))
    metrics.observe_image(RequestStats("bad_image", None, 0.01, 0.0, 0.0, 0.01))
    metrics.observe_batch(BatchStats(7, 4, 0.0, 0.03, 1.0))
    metrics.observe_switch(SwitchStats(0, 7, "queue-rising", 0.002, 1.0))
    return metrics


def test_each_record_is_counted() -> None:
    """Requests, images, batches and switches land in their own counters."""
    metrics = filled()
    assert value(metrics, 'tocom_requests_total{outcome="ok"}') == 1
    assert value(metrics, 'tocom_requests_total{outcome="shed"}') == 1
    assert value(metrics, 'tocom_images_total{outcome="bad_image"}') == 1
    assert value(metrics, 'tocom_inferred_images_total{r="7"}') == 4
    assert value(metrics, "tocom_batch_size_sum") == 4
    assert value(metrics, 'tocom_switches_total{reason="queue-rising"}') == 1
    assert value(metrics, "tocom_switch_duration_seconds_sum") == 0.002


def test_latency_is_split_into_stages_of_answered_images() -> None:
    """Decode, queue and compute of what was classified; a bad image has no stages."""
    metrics = filled()
    for stage, seconds in (("decode", 0.01), ("queue", 0.02), ("compute", 0.03)):
        assert value(metrics, f'tocom_image_stage_seconds_sum{{stage="{stage}"}}') == seconds
        assert value(metrics, f'tocom_image_stage_seconds_count{{stage="{stage}"}}') == 1


def test_the_slo_is_a_bucket() -> None:
    """The share of answers within the SLO can be read without interpolation."""
    sample = 'tocom_request_duration_seconds_bucket{le="0.123",outcome="ok"}'
    assert value(filled(), sample) == 1


def test_attainment_can_be_read_off() -> None:
    """In time is what was classified within the SLO; late, shed and bad images are offered too."""
    metrics = Metrics(slo_s=0.25)
    fates: list[tuple[Outcome, float]]
    fates = [("ok", 0.25), ("ok", 0.251), ("shed", 0.0), ("bad_image", 0.01)]
    for outcome, total_s in fates:
        metrics.observe_image(RequestStats(outcome, None, 0.0, 0.01, total_s - 0.01, 9.0))
    assert value(metrics, "tocom_in_time_images_total") == 1
    outcomes = ("ok", "shed", "bad_image")
    offered = [value(metrics, f'tocom_images_total{{outcome="{name}"}}') for name in outcomes]
    assert sum(offered) == 4


def test_the_controllers_figures_are_read_when_asked_for() -> None:
    """Each degree's speed, accuracy and agreement, and what the policy would do."""
    metrics = filled()
    assert value(metrics, "tocom_arrival_rate") == 42
    assert value(metrics, 'tocom_profile_cells{state="measured"}') == 30
    assert value(metrics, 'tocom_profile_cells{state="missing"}') == 106
    assert value(metrics, "tocom_expected_accuracy") == 0.8
    assert value(metrics, "tocom_shadow_degree") == 7
    assert value(metrics, 'tocom_degree_throughput{r="7"}') == pytest.approx(150)
    assert value(metrics, 'tocom_degree_expected_accuracy{r="0"}') == 0.8
    assert value(metrics, 'tocom_agreement_ratio{r="7"}') == 0.9
    assert value(metrics, 'tocom_agreement_low{r="7"}') == 0.85
    assert value(metrics, 'tocom_agreement_high{r="7"}') == 0.95
    assert value(metrics, 'tocom_compared_images_total{agrees="true",r="7"}') == 1


def test_what_is_not_known_is_absent() -> None:
    """No figure stands in for an unknown one, and all families are announced from the start."""
    metrics = Metrics(slo_s=0.25)
    before = page(metrics)
    unknown = status(mode="auto", r=7, shadow=None, agreement={})
    metrics.watch_control(
        state=lambda: unknown, arrival_rate=lambda: 0.0, profile_cells=lambda: (0, 0)
    )
    for text in (before, page(metrics)):
        for name in ("expected_accuracy", "shadow_degree", "agreement_ratio"):
            assert f"# TYPE tocom_{name} gauge" in text
            assert not re.search(rf"^tocom_{name}\b", text, re.M)
    assert "tocom_degree_throughput{" not in before
    assert 'tocom_degree_expected_accuracy{r="7"}' not in page(metrics)


def test_what_alerts_need_is_there() -> None:
    """The queue's room, the accuracy floor as an agreement, live accuracy, the end of a pin."""
    metrics = filled()
    assert value(metrics, "tocom_admitted_images") == 5
    assert value(metrics, "tocom_queue_capacity_images") == 64
    floor = status(mode="pinned", min_accuracy=0.6, pinned_ttl_s=12.5)
    metrics.watch_control(
        state=lambda: floor, arrival_rate=lambda: 0.0, profile_cells=lambda: (0, 0)
    )
    assert value(metrics, "tocom_accuracy_floor") == 0.6
    assert value(metrics, "tocom_agreement_floor") == pytest.approx(0.75)
    assert value(metrics, "tocom_pin_remaining_seconds") == 12.5
    assert value(metrics, 'tocom_live_accuracy{r="0"}') == 0.8
    assert value(metrics, 'tocom_live_accuracy{r="7"}') == pytest.approx(0.72)


def test_a_floor_of_unknown_worth_is_no_agreement_floor() -> None:
    """Where the accuracy of `r_source` is not known, neither are the figures derived from it."""
    unknown = status(min_accuracy=0.6, levels=(level(0, 100.0), level(7, 150.0)))
    metrics = Metrics(slo_s=0.25)
    metrics.watch_control(
        state=lambda: unknown, arrival_rate=lambda: 0.0, profile_cells=lambda: (0, 0)
    )
    assert value(metrics, "tocom_accuracy_floor") == 0.6
    for name in ("agreement_floor", "live_accuracy"):
        assert not re.search(rf"^tocom_{name}\b", page(metrics), re.M)


def test_the_machine_is_shown() -> None:
    """Cores always; the GPU's figures only where there is a GPU, and its use only where known."""
    metrics = filled()
    assert value(metrics, "tocom_usable_cpus") >= 1
    assert not re.search(r"^tocom_gpu", page(metrics), re.M)
    metrics.watch_gpus(lambda: {1: GpuUse(0.5, 3e9, 8e9, 1e9)})
    assert value(metrics, 'tocom_gpu_utilization_ratio{device="1"}') == 0.5
    assert value(metrics, 'tocom_gpu_memory_used_bytes{device="1"}') == 3e9
    assert value(metrics, 'tocom_gpu_memory_bytes{device="1"}') == 8e9
    assert value(metrics, 'tocom_gpu_memory_reserved_bytes{device="1"}') == 1e9
    metrics.watch_gpus(lambda: {1: GpuUse(None, 3e9, 8e9, 1e9)})
    assert not re.search(r"^tocom_gpu_utilization_ratio", page(metrics), re.M)


def test_outcomes_exist_before_anything_happened() -> None:
    """A rate over shed requests is 0 and not absent on a quiet server."""
    metrics = Metrics(slo_s=0.1)
    for outcome in ("ok", "shed", "expired", "abandoned", "failed", "draining", "not_ready"):
        assert value(metrics, f'tocom_requests_total{{outcome="{outcome}"}}') == 0


def test_state_is_read_when_asked_for() -> None:
    """Gauges follow what they watch; exactly one mode is on."""
    mode = "auto"
    metrics = Metrics(slo_s=0.1)
    metrics.watch(
        queue_depth=lambda: 3,
        in_flight=lambda: 2,
        r=lambda: 7,
        mode=lambda: mode,
        ready=lambda: mode == "auto",
    )
    assert value(metrics, "tocom_queue_depth") == 3
    assert value(metrics, "tocom_compression_degree") == 7
    assert value(metrics, 'tocom_compression_mode{mode="auto"}') == 1
    assert value(metrics, "tocom_ready") == 1
    for mode in ("pinned", "shadow"):
        on = [value(metrics, f'tocom_compression_mode{{mode="{m}"}}') for m in MODES]
        assert on == [float(m == mode) for m in MODES]
    assert value(metrics, "tocom_ready") == 0


def test_two_servers_do_not_share_counts() -> None:
    """Each instance has its own registry."""
    filled()
    assert value(Metrics(slo_s=0.1), 'tocom_requests_total{outcome="ok"}') == 0


def test_openmetrics_on_request() -> None:
    """The scraper's Accept header chooses the format."""
    text, kind = filled().render("application/openmetrics-text; version=1.0.0")
    assert kind.startswith("application/openmetrics-text") and text.endswith(b"# EOF\n")
    assert filled().render()[1].startswith("text/plain")


def test_names_keep_the_conventions() -> None:
    """Our prefix, base units, and each metric with a help text."""
    names = re.findall(r"^# TYPE (\S+) ", page(filled()), re.M)
    helped = re.findall(r"^# HELP (\S+) \S", page(filled()), re.M)
    assert set(names) == set(helped)
    for name in names:
        assert name.startswith(("tocom_", "process_"))
        assert not re.search(r"_(ms|millis\w*|minutes|percent)(_|$)", name)


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_promtool_has_no_complaint() -> None:
    """Prometheus' own linter accepts the page."""
    lint = subprocess.run(
        ["promtool", "check", "metrics"], input=page(filled()), text=True, capture_output=True
    )
    assert (lint.returncode, lint.stdout + lint.stderr) == (0, "")

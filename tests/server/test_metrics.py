"""Metrics: records in, Prometheus out."""

import re
import shutil
import subprocess

import pytest

from server.metrics import Metrics
from server.stats import BatchStats, RequestStats, SwitchStats


def page(metrics: Metrics) -> str:
    """What a scraper without preferences gets."""
    return metrics.render()[0].decode()


def value(metrics: Metrics, sample: str) -> float:
    """One sample."""
    found = re.search(rf"^{re.escape(sample)} (\S+)$", page(metrics), re.M)
    assert found, f"{sample} is not on the page"
    return float(found[1])


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
    mode = "pinned"
    assert value(metrics, 'tocom_compression_mode{mode="auto"}') == 0
    assert value(metrics, 'tocom_compression_mode{mode="pinned"}') == 1
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

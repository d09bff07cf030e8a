"""Prometheus and the Grafana dashboard against a real server: do the names meet?"""

import math
from typing import Any

import httpx
import pytest
import yaml

from deploy.grafana.sent_queries import Target, expanded, targets
from tests.system.conftest import SCRAPE_S
from tests.system.machine import ROOT, run, tool, wait_until

RULES = sorted((ROOT / "deploy/prometheus/rules").glob("*.yml"))
CASES = sorted((ROOT / "deploy/prometheus/tests").glob("*.yml"))

pytestmark = pytest.mark.system


def test_promtool_accepts_the_configuration():
    """The shipped prometheus.yml is valid for Prometheus itself."""
    config = ROOT / "deploy/prometheus/prometheus.yml"
    assert "SUCCESS" in run([tool("promtool", "prometheus"), "check", "config", config])


def test_amtool_accepts_the_configuration():
    """The shipped alertmanager.yml is valid for Alertmanager itself."""
    config = ROOT / "deploy/alertmanager/alertmanager.yml"
    assert "SUCCESS" in run([tool("amtool", "prometheus-alertmanager"), "check-config", config])


def test_promtool_accepts_the_metrics(server: str, load: None):
    """Names, units and help texts of a live /metrics page pass Prometheus' own linter."""
    promtool = tool("promtool", "prometheus")
    page = httpx.get(f"{server}/metrics").raise_for_status().text
    assert "tocom_requests_total" in page
    assert run([promtool, "check", "metrics"], stdin=page) == ""


def test_prometheus_scrapes_the_server(prometheus: httpx.Client):
    """With the shipped job, Prometheus sees the server as up."""
    wait_until("up == 1", lambda: values(prometheus, 'up{job="tocom"}') == [1.0], timeout_s=60)


def test_promtool_runs_the_cases_of_the_rules():
    """Each alert fires when it should and stays quiet when it should."""
    assert CASES
    assert "SUCCESS" in run([tool("promtool", "prometheus"), "test", "rules", *CASES])


def test_prometheus_loads_all_rules(prometheus: httpx.Client):
    """Every shipped rule is evaluated by the running Prometheus, without an error."""
    shipped = [
        rule.get("alert", rule.get("record"))
        for file in RULES
        for group in yaml.safe_load(file.read_text())["groups"]
        for rule in group["rules"]
    ]

    def healthy() -> bool:
        groups = prometheus.get("/api/v1/rules").json()["data"]["groups"]
        loaded = [rule for group in groups for rule in group["rules"]]
        assert sorted(rule["name"] for rule in loaded) == sorted(shipped)
        assert not [rule["lastError"] for rule in loaded if rule.get("lastError")]
        return all(rule["health"] == "ok" for rule in loaded)

    wait_until("all rules to be evaluated", healthy, timeout_s=120)


def test_no_alert_of_a_server_that_is_well(prometheus: httpx.Client):
    """With a server that answers, none says that it is down, not ready or full."""
    wait_until("up == 1", lambda: values(prometheus, 'up{job="tocom"}') == [1.0], timeout_s=60)
    machine = "TocomDown|TocomNotReady|TocomQueueSaturated|TocomPinForgotten"
    firing = f'ALERTS{{job="tocom", alertname=~"{machine}", alertstate="firing"}}'
    assert values(prometheus, firing) == []


@pytest.mark.parametrize("target", targets(), ids=lambda t: f"{t.panel}-{t.legend}")
def test_panel_shows_data(prometheus: httpx.Client, server: str, gpu_page: str, target: Target):
    """Each query of each panel yields at least one number while a little load runs.

    What only a GPU has is read from a page of our own metrics that were told of one.
    """
    page = gpu_page if target.needs_gpu else server
    instance = page.removeprefix("http://")
    query = expanded(target.expr, scrape_s=SCRAPE_S, instance=instance)
    numbers = wait_until(
        f"data for {query}",
        lambda: [v for v in values(prometheus, query) if math.isfinite(v)],
        timeout_s=150,
    )
    assert all(number >= 0 for number in numbers)


def values(client: httpx.Client, query: str) -> list[float]:
    """The numbers that an instant query yields now."""
    answer = client.get("/api/v1/query", params={"query": query})
    body: dict[str, Any] = answer.json()
    assert body["status"] == "success", f"{query}: {body.get('error')}"
    return [float(series["value"][1]) for series in body["data"]["result"]]

"""Prometheus and the Grafana dashboard against a real server: do the names meet?"""

import json
import math
from typing import Any

import httpx
import pytest

from tests.system.machine import ROOT, run, tool, wait_until

DASHBOARD = json.loads((ROOT / "deploy/grafana/dashboards/tocom.json").read_text())
TARGETS = [
    pytest.param(target["expr"], id=f"{panel['title']}-{target['refId']}")
    for panel in DASHBOARD["panels"]
    for target in panel["targets"]
]

pytestmark = pytest.mark.system


def test_promtool_accepts_the_configuration():
    """The shipped prometheus.yml is valid for Prometheus itself."""
    config = ROOT / "deploy/prometheus/prometheus.yml"
    assert "SUCCESS" in run([tool("promtool", "prometheus"), "check", "config", config])


def test_promtool_accepts_the_metrics(server: str, load: None):
    """Names, units and help texts of a live /metrics page pass Prometheus' own linter."""
    promtool = tool("promtool", "prometheus")
    page = httpx.get(f"{server}/metrics").raise_for_status().text
    assert "tocom_requests_total" in page
    assert run([promtool, "check", "metrics"], stdin=page) == ""


def test_prometheus_scrapes_the_server(prometheus: httpx.Client):
    """With the shipped job, Prometheus sees the server as up."""
    wait_until("up == 1", lambda: values(prometheus, 'up{job="tocom"}') == [1.0], timeout_s=60)


@pytest.mark.parametrize("expression", TARGETS)
def test_panel_shows_data(prometheus: httpx.Client, expression: str):
    """Each query of each panel yields at least one number while a little load runs."""
    query = expression.replace("$__rate_interval", "15s").replace("$instance", ".*")
    numbers = wait_until(
        f"data for {query}",
        lambda: [v for v in values(prometheus, query) if math.isfinite(v)],
        timeout_s=60,
    )
    assert all(number >= 0 for number in numbers)


def values(client: httpx.Client, query: str) -> list[float]:
    """The numbers that an instant query yields now."""
    answer = client.get("/api/v1/query", params={"query": query})
    body: dict[str, Any] = answer.json()
    assert body["status"] == "success", f"{query}: {body.get('error')}"
    return [float(series["value"][1]) for series in body["data"]["result"]]

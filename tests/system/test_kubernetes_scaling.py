"""deploy/kubernetes: the autoscaler's metric and Prometheus' rules are found and fit the server."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.kubernetes.manifests import HERE, Document, documents
from deploy.kubernetes.prometheus_rule import RULES
from deploy.kubernetes.validation import VERSIONS, problems
from server.api_keys import SCOPES
from server.scopes import SCOPES_OF
from tests.system.machine import run, tool
from tests.system.pod_container import one
from tests.system.rendered import FOR_OTHERS

pytestmark = pytest.mark.system


@pytest.mark.parametrize("name", FOR_OTHERS)
def test_replicas_follow_the_demand(rendered: dict[str, list[Document]], name: str):
    """Up soon and far, down late and slowly, on the demand at the steady degree."""
    scaler = one(rendered[name], "HorizontalPodAutoscaler")["spec"]
    (metric,) = scaler["metrics"]
    assert metric["pods"]["metric"]["name"] == "tocom_capacity_demand"
    assert metric["pods"]["target"] == {"type": "AverageValue", "averageValue": "800m"}
    assert scaler["minReplicas"] >= 2
    deployment = one(rendered[name], "Deployment")["metadata"]["name"]
    assert scaler["scaleTargetRef"] == {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "name": deployment,
    }
    up, down = scaler["behavior"]["scaleUp"], scaler["behavior"]["scaleDown"]
    assert up["stabilizationWindowSeconds"] <= 30 < 300 <= down["stabilizationWindowSeconds"]
    assert (up["selectPolicy"], down["selectPolicy"]) == ("Max", "Min")


def test_keda_scales_alike(rendered: dict[str, list[Document]]):
    """The example for KEDA is valid and has the autoscaler's bounds, target and behaviour."""
    (example,) = documents((HERE / "examples/keda.yaml").read_text())
    assert list(problems([example], VERSIONS[-1])) == []
    scaler = one(rendered["cpu"], "HorizontalPodAutoscaler")["spec"]
    spec = example["spec"]
    assert spec["scaleTargetRef"]["name"] == scaler["scaleTargetRef"]["name"]
    assert spec["minReplicaCount"] == scaler["minReplicas"]
    assert spec["maxReplicaCount"] == scaler["maxReplicas"]
    assert spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"] == scaler["behavior"]
    (trigger,) = spec["triggers"]
    target = scaler["metrics"][0]["pods"]["target"]["averageValue"]
    assert float(trigger["metadata"]["threshold"]) * 1000 == float(target.removesuffix("m"))


def test_the_metric_is_found_in_prometheus(rendered: dict[str, list[Document]], tmp_path: Path):
    """The adapter's rule and KEDA's query give Prometheus' numbers for this very workload."""
    values = yaml.safe_load((HERE / "examples/prometheus-adapter.yaml").read_text())
    (rule,) = values["rules"]["custom"]
    scaler = one(rendered["cpu"], "HorizontalPodAutoscaler")
    name = scaler["spec"]["metrics"][0]["pods"]["metric"]["name"]
    assert rule["name"]["as"] == name and re.fullmatch(rule["name"]["matches"], name)
    assert set(rule["resources"]["overrides"]) == {"namespace", "pod"}
    filled = {
        "<<.Series>>": name,
        "<<.LabelMatchers>>": 'namespace="tocom",pod=~"tocom-1|tocom-2"',
        "<<.GroupBy>>": "pod",
    }
    query = rule["metricsQuery"]
    for mark, value in filled.items():
        query = query.replace(mark, value)
    (keda,) = documents((HERE / "examples/keda.yaml").read_text())
    labels = 'namespace="tocom", job="tocom"'
    by_pod = [{"labels": f'{{pod="tocom-{n}"}}', "value": n} for n in (1, 2)]
    case = {
        "evaluation_interval": "5s",
        "tests": [
            {
                "interval": "5s",
                "input_series": [
                    {"series": f'{name}{{{labels}, pod="tocom-{n}"}}', "values": f"{n}x3"}
                    for n in (1, 2)
                ],
                "promql_expr_test": [
                    _expect(query, by_pod),
                    _expect(rule["seriesQuery"], _all_labels(name, labels)),
                    _expect(
                        keda["spec"]["triggers"][0]["metadata"]["query"],
                        [{"labels": "{}", "value": 3}],
                    ),
                ],
            }
        ],
    }
    (tmp_path / "case.yml").write_text(yaml.safe_dump(case))
    said = run([tool("promtool", "prometheus"), "test", "rules", tmp_path / "case.yml"])
    assert "SUCCESS" in said


@pytest.mark.parametrize("name", FOR_OTHERS)
def test_prometheus_scrapes_every_pod(rendered: dict[str, list[Document]], name: str):
    """The monitor finds the Service's port, shows a key, and calls the job as the rules do."""
    monitor = one(rendered[name], "ServiceMonitor")["spec"]
    service = one(rendered[name], "Service")
    assert monitor["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    (endpoint,) = monitor["endpoints"]
    assert endpoint["port"] == service["spec"]["ports"][0]["name"]
    assert endpoint["path"] in SCOPES_OF
    assert SCOPES_OF[endpoint["path"]]["GET"] == {"metrics"} <= set(SCOPES)
    assert endpoint["authorization"]["credentials"] == {"name": "tocom-metrics-key", "key": "key"}
    job = service["metadata"]["labels"][monitor["jobLabel"]]
    assert f'up{{job="{job}"}}' in (RULES / "alerts.yml").read_text()


def _expect(query: str, samples: list[dict[str, Any]]) -> dict[str, Any]:
    return {"expr": query, "eval_time": "10s", "exp_samples": samples}


def _all_labels(name: str, labels: str) -> list[dict[str, Any]]:
    return [{"labels": f'{name}{{{labels}, pod="tocom-{n}"}}', "value": n} for n in (1, 2)]

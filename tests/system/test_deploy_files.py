"""The files of deploy/ fit together; needs no other program, so it runs with the unit tests."""

import json
import re
import sys
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

from deploy.grafana.dashboard import dashboard_json
from deploy.grafana.queries import OBJECTIVE
from deploy.grafana.sent_queries import DASHBOARD, PANELS
from deploy.kubernetes.prometheus_rule import OUTPUT, prometheus_rule
from server.settings import Settings
from tests.system.machine import ROOT, run

DASHBOARD_FILE = ROOT / "deploy/grafana/dashboards/tocom.json"
RULES = ROOT / "deploy/prometheus/rules"
COMPOSE_FILES = [ROOT / "docker-compose.yml", *sorted((ROOT / "deploy").glob("compose.*.yml"))]
PROVISIONING = ROOT / "deploy/grafana/provisioning"
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())


def test_compose_files_follow_the_specification():
    """The compose file and all overlays satisfy the published Compose schema."""
    assert len(COMPOSE_FILES) == 3
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    run([*command, *COMPOSE_FILES])


@pytest.mark.parametrize("file", COMPOSE_FILES, ids=lambda file: file.name)
def test_ports_are_published_on_loopback_only(file: Path):
    """No service is reachable from another machine, so that the server may be open to anybody."""
    services = load(file)["services"].values()
    ports = [port for service in services for port in service.get("ports", ())]
    assert ports or file.name == "compose.gpu.yml"
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_server_takes_anybody():
    """The server listens on all addresses of its container, and is told that this is meant."""
    assert "TOCOM_HOST=0.0.0.0" in (ROOT / "Dockerfile").read_text()
    assert COMPOSE["services"]["server"]["environment"]["TOCOM_ALLOW_ANONYMOUS"] == "true"


def test_prometheus_finds_alertmanager():
    """Prometheus sends alerts to the optional service, whose webhook address compose puts in."""
    config = load(ROOT / "deploy/prometheus/prometheus.yml")
    (manager,) = config["alerting"]["alertmanagers"]
    assert manager["static_configs"] == [{"targets": ["alertmanager:9093"]}]
    service = COMPOSE["services"]["alertmanager"]
    assert service["profiles"] == ["alerting"]
    (receiver,) = load(ROOT / "deploy/alertmanager/alertmanager.yml")["receivers"]
    (webhook,) = receiver["webhook_configs"]
    assert webhook["send_resolved"] is True
    assert f"s|{webhook['url']}|" in service["entrypoint"][-1]


@pytest.mark.parametrize("file", COMPOSE_FILES, ids=lambda file: file.name)
def test_services_are_locked_down(file: Path):
    """Each service has a read-only root file system, no capability, and cannot win any."""
    new = {k: v for k, v in load(file)["services"].items() if "image" in v}
    for name, service in new.items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        if name != "server":  # its image says so itself
            assert int(str(service["user"]).split(":")[0]) > 0, name


def test_mounted_files_exist():
    """Every file or folder that the compose file mounts from the checkout is there."""
    mounts = [
        volume.split(":")[0]
        for service in COMPOSE["services"].values()
        for volume in service.get("volumes", ())
        if volume.startswith("./")
    ]
    assert mounts
    assert [mount for mount in mounts if not (ROOT / mount).exists()] == []


def test_server_outlives_its_drain():
    """Compose waits longer for the server to stop than the server drains by default."""
    grace_s = float(COMPOSE["services"]["server"]["stop_grace_period"].removesuffix("s"))
    assert grace_s > Settings().drain_timeout_s


def test_image_tag_is_the_version():
    """The image that compose builds carries the version of the distribution."""
    pyproject = (ROOT / "pyproject.toml").read_text()
    version = re.search(r'^version = "(.+)"$', pyproject, re.MULTILINE)
    assert version is not None
    assert COMPOSE["services"]["server"]["image"] == f"tocom-serve:{version[1]}"


def test_grafana_finds_prometheus():
    """The provisioned data source points at the compose file's Prometheus."""
    (source,) = load(PROVISIONING / "datasources/prometheus.yml")["datasources"]
    assert source["type"] == "prometheus"
    assert source["isDefault"]
    assert source["url"] == "http://prometheus:9090"
    interval = load(ROOT / "deploy/prometheus/prometheus.yml")["global"]["scrape_interval"]
    assert source["jsonData"]["timeInterval"] == interval


def test_prometheus_finds_the_server():
    """The scrape target is the compose file's server on the image's port."""
    (job,) = load(ROOT / "deploy/prometheus/prometheus.yml")["scrape_configs"]
    assert job["static_configs"][0]["targets"] == ["server:8000"]
    assert "EXPOSE 8000" in (ROOT / "Dockerfile").read_text()


def test_grafana_finds_the_dashboard():
    """The provider's folder is where compose mounts the dashboards, and so is the home page."""
    (provider,) = load(PROVISIONING / "dashboards/tocom.yml")["providers"]
    grafana = COMPOSE["services"]["grafana"]
    folder = provider["options"]["path"]
    assert f"./deploy/grafana/dashboards:{folder}:ro" in grafana["volumes"]
    home = grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home == f"{folder}/{DASHBOARD_FILE.name}"


def test_dashboard_is_what_its_code_makes():
    """The committed file is the one that `make dashboard` writes."""
    assert DASHBOARD_FILE.read_text() == dashboard_json(), "run `make dashboard`"


def test_dashboard_follows_grafanas_schema():
    """Read into the types of Grafana's own schema and written again, nothing is lost or added."""
    again = json.loads(json.dumps(Dashboard.from_json(DASHBOARD), cls=JSONEncoder))
    assert again == DASHBOARD


def test_dashboard_tells_its_story_in_order():
    """Users first, then the cost, the causes and the machine."""
    rows = [panel["title"] for panel in DASHBOARD["panels"] if panel["type"] == "row"]
    assert rows == [
        "Are users served?",
        "What does it cost?",
        "Why?",
        "How is the machine?",
    ]


def test_panels_are_well_formed():
    """Panels have distinct ids, known kinds, a description, a unit, targets, the chosen source."""
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    for panel in PANELS:
        assert panel["type"] in {"stat", "timeseries", "heatmap"}
        assert len(panel["description"]) > 20
        unit = panel["options"]["yAxis"] if panel["type"] == "heatmap" else None
        assert (unit or panel["fieldConfig"]["defaults"])["unit"]
        references = [target["refId"] for target in panel["targets"]]
        assert references and len(set(references)) == len(references)
        sources = [panel["datasource"], *(target["datasource"] for target in panel["targets"])]
        assert all(source["uid"] == "${datasource}" for source in sources)


def test_dashboard_and_rules_have_one_objective():
    """The dashed line of the dashboard is the objective whose misses the alerts count."""
    rules = load(RULES / "recording.yml")["groups"][0]["rules"]
    (budget,) = [r["expr"] for r in rules if r["record"] == "tocom_slo_error_budget_ratio"]
    assert float(budget.removeprefix("vector(").removesuffix(")")) == pytest.approx(1 - OBJECTIVE)


def test_rules_for_kubernetes_are_the_shipped_ones():
    """The custom resource is what its code makes: the groups of deploy/prometheus/rules."""
    assert OUTPUT.read_text() == prometheus_rule(), "run `make manifests`"
    shipped = [
        group
        for file in sorted(RULES.glob("*.yml"))
        for group in yaml.safe_load(file.read_text())["groups"]
    ]
    assert yaml.safe_load(prometheus_rule())["spec"]["groups"] == shipped


def test_panels_do_not_overlap():
    """Panels keep to Grafana's grid of 24 columns and to their own place in it."""
    for panel in PANELS:
        assert panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24
    for one, other in combinations(DASHBOARD["panels"], 2):
        a, b = one["gridPos"], other["gridPos"]
        beside = a["x"] + a["w"] <= b["x"] or b["x"] + b["w"] <= a["x"]
        above = a["y"] + a["h"] <= b["y"] or b["y"] + b["h"] <= a["y"]
        assert beside or above, f"{one['title']} overlaps {other['title']}"


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_queries_name_variables_of_the_dashboard(panel: dict[str, Any]):
    """A query uses no variable that neither the dashboard nor Grafana defines."""
    known = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    for target in panel["targets"]:
        used = set(re.findall(r"\$\{?(\w+)", target["expr"]))
        assert used <= known | {"__rate_interval", "__range"}


def load(path: Path) -> Any:
    """The content of a YAML file."""
    return yaml.safe_load(path.read_text())

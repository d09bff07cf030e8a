"""The compose file for real: what comes up, and what is seen of a load spike.

Grafana's image cannot be had here, so it stays out; what its panels would show is asked of
Prometheus with the dashboard's own queries.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import yaml

from deploy.drill_rules import write_drill_rules
from deploy.spike import Stack, as_table, drill
from tests.system.built_image import COMPOSE
from tests.system.docker_daemon import Docker, add_alertmanager_image, add_prometheus_image
from tests.system.machine import ROOT, free_port, run, tool, wait_until

READY_S = 300
PORTS = ("SERVER_PORT", "PROMETHEUS_PORT", "ALERTMANAGER_PORT", "WEBHOOK_PORT")

pytestmark = [pytest.mark.system, pytest.mark.timeout(1800)]


@dataclass(frozen=True)
class Compose:
    """One project of docker-compose; calling it runs a command of it."""

    docker: Docker
    command: tuple[str, ...]
    env: dict[str, str]

    def __call__(self, *args: str) -> str:
        """Run `docker-compose args…` and return what it printed."""
        return run([*self.command, *args], env=self.env)

    def url(self, port: str) -> str:
        """Where a published port is reached."""
        return f"http://127.0.0.1:{self.env[port]}"

    def ready(self) -> bool:
        """Whether Prometheus sees a server that is ready."""
        url = f"{self.url('PROMETHEUS_PORT')}/api/v1/query"
        try:
            answer = httpx.get(url, params={"query": "tocom_ready"})
        except httpx.TransportError:
            return False
        if not answer.is_success:
            return False  # it listens before it can answer
        result = answer.json()["data"]["result"]
        return [series["value"][1] for series in result] == ["1"]

    def tells(self) -> bool:
        """Whether Alertmanager is there."""
        try:
            return httpx.get(f"{self.url('ALERTMANAGER_PORT')}/-/ready").is_success
        except httpx.TransportError:
            return False


@pytest.fixture
def compose(docker: Docker, image: str, tmp_path: Path) -> Iterator[Callable[..., Compose]]:
    """Make projects of the compose file and overlays; they end with the test, data included."""
    program = tool("docker-compose", "docker-compose")
    services = COMPOSE["services"]
    add_prometheus_image(docker, services["prometheus"]["image"])
    add_alertmanager_image(docker, services["alertmanager"]["image"])
    write_drill_rules(tmp_path / "drill")
    made: list[Compose] = []

    def make(*overlays: str, profile: str = "") -> Compose:
        files = [ROOT / "docker-compose.yml", *(ROOT / "deploy" / name for name in overlays)]
        command = (program, *(f"--file={file}" for file in files))
        env = docker.env | {port: str(free_port()) for port in PORTS}
        env["COMPOSE_PROJECT_NAME"] = f"tocom-test-{len(made)}"
        if "compose.drill.yml" in overlays:
            env["PROMETHEUS_CONFIG"] = str(tmp_path / "drill")
        project = Compose(docker, command + ((f"--profile={profile}",) if profile else ()), env)
        made.append(project)
        return project

    yield make
    for project in made:
        print(project("logs", "--no-color"))
        project("down", "--volumes")


def test_compose_brings_up_a_monitored_server(compose: Callable[..., Compose], photo: bytes):
    """Without a profile there is a healthy server that Prometheus scrapes, and no Alertmanager."""
    project = compose()
    project("up", "--detach", "--no-build", "server", "prometheus")
    wait_until("Prometheus to see a ready server", project.ready, timeout_s=READY_S)
    files = {"file": ("cat.jpg", photo, "image/jpeg")}
    answer = httpx.post(f"{project.url('SERVER_PORT')}/classify", files=files, timeout=60)
    assert answer.status_code == 200
    rules = httpx.get(f"{project.url('PROMETHEUS_PORT')}/api/v1/rules").json()["data"]["groups"]
    assert sum(len(group["rules"]) for group in rules) > 20


def test_a_load_spike_is_seen_and_told(compose: Callable[..., Compose]):
    """The dashboard's queries show the spike, the degree's rise and return; an alert comes, ends.

    All containers that take part run as a user without rights on a file system they cannot write.
    """
    project = compose("compose.drill.yml", profile="alerting")
    services = ("server", "prometheus", "alertmanager", "webhook")
    project("up", "--detach", "--no-build", *services)
    wait_until("Prometheus to see a ready server", project.ready, timeout_s=READY_S)
    wait_until("Alertmanager to be ready", project.tells, timeout_s=60)
    for container in project("ps", "--quiet").split():
        found = json.loads(project.docker("inspect", "--format", "{{json .}}", container))
        host = found["HostConfig"]
        assert int(found["Config"]["User"].split(":")[0]) > 0
        assert host["ReadonlyRootfs"] and host["CapDrop"] == ["ALL"] and not host["Privileged"]
    ports = ("SERVER_PORT", "PROMETHEUS_PORT", "WEBHOOK_PORT")
    seen = drill(Stack(*map(project.url, ports)))
    print(as_table(seen))
    assert seen.failures() == [], as_table(seen)


def test_compose_accepts_the_gpu_overlay():
    """docker-compose itself reads the files, alone and with the overlay for a GPU."""
    compose = tool("docker-compose", "docker-compose")
    plain = [compose, f"--file={ROOT}/docker-compose.yml"]
    assert run([*plain, "config", "--quiet"]) == ""
    with_gpu = [*plain, f"--file={ROOT}/deploy/compose.gpu.yml"]
    merged = yaml.safe_load(run([*with_gpu, "config"]))
    server = merged["services"]["server"]
    (device,) = server["deploy"]["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"]
    assert "utility" in server["environment"]["NVIDIA_DRIVER_CAPABILITIES"]
    assert server["environment"]["TOCOM_SLO_MS"] == "250"

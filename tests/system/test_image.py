"""The Dockerfile and the compose file, built and run for real.

By default the base image already holds the pinned packages of this environment, so that the build
installs only the wheel; TOCOM_SYSTEM_FULL_IMAGE=1 (`make test-image-cuda`) starts from a bare
Python and fetches all of them.
"""

import json
import os
import sys
import time
from collections.abc import Iterator

import httpx
import pytest
import yaml

from tests.system.docker_daemon import (
    Docker,
    add_prometheus_image,
    add_python_image,
    private_daemon,
)
from tests.system.machine import ROOT, free_port, missing, run, tool, wait_until
from tests.system.pinned import runtime_entries

FULL = os.environ.get("TOCOM_SYSTEM_FULL_IMAGE") == "1"
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
IMAGE = COMPOSE["services"]["server"]["image"]
READY_S = 300

pytestmark = [pytest.mark.system, pytest.mark.timeout(7200 if FULL else 1800)]


@pytest.fixture(scope="module")
def docker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Docker]:
    """A daemon that holds the base image."""
    if not FULL and sys.version_info[:2] != (3, 11):
        missing("the packages of this environment fit the image only if it runs Python 3.11")
    with private_daemon(tmp_path_factory.mktemp("docker")) as docker:
        add_python_image(docker, {} if FULL else runtime_entries())
        yield docker


@pytest.fixture(scope="module")
def image(docker: Docker) -> str:
    """The server's image, built from the checkout."""
    started = time.monotonic()
    docker("build", "--tag", IMAGE, ROOT, timeout_s=5400)
    size = int(docker("image", "inspect", "--format", "{{.Size}}", IMAGE))
    print(f"\n{IMAGE}: {size / 1e9:.2f} GB, built in {time.monotonic() - started:.0f} s")
    return str(IMAGE)


@pytest.fixture(scope="module")
def container(docker: Docker, image: str) -> Iterator[str]:
    """A container as locked down as the documentation promises it can be, and healthy."""
    limits = ["--read-only", "--tmpfs=/tmp", "--cap-drop=ALL", "--security-opt=no-new-privileges"]
    open_to_loopback = ["--publish=127.0.0.1::8000", "--env=TOCOM_ALLOW_ANONYMOUS=true"]
    docker("run", "--detach", "--name=server", *open_to_loopback, *limits, image)
    wait_until("a healthy container", lambda: healthy(docker, "server"), timeout_s=READY_S)
    yield "server"
    docker("rm", "--force", "--volumes", "server")


def healthy(docker: Docker, container: str) -> bool:
    """What the image's own health check says; a container that ended fails at once."""
    state = json.loads(docker("inspect", "--format", "{{json .State}}", container))
    assert state["Running"], docker("logs", container)
    return bool(state["Health"]["Status"] == "healthy")


def test_image_gives_up_rights(docker: Docker, image: str):
    """The image runs as a numbered user, says its port, its stop signal and its health check."""
    config = json.loads(docker("image", "inspect", "--format", "{{json .Config}}", image))
    assert int(config["User"]) > 0
    assert list(config["ExposedPorts"]) == ["8000/tcp"]
    assert config["StopSignal"] == "SIGTERM"
    assert "/readyz" in " ".join(config["Healthcheck"]["Test"])
    assert config["Labels"]["org.opencontainers.image.licenses"] == "Apache-2.0"


def test_image_holds_the_wheel_only(docker: Docker, image: str):
    """The packages come from the wheel; no source tree, test or build tool of ours lies around."""
    script = (
        "import server, tocom_core, pathlib; print(server.__file__, *pathlib.Path('/').iterdir())"
    )
    where = docker("run", "--rm", "--entrypoint=python", image, "-c", script)
    assert "-packages/server" in where
    assert "/src" not in where.split()


def test_image_does_not_serve_everybody_by_itself(docker: Docker, image: str):
    """Without keys, and without a word that this is meant, the container ends and says why."""
    docker("run", "--detach", "--name=open", image)
    code = docker("wait", "open").strip()
    said = docker("logs", "open")
    docker("rm", "--volumes", "open")
    assert code == "2" and "TOCOM_API_KEYS_FILE" in said


def test_container_has_no_rights(docker: Docker, container: str):
    """Its process is no root, has no capabilities and no way to new ones, and cannot write."""
    status = docker("exec", container, "cat", "/proc/1/status")
    rows = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert rows["Uid"].split() == ["10001"] * 4
    assert {rows[name] for name in ("CapPrm", "CapEff", "CapBnd", "CapAmb")} == {"0" * 16}
    assert rows["NoNewPrivs"] == "1"
    wrote = docker("exec", container, "sh", "-c", "touch /opt/x 2>/dev/null && echo yes || echo no")
    assert wrote.strip() == "no"


def test_container_classifies_a_photograph(docker: Docker, container: str, photo: bytes):
    """A locked-down container answers a real image with ranked classes."""
    url = f"http://{docker('port', container, '8000/tcp')}"
    files = {"file": ("cat.jpg", photo, "image/jpeg")}
    answer = httpx.post(f"{url}/classify", files=files, timeout=60).raise_for_status().json()
    scores = [p["score"] for p in answer["results"][0]["predictions"]]
    assert scores and scores == sorted(scores, reverse=True)


def test_container_stops_cleanly(docker: Docker, container: str):
    """`docker stop` drains the server: it ends by itself, with status 0."""
    docker("stop", "--time=60", container)
    state = json.loads(docker("inspect", "--format", "{{json .State}}", container))
    assert (state["ExitCode"], state["OOMKilled"]) == (0, False), docker("logs", container)


def test_compose_brings_up_a_monitored_server(docker: Docker, image: str, photo: bytes):
    """`docker-compose up` gives a healthy server on loopback that Prometheus scrapes."""
    compose = tool("docker-compose", "docker-compose")
    add_prometheus_image(docker, COMPOSE["services"]["prometheus"]["image"])
    ports = {"SERVER_PORT": str(free_port()), "PROMETHEUS_PORT": str(free_port())}
    env = docker.env | ports | {"COMPOSE_PROJECT_NAME": "tocom-test"}
    command = [compose, f"--file={ROOT}/docker-compose.yml"]

    def scraped() -> bool:
        url = f"http://127.0.0.1:{ports['PROMETHEUS_PORT']}/api/v1/query"
        try:
            result = httpx.get(url, params={"query": "tocom_ready"}).json()["data"]["result"]
        except httpx.TransportError:
            return False
        return [series["value"][1] for series in result] == ["1"]

    try:
        run([*command, "up", "--detach", "--no-build", "server", "prometheus"], env=env)
        wait_until("Prometheus to see a ready server", scraped, timeout_s=READY_S)
        files = {"file": ("cat.jpg", photo, "image/jpeg")}
        answer = httpx.post(
            f"http://127.0.0.1:{ports['SERVER_PORT']}/classify", files=files, timeout=60
        )
        assert answer.status_code == 200
    finally:
        print(run([*command, "logs", "--no-color"], env=env))
        run([*command, "down", "--volumes"], env=env)


def test_compose_accepts_the_gpu_overlay():
    """docker-compose itself reads the files, alone and with the overlay for a GPU."""
    compose = tool("docker-compose", "docker-compose")
    plain = [compose, f"--file={ROOT}/docker-compose.yml"]
    assert run([*plain, "config", "--quiet"]) == ""
    with_gpu = [*plain, f"--file={ROOT}/deploy/compose.gpu.yml"]
    merged = yaml.safe_load(run([*with_gpu, "config"]))
    (device,) = merged["services"]["server"]["deploy"]["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"]

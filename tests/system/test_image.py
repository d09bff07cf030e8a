"""The Dockerfile, built and run for real; `built_image` says how."""

import json
from collections.abc import Iterator

import httpx
import pytest

from tests.system.built_image import FULL
from tests.system.docker_daemon import Docker
from tests.system.machine import wait_until

READY_S = 300

pytestmark = [pytest.mark.system, pytest.mark.timeout(7200 if FULL else 1800)]


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
        "import server, tocom_core, importlib.util, pathlib; "
        "print(server.__file__, importlib.util.find_spec('tocom_client').origin, "
        "*pathlib.Path('/').iterdir())"
    )
    where = docker("run", "--rm", "--entrypoint=python", image, "-c", script)
    assert "-packages/server" in where and "-packages/tocom_client" in where
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

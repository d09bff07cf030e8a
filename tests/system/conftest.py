"""Fixtures of the system tests: a server under a little load, a Prometheus that scrapes it."""

import io
import shutil
import signal
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest
import yaml
from PIL import Image
from skimage import data

from server.machine_figures import GpuUse
from server.metrics import Metrics
from tests.system.built_image import docker, image
from tests.system.machine import ROOT, free_port, running, tool, wait_until, wait_until_ready
from tests.system.rendered import container_spec, objects, pod_spec, rendered

__all__ = ["container_spec", "docker", "image", "objects", "pod_spec", "rendered"]

SCRAPE_S = 1


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Starting daemons, building images and warming up take longer than a unit test may."""
    for item in items:
        if item.get_closest_marker("system") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(900))


@pytest.fixture(scope="session")
def photo() -> bytes:
    """A real photograph, as a camera would hand it over."""
    file = io.BytesIO()
    Image.fromarray(data.chelsea()).save(file, "JPEG", quality=90)
    return file.getvalue()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a real `tocom serve` with the default model, warmed up."""
    folder = tmp_path_factory.mktemp("server")
    port = free_port()
    # Every served image is compared with r_source, so that there soon is an agreement to show.
    command = [sys.executable, "-m", "server.cli", "serve", f"--port={port}", "--live-share=1"]
    url = f"http://127.0.0.1:{port}"
    with running(command, folder / "server.log", folder=ROOT) as process:
        wait_until_ready(url, process.poll, folder / "server.log")
        yield url
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0, (folder / "server.log").read_text()


@pytest.fixture(scope="session")
def load(server: str, photo: bytes) -> Iterator[None]:
    """A trickle of requests of every kind: good, corrupt, too late, at changing degrees."""
    stop = threading.Event()

    def post(client: httpx.Client) -> None:
        client.post("/classify", files={"file": ("cat.jpg", photo, "image/jpeg")})
        client.post("/classify", files={"file": ("cat.jpg", b"no image", "image/jpeg")})
        client.post("/classify?deadline_ms=0.01", files={"file": ("cat.jpg", photo, "image/jpeg")})

    def trickle() -> None:
        with httpx.Client(base_url=server, timeout=30) as client:
            levels = [level["r"] for level in client.get("/compression").json()["levels"]]
            degrees = [levels[0], levels[-1]]
            while not stop.is_set():
                degrees.reverse()
                client.put(f"/compression?r={degrees[0]}")
                post(client)
                stop.wait(0.1)

    thread = threading.Thread(target=trickle)
    thread.start()
    yield
    stop.set()
    thread.join(timeout=60)


@pytest.fixture(scope="session")
def gpu_page() -> Iterator[str]:
    """The URL of a page of our metrics that tell of a GPU, for machines without one."""
    metrics = Metrics(slo_s=0.25)
    metrics.watch_gpus(lambda: {0: GpuUse(0.5, 3e9, 8e9, 1e9)})

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            text, kind = metrics.render()
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_: object) -> None:
            """Say nothing of each scrape."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Page) as exporter:
        thread = threading.Thread(target=exporter.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{exporter.server_port}"
        exporter.shutdown()
        thread.join(timeout=60)


@pytest.fixture(scope="session")
def prometheus(
    server: str, load: None, gpu_page: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[httpx.Client]:
    """A client of a real Prometheus with the shipped configuration and rules.

    It scrapes the test's server, and under another job the page that tells of a GPU. There is no
    Alertmanager where the configuration names one, as without `--profile alerting`.
    """
    folder = tmp_path_factory.mktemp("prometheus")
    shutil.copytree(ROOT / "deploy/prometheus/rules", folder / "rules")
    config = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())
    config["global"] = {"scrape_interval": f"{SCRAPE_S}s", "evaluation_interval": f"{SCRAPE_S}s"}
    (job,) = config["scrape_configs"]
    job["static_configs"][0]["targets"] = [server.removeprefix("http://")]
    other = {"targets": [gpu_page.removeprefix("http://")]}
    config["scrape_configs"].append({"job_name": "gpu", "static_configs": [other]})
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    port = free_port()
    command = [
        tool("prometheus", "prometheus"),
        f"--config.file={folder}/prometheus.yml",
        f"--storage.tsdb.path={folder}/data",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with (
        running(command, folder / "prometheus.log", env={"GOMAXPROCS": "1"}),
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client,
    ):

        def ready() -> bool:
            try:
                return client.get("/-/ready").status_code == 200
            except httpx.TransportError:
                return False

        wait_until("Prometheus", ready, timeout_s=60)
        yield client

"""The pod of deploy/kubernetes, run from the real image with what the rendered manifests say.

There is no cluster here: Docker runs the container as `pod_container` reads it, and the test does
what the kubelet does, with the manifests' own probes, preStop command and grace period.
"""

import contextlib
import io
import json
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import httpx
import pytest
from PIL import Image

from deploy.kubernetes.manifests import HERE, documents, render
from server.api_keys import Scope, key_line, new_key
from tests.system.docker_daemon import Docker
from tests.system.kubectl import kubectl
from tests.system.machine import wait_until
from tests.system.pod_container import PodContainer

CLIENTS = 4
FILES = 8
REQUESTS = 16

pytestmark = [pytest.mark.system, pytest.mark.timeout(1800)]

Start = Callable[[str], PodContainer]


@pytest.fixture(scope="module")
def keys() -> dict[Scope, str]:
    """A key for each scope."""
    return {"inference": new_key(), "metrics": new_key()}


@pytest.fixture(scope="module")
def start(
    docker: Docker, image: str, keys: dict[Scope, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Start]:
    """Starts the pod of an overlay; it is gone after the tests of this module."""
    lines = [key_line(scope, [scope], key) for scope, key in keys.items()]
    secrets = {"tocom-api-keys": {"keys.txt": "\n".join(lines) + "\n"}}
    docker("tag", image, f"{image}-cuda")
    with contextlib.ExitStack() as stack:

        def start(overlay: str) -> PodContainer:
            objects = documents(render(HERE / "overlays" / overlay, kubectl()))
            pod = PodContainer(docker, objects, secrets, tmp_path_factory.mktemp(overlay))
            stack.callback(pod.remove)
            pod.start()
            return pod

        yield start


@pytest.fixture(scope="module")
def starting(start: Start) -> tuple[PodContainer, list[bool]]:
    """The pod of the overlay `cpu`, and what its startup probe said until it was content."""
    pod = start("cpu")
    return pod, pod.probe("startup").wait()


@pytest.fixture(scope="module")
def pod(starting: tuple[PodContainer, list[bool]]) -> PodContainer:
    """It, once it has started."""
    return starting[0]


@pytest.fixture(scope="module")
def large_photo(photo: bytes) -> bytes:
    """The photograph with the pixels of a telephone's, so that a request takes its time."""
    file = io.BytesIO()
    Image.open(io.BytesIO(photo)).resize((3008, 2000)).save(file, "JPEG", quality=70)
    return file.getvalue()


def bearer(key: str | None) -> dict[str, str]:
    """The header that shows a key, if there is one."""
    return {"Authorization": f"Bearer {key}"} if key else {}


def post(url: str, key: str | None, photo: bytes, count: int = 1) -> httpx.Response:
    """Ask for the classes of `count` images, on a new connection, as a client in no hurry."""
    files = [("file", (f"{n}.jpg", photo, "image/jpeg")) for n in range(count)]
    query = "/classify?deadline_ms=100000"
    return httpx.post(url + query, files=files, headers=bearer(key), timeout=120)


def test_startup_probe_waits_for_the_warm_up(starting: tuple[PodContainer, list[bool]]):
    """It fails while the model is loaded, then succeeds, long before it would give up."""
    pod, asked = starting
    assert asked[-1], f"{len(asked)} times in vain:\n{pod.logs()}"
    assert not asked[0]
    assert len(asked) < pod.probe("startup").failures / 2
    assert pod.probe("readiness").ask() and pod.probe("liveness").ask()


def test_the_pod_takes_its_settings(pod: PodContainer):
    """No variable is unknown to the server, and its threads are the cores of the limit."""
    assert "unknown" not in pod.logs()
    environment = pod.environment()
    assert environment["TOCOM_THREADS"] == environment["TOCOM_DECODE_WORKERS"] == "2"


def test_the_pod_wants_keys(pod: PodContainer, keys: dict[Scope, str], photo: bytes):
    """A client needs a key for images, Prometheus one for metrics, the kubelet none."""
    assert post(pod.url(), "wrong", photo).status_code == 401
    assert post(pod.url(), keys["metrics"], photo).status_code == 403
    assert post(pod.url(), keys["inference"], photo).status_code == 200
    metrics = httpx.get(f"{pod.url()}/metrics", headers=bearer(keys["metrics"]))
    assert "tocom_ready 1.0" in metrics.text


def test_a_busy_pod_is_alive_and_ready(
    pod: PodContainer, keys: dict[Scope, str], large_photo: bytes
):
    """Probes are answered in time while all cores are at work and images wait."""
    with ThreadPoolExecutor(REQUESTS) as pool:
        answers = burst(pool, pod, keys, large_photo)
        wait_until("a busy pod", lambda: in_flight(pod, keys) >= REQUESTS / 2, timeout_s=60)
        while not all(answer.done() for answer in answers):
            assert pod.probe("liveness").ask()
            assert pod.probe("readiness").ask()
    assert {answer.result().status_code for answer in answers} == {200}


def test_a_deleted_pod_answers_all_it_has(
    pod: PodContainer, keys: dict[Scope, str], photo: bytes, large_photo: bytes, docker: Docker
):
    """After preStop SIGTERM: not ready, but all that was accepted is answered, and exit code 0.

    Until preStop is over some proxy may still send requests, so they come until then.
    """
    began = time.monotonic()
    grace_s = pod.pod["terminationGracePeriodSeconds"]
    with ThreadPoolExecutor(REQUESTS) as pool:
        hook = pod.pre_stop()
        meanwhile = [pool.submit(post_until, hook, pod, keys, photo) for _ in range(CLIENTS)]
        while hook.poll() is None:
            assert pod.probe("readiness").ask()
        assert hook.returncode == 0
        seen = [client.result() for client in meanwhile]
        assert all(seen) and {status for statuses in seen for status in statuses} == {200}
        answers = burst(pool, pod, keys, large_photo)
        wait_until("work to finish", lambda: in_flight(pod, keys) >= REQUESTS / 2, timeout_s=60)
        pod.terminate()
        wait_until("draining", lambda: not pod.probe("readiness").ask(), timeout_s=5, every_s=0.01)
        # Not ready comes first: the process is there, alive by its probe, and has work to finish.
        assert docker("inspect", "--format", "{{.State.Running}}", pod.id) == "true"
        assert pod.probe("liveness").ask()
        late = post(pod.url(), keys["inference"], photo)
        assert not all(answer.done() for answer in answers)
        exit_code = pod.exit_code(timeout_s=began + grace_s - time.monotonic())
    assert exit_code == 0, pod.logs()
    assert (late.status_code, late.json()["type"]) == (503, "/problems/draining")
    for answer in answers:
        assert answer.result().status_code == 200, answer.result().text
        results = answer.result().json()["results"]
        assert len(results) == FILES and all(result["predictions"] for result in results)
    said = [json.loads(line)["message"] for line in pod.logs().splitlines() if line[:1] == "{"]
    (draining,) = [line for line in said if line.startswith("draining: signal=SIGTERM")]
    assert int(draining.rpartition("in_flight=")[2]) >= REQUESTS / 2
    assert "stopped: exit_code=0" in said


def test_the_local_pod_serves_everybody(start: Start, photo: bytes):
    """Without a Secret, as it is told to, and by a name of the cluster without dots."""
    pod = start("local")
    assert pod.probe("startup").wait()[-1], pod.logs()
    assert post(pod.url(), None, photo).status_code == 200
    by_name = httpx.get(f"{pod.url()}/model", headers={"Host": "tocom"})
    assert by_name.status_code == 200


def test_the_gpu_pod_is_not_slow_on_the_cpu(start: Start):
    """Where its GPU is missing it ends, and says so, instead of starting on the CPU."""
    pod = start("gpu")
    assert pod.exit_code(timeout_s=300) == 1, pod.logs()
    assert "device='cuda' is not on this machine" in pod.logs()


def burst(
    pool: ThreadPoolExecutor, pod: PodContainer, keys: dict[Scope, str], photo: bytes
) -> list[Future[httpx.Response]]:
    """Many requests of many images at once; more work than is done in a moment."""
    url = pod.url()
    return [pool.submit(post, url, keys["inference"], photo, FILES) for _ in range(REQUESTS)]


def post_until(
    hook: subprocess.Popen[bytes], pod: PodContainer, keys: dict[Scope, str], photo: bytes
) -> list[int]:
    """The statuses of one request after the other, until the hook has ended."""
    url, statuses = pod.url(), []
    while hook.poll() is None:
        statuses.append(post(url, keys["inference"], photo).status_code)
    return statuses


def in_flight(pod: PodContainer, keys: dict[Scope, str]) -> float:
    """Requests that the server says it holds."""
    page = httpx.get(f"{pod.url()}/metrics", headers=bearer(keys["metrics"]), timeout=30).text
    (value,) = [
        line.split()[1] for line in page.splitlines() if line.startswith("tocom_in_flight_requests")
    ]
    return float(value)

"""Several replicas on a real Ray: pins that reach all, replicas that die, one page of metrics."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.system.machine import ROOT, free_port, running, tool, wait_until
from tests.system.ray_fleet import CONTROL, REPLICA, RayFleet, load_on, need_ray, ray_fleet

pytestmark = [pytest.mark.system, pytest.mark.timeout(1200)]

CLIENTS = 8
# A degree that is neither the first nor one that this model would choose by itself without load.
PINNED = 12
FLAGS = ("--replicas=2", "--cpus=1", "--slo-ms=4000", "--no-idle-profiling", "--live-share=0")


@pytest.fixture(scope="module")
def fleet() -> Iterator[RayFleet]:
    """Two replicas of the default model."""
    with ray_fleet(*FLAGS) as two:
        yield two


def samples(fleet: RayFleet, name: str) -> list[tuple[dict[str, str], float]]:
    """Labels and values of a metric on the page of all replicas."""
    page = httpx.get(f"{fleet.url}/metrics", timeout=30)
    assert page.status_code == 200, page.text
    return [
        (sample.labels, sample.value)
        for family in text_string_to_metric_families(page.text)
        for sample in family.samples
        if sample.name == name
    ]


def whole(fleet: RayFleet) -> bool:
    """Whether two replicas are there that have what is asked."""
    replicas = fleet.replicas()
    return len(replicas) == 2 and all(one["up_to_date"] for one in replicas.values())


def classify_until_both_have(fleet: RayFleet, photo: bytes) -> None:
    """Ray routes by chance: enough requests that each replica has had one."""
    with load_on(fleet.url, photo, CLIENTS):
        wait_until("both replicas to have had images", lambda: served(fleet) == 2, 60)


def served(fleet: RayFleet) -> int:
    """How many replicas have answered a request."""
    requests = samples(fleet, "tocom_requests_total")
    return sum(value > 0 for labels, value in requests if labels["outcome"] == "ok")


def test_a_pin_reaches_both(fleet: RayFleet, photo: bytes) -> None:
    """The answer to the one that took it says so, and images come back at that degree."""
    answer = httpx.put(f"{fleet.url}/compression?r={PINNED}", timeout=30)
    assert answer.status_code == 200, answer.text
    told = answer.json()
    assert told["asked"]["r"] == PINNED
    assert len(told["replicas"]) == 2
    assert all(one["up_to_date"] and one["r"] == PINNED for one in told["replicas"])
    classify_until_both_have(fleet, photo)
    inferred = samples(fleet, "tocom_inferred_images_total")
    assert {labels["replica"] for labels, _ in inferred} == fleet.replicas().keys()
    assert {labels["r"] for labels, value in inferred if value} == {str(PINNED)}
    assert httpx.put(f"{fleet.url}/compression?r=99", timeout=30).status_code == 422
    assert fleet.compression()["asked"]["r"] == PINNED


def test_a_replica_dies_under_load(fleet: RayFleet, photo: bytes) -> None:
    """It takes no more with it than what it held; its replacement has the pin from the start."""
    httpx.put(f"{fleet.url}/compression?r={PINNED}", timeout=30).raise_for_status()
    wait_until("both replicas", lambda: whole(fleet), 60)
    before = fleet.replicas().keys()
    with load_on(fleet.url, photo, CLIENTS) as load:
        wait_until("some answers", lambda: load.count(200) > 50, 120)
        killed = fleet.pids(REPLICA)[0]
        os.kill(killed, signal.SIGKILL)
        wait_until("a replacement", lambda: fleet.replicas().keys() - before, 240)
        wait_until("it to have what is asked", lambda: whole(fleet), 60)
        answered = load.count(200)
        wait_until("more answers", lambda: load.count(200) > answered + 50, 120)
    assert load.failures == []
    assert len(load.answers) == load.sent, "a request was lost"
    lost = [answer for answer in load.answers if answer.status_code != 200]
    print(f"\n{load.sent} requests, {len(lost)} lost with the replica")
    assert len(lost) <= CLIENTS, [answer.text for answer in lost]
    for answer in lost:
        assert answer.status_code == 503
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.headers["retry-after"] == "1"
        assert answer.json()["type"] == "/problems/replica-lost"
    (new,) = fleet.replicas().keys() - before
    at = {
        labels["r"]: value
        for labels, value in samples(fleet, "tocom_inferred_images_total")
        if labels["replica"] == new and value
    }
    assert at.keys() == {str(PINNED)}, "the replacement served at another degree"


def test_what_is_asked_outlives_the_control_room(fleet: RayFleet) -> None:
    """The replicas bring it to the next one."""
    httpx.put(f"{fleet.url}/compression?r={PINNED}", timeout=30).raise_for_status()
    (control,) = fleet.pids(CONTROL)
    os.kill(control, signal.SIGKILL)

    def again() -> bool:
        pids = fleet.pids(CONTROL)
        return bool(pids) and pids != [control] and whole(fleet)

    wait_until("another control room", again, 120, every_s=1)
    told = fleet.compression()
    assert (told["mode"], told["asked"]["r"]) == ("pinned", PINNED)
    assert httpx.put(f"{fleet.url}/compression?mode=auto", timeout=30).status_code == 200
    assert all(one["mode"] == "auto" for one in fleet.replicas().values())


def test_prometheus_has_the_metrics_of_all(fleet: RayFleet, photo: bytes, tmp_path: Path) -> None:
    """One target, a label for each replica, and no counter that jumps between them."""
    classify_until_both_have(fleet, photo)
    config = {
        "global": {"scrape_interval": "1s"},
        "scrape_configs": [
            {
                "job_name": "tocom",
                "static_configs": [{"targets": [fleet.url.removeprefix("http://")]}],
            }
        ],
    }
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config))
    port = free_port()
    command = [
        tool("prometheus", "prometheus"),
        f"--config.file={tmp_path}/prometheus.yml",
        f"--storage.tsdb.path={tmp_path}/data",
        f"--web.listen-address=127.0.0.1:{port}",
    ]

    def ask(query: str) -> list[dict[str, Any]]:
        try:
            url = f"http://127.0.0.1:{port}/api/v1/query"
            answer = httpx.get(url, params={"query": query}, timeout=30)
        except httpx.TransportError:
            return []
        found: list[dict[str, Any]] = answer.json()["data"]["result"] if answer.is_success else []
        return found

    with running(command, tmp_path / "prometheus.log", env={"GOMAXPROCS": "1"}):
        by_replica = 'sum by (replica) (tocom_requests_total{outcome="ok"})'
        wait_until("a scrape", lambda: len(ask(by_replica)) == 2, 60)
        assert {row["metric"]["replica"] for row in ask(by_replica)} == fleet.replicas().keys()
        (told,) = ask('tocom_replicas{state="told"}')
        assert told["value"][1] == "2"
        wait_until("some scrapes", lambda: ask("count_over_time(up[1m]) > 4"), 60)
        assert all(r["value"][1] == "0" for r in ask("resets(tocom_requests_total[1m])"))


def test_nothing_listens_to_other_machines(fleet: RayFleet) -> None:
    """Whoever reaches Ray's ports may run code: they are on loopback only."""
    assert fleet.pids()
    listening = {inode: address for inode, address in _listening()}
    ours = {
        os.readlink(link)
        for pid in fleet.pids()
        for link in Path(f"/proc/{pid}/fd").iterdir()
        if link.exists() or link.is_symlink()
    }
    found = {address for inode, address in listening.items() if f"socket:[{inode}]" in ours}
    assert found
    assert {address for address in found if not address.startswith("127.")} == set()


def _listening() -> Iterator[tuple[str, str]]:
    """Inode and address of each TCP socket that listens on this machine."""
    for file in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(file).read_text().splitlines()[1:]:
            fields = line.split()
            host, port = fields[1].split(":")
            if fields[3] == "0A":
                # IPv4, also mapped into IPv6: the last four bytes, in the order of this machine.
                number = bytes.fromhex(host[-8:])[::-1]
                mapped = len(host) == 8 or host[16:24] == "FFFF0000"
                name = ".".join(map(str, number)) if mapped else f"[{host}]"
                yield fields[9], f"{name}:{int(port, 16)}"


def test_replicas_come_with_the_demand(photo: bytes) -> None:
    """Under load one replica becomes two; so little load is enough because the target says so."""
    flags = ("--replicas=1", "--max-replicas=2", "--cpus=1", "--target-demand=0.001")
    with ray_fleet(*flags, "--slo-ms=4000", "--no-idle-profiling") as fleet:
        assert len(fleet.replicas()) == 1
        started = time.monotonic()
        with load_on(fleet.url, photo, 2) as load:
            wait_until("a second replica", lambda: len(fleet.replicas()) == 2, 300, every_s=1)
        took_s = time.monotonic() - started
        print(f"\na second replica after {took_s:.0f} s; {load.sent} requests")
        assert load.failures == []
        assert load.count(200) == load.sent


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Ray's own, while it is imported
def test_the_configuration_is_one_that_serve_takes() -> None:
    """`serve deploy` checks it against this schema, and builds the application from its `args`."""
    need_ray()
    from ray.serve.schema import ServeDeploySchema

    from deploy.ray.application import FleetArguments, build, classifier_options
    from deploy.ray.replica_settings import read_settings

    config = yaml.safe_load((ROOT / "deploy/ray/serve.yaml").read_text())
    schema = ServeDeploySchema.model_validate(config)
    assert schema.http_options.host == "127.0.0.1"
    (application,) = schema.applications
    assert application.import_path == f"{build.__module__}:{build.__name__}"
    arguments = FleetArguments.model_validate(application.args)
    settings = read_settings(arguments.settings)
    options = classifier_options(arguments, settings)
    assert options["max_ongoing_requests"] > settings.queue_size + settings.max_batch_size
    assert options["autoscaling_config"]["max_replicas"] == 4
    assert type(build(arguments)).__name__ == "Application"

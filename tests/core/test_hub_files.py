"""Models from a hub: a fake one on loopback, the cache, offline, and a hub that is not there.

The hub's client reads its variables when it is imported, so that one test is a process of its own;
the others set what became of them.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from huggingface_hub import constants
from safetensors.torch import save_file
from timm.models import save_for_hf

from tests.core import transformers_folders as folders
from tests.core import zoo
from tests.core.fake_hub import COMMIT, FakeHub
from tests.core.ports import free_port
from tocom_core import load_model
from tocom_core.bank import Bank, backbone_digest
from tocom_core.bank_header import BankHeader
from tocom_core.errors import CheckpointError
from tocom_core.hub_files import Repository, parse
from tocom_core.models import find_bank

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")

LABELS = [f"n{i}" for i in range(7)]
PROGRAM = """
import sys
from tocom_core.errors import TocomError
from tocom_core.models import load_model
for place in sys.argv[1:]:
    try:
        print(load_model(place).digest)
    except TocomError as error:
        print(error)
"""


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeHub]:
    """A timm repository with a bank, a sharded one of transformers, and others to go wrong."""
    root = tmp_path_factory.mktemp("hub")
    vit = timm.create_model("test_vit", num_classes=7)
    zoo.randomise(vit)
    save_for_hf(vit, root / "timm", model_config={"label_names": LABELS})
    header = BankHeader("", 64, len(vit.blocks), 4, 1, backbone_digest=backbone_digest(vit))
    Bank(header).save(root / "timm" / "bank.safetensors")
    (root / "timm" / "modeling.py").write_text("raise SystemExit('ran')")
    model = folders.build()
    model.save_pretrained(root / "sharded", max_shard_size="40KB")
    folders.processor().save_pretrained(root / "sharded")
    pretrained = timm.create_model("test_vit")
    (root / "weights").mkdir()
    save_file(pretrained.state_dict(), root / "weights" / "model.safetensors")
    (root / "empty").mkdir()
    (root / "empty" / "config.json").write_text("{}")
    outside = root / "outside"
    outside.mkdir()
    (outside / "config.json").write_text("{}")
    index = {"weight_map": {"head.weight": "../../../x.bin"}}
    (outside / "model.safetensors.index.json").write_text(json.dumps(index))
    places = {
        "me/vit": root / "timm",
        "me/secret": root / "timm",
        "me/gated": root / "timm",
        "me/sharded": root / "sharded",
        "me/empty": root / "empty",
        "me/outside": root / "outside",
        "timm/test_vit.r160_in1k": root / "weights",
    }
    with FakeHub(places, tokens={"me/secret": "hf_right"}, gated={"me/gated"}).running() as running:
        yield running


Load = Callable[..., dict[str, Any]]


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Load:
    """Load a model with a cache of the test's own; what it is, or the error."""

    def loading(
        place: str, endpoint: str, offline: bool = False, token: str | None = None
    ) -> dict[str, Any]:
        template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        if token is not None:
            monkeypatch.setenv("HF_TOKEN", token)
        caplog.clear()
        try:
            loaded = load_model(place)
            bank = find_bank(place, "auto", loaded)
        except CheckpointError as error:
            return {"error": str(error)}
        told = {"labels": list(loaded.labels), "name": loaded.name, "digest": loaded.digest}
        return {**told, "file": str(loaded.file), "bank": str(bank), "log": caplog.text}

    return loading


def closed_port() -> str:
    """An address where nobody listens."""
    return f"http://127.0.0.1:{free_port()}"


def test_a_model_is_fetched_once_and_then_served_from_the_cache(hub: FakeHub, load: Load) -> None:
    """Online, offline, and while the hub is down; with labels and bank, and without any code."""
    first = load("hf-hub:me/vit", hub.url)
    expected = load_model(hub.repositories["me/vit"])
    assert first["digest"] == expected.digest
    assert (first["labels"], first["name"]) == (LABELS, "vit")
    assert first["bank"].endswith("bank.safetensors")
    assert COMMIT in first["file"]
    assert not any("modeling.py" in line for line in hub.asked)

    before = len(hub.asked)
    offline = load("hf-hub:me/vit", hub.url, offline=True)
    assert offline["digest"] == first["digest"]
    assert len(hub.asked) == before

    pinned = load(f"hf-hub:me/vit@{COMMIT}", hub.url)
    assert pinned["digest"] == first["digest"]
    assert len(hub.asked) == before

    down = load("hf-hub:me/vit", closed_port())
    assert down["digest"] == first["digest"]
    assert "is taken from the local cache" in down["log"]
    assert "cannot be reached" in down["log"]


def test_the_client_s_variables(hub: FakeHub, tmp_path: Path) -> None:
    """HF_ENDPOINT, HF_HOME and HF_HUB_OFFLINE in a process of its own, which says no traceback."""
    folder = tmp_path / "hub" / "models--me--vit"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(COMMIT)
    shutil.copytree(hub.repositories["me/vit"], folder / "snapshots" / COMMIT)
    before = len(hub.asked)
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "TRANSFORMERS_"))}
    variables = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, "hf-hub:me/vit", "hf-hub:me/sharded"],
        env={**kept, **variables},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    digest, error = done.stdout.splitlines()
    assert digest == load_model(hub.repositories["me/vit"]).digest
    assert "is not in the local cache" in error and "HF_HUB_OFFLINE forbids" in error
    assert len(hub.asked) == before
    assert "Traceback" not in done.stderr


def test_a_sharded_repository_of_transformers_at_a_revision(hub: FakeHub, load: Load) -> None:
    """All parts come, and they are found again offline by the same revision only."""
    first = load("hf-hub:me/sharded@v1", hub.url)
    assert first["digest"] == load_model(hub.repositories["me/sharded"]).digest
    assert first["labels"] == list(folders.NAMES)
    again = load("hf-hub:me/sharded@v1", hub.url, offline=True)
    assert again["digest"] == first["digest"]
    other = load("hf-hub:me/sharded", hub.url, offline=True)
    assert "hf-hub:me/sharded is not in the local cache" in other["error"]
    next(Path(first["file"]).parent.glob("model-00002*")).unlink()
    lost = load("hf-hub:me/sharded@v1", hub.url, offline=True)
    assert "is not in the local cache" in lost["error"]


def test_a_timm_name_is_fetched_from_the_hub(hub: FakeHub, load: Load) -> None:
    """Its weights lie in a repository of timm's; then they are in the cache."""
    first = load("test_vit", hub.url)
    offline = load("test_vit", hub.url, offline=True)
    direct = load_model(
        hub.repositories["timm/test_vit.r160_in1k"] / "model.safetensors", architecture="test_vit"
    )
    assert first["digest"] == offline["digest"] == direct.digest


def test_a_token_opens_a_private_repository(hub: FakeHub, load: Load) -> None:
    """HF_TOKEN is sent; without the right one the error says how to set it."""
    refused = load("hf-hub:me/secret", hub.url, token="hf_wrong")
    assert "no such model, or it is private; check the name, and set HF_TOKEN" in refused["error"]
    opened = load("hf-hub:me/secret", hub.url, token="hf_right")
    assert opened["labels"] == LABELS


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("hf-hub:me/nothing", "no such model, or it is private"),
        ("hf-hub:me/vit@v9", "has no revision 'v9'; check it after the @"),
        ("hf-hub:me/gated", "accept its terms on its page, and set HF_TOKEN"),
        ("hf-hub:me/empty", "hf-hub:me/empty holds no weights"),
        ("hf-hub:me/outside", "names the part '../../../x.bin', which is no plain file name"),
        ("hf-hub:me/a/b", "names no repository"),
        ("hf-hub:@v1", "names no repository; write hf-hub:owner/name"),
        ("me/vit", "on the hub it would be hf-hub:me/vit"),
    ],
)
def test_what_the_hub_does_not_give_is_explained(
    hub: FakeHub, load: Load, place: str, message: str
) -> None:
    """One sentence on what was wrong and how to mend it, and no traceback."""
    assert message in load(place, hub.url)["error"]


def test_a_hub_that_fails_is_named(hub: FakeHub, load: Load) -> None:
    """Its status is told."""
    with FakeHub(hub.repositories, status=503).running() as failing:
        found = load("hf-hub:me/vit", failing.url)
    assert f"{failing.url} answered 503; try again later" in found["error"]


@pytest.mark.parametrize("place", ["hf-hub:me/vit", "test_vit"])
def test_a_hub_that_cannot_be_reached(load: Load, place: str) -> None:
    """The message names it and the ways out."""
    endpoint = closed_port()
    found = load(place, endpoint)["error"]
    assert f"the hub at {endpoint} cannot be reached" in found
    assert "check the network, HF_ENDPOINT and HTTPS_PROXY; or give a local folder" in found


def no_retry(seconds: float) -> None:
    """Stands where the hub's client would wait for its next try."""
    raise AssertionError(f"tried again after {seconds} s")


def test_a_hub_that_does_not_answer_costs_one_wait(
    load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One time-out of the client's, and no round of retries after it."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 0.2)
        monkeypatch.setattr(time, "sleep", no_retry)
        found = load("hf-hub:me/vit", endpoint)
    assert "cannot be reached" in found["error"]


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ("hf-hub:me/vit", Repository("me/vit")),
        ("hf_hub:me/vit@v1", Repository("me/vit", "v1")),
    ],
)
def test_places_are_taken_apart(place: str, expected: Repository) -> None:
    """Either of timm's spellings, with a revision or without."""
    assert parse(place) == expected
    assert parse(str(expected)) == expected


@pytest.mark.parametrize("place", ["me/vit", "hf-hub:", "hf-hub:me/vit@", "hf-hub:me/vit@a@b"])
def test_places_that_are_none(place: str) -> None:
    """Something is missing, or too much."""
    with pytest.raises(CheckpointError, match="names no repository; write hf-hub:owner/name"):
        parse(place)


def test_equal_logits(hub: FakeHub) -> None:
    """What the hub's folder holds computes what the model that was pushed computes."""
    loaded = load_model(hub.repositories["me/vit"])
    vit = timm.create_model("test_vit", num_classes=7)
    zoo.randomise(vit)
    images = torch.randn(2, 3, 160, 160)
    with torch.inference_mode():
        torch.testing.assert_close(loaded.vit(images), vit.eval()(images), rtol=0, atol=1e-4)

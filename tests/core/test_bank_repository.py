"""Banks in a hub's layout: written, pushed to a hub on loopback, and read back from it.

The hub's client reads its variables when it is imported; the tests set what became of them.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import timm
import torch
import yaml

from tests.core import zoo
from tests.core.fake_bank_hub import FakeBankHub, ask_hub
from tests.core.ports import free_port
from tests.core.test_bank_facts import filled
from tocom_core.bank import Bank
from tocom_core.bank_card import CardOptions, card
from tocom_core.bank_places import locate_bank, told_by_address
from tocom_core.bank_repository import push, write_folder
from tocom_core.errors import BankError
from tocom_core.models import LoadedModel, describe, find_bank, load_model

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")

LABELS = ("a", "b", "c", "d", "e", "f", "g")
TABLE = {
    "model": "m",
    "images": 1000,
    "r_source": 0,
    "rows": [
        {"r": 0, "bank": False, "top1": 0.8},
        {"r": 2, "bank": False, "top1": 0.7},
        {"r": 2, "bank": True, "top1": 0.75},
        {"r": 2, "bank": True, "top1": 0.1, "r_source": 2},
    ],
}
UseHub = Callable[..., None]


@pytest.fixture
def hub() -> Iterator[FakeBankHub]:
    """A hub with nothing on it."""
    with FakeBankHub().running() as running:
        yield running


@pytest.fixture
def use_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> UseHub:
    """Let the hub's client ask that address, with a cache of the test's own."""

    def use(url: str, *, offline: bool = False, token: str | None = "hf_right") -> None:
        ask_hub(monkeypatch, url, tmp_path / "cache", offline=offline)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        if token is not None:
            monkeypatch.setenv("HF_TOKEN", token)

    return use


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    """A small model that timm knows, with labels."""
    vit = timm.create_model("test_vit", num_classes=7)
    zoo.randomise(vit)
    return describe(vit.eval(), "m", {"label_names": list(LABELS)}, r_source=1)


def test_what_was_pushed_is_read_back(
    hub: FakeBankHub, use_hub: UseHub, loaded: LoadedModel, tmp_path: Path
) -> None:
    """The folder's own files arrive, no others, and the address gives the same bank."""
    bank = filled()
    use_hub(hub.url)
    folder = tmp_path / "out"
    options = CardOptions("A bank", repository="me/bank")
    files = write_folder(folder, bank, options, loaded=loaded)
    (folder / "secret.txt").write_text("not to be pushed")
    assert push(folder, files, "me/bank").endswith("me/bank")
    assert set(hub.repositories["me/bank"]) == {"bank.safetensors", "README.md"}
    for address in ("hf-hub:me/bank", "hf_hub:me/bank@v1"):
        assert Bank.load(locate_bank(address)).digest == bank.digest


def test_cache_serves_when_the_hub_does_not(
    hub: FakeBankHub,
    use_hub: UseHub,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Offline, down, failing, and where asking is not allowed: what was fetched before is found."""
    filled().save(tmp_path / "bank.safetensors")
    hub.repositories["me/bank"] = {"bank.safetensors": (tmp_path / "bank.safetensors").read_bytes()}
    use_hub(hub.url)
    with pytest.raises(BankError, match="a reload may not fetch") as told:
        locate_bank("hf-hub:me/bank", local_only=True)
    assert str(tmp_path) not in str(told.value)  # a stranger may be told
    assert hub.asked == []
    fetched = locate_bank("hf-hub:me/bank")
    asked = len(hub.asked)
    assert locate_bank("hf-hub:me/bank", local_only=True) == fetched
    use_hub(hub.url, offline=True)
    assert locate_bank("hf-hub:me/bank") == fetched
    assert len(hub.asked) == asked and not caplog.records
    hub.status = 503
    use_hub(hub.url)
    assert locate_bank("hf-hub:me/bank") == fetched
    use_hub(f"http://127.0.0.1:{free_port()}")
    assert locate_bank("hf-hub:me/bank") == fetched
    assert "cannot be reached" in caplog.text


def test_a_newer_bank_is_taken(hub: FakeBankHub, use_hub: UseHub) -> None:
    """That the cache has one is no reason not to ask; without asking it is the one from before."""
    hub.repositories["me/bank"] = {"bank.safetensors": b"old"}
    use_hub(hub.url)
    assert locate_bank("hf-hub:me/bank").read_bytes() == b"old"
    hub.repositories["me/bank"] = {"bank.safetensors": b"new"}
    hub.commit = "1" * 40
    assert locate_bank("hf-hub:me/bank", local_only=True).read_bytes() == b"old"
    assert locate_bank("hf-hub:me/bank").read_bytes() == b"new"


def test_errors_name_the_address_instead_of_the_cache(
    hub: FakeBankHub, use_hub: UseHub, tmp_path: Path
) -> None:
    """A file that is no bank is called by the repository that it comes from."""
    hub.repositories["me/bank"] = {"bank.safetensors": b"no bank"}
    use_hub(hub.url)
    path = locate_bank("hf-hub:me/bank")
    with pytest.raises(BankError) as told, told_by_address("hf-hub:me/bank", path):
        Bank.load(path)
    assert str(told.value).startswith("hf-hub:me/bank/bank.safetensors is not")
    assert str(tmp_path) not in str(told.value)


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("hf-hub:me/nothing", "no such model, or it is private"),
        ("hf-hub:me/bank@v9", "no revision 'v9'"),
        ("hf-hub:me/empty", "has no bank.safetensors"),
        ("hf-hub:me/gated", "accept its terms"),
        ("hf-hub:a/b/c", "names no repository"),
        ("hf-hub:me/bank@", "names no repository"),
        ("hf-hub:", "names no repository"),
    ],
)
def test_each_failure_says_what_to_do(
    hub: FakeBankHub, use_hub: UseHub, address: str, says: str
) -> None:
    """A name, revision, file or consent that is missing."""
    hub.repositories |= {"me/bank": {"bank.safetensors": b""}, "me/empty": {}}
    hub.repositories["me/gated"] = {"bank.safetensors": b""}
    hub.gated.add("me/gated")
    use_hub(hub.url)
    with pytest.raises(BankError, match=says):
        locate_bank(address)


def test_hub_that_is_not_there(use_hub: UseHub) -> None:
    """The message names hub and variables; offline it says that nothing was asked."""
    url = f"http://127.0.0.1:{free_port()}"
    use_hub(url)
    with pytest.raises(BankError, match=f"{url} cannot be reached .*HF_ENDPOINT"):
        locate_bank("hf-hub:me/bank")
    use_hub(url, offline=True)
    with pytest.raises(BankError, match="HF_HUB_OFFLINE forbids"):
        locate_bank("hf-hub:me/bank")


def test_push_that_fails_leaves_the_folder(
    hub: FakeBankHub, use_hub: UseHub, loaded: LoadedModel, tmp_path: Path
) -> None:
    """No token, no hub, no name, offline: one sentence, and the files are still there."""
    files = write_folder(tmp_path / "out", filled(), CardOptions("A bank"), loaded=loaded)
    nowhere = f"http://127.0.0.1:{free_port()}"
    for url, offline, token, name, says in (
        (hub.url, False, "hf_wrong", "me/bank", "set HF_TOKEN"),
        (nowhere, False, "hf_right", "me/bank", "cannot be reached"),
        (hub.url, True, "hf_right", "me/bank", "HF_HUB_OFFLINE"),
    ):
        use_hub(url, offline=offline, token=token)
        with pytest.raises(BankError, match=says):
            push(tmp_path / "out", files, name)
    assert (tmp_path / "out" / "bank.safetensors").is_file()
    assert hub.repositories == {}


def test_folder_is_a_place_for_a_bank(tmp_path: Path) -> None:
    """Its bank.safetensors is meant; without one the message says so."""
    with pytest.raises(BankError, match=r"has no bank\.safetensors"):
        find_bank("default", str(tmp_path))
    filled().save(tmp_path / "bank.safetensors")
    assert find_bank("default", str(tmp_path)) == tmp_path / "bank.safetensors"


def test_exported_model_is_the_model(loaded: LoadedModel, tmp_path: Path) -> None:
    """We and timm itself load it from the folder with the very same logits."""
    options = CardOptions("A model", with_model=True)
    files = write_folder(tmp_path, filled(), options, loaded=loaded)
    assert set(files) == {entry.name for entry in tmp_path.iterdir()}
    again = load_model(tmp_path / "model.safetensors")
    assert (again.labels, again.r_source, again.digest) == (LABELS, 1, loaded.digest)
    by_timm = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    images = zoo.photos(loaded.vit)
    with torch.inference_mode():
        expected = loaded.vit(images)
        assert torch.equal(again.vit(images), expected)
        assert torch.equal(by_timm(images), expected)
    assert json.loads((tmp_path / "config.json").read_text())["label_names"] == list(LABELS)


def test_exported_weights_are_halved_only_without_loss(loaded: LoadedModel, tmp_path: Path) -> None:
    """A model from a float16 file is written as one."""
    options = CardOptions("A model", with_model=True)
    write_folder(tmp_path / "whole", filled(), options, loaded=loaded)
    vit = timm.create_model("test_vit", num_classes=7)
    vit.load_state_dict({key: value.half() for key, value in loaded.vit.state_dict().items()})
    write_folder(tmp_path / "half", filled(), options, loaded=describe(vit, "m"))
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("whole", "half")]
    assert sizes[1] < 0.6 * sizes[0]


def test_card_has_front_matter_and_the_table() -> None:
    """Metadata as the hub reads it; the table of the model's own degree."""
    options = CardOptions("T", "mit", "timm/vit", ("me/data",), repository="me/bank")
    text = card(filled(), options, TABLE)
    front = yaml.safe_load(text.split("---")[1])
    assert front["library_name"] == "tocom-serve" and front["license"] == "mit"
    assert front["base_model"] == "timm/vit" and front["datasets"] == ["me/data"]
    assert front["metrics"] == ["accuracy"] and "token-compensator" in front["tags"]
    assert "| 0 | 80.0% |  |" in text and "| 2 | 70.0% | 75.0% |" in text
    assert "tocom serve --model MODEL --bank hf-hub:me/bank" in text


def test_card_promises_no_figures_that_are_not_there() -> None:
    """Without a table, or with one that knows no bank, there is no metric."""
    without = {"rows": [row for row in TABLE["rows"] if not row["bank"]]}  # type: ignore[attr-defined]
    for table in (None, without):
        text = card(filled(), CardOptions("T"), table)
        assert "accuracy" not in yaml.safe_load(text.split("---")[1]) and "## Accuracy" not in text
        assert "metrics" not in text.split("---")[1]

"""Stored profiles: where they are looked for, and what of them is believed on this machine."""

import logging
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from server.errors import SettingsError
from server.settings import Settings
from server.stored_profile import StoredProfile, differences, find_profile, open_profile
from tocom_core.errors import ProfileError
from tocom_core.latency_profile import Accuracy, LatencyProfile, Measurement, ServingOverhead

DEVICE: dict[str, str | int] = {
    "device": "Fast CPU",
    "threads": 2,
    "lanes": 2,
    "dtype": "float32",
    "torch": "2.8.0",
}
MODEL: dict[str, Any] = {
    "digest": "a" * 64,
    "bank": None,
    "scaling": None,
    "method": "merge",
    "r_source": 0,
}
WORK = {0: 1.0, 1: 0.8, 2: 0.6}
MEASURED = (Measurement(0, 1, 0.02, runs=3), Measurement(2, 8, 0.05, runs=3))
EVALUATED = (Accuracy(0, 0.9, "evaluation", 500), Accuracy(2, 0.8, "evaluation", 500))
AGREED = (Accuracy(0, 1.0, "agreement", 100), Accuracy(2, 0.95, "agreement", 100))
SERVING = ServingOverhead(0.01, 0.001, 0.002)
PROFILE = LatencyProfile(DEVICE, MODEL, WORK, MEASURED, EVALUATED, SERVING, 8)


@dataclass
class Served:
    """What is served, without the model."""

    bank_path: Path | None = None
    device_identity: dict[str, str | int] = field(default_factory=lambda: dict(DEVICE))
    model_identity: dict[str, Any] = field(default_factory=lambda: dict(MODEL))
    work: dict[int, float] = field(default_factory=lambda: dict(WORK))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model file; nobody reads it here."""
    path = tmp_path / "mine" / "model.safetensors"
    path.parent.mkdir()
    path.touch()
    return path


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    """A profile file with all there can be."""
    path = tmp_path / "stored.json"
    PROFILE.save(path)
    return path


def test_auto_takes_the_profile_beside_the_model(model: Path, tmp_path: Path) -> None:
    """The model's own goes before its bank's; without either there is none."""
    bank = tmp_path / "bank" / "bank.safetensors"
    bank.parent.mkdir()
    bank.touch()
    settings = Settings(model=str(model))
    assert find_profile(settings, bank) is None
    beside_bank = bank.with_name("profile.json")
    beside_bank.touch()
    assert find_profile(settings, bank) == beside_bank
    beside_model = model.with_name("profile.json")
    beside_model.touch()
    assert find_profile(settings, bank) == beside_model
    assert find_profile(settings.model_copy(update={"profile": "none"}), bank) is None


def test_a_model_by_name_has_no_profile_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A timm name is no path: a profile that lies in the working directory is not taken for its."""
    (tmp_path / "profile.json").touch()
    monkeypatch.chdir(tmp_path)
    assert find_profile(Settings(model="vit_tiny_patch16_224")) is None


def test_a_named_profile_need_not_exist_but_its_folder_must(tmp_path: Path) -> None:
    """What is to be written later is told apart from a typing error now."""
    path = tmp_path / "later.json"
    assert find_profile(Settings(profile=str(path))) == path
    with pytest.raises(SettingsError, match=r"there is no folder .*nowhere; make it"):
        find_profile(Settings(profile=str(tmp_path / "nowhere" / "later.json")))


def test_a_profile_that_fits_is_believed(stored: Path) -> None:
    """Same model, same device: all of it holds, and nothing is to be written."""
    opened = open_profile(Settings(profile=str(stored)), Served())
    assert opened == StoredProfile(MEASURED, EVALUATED, SERVING)


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("threads", 4, "threads 2 there, 4 here"),
        ("device", "Slow CPU", "device Fast CPU there, Slow CPU here"),
        ("torch", "2.9.0", "torch 2.8.0 there, 2.9.0 here"),
    ],
)
def test_latencies_of_another_device_are_not_believed(
    stored: Path, caplog: pytest.LogCaptureFixture, name: str, value: str | int, told: str
) -> None:
    """Accuracies still are, as the model is the same; the log says what differs."""
    caplog.set_level(logging.INFO)
    served = Served(device_identity={**DEVICE, name: value})
    opened = open_profile(Settings(profile=str(stored)), served)
    assert opened == StoredProfile(accuracies=EVALUATED)
    assert told in caplog.text


@pytest.mark.parametrize(("name", "value"), [("digest", "b" * 64), ("bank", "c" * 64)])
def test_nothing_of_another_model_is_believed(
    stored: Path, caplog: pytest.LogCaptureFixture, name: str, value: str
) -> None:
    """Not even its latencies; the log says what differs, digests by their beginning."""
    caplog.set_level(logging.INFO)
    served = Served(model_identity={**MODEL, name: value})
    assert open_profile(Settings(profile=str(stored)), served) == StoredProfile()
    assert "another model" in caplog.text and f"{value[:12]}… here" in caplog.text


def test_what_is_not_served_is_left_out(stored: Path) -> None:
    """Degrees and batch sizes beyond what the server runs; too few that are left count as none."""
    named = Settings(profile=str(stored), max_batch_size=4)
    opened = open_profile(named, Served())
    assert opened == StoredProfile((), EVALUATED, SERVING)
    lower = Served(work={0: 1.0, 1: 0.8})
    assert open_profile(Settings(profile=str(stored)), lower).accuracies == EVALUATED[:1]


def test_no_file_yet(tmp_path: Path) -> None:
    """It starts empty, and is written once when there is something to write."""
    path = tmp_path / "later.json"
    opened = open_profile(Settings(profile=str(path)), Served())
    assert opened == StoredProfile(write_to=path)
    opened.save(PROFILE)
    assert LatencyProfile.load(path) == PROFILE
    StoredProfile().save(PROFILE)  # no place, nothing to do
    assert list(tmp_path.iterdir()) == [path]


def test_a_broken_profile_stops_the_start_only_where_it_was_named(
    model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One that was only found beside the model must not keep the server from starting."""
    path = model.with_name("profile.json")
    path.write_text("{")
    assert open_profile(Settings(model=str(model)), Served()) == StoredProfile()
    assert "starting without it" in caplog.text
    with pytest.raises(ProfileError, match="cannot be read"):
        open_profile(Settings(profile=str(path)), Served())


def test_starting_from_what_is_stored() -> None:
    """Stored latencies and evaluation go before what the server found out by itself."""
    own = replace(PROFILE, measurements=(Measurement(0, 1, 9.0), Measurement(2, 8, 9.0)))
    own = replace(own, accuracies=(Accuracy(1, 0.5, "evaluation", 7),), serving=None)
    started = StoredProfile(MEASURED, EVALUATED, SERVING).complete(own)
    assert started == PROFILE


def test_starting_without_anything_stored() -> None:
    """The warm-up's latencies and the table in the model's file."""
    own = replace(PROFILE, serving=None)
    assert StoredProfile().complete(own) == own


def test_an_evaluation_goes_before_agreement() -> None:
    """The model's own table is expected, and agreement only where there is no evaluation at all."""
    agreed = StoredProfile(accuracies=AGREED)
    assert agreed.complete(PROFILE).expected_accuracy() == {0: 0.9, 2: 0.8}
    unknown = replace(PROFILE, accuracies=())
    assert agreed.complete(unknown).expected_accuracy() == {0: 1.0, 2: 0.95}


def test_differences_name_what_only_one_has() -> None:
    """A GPU has no threads to compare; the same has no differences."""
    assert differences({"a": 1, "b": 2}, {"a": 1}) == "b 2 there, None here"
    assert differences(DEVICE, dict(DEVICE)) == ""

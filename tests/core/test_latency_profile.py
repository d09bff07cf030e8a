"""The profile's file: what is written is read again, and nothing wrong gets in."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tocom_core.errors import ProfileError
from tocom_core.latency_profile import (
    LONGEST_S,
    SHORTEST_S,
    Accuracy,
    LatencyProfile,
    Measurement,
    ServingOverhead,
)


def profile(**changes: Any) -> LatencyProfile:
    """Return a small complete profile."""
    values: dict[str, Any] = {
        "device": {"name": "cpu", "threads": 2},
        "model": {"name": "vit_tiny", "dtype": "float32"},
        "work": {0: 1.0, 8: 0.74, 16: 0.5},
        "measurements": (Measurement(0, 1, 0.028, 0.05, 9), Measurement(16, 8, 0.12)),
        "accuracies": (Accuracy(0, 0.78, "evaluation", 5000), Accuracy(0, 1.0, "agreement", 300)),
        "serving": ServingOverhead(0.004, 0.001, 0.0005),
        "max_batch_size": 8,
    }
    return LatencyProfile(**(values | changes))


def as_file(folder: Path, **changes: Any) -> Path:
    """Save a profile whose JSON has these top-level changes; None removes a field."""
    path = folder / "profile.json"
    profile().save(path)
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))
    return path


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    """A profile survives its file unchanged, and nothing else is left in the folder."""
    path = tmp_path / "profile.json"
    profile().save(path)
    assert LatencyProfile.load(path) == profile()
    assert [p.name for p in tmp_path.iterdir()] == ["profile.json"]


def test_what_was_not_measured_may_be_missing(tmp_path: Path) -> None:
    """Accuracies and overheads are optional, in the record and in the file."""
    path = as_file(tmp_path, accuracies=None, serving=None)
    assert LatencyProfile.load(path) == profile(accuracies=(), serving=None)


@given(seconds=st.floats(SHORTEST_S, LONGEST_S), spread=st.floats(0, 10))
def test_numbers_survive_exactly(
    tmp_path_factory: pytest.TempPathFactory, seconds: float, spread: float
) -> None:
    """Every duration comes back bit for bit."""
    path = tmp_path_factory.mktemp("profile") / "profile.json"
    measured = (Measurement(0, 1, seconds, spread), Measurement(16, 8, 0.1))
    profile(measurements=measured).save(path)
    assert LatencyProfile.load(path).measurements == measured


def test_lanes_are_told_by_the_device() -> None:
    """Without a word on them, or with a wrong one, a batch runs as a whole."""
    assert profile(device={"name": "cpu", "lanes": 2}).lanes == 2
    assert profile().lanes == profile(device={"lanes": "two"}).lanes == 1
    assert profile(device={"lanes": 0}).lanes == 1


def test_degrees_are_ascending() -> None:
    """The order in the file does not matter."""
    assert profile(work={16: 0.5, 0: 1.0, 8: 0.74}).degrees == (0, 8, 16)


def test_the_source_degree_is_the_models_or_the_lowest() -> None:
    """A profile that does not say was not fine-tuned at any degree."""
    work = {0: 1.0, 4: 0.9, 8: 0.7, 16: 0.5}
    assert profile(work=work, model={"r_source": 4}).r_source == 4
    assert profile(work=work, model={}).r_source == 0
    assert profile(work=work, model={"r_source": 3}).r_source == 0


def test_chance_is_taken_out_of_what_is_expected_not_of_what_was_measured() -> None:
    """A degree that seems better than a lower one is believed to be as good, by the images."""
    measured = (Accuracy(0, 0.8, "evaluation", 300), Accuracy(8, 0.84, "evaluation", 100))
    found = profile(accuracies=measured)
    assert found.expected_accuracy() == {0: pytest.approx(0.81), 8: pytest.approx(0.81)}
    assert {r: a.value for r, a in found.measured_accuracy().items()} == {0: 0.8, 8: 0.84}


def test_accuracies_of_two_kinds_are_not_mixed() -> None:
    """Top-1 is used where there is any; agreement only where there is nothing else."""
    agreed = (Accuracy(0, 1.0, "agreement", 300), Accuracy(8, 0.97, "agreement", 300))
    assert profile(accuracies=agreed).expected_accuracy() == {0: 1.0, 8: 0.97}
    both = (*agreed, Accuracy(0, 0.78, "evaluation", 5000))
    assert profile(accuracies=both).expected_accuracy() == {0: 0.78}
    assert profile(accuracies=()).expected_accuracy() == {}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("r", -1),
        ("r", True),
        ("batch", 0),
        ("batch", 1.0),
        ("seconds", 0.0),
        ("seconds", float("nan")),
        ("seconds", float("inf")),
        ("seconds", 10**400),
        ("seconds", "0.1"),
        ("spread", -0.1),
        ("runs", 0),
    ],
)
def test_a_bad_measurement_is_refused(field: str, value: object) -> None:
    """The error names the field and the value."""
    values: dict[str, Any] = {"r": 0, "batch": 1, "seconds": 0.1, "spread": 0.0, "runs": 1}
    with pytest.raises(ProfileError, match=f"{field}="):
        Measurement(**(values | {field: value}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"value": 1.2}, r"value=1.2 must be a number between 0 and 1"),
        ({"source": "guess"}, r"source='guess' must be one of"),
        ({"images": 0}, r"images=0"),
    ],
)
def test_a_bad_accuracy_is_refused(changes: dict[str, Any], message: str) -> None:
    """A fraction, from a known source, over at least one image."""
    values: dict[str, Any] = {"r": 0, "value": 0.8, "source": "evaluation", "images": 100}
    with pytest.raises(ProfileError, match=message):
        Accuracy(**(values | changes))


@pytest.mark.parametrize("field", ["before_queue_s", "after_batch_s", "interference_s"])
def test_overheads_are_not_negative(field: str) -> None:
    """No request arrives before it is due."""
    values = {"before_queue_s": 0.0, "after_batch_s": 0.0, "interference_s": 0.0}
    with pytest.raises(ProfileError, match=f"{field}=-1"):
        ServingOverhead(**(values | {field: -1.0}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"work": {}}, "work is empty"),
        ({"work": {0: 1.0, 16: 0.0}}, r"work\[16\]=0.0"),
        ({"work": {0: 1.0, 16: 1.5}}, r"work\[16\]=1.5"),
        ({"work": {0: 1.0}}, "measurements: r=16 is no degree"),
        ({"accuracies": (Accuracy(3, 0.5, "evaluation", 1),)}, "accuracies: r=3 is no degree"),
        ({"max_batch_size": 4}, "batch=8 is more than max_batch_size=4"),
        ({"max_batch_size": 10**9}, "max_batch_size=1000000000 must be"),
        ({"measurements": (Measurement(0, 1, 0.1),)}, "holds 1; at least 2 are needed"),
        ({"measurements": (Measurement(0, 1, 0.1), Measurement(0, 1, 0.2))}, r"\(0, 1\) 2 times"),
        ({"accuracies": (Accuracy(0, 0.5, "evaluation", 1),) * 2}, "2 times; once is expected"),
    ],
)
def test_contradictions_are_refused(changes: dict[str, Any], message: str) -> None:
    """Values must fit each other, not only their own range."""
    with pytest.raises(ProfileError, match=message):
        profile(**changes)


def test_where_there_is_one_cell_one_measurement_is_enough() -> None:
    """A model of one degree that takes single images has nothing else to measure."""
    single = profile(
        work={0: 1.0}, measurements=(Measurement(0, 1, 0.1),), accuracies=(), max_batch_size=1
    )
    assert single.degrees == (0,)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 2}, "format_version=2 must be 1"),
        ({"format_version": None}, "format_version=None"),
        ({"work": None}, "'work' is missing"),
        ({"work": [1.0]}, r"work is \[1.0\]; it must be a dict"),
        ({"work": {"0": 1.0, "sixteen": 0.5}}, "r='sixteen'"),
        ({"work": {"0": 1.0, "9" * 5000: 0.5}}, "must be a whole number"),
        ({"work": {"0": None, "16": 0.5}}, r"work\[0\]=None"),
        ({"device": "cpu"}, "device is 'cpu'"),
        ({"measurements": {}}, "measurements is {}; it must be a list"),
        ({"measurements": [3]}, r"measurements\[0\]: it is 3; it must be a dict"),
        ({"measurements": [{"r": 0, "batch": 1}]}, r"measurements\[0\]: 'seconds' is missing"),
        (
            {"measurements": [{"r": 0, "batch": 1, "seconds": -1}]},
            r"measurements\[0\]: seconds=-1 must be",
        ),
        ({"accuracies": [{"r": 0, "top1": 1}]}, r"accuracies\[0\]: 'top1' is no field"),
        ({"serving": {"before_queue_s": 0}}, "serving: 'after_batch_s' is missing"),
        ({"max_batch_size": "8"}, "max_batch_size='8'"),
        ({"colour": "red"}, "'colour' is no field"),
    ],
)
def test_a_bad_file_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    """The error names the file and the field."""
    path = as_file(tmp_path, **changes)
    with pytest.raises(ProfileError, match=message) as caught:
        LatencyProfile.load(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff\xfe\x00", b"[" * 100_000, b"[]", b"null", b'{"device": 1e999}']
)
def test_what_is_no_profile_is_refused(tmp_path: Path, content: bytes) -> None:
    """Any bytes end in the one error, with the file's name."""
    path = tmp_path / "profile.json"
    path.write_bytes(content)
    with pytest.raises(ProfileError, match=r"profile\.json"):
        LatencyProfile.load(path)


def test_a_missing_file_is_said_so(tmp_path: Path) -> None:
    """A path that does not exist is an error of ours, too."""
    with pytest.raises(ProfileError, match="cannot be read"):
        LatencyProfile.load(tmp_path / "none.json")


def test_what_cannot_be_written_leaves_the_old_file(tmp_path: Path) -> None:
    """A value that JSON cannot hold costs neither the file that is there nor leaves a partial."""
    path = tmp_path / "profile.json"
    profile().save(path)
    with pytest.raises(ProfileError, match="cannot be written"):
        profile(model={"digest": object()}).save(path)
    assert LatencyProfile.load(path) == profile()
    assert [p.name for p in tmp_path.iterdir()] == ["profile.json"]
    with pytest.raises(ProfileError, match="cannot be written"):
        profile().save(tmp_path / "no" / "such" / "folder.json")

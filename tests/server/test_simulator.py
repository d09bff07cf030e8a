"""`tocom simulate`: its tables, its JSON, its files, and what it refuses."""

import csv
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from server.arrivals import parse_trace
from server.errors import SettingsError
from server.farm import PolicyChoice, ServerSettings
from server.policy_trials import Scenario, run_trials
from server.request_mix import parse_mix
from server.simulator import main
from tests.server.simulated_profiles import ACCURACY, LARGEST, SLO_S, machine, profile
from tocom_core.errors import ProfileError
from tocom_core.latency_profile import ServingOverhead

OVERHEAD = ServingOverhead(0.004, 0.002, 0.001)


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    """Return a stored profile."""
    path = tmp_path / "profile.json"
    profile(serving=OVERHEAD).save(path)
    return path


def simulate(
    capsys: pytest.CaptureFixture[str], stored: Path, *flags: str, trace: str = "constant:1.2x10"
) -> tuple[str, dict[str, Any]]:
    """Run the command; return its Markdown and its JSON."""
    assert main(["--profile", str(stored), "--trace", trace, *flags]) == 0
    markdown, _, line = capsys.readouterr().out.rstrip().rpartition("\n")
    return markdown, json.loads(line)


def policies_of(found: dict[str, Any], trace: int = 0) -> dict[str, Any]:
    """Return the policies of a table by name."""
    return {entry["policy"]: entry for entry in found["traces"][trace]["policies"]}


def test_compares_policies_with_each_other_and_the_oracle(
    capsys: pytest.CaptureFixture[str], stored: Path
) -> None:
    """One row a policy, two for the oracle; the default policy beats static r=0."""
    markdown, found = simulate(capsys, stored, "--seeds", "0", "1")
    policies = policies_of(found)
    default = ["demand", "static:0", "static:8", "threshold", "slackfit", "aimd"]
    assert list(policies) == default
    for name in [*default, "oracle, most in time", "oracle, most correct"]:
        assert f"| {name} |" in markdown
    demand, still = (policies[name]["over_seeds"] for name in ("demand", "static:0"))
    assert demand["attainment"]["median"] > still["attainment"]["median"] + 0.1
    assert [entry["seed"] for entry in policies["demand"]["seeds"]] == [0, 1]
    for policy in policies.values():
        assert policy["gap_points"] >= -1e-6
        for entry, bound in zip(policy["seeds"], found["traces"][0]["oracle"], strict=True):
            assert entry["attainment"] <= bound["attainment"] + 1e-6
            assert entry["on_time_correct"] <= bound["on_time_correct"] + 1e-6


def test_states_capacity_and_slo(capsys: pytest.CaptureFixture[str], stored: Path) -> None:
    """Both follow from the profile, the overheads of serving included."""
    markdown, found = simulate(capsys, stored, "--policy", "demand", "--no-oracle")
    assert found["slo_ms"] == pytest.approx(10 * (22 + 4 + 2), rel=0.02)
    low, high = found["capacities"]
    assert (low["r"], high["r"]) == (0, 8)
    assert 1 / low["images_per_s"] == pytest.approx(0.021 + 0.0005, rel=0.03)
    assert high["images_per_s"] > 1.4 * low["images_per_s"]
    assert f"{low['images_per_s']:.1f} at r=0" in markdown
    assert found["times_faster_than_real"] > 1


def test_same_seed_same_figures(capsys: pytest.CaptureFixture[str], stored: Path) -> None:
    """Noise and arrivals included."""
    flags = ("--policy", "demand", "--noise", "0.2", "--mix", "priority=high:0.5")
    first, second = (simulate(capsys, stored, *flags)[1]["traces"] for _ in range(2))
    assert first == second


def test_one_table_per_trace_and_scale(capsys: pytest.CaptureFixture[str], stored: Path) -> None:
    """Rates grow with the scale."""
    traces = ("--trace", "constant:0.5x10", "step:0.2x4,0.5x4", "--scale", "1", "2")
    _, found = simulate(capsys, stored, *traces, "--seeds", "0", "--policy", "static:0")
    assert [(t["trace"], t["scale"]) for t in found["traces"]] == [
        ("constant:0.5x10", 1.0),
        ("step:0.2x4,0.5x4", 1.0),
        ("constant:0.5x10", 2.0),
        ("step:0.2x4,0.5x4", 2.0),
    ]
    offered = [policies_of(found, i)["static:0"]["seeds"][0]["offered"] for i in range(4)]
    assert offered[2] == pytest.approx(2 * offered[0], rel=0.2)


def test_finds_the_best_static_degree(capsys: pytest.CaptureFixture[str], stored: Path) -> None:
    """At 1.2 times the capacity of r=0 the middle degree is the best of three."""
    flags = ("--search-static", "--policy", "static:0,static:4", "static:8")
    markdown, found = simulate(capsys, stored, *flags, trace="constant:1.1x20")
    best = found["traces"][0]["best_static"]
    shares = {
        name: entry["over_seeds"]["on_time_correct"]["median"]
        for name, entry in policies_of(found).items()
    }
    assert shares[f"static:{best}"] == max(shares.values())
    assert len(shares) == 3
    assert f"| static:{best} (best static) |" in markdown


def test_the_oracle_can_be_left_out(capsys: pytest.CaptureFixture[str], stored: Path) -> None:
    """Then nothing is said of it."""
    markdown, found = simulate(capsys, stored, "--no-oracle", "--policy", "demand")
    assert "oracle" not in markdown.split("simulated")[1]
    assert found["traces"][0]["oracle"] == []
    assert policies_of(found)["demand"]["gap_points"] is None


def test_replays_a_recording(
    capsys: pytest.CaptureFixture[str], stored: Path, tmp_path: Path
) -> None:
    """All arrivals of a CSV are offered, at the scale asked for."""
    recording = tmp_path / "arrivals.csv"
    recording.write_text("arrival_s\n" + "\n".join(str(0.7 * i) for i in range(300)))
    flags = ("--scale", "0.5", "--seeds", "0", "--policy", "static:0")
    _, found = simulate(capsys, stored, *flags, trace=str(recording))
    [entry] = policies_of(found)["static:0"]["seeds"]
    assert entry["offered"] == 300
    assert entry["attainment"] == 1.0


def test_servers_share_a_load_that_grows_with_them(
    capsys: pytest.CaptureFixture[str], stored: Path
) -> None:
    """The trace is a multiple of the whole farm's capacity."""
    flags = ("--seeds", "0", "--policy", "static:0")
    one, three = (
        policies_of(simulate(capsys, stored, *flags, "--servers", n, trace="constant:0.7x10")[1])[
            "static:0"
        ]["seeds"][0]
        for n in ("1", "3")
    )
    assert three["offered"] == pytest.approx(3 * one["offered"], rel=0.2)
    assert three["attainment"] > 0.98


def test_the_accuracy_floor_holds_for_policies_and_oracle(
    capsys: pytest.CaptureFixture[str], stored: Path
) -> None:
    """A degree below the floor is neither served nor granted to the oracle."""
    free = simulate(capsys, stored, "--policy", "demand", trace="constant:2x10")[1]
    flags = ("--min-accuracy", "0.85", "--policy", "demand", "static:max")
    _, kept = simulate(capsys, stored, *flags, trace="constant:2x10")
    assert list(policies_of(kept)) == ["demand", "static:4"]
    demand = policies_of(kept)["demand"]["over_seeds"]
    assert demand["mean_r"]["high"] <= 4
    assert demand["accuracy"]["low"] >= 0.88
    bounds = [found["traces"][0]["oracle"][0]["attainment"] for found in (free, kept)]
    assert bounds[1] < bounds[0] - 0.05


def test_a_model_fine_tuned_at_a_degree_is_not_served_below_it(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The lowest static degree is then its own; the capacity still is that of r=0."""
    path = tmp_path / "profile.json"
    replace(profile(), model={"r_source": 4}).save(path)
    _, found = simulate(capsys, path, "--seeds", "0")
    assert list(policies_of(found))[:3] == ["demand", "static:4", "static:8"]
    assert found["capacities"][0]["r"] == 0


def test_without_accuracies_only_time_is_judged(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Attainment has a bound; accuracy is said to be unknown."""
    path = tmp_path / "profile.json"
    profile(accuracy={}).save(path)
    markdown, found = simulate(capsys, path, "--policy", "demand,static:8", "--search-static")
    assert "does not know the accuracy" in markdown
    assert "knows no overheads of serving" in markdown
    assert found["traces"][0]["oracle"][0]["on_time_correct"] is None
    demand = policies_of(found)["demand"]
    assert demand["over_seeds"]["accuracy"] is None
    assert demand["gap_points"] is None
    assert found["traces"][0]["oracle"][0]["attainment"] > 0.9


def test_writes_plots_requests_and_reports(
    capsys: pytest.CaptureFixture[str], stored: Path, tmp_path: Path
) -> None:
    """One picture a table; each request's fate; the same report as printed."""
    folder = tmp_path / "out"
    flags = ("--output", str(folder), "--plot", str(tmp_path / "t.png"), "--scale", "0.5", "1")
    markdown, found = simulate(
        capsys, stored, *flags, "--policy", "demand", "static:4", "--seeds", "5"
    )
    assert {path.name for path in tmp_path.glob("t*.png")} == {"t-1.png", "t-2.png"}
    assert json.loads((folder / "report.json").read_text()) == found
    assert (folder / "report.md").read_text().strip() == markdown.strip()
    with (folder / "requests-2-static-4-seed5.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    [entry] = policies_of(found, 1)["static:4"]["seeds"]
    assert len(rows) == entry["offered"]
    served = [row for row in rows if row["outcome"] == "ok"]
    assert {(row["r"], row["correct"]) for row in served} == {("4", "0.88")}
    refused = [row for row in rows if row["outcome"] == "shed"]
    assert all((row["r"], row["correct"]) == ("", "") for row in refused)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--policy", "genius"], "'genius': expected demand, static:R"),
        (["--policy", "static"], "'static': expected"),
        (["--policy", "demand:3"], "'demand:3': expected"),
        (["--policy", "static:3"], "'static:3': expected one of the degrees 0, 4, 8"),
        (["--policy", "static:8", "--min-accuracy", "0.85"], "degrees 0, 4 of this profile"),
        (["--min-accuracy", "0.95"], "accuracy floor"),
        (["--min-accuracy", "1.5"], "--min-accuracy 1.5: expected 0 to 1"),
        (["--max-r", "99"], "max_r=99"),
        (["--scale", "0"], "--scale"),
        (["--scale", "nan"], "--scale nan: expected more than 0"),
        (["--slo-ms", "0"], "--slo-ms 0: expected more than 0"),
        (["--servers", "0"], "--servers 0: expected 1 or more"),
        (["--noise", "-1"], "--noise -1: expected 0 or more"),
        (["--seeds", "1", "1"], "different numbers"),
        (["--seeds", "-1"], "--seeds -1: expected 0 or more"),
        (["--slow", "20x2"], "'20x2': expected START-ENDxFACTOR"),
        (["--slow", "20-10x2"], "end after the start"),
        (["--mix", "colour=red:1"], "expected priority="),
        (["--trace", "zigzag:1x2"], "zigzag"),
        (["--trace", "constant:0.0001x0.1"], "has no arrivals"),
    ],
)
def test_refuses_what_it_cannot_simulate(stored: Path, flags: list[str], message: str) -> None:
    """The error shows what was given and what was expected."""
    with pytest.raises(SettingsError, match=message):
        main(["--profile", str(stored), "--trace", "constant:1x2", *flags])


def test_refuses_a_profile_that_is_none(tmp_path: Path) -> None:
    """The file is named."""
    path = tmp_path / "broken.json"
    path.write_text("{}")
    with pytest.raises(ProfileError, match=r"broken\.json"):
        main(["--profile", str(path), "--trace", "step"])


def test_reports_how_many_times_faster_than_real_it_was() -> None:
    """Simulated seconds over what the injected clock says that simulating took."""
    ticks = iter(range(100))
    scenario = Scenario(
        profile(), machine(), ServerSettings(SLO_S, LARGEST), parse_mix([]), 1, 40.0
    )
    trials = run_trials(
        scenario,
        parse_trace("constant:0.5x30"),
        "constant:0.5x30",
        1.0,
        [0],
        [PolicyChoice("demand")],
        clock=lambda: float(next(ticks)),
    )
    [[trial]] = trials.trials
    assert trial.wall_s == 1.0
    assert trial.figures.seconds == 30.0
    assert trial.on_time_accuracy == pytest.approx(ACCURACY[0], abs=0.02)
    assert not math.isnan(trials.bounds[0].attainment)


def test_an_autoscaler_changes_the_number_of_servers(
    capsys: pytest.CaptureFixture[str], stored: Path, tmp_path: Path
) -> None:
    """Its cost stands beside what it wins; the oracle, which has a fixed number, is left out."""
    flags = (
        *("--autoscale", "capacity-demand", "--startup-s", "20", "--scale-down-s", "30"),
        *("--seeds", "0", "--policy", "demand,static:0", "--max-replicas", "4"),
        *("--plot", str(tmp_path / "fleet.png")),
    )
    markdown, found = simulate(capsys, stored, *flags, trace="step:0.5x20,2.4x60,0.4x70")
    assert "ready 20 s after they are asked for" in markdown
    assert "| replica-hours | most replicas | grown | shrunk |" in markdown
    assert "oracle" not in markdown.split("simulated")[1]
    for policy in policies_of(found).values():
        [entry] = policy["seeds"]
        assert 3 <= entry["most"] <= 4
        assert entry["grown"] >= 1 and entry["shrunk"] >= 1
        assert 150 / 3600 < entry["replica_hours"] < 4 * 150 / 3600
    shares = {name: policy["seeds"][0]["attainment"] for name, policy in policies_of(found).items()}
    assert shares["demand"] > shares["static:0"]
    assert (tmp_path / "fleet.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--startup-s", "-1"), "--startup-s -1: expected 0 or more"),
        (("--scale-target", "0"), "--scale-target 0: expected more than 0"),
        (("--servers", "3", "--max-replicas", "2"), "--max-replicas 2: expected at least"),
    ],
)
def test_refuses_an_autoscaler_that_cannot_be_meant(
    stored: Path, flags: tuple[str, ...], message: str
) -> None:
    """Before anything is simulated."""
    with pytest.raises(SettingsError, match=message):
        main(["--profile", str(stored), "--trace", "step", "--autoscale", "cpu", *flags])

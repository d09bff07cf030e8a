"""The benchmark that lays simulations beside replays: what it blames on the machine's pace."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import arrival_kinds, policies_report, simulated_replays
from benchmarks.policies_report import PolicyRun, Setting
from server.arrivals import parse_trace
from server.farm import PolicyChoice, ServerSettings, build_farm, true_machine
from server.fates import summarise
from server.replay import Replay, ServedBatch
from server.simulated_machine import SlowDown
from server.simulated_requests import Arrival
from server.simulation import simulate
from tests.server.simulated_profiles import profile

SLO_S = 0.4
SECONDS = 30.0


def replayed(slow_downs: list[SlowDown], seed: int) -> PolicyRun:
    """Return what a real server would have told: one at r=0 that slows down."""
    truth = true_machine(profile(), 32, slow_downs=slow_downs)
    times = parse_trace(f"constant:0.8x{SECONDS:g}").times(truth.capacity(0, 8), seed)
    farm = build_farm(profile(), truth, PolicyChoice("static", 0), ServerSettings(SLO_S))
    done = simulate([Arrival(at_s) for at_s in times], farm)
    batches = [
        ServedBatch(one.ended_at, one.ended_at - one.started_at, one.r, one.size)
        for one in done.batches
    ]
    figures = summarise(done.fates, SLO_S, seconds=SECONDS, switches=0)
    replay = Replay(seed, tuple(done.fates), figures, 0.0, 0.0, True, {}, tuple(batches))
    return PolicyRun("static r=0", replay)


def folder_of(tmp_path: Path, runs: list[PolicyRun]) -> Path:
    """Lay the runs down as `benchmarks/policies.py` does."""
    truth = true_machine(profile(), 32)
    capacity = Setting(
        flags=(),
        model="made up",
        slo_s=SLO_S,
        capacity=truth.capacity(0, 8),
        highest=8,
        highest_capacity=truth.capacity(8, 8),
        correctness_unknown="",
    )
    capacity.save(tmp_path / "setting.json")
    profile().save(tmp_path / "served.json")
    for run in runs:
        capacity.save(tmp_path / f"flat_seed{run.replay.seed}_capacity.json")
        run.save(tmp_path / f"flat_seed{run.replay.seed}_static-r-0.json")
    return tmp_path


def table_of(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> dict[str, list[float]]:
    """Run the benchmark and return its row's points apart, foretold and at the replay's pace."""
    monkeypatch.setattr(sys, "argv", ["simulated_replays.py", "--replays", str(folder)])
    simulated_replays.main()
    printed = capsys.readouterr().out
    assert "| static r=0 |" in printed
    [row] = json.loads(printed.splitlines()[-1])["rows"]
    return {
        name: [apart["points"] for apart in row[name]] for name in ("foretold", "at_its_pace")
    } | {"slower": row["slower"]}


def test_a_machine_that_slows_down_is_told_from_a_wrong_simulation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Half as long again for ten seconds: nobody could foretell it; with it, all is explained."""
    runs = [replayed([SlowDown(10.0, 20.0, 1.5)], seed) for seed in range(3)]
    row = table_of(folder_of(tmp_path, runs), monkeypatch, capsys)
    assert min(row["foretold"]) > 4
    assert max(map(abs, row["at_its_pace"])) < 2


def test_a_steady_machine_is_foretold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both ways say the same, and the pace is that of the profile."""
    row = table_of(folder_of(tmp_path, [replayed([], 0)]), monkeypatch, capsys)
    assert max(map(abs, row["foretold"] + row["at_its_pace"])) < 2
    assert row["slower"] == [pytest.approx(1.0, abs=0.05)]


def test_replays_without_batches_are_only_foretold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Files of before batches were kept still load."""
    folder = folder_of(tmp_path, [replayed([], 0)])
    path = folder / "flat_seed0_static-r-0.json"
    content = json.loads(path.read_text())
    del content["replay"]["batches"]
    path.write_text(json.dumps(content))
    row = table_of(folder, monkeypatch, capsys)
    assert row["at_its_pace"] == []
    assert row["slower"] == [None]


def test_batches_survive_the_file(tmp_path: Path) -> None:
    """What was saved is what is loaded."""
    run = replayed([], 0)
    run.save(tmp_path / "run.json")
    assert PolicyRun.load(tmp_path / "run.json").replay.batches == run.replay.batches
    assert run.replay.batches


@pytest.mark.parametrize("trace", arrival_kinds.KINDS, ids=lambda trace: trace.name)
def test_kinds_of_arrivals_repeat_and_keep_to_their_length(trace) -> None:
    """The same seed gives the same rising times within the length, another seed others."""
    times = trace.times(50.0, 3)
    assert times == trace.times(50.0, 3) == sorted(times)
    assert times != trace.times(50.0, 4)
    assert times[0] >= 0
    assert times[-1] <= trace.seconds(50.0)
    assert 0.4 < len(times) / (50.0 * trace.seconds(50.0)) < 1.6


def test_a_plot_shows_the_capacity_that_its_replay_was_measured_beside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shared machine had another pace when the first capacity was measured."""
    run = replayed([], 4)
    first = Setting.load(folder_of(tmp_path, [run]) / "setting.json")
    replace(first, capacity=1.5 * first.capacity).save(tmp_path / "flat_seed4_capacity.json")
    drawn: list[dict[str, float]] = []
    monkeypatch.setattr(
        policies_report, "plot_timeline", lambda *_, capacities, **__: drawn.append(capacities)
    )
    policies_report.draw(tmp_path, first, {"flat": [run], "other": [run]})
    assert [one["capacity r=0"] for one in drawn] == [1.5 * first.capacity, first.capacity]

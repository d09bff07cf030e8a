"""What the comparison of policies says of a degree that is lucky with its photographs."""

import pytest

from benchmarks.policies_report import PolicyRun, Setting, as_expected, describe, show
from server.fates import Fate, summarise
from server.replay import Replay

SLO_S = 0.25
EXPECTED = {0: 0.9, 16: 0.8}
SETTING = Setting((), "made up", SLO_S, 50.0, 16, 90.0, "")


def run(policy: str, r: int, right: int, *, seed: int = 0, late: int = 0) -> PolicyRun:
    """Ten requests, so many of them right; the last ones late, then one that was refused."""
    fates = [
        Fate(k, k + (0.3 if k >= 10 - late else 0.1), "ok", r, float(k < right), 1)
        for k in range(10)
    ]
    fates.append(Fate(10.0, 10.0, "shed", None))
    figures = summarise(fates, SLO_S, seconds=11.0, switches=3)
    return PolicyRun(policy, Replay(seed, tuple(fates), figures, 0.0, 0.0, True, {}))


def test_each_answer_counts_as_its_degree_usually_does() -> None:
    """Late and refused ones count nothing; nothing else changes."""
    one = run("demand", 0, right=3, late=2)
    [other] = as_expected(SETTING, {"flat": [one]}, EXPECTED)["flat"]
    seen, usual = one.replay, other.replay
    assert seen.figures.on_time_correct == pytest.approx(3 / 11)
    assert usual.figures.on_time_correct == pytest.approx(8 * 0.9 / 11)
    assert usual.figures.attainment == seen.figures.attainment == pytest.approx(8 / 11)
    assert (usual.figures.switches, usual.figures.seconds) == (3, 11.0)


def test_what_is_not_known_of_a_degree_is_not_made_up() -> None:
    """One degree without an expected accuracy, and there is no figure."""
    [usual] = as_expected(SETTING, {"flat": [run("demand", 8, right=3)]}, EXPECTED)["flat"]
    assert usual.replay.figures.on_time_correct is None


def test_luck_with_the_photographs_shows(capsys: pytest.CaptureFixture[str]) -> None:
    """By the labels the static degree is ahead, by what is expected of the degrees behind."""
    runs = {
        "flat": [
            run(policy, r, right, seed=seed)
            for seed in range(3)
            for policy, r, right in (("demand", 0, 8), ("static r=16", 16, 10))
        ]
    }
    usual = as_expected(SETTING, runs, EXPECTED)
    show(SETTING, runs, usual)
    printed = capsys.readouterr().out
    assert "`demand` is 18.18 points of on time and correct behind" in printed
    assert "`demand` is 9.09 points of on time and correct, as expected, ahead of" in printed
    row = next(line for line in printed.splitlines() if line.startswith("| demand"))
    assert row.endswith("| 81.82% (81.82% to 81.82%) |")
    trace = describe(SETTING, runs, usual)["traces"]["flat"]
    assert trace["lead_on_time_correct"] == pytest.approx(-2 / 11)
    assert trace["lead_as_expected"] == pytest.approx(1 / 11)


@pytest.mark.parametrize("expected", [{}, {0: 0.9}])
def test_without_expected_accuracies_the_labels_stand_alone(
    capsys: pytest.CaptureFixture[str], expected: dict[int, float]
) -> None:
    """Where one of them is missing, no second verdict is given."""
    runs = {"flat": [run("demand", 0, 8), run("static r=16", 16, 10)]}
    usual = as_expected(SETTING, runs, expected)
    show(SETTING, runs, usual)
    printed = capsys.readouterr().out
    assert printed.count("`demand` is") == 1
    assert describe(SETTING, runs, usual)["traces"]["flat"]["lead_as_expected"] is None

"""`tocom bench` up to the first request: options, what is refused before anything is measured."""

import importlib.util
import signal
from pathlib import Path

import pytest

from server import bench, cli
from server.bench import split_flags, terminated_like_interrupted
from server.bench_options import BenchOptions
from server.errors import SettingsError


def test_flags_after_two_dashes_are_the_servers() -> None:
    """And only those; without dashes there are none."""
    own, flags = split_flags(["--trace", "step", "--", "--model", "m", "--", "x"])
    assert own == ["--trace", "step"]
    assert flags == ("--model", "m", "--", "x")
    assert split_flags(["--trace", "step"]) == (["--trace", "step"], ())


@pytest.mark.parametrize(
    ("argv", "reason"),
    [
        ([], "nothing to do"),
        (["--trace", "stairs:1x2"], "there is no kind 'stairs'"),
        (["--trace", "step", "--seeds", "1", "1"], "different numbers"),
        (["--trace", "step", "--seeds", "-1"], "different numbers"),
        (["--trace", "step", "--slo-ms", "0"], "--slo-ms 0: expected more than 0"),
        (["--trace", "step", "--capacity", "nan"], "--capacity nan"),
        (["--trace", "step", "--deadline-ms", "-5"], "--deadline-ms -5"),
        (["--trace", "step", "--image-count", "0"], "--image-count 0"),
        (["--trace", "step", "--duration", "5"], "itself says how long"),
        (["--trace", "step", "--url", "localhost:8000"], "http://127.0.0.1:8000"),
        (["--trace", "step", "--url", "http://h", "--", "--model=m"], "drop --url"),
        (["--trace", "step", "--", "--slo-ms=5"], "before the --"),
        (["--trace", "step", "--", "--slo-ms", "5"], "before the --"),
    ],
)
def test_nonsense_is_wrong_usage(
    argv: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line on stderr, exit code 2, and no server was asked."""
    assert cli.main(["bench", *argv]) == 2
    told = capsys.readouterr()
    assert reason in told.err and told.out == ""


@pytest.mark.parametrize(
    ("module", "extra"), [("aiohttp", "bench"), ("httpx", "bench"), ("matplotlib", "plots")]
)
def test_missing_extras_are_named_before_anything_is_measured(
    module: str, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What to install stands in the message."""
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == module else real(name)
    )
    argv = ["--trace", "step", "--output", str(tmp_path / "out"), "--url", "http://127.0.0.1:1"]
    with pytest.raises(SettingsError, match=rf"tocom-serve\[{extra}\]"):
        bench.main(argv)


def test_a_server_that_is_not_there_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 1, without a traceback."""
    assert cli.main(["bench", "--trace", "step", "--url", "http://127.0.0.1:9"]) == 1
    assert (
        "tocom: the server cannot be measured: the server cannot be reached"
        in capsys.readouterr().err
    )


def test_a_trace_is_parsed_with_its_window() -> None:
    """Options reach the trace; a profile alone needs none."""
    assert BenchOptions(save_profile="profile.json").parsed_trace() is None
    scaled = BenchOptions(trace="constant:1x5", scale=0.5).parsed_trace()
    assert scaled is not None and len(scaled.times(100, 0)) == pytest.approx(250, abs=60)


def test_sigterm_is_ctrl_c() -> None:
    """While the block lasts; afterwards it is what it was before."""
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), terminated_like_interrupted():
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before

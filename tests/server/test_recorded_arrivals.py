"""Recordings of arrivals: what files are read, how time is compressed, which part is replayed."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.arrivals import parse_trace
from server.errors import SettingsError
from server.recorded_arrivals import RecordedTrace, read_recording

RATE = 10.0
HOURLY = tuple(float(second) for second in range(0, 3601, 4))

recordings = (
    st.lists(st.floats(0, 1e5), min_size=2, max_size=60)
    .map(lambda times: tuple(at - min(times) for at in sorted(times)))
    .filter(lambda times: times[-1] > 1e-3)
)


@pytest.fixture
def write(tmp_path: Path):
    """A function that writes a CSV and returns its path."""

    def write_text(text: str) -> str:
        path = tmp_path / "arrivals.csv"
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write_text


@given(recordings, st.floats(0.05, 5), st.integers(0, 99))
def test_all_arrivals_are_kept_at_the_wanted_mean(
    recorded: tuple[float, ...], scale: float, seed: int
) -> None:
    """The whole recording at any scale: every arrival, in proportion, at this mean rate."""
    trace = RecordedTrace(recorded, "any", scale)
    times = trace.times(RATE, seed)
    assert len(times) == len(recorded)
    assert (len(times) - 1) / times[-1] == pytest.approx(scale * RATE)
    factor = times[-1] / recorded[-1]
    assert times == pytest.approx([factor * at for at in recorded])


@given(recordings, st.floats(0.1, 20), st.integers(0, 99))
def test_a_window_is_a_piece_of_the_whole(
    recorded: tuple[float, ...], duration_s: float, seed: int
) -> None:
    """A window that the seed chose holds a run of neighbours, shifted to begin at 0."""
    trace = RecordedTrace(recorded, "any", 1.0, duration_s)
    whole = RecordedTrace(recorded, "any", 1.0).times(RATE, 0)
    times = trace.times(RATE, seed)
    assert all(0 <= at <= duration_s for at in times)
    assert times == trace.times(RATE, seed)
    assert trace.seconds(RATE) == pytest.approx(min(duration_s, whole[-1]))
    if times:
        gaps = [round(at - times[0], 6) for at in times]
        pieces = (whole[place : place + len(times)] for place in range(len(whole)))
        assert any([round(at - piece[0], 6) for at in piece] == gaps for piece in pieces)


def test_start_fixes_the_window() -> None:
    """With a start all seeds replay the same; the description says which part."""
    trace = RecordedTrace(HOURLY, "hour.csv", 0.5, duration_s=20, start_s=30)
    assert trace.times(RATE, 0) == trace.times(RATE, 1)
    assert len(trace.times(RATE, 0)) == pytest.approx(0.5 * RATE * 20, abs=1)
    assert "30.0 to 50.0 s of 180.0 s" in trace.describe(RATE, 0)


def test_seeds_choose_different_windows_and_tell() -> None:
    """Without a start each seed looks at another part."""
    trace = RecordedTrace(HOURLY, "hour.csv", 0.5, duration_s=20)
    assert trace.describe(RATE, 0) != trace.describe(RATE, 1)
    assert "chosen by the seed" in trace.describe(RATE, 0)


def test_a_window_longer_than_the_recording_is_all_of_it() -> None:
    """`duration_s` is an upper bound."""
    trace = RecordedTrace(HOURLY, "hour.csv", 1.0, duration_s=1e6)
    assert trace.seconds(RATE) == pytest.approx(90)
    assert len(trace.times(RATE, 0)) == len(HOURLY)


def test_a_start_after_the_end_is_refused() -> None:
    """The message says how long the recording lasts at this scale."""
    trace = RecordedTrace(HOURLY, "hour.csv", 1.0, start_s=100)
    with pytest.raises(SettingsError, match=r"lasts only 90\.0 s"):
        trace.times(RATE, 0)


@pytest.mark.parametrize("options", [{"duration_s": 0}, {"duration_s": -1}, {"start_s": -1}])
def test_windows_that_are_none_are_refused(options: dict[str, float]) -> None:
    """A negative length or start is a mistake."""
    with pytest.raises(SettingsError, match="expected"):
        RecordedTrace(HOURLY, "hour.csv", **options)


@pytest.mark.parametrize(
    "text",
    [
        "10\n10.5\n12\n",
        "arrival_s\n10\n10.5\n12",
        "\ufeffarrival_s\r\n10\r\n10.5\r\n12\r\n",
        "time in seconds\n\n10\n\n10.5\n12\n",
        "user,arrival_s\nann,10\nbob,10.5\neve,12\n",
        "1e1\n1.05e1\n12.0\n",
    ],
)
def test_files_are_read_with_or_without_a_header(write, text: str) -> None:
    """One time per line, or a column of that name; the first arrival becomes 0."""
    assert read_recording(write(text)) == pytest.approx((0, 0.5, 2))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("arrival_s\n1\n3\n2\n", "line 4: 2 is earlier"),
        ("1\n-2\n", "line 2"),
        ("1\nnan\n", "line 2"),
        ("nan\n1\n", "line 1"),
        ("1\ninf\n", "line 2"),
        ("1\n\n\ntwo\n", "line 4"),
        ("1\n2;3\n", "line 2"),
        ("user,arrival_s\nann,1\nbob\n", "line 3"),
        ("user,when\nann,1\n", "headed 'arrival_s'"),
        ("", "at least two different"),
        ("arrival_s\n", "at least two different"),
        ("5\n", "at least two different"),
        ("5\n5\n", "at least two different"),
    ],
)
def test_bad_files_are_refused_with_the_line(write, text: str, reason: str) -> None:
    """Unsorted, negative, not a number, not finite, or nothing at all."""
    with pytest.raises(SettingsError) as refused:
        read_recording(write(text))
    assert reason in str(refused.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    """A mistyped path is told as such."""
    with pytest.raises(SettingsError, match=r"nowhere\.csv"):
        parse_trace(str(tmp_path / "nowhere.csv"))


def test_parse_trace_reads_paths(write) -> None:
    """Whatever is no kind of trace is a path; scale is then the mean."""
    trace = parse_trace(write("0\n1\n2\n"), scale=0.5, duration_s=60)
    assert trace.times(RATE, 0) == pytest.approx([0, 0.2, 0.4])

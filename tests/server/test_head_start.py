"""When the next batch may be chosen."""

from server.head_start import HANDOVER_S, WEIGHT, HeadStart


class Time:
    """A clock that sleeping moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        """Seconds."""
        return self.now

    def sleep(self, seconds: float) -> None:
        """Pass."""
        self.now += seconds


def test_a_batch_never_timed_is_awaited_to_its_end() -> None:
    """Nothing is known of when it ends."""
    time = Time()
    assert not HeadStart(time, time.sleep).wait((0, 4), lambda: False)
    assert time.now == 0


def test_the_next_is_chosen_as_long_before_the_end_as_staging_takes() -> None:
    """Expected duration less staging less handing over."""
    time = Time()
    start = HeadStart(time, time.sleep)
    start.computed((0, 4), 0.050)
    start.staged(0.010)
    assert start.wait((0, 4), lambda: False)
    assert abs(time.now - (0.050 - WEIGHT * 0.010 - HANDOVER_S)) < 1e-9


def test_a_batch_that_ends_early_is_noticed() -> None:
    """No use in waiting any longer."""
    time = Time()
    start = HeadStart(time, time.sleep)
    start.computed((0, 4), 1.0)
    assert start.wait((0, 4), lambda: time.now > 0.1)
    assert time.now < 0.11


def test_a_short_batch_lets_the_next_begin_at_once() -> None:
    """Where staging takes longer than computing."""
    time = Time()
    start = HeadStart(time, time.sleep)
    start.computed((0, 1), HANDOVER_S / 2)
    assert start.wait((0, 1), lambda: False)
    assert time.now == 0


def test_each_kind_of_batch_has_its_own_mean() -> None:
    """It follows the newest durations slowly."""
    time = Time()
    start = HeadStart(time, time.sleep)
    start.computed((0, 4), 0.1)
    start.computed((0, 4), 0.2)
    start.computed((8, 4), 0.05)
    start.wait((0, 4), lambda: False)
    assert abs(time.now - (0.1 + WEIGHT * 0.1 - HANDOVER_S)) < 1e-9

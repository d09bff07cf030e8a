"""Who may speak to the devices."""

import threading
from contextlib import AbstractContextManager

from tocom_core.device_calls import DeviceCalls

SOON_S, LONG_S = 0.05, 20.0


class Caller:
    """A thread that comes, says that it is in, and leaves when it is told to."""

    def __init__(self, how: AbstractContextManager[None]) -> None:
        self._how = how
        self.inside, self._leave = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def leave(self) -> None:
        """Be gone."""
        assert self.inside.wait(LONG_S)
        self._leave.set()
        self._thread.join(LONG_S)

    def _run(self) -> None:
        with self._how:
            self.inside.set()
            self._leave.wait(LONG_S)


def test_callers_share_and_a_capture_is_alone() -> None:
    """It waits for those who are there, and those who come later wait for it."""
    calls = DeviceCalls()
    first, second = Caller(calls.shared()), Caller(calls.shared())
    assert first.inside.wait(LONG_S) and second.inside.wait(LONG_S)
    capture = Caller(calls.alone())
    first.leave()
    assert not capture.inside.wait(SOON_S)
    later = Caller(calls.shared())
    second.leave()
    assert capture.inside.wait(LONG_S)
    assert not later.inside.wait(SOON_S)
    capture.leave()
    later.leave()


def test_one_capture_at_a_time() -> None:
    """The second begins when the first has ended, and then everybody may come again."""
    calls = DeviceCalls()
    first = Caller(calls.alone())
    assert first.inside.wait(LONG_S)
    second, third = Caller(calls.alone()), Caller(calls.shared())
    assert not second.inside.wait(SOON_S)
    first.leave()
    second.leave()
    third.leave()


def test_a_call_that_fails_leaves_too() -> None:
    """Whatever was raised inside."""
    calls = DeviceCalls()
    for how in (calls.shared, calls.alone):
        try:
            with how():
                raise RuntimeError
        except RuntimeError:
            pass
    Caller(calls.alone()).leave()
    Caller(calls.shared()).leave()

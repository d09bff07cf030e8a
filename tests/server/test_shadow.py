"""Live agreement: which images are drawn, kept and run again, and what comes of failures."""

import asyncio
import logging
from collections.abc import Sequence
from random import Random
from typing import Any

import numpy as np
import pytest

from server.agreement import Comparison
from server.shadow import ShadowRunner
from server.stats import BatchOutcome


class Setup:
    """A runner whose model finds the class that the payload names."""

    def __init__(self, share: float = 1.0, r_source: int = 0, **options: Any) -> None:
        self.runs: list[tuple[list[int], int]] = []
        self.compared: list[Comparison] = []
        self.failure: Exception | None = None
        self.output: Any = None
        self.runner = ShadowRunner(
            self.run,
            r_source,
            share=share,
            random=Random(0),
            on_comparison=[self.compared.append],
            **options,
        )

    async def run(self, payloads: Sequence[int], r: int) -> BatchOutcome:
        """Give each payload's own class the highest score."""
        self.runs.append((list(payloads), r))
        if self.failure is not None:
            raise self.failure
        outputs = [np.eye(10)[payload] for payload in payloads]
        return BatchOutcome([self.output] if self.output else outputs, r, 0.0, 0.01)

    def step(self) -> bool:
        """Run one step to its end."""
        return asyncio.run(self.runner.step())


def test_a_served_image_is_run_again_at_the_source() -> None:
    """One image a step, alone, at r_source; observers hear whether the class is the same."""
    setup = Setup(r_source=2)
    setup.runner.offer(7, 7, r=5)
    setup.runner.offer(3, 4, r=8)
    assert (setup.step(), setup.step(), setup.step()) == (True, True, False)
    assert setup.runs == [([7], 2), ([3], 2)]
    assert setup.compared == [Comparison(5, True), Comparison(8, False)]


def test_at_the_source_there_is_nothing_to_compare() -> None:
    """Such an image is not even drawn."""
    setup = Setup(r_source=2)
    setup.runner.offer(7, 7, r=2)
    assert setup.step() is False


def test_the_newest_images_are_kept() -> None:
    """What was drawn under load gives way: memory stays bounded."""
    setup = Setup(capacity=3)
    for payload in range(8):
        setup.runner.offer(payload, payload, r=1)
    while setup.step():
        pass
    assert [payloads for payloads, _ in setup.runs] == [[5], [6], [7]]


@pytest.mark.parametrize("share", [0.0, 0.05, 0.5, 1.0])
def test_the_share_is_drawn(share: float) -> None:
    """Of many images, about the share; all of them or none at the ends."""
    setup = Setup(share, capacity=10_000)
    for _ in range(10_000):
        setup.runner.offer(1, 1, r=1)
    drawn = 0
    while asyncio.run(setup.runner.step()):
        drawn += 1
        if drawn > 1_000:
            break
    expected = min(10_000 * share, 1_001)
    assert abs(drawn - expected) <= 4 * (expected * (1 - share)) ** 0.5


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_a_share_is_a_share(share: float) -> None:
    """Anything outside of 0 to 1 is refused with its value."""
    with pytest.raises(ValueError, match="share="):
        Setup(share)


def test_a_run_that_fails_is_logged_and_dropped(caplog: pytest.LogCaptureFixture) -> None:
    """Nothing is compared, nothing raised, and the next image is tried."""
    setup = Setup()
    setup.runner.offer(1, 1, r=4)
    setup.runner.offer(2, 2, r=4)
    setup.failure = RuntimeError("out of order")
    with caplog.at_level(logging.ERROR):
        assert setup.step() is True
    assert "r=4 again at r=0 failed" in caplog.text
    setup.failure = None
    assert (setup.step(), setup.step()) == (True, False)
    assert setup.compared == [Comparison(4, True)]


def test_an_image_without_a_finite_answer_is_dropped(caplog: pytest.LogCaptureFixture) -> None:
    """The engine returns such an image's failure in place of its scores."""
    setup = Setup()
    setup.runner.offer(1, 1, r=4)
    setup.output = ArithmeticError("no finite scores")
    with caplog.at_level(logging.ERROR):
        assert setup.step() is True
    assert setup.compared == [] and "no finite scores" in caplog.text


def test_cancelling_is_no_failure(caplog: pytest.LogCaptureFixture) -> None:
    """At shutdown the step ends where it is, without a word in the log."""
    setup = Setup()
    setup.runner.offer(1, 1, r=4)

    async def cancel_during_the_run() -> None:
        reached = asyncio.Event()

        async def never(payloads: Sequence[int], r: int) -> BatchOutcome:
            reached.set()
            await asyncio.Event().wait()
            raise AssertionError

        setup.runner = ShadowRunner(never, 0, share=1.0, random=Random(0))
        setup.runner.offer(1, 1, r=4)
        step = asyncio.create_task(setup.runner.step())
        await reached.wait()
        step.cancel()
        with pytest.raises(asyncio.CancelledError):
            await step

    asyncio.run(cancel_during_the_run())
    assert caplog.text == ""

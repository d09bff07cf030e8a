"""All that steers, together: batcher, scheduler, controller, table and policy, through a spike."""

import asyncio
import contextlib

import pytest

from server.batcher import Batcher, ItemResult, Submission
from server.controller import Controller
from server.entries import Entry
from server.errors import QueueFull
from server.operating_table import OperatingTable
from server.policies import BUILDERS, build_policy
from server.scheduler import Scheduler
from server.stats import RequestStats, SwitchStats
from tests.server.fakes import FakeModel, loop_time, run_virtual
from tests.server.situations import linear_speedup
from tocom_core.latency_profile import LatencyProfile, Measurement

SLO_S = 0.25
MAX_BATCH_SIZE = 16
QUEUE_SIZE = 256
TRUE_SPEED = linear_speedup(40.0, 2.0)  # images/s: 40 at r=0, 80 at r=16


def table(misjudged: float) -> OperatingTable:
    """Return a table that takes each degree for `misjudged` times as fast as it is."""
    measurements = [
        Measurement(r, size, size / (misjudged * TRUE_SPEED(r)), spread=0.05, runs=3)
        for r in (0, 8, 16)
        for size in (1, 4, 16)
    ]
    profile = LatencyProfile(
        device={"type": "cpu"},
        model={"name": "fake"},
        work={r: TRUE_SPEED(0) / TRUE_SPEED(r) for r in range(17)},
        measurements=measurements,
        max_batch_size=MAX_BATCH_SIZE,
    )
    return OperatingTable(profile, max_batch_s=SLO_S / 2)


class Served:
    """A server without HTTP and weights; made within a running event loop.

    Attributes:
        controller: what holds the degree.
        switches: every change of it.
        ended: how each image that was offered fared.
    """

    def __init__(self, policy: str, misjudged: float) -> None:
        self.switches: list[SwitchStats] = []
        self.ended: list[RequestStats] = []
        self.controller = Controller(
            build_policy(policy, static_r=0, dwell_s=1.0, slo_s=SLO_S),
            table(misjudged),
            0,
            loop_time,
            slo_s=SLO_S,
            on_switch=[self.switches.append],
        )
        scheduler: Scheduler[Entry] = Scheduler(
            self.controller, max_batch_size=MAX_BATCH_SIZE, queue_size=QUEUE_SIZE, slo_s=SLO_S
        )
        self.batcher = Batcher(
            FakeModel(TRUE_SPEED, merge_s=0.001).run,
            scheduler,
            loop_time,
            max_batch_size=MAX_BATCH_SIZE,
            max_queue_delay_s=0.002,
            queue_size=QUEUE_SIZE,
            on_batch=[self.controller.observe_batch],
            on_request=[self.ended.append],
        )
        self.batcher.start()
        self._futures: list[asyncio.Future[ItemResult]] = []

    async def offer(self, images_per_s: float, seconds: float) -> None:
        """Send single images at equal distances."""
        for _ in range(round(images_per_s * seconds)):
            with contextlib.suppress(QueueFull):
                self._futures += self.batcher.submit_all([Submission("image")])
            await asyncio.sleep(1 / images_per_s)

    async def end(self) -> None:
        """Answer what is left."""
        await self.batcher.drain(10.0)
        await asyncio.gather(*self._futures, return_exceptions=True)

    @property
    def attainment(self) -> float:
        """Share of the offered images that were answered within the SLO."""
        good = [stats for stats in self.ended if stats.outcome == "ok" and stats.total_s <= SLO_S]
        return len(good) / len(self.ended)

    def switches_within(self, since: float, until: float) -> int:
        """Count the changes of the degree in a time."""
        return sum(since <= switch.at <= until for switch in self.switches)


async def through_a_spike(policy: str, misjudged: float) -> tuple[Served, list[int]]:
    """Serve a quarter of the capacity, 1.5 times of it for 30 s, and a quarter again.

    Returns:
        The server, and its degree at the end of each of the three.
    """
    served, degrees = Served(policy, misjudged), []
    for images_per_s, seconds in ((10.0, 5.0), (60.0, 30.0), (10.0, 25.0)):
        await served.offer(images_per_s, seconds)
        degrees.append(served.controller.status().r)
    await served.end()
    return served, degrees


@pytest.mark.parametrize("misjudged", [0.75, 1.0, 1.3])
@pytest.mark.parametrize("policy", sorted(set(BUILDERS) - {"static"}))
def test_a_spike_of_one_and_a_half_times_the_capacity(policy: str, misjudged: float) -> None:
    """The degree rises in time, next to nobody is late, and it comes back; also if misjudged."""
    served, (before, _, after) = run_virtual(through_a_spike(policy, misjudged))
    assert (before, after) == (0, 0)
    assert served.switches_within(5.0, 6.5) > 0
    assert served.attainment > 0.98


@pytest.mark.parametrize(
    "policy",
    [
        "demand",
        "threshold",
        "aimd",
    ],
)
def test_the_degree_rests_during_a_spike(policy: str) -> None:
    """While the load is constant, nothing changes after the first seconds."""
    served, (_, during, _) = run_virtual(through_a_spike(policy, 1.0))
    assert 8 <= during <= 14  # 60 images/s are 1.5 times r=0, which r=8 serves
    assert served.switches_within(20.0, 35.0) <= 1


def test_a_fixed_degree_loses_what_is_too_much() -> None:
    """What the others are measured by: r=0 through the same spike is late or sheds a quarter."""
    served, degrees = run_virtual(through_a_spike("static", 1.0))
    assert degrees == [0, 0, 0]
    assert served.attainment < 0.8

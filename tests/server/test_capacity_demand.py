"""The signal for autoscalers: offered load over the capacity at the steady degree."""

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.capacity_demand import BUCKET_S, WINDOW_S, CapacityDemand, OfferedLoad, steady_level
from server.errors import SettingsError
from server.operating_table import OperatingTable
from server.policy import StaticPolicy
from tests.server.fake_table import SetTable
from tests.server.fakes import ManualClock
from tests.server.simulated_profiles import profile
from tests.server.test_app import Bench as App
from tests.server.test_app import model_path, tell  # noqa: F401 (a fixture)
from tests.server.test_controller import Bench


def offer(offered: OfferedLoad, rate: float, start_s: float, seconds: float) -> float:
    """Let so many arrive a second, evenly; return the time at which that is over."""
    for i in range(round(rate * seconds)):
        offered.add(start_s + i / rate, 1)
    return start_s + seconds


def demand(bench: Bench, offered: OfferedLoad, steady_r: int | None = None) -> CapacityDemand:
    """Return the signal of a controller."""
    return CapacityDemand(offered, bench.controller.status, steady_r, bench.clock)


@pytest.mark.parametrize("rate", [4.0, 40.0, 333.0])
def test_constant_load_reads_as_its_rate(rate: float) -> None:
    """Within one bucket's worth, at whatever moment it is asked."""
    offered = OfferedLoad()
    now = offer(offered, rate, 1000.0, 2 * WINDOW_S)
    for _ in range(7):
        assert offered.per_second(now) == pytest.approx(rate, rel=0.02, abs=1 / WINDOW_S)
        now = offer(offered, rate, now, 0.3)


def test_a_step_is_seen_whole_after_the_window_and_fades_as_fast() -> None:
    """Half of it after half the window: what an autoscaler sees is no older than its period."""
    offered = OfferedLoad()
    now = offer(offered, 80.0, 0.0, WINDOW_S / 2)
    assert offered.per_second(now) == pytest.approx(40.0, rel=0.02)
    now = offer(offered, 80.0, now, WINDOW_S / 2)
    assert offered.per_second(now) == pytest.approx(80.0, rel=0.02)
    assert offered.per_second(now + WINDOW_S / 2) == pytest.approx(40.0, rel=0.05)
    assert offered.per_second(now + WINDOW_S + BUCKET_S) == 0.0


def test_a_second_of_noise_is_no_spike() -> None:
    """A burst of one second's work moves it by a fifteenth."""
    offered = OfferedLoad()
    now = offer(offered, 20.0, 0.0, WINDOW_S)
    offered.add(now, 20)
    assert offered.per_second(now) == pytest.approx(20.0 + 20 / WINDOW_S, rel=0.02)


@given(st.lists(st.tuples(st.floats(0, 40), st.integers(1, 9)), max_size=60))
def test_every_image_counts_for_one_window(times: list[tuple[float, int]]) -> None:
    """The rate times the window is what came in it, but for the bucket that is leaving."""
    offered = OfferedLoad()
    for at, images in sorted(times):
        offered.add(at, images)
    now = 40.0
    counted = offered.per_second(now) * WINDOW_S
    surely = sum(images for at, images in times if at >= now - WINDOW_S + BUCKET_S)
    perhaps = sum(images for at, images in times if at >= now - WINDOW_S - BUCKET_S)
    assert surely - 1e-6 <= counted <= perhaps + 1e-6


def test_the_load_that_moves_between_replicas_is_counted_once() -> None:
    """The sum over replicas stays what all of them were offered, while one takes over another's."""
    first, second = OfferedLoad(), OfferedLoad()
    now = offer(first, 60.0, 0.0, WINDOW_S)
    for _ in range(5):
        now = offer(second, 60.0, now, 3.0)
        assert first.per_second(now) + second.per_second(now) == pytest.approx(60.0, rel=0.02)


def test_is_the_share_of_the_capacity_at_the_steady_degree() -> None:
    """100 images/s at r=0, 150 at r=8; idle it is 0, twice the capacity reads 2."""
    bench, offered = Bench(), OfferedLoad()
    lowest, middle = demand(bench, offered), demand(bench, offered, 8)
    assert (lowest.value(), lowest.steady_r, middle.steady_r) == (0.0, 0, 8)
    bench.clock.now = offer(offered, 200.0, bench.clock.now, WINDOW_S)
    assert lowest.value() == pytest.approx(2.0, rel=0.02)
    assert middle.value() == pytest.approx(200 / 150, rel=0.02)
    bench.clock.now += 2 * WINDOW_S
    assert lowest.value() == 0.0


def test_a_pin_and_shadow_mode_change_nothing() -> None:
    """What the operator holds for a while is not what they plan with."""
    bench, offered = Bench(), OfferedLoad()
    bench.clock.now = offer(offered, 100.0, bench.clock.now, WINDOW_S)
    before = demand(bench, offered).value()
    bench.controller.pin(16)
    assert demand(bench, offered).value() == before
    bench.controller.shadow(16)
    assert demand(bench, offered).value() == before
    bench.controller.auto()
    assert demand(bench, offered).value() == before == pytest.approx(1.0, rel=0.02)


@pytest.mark.parametrize(
    ("steady_r", "bounds", "expected"),
    [
        (None, {}, 0),
        (5, {}, 4),  # 5, 6 and 7 do not pay: the next lower one that does
        (7, {}, 4),
        (8, {}, 8),
        (3, {"min_r": 8}, 8),  # all that are offered are higher: the lowest of them
        (None, {"min_r": 4}, 4),
        (16, {"max_r": 12}, 12),
    ],
)
def test_the_steady_degree_is_one_that_is_offered(
    steady_r: int | None, bounds: dict[str, int], expected: int
) -> None:
    """Between offered degrees it is the next lower one."""
    bench = Bench(table=SetTable(slow=(5, 6, 7)))
    bench.controller.bound(**bounds)
    assert steady_level(bench.controller.status(), steady_r).r == expected


def test_a_fixed_degree_is_the_steady_one() -> None:
    """The policy `static` offers nothing else."""
    status = Bench(StaticPolicy(12)).controller.status()
    assert steady_level(status, None).r == steady_level(status, 3).r == 12


def test_several_devices_carry_more() -> None:
    """The capacity is that of all devices together."""
    offered, readings = OfferedLoad(), []
    clock = ManualClock()
    clock.now = offer(offered, 90.0, clock.now, WINDOW_S)
    for devices in (1, 3):
        table: Any = OperatingTable(profile(), devices=devices)
        bench = Bench(table=table)
        one = CapacityDemand(offered, bench.controller.status, None, clock)
        readings.append(one.value())
    assert readings[0] == pytest.approx(3 * readings[1])
    assert readings[0] > 1.5


def test_the_server_tells_it(model_path: str) -> None:  # noqa: F811
    """In the metrics, in `GET /compression` and as a call; what is refused counts as well."""

    async def story(app: App) -> None:
        assert app.service.capacity_demand() == 0.0
        app.engine.go.clear()
        first = asyncio.create_task(app.post())
        await app.held(1)
        rest = asyncio.create_task(app.post(count=3))
        await app.held(4)
        assert (await app.post(count=2)).status_code == 429
        told = (await app.client.get("/compression")).json()
        level = next(one for one in told["levels"] if one["r"] == told["steady_r"])
        expected = pytest.approx((1 + 3 + 2) / WINDOW_S / level["images_per_s"], rel=0.01)
        assert told["capacity_demand"] == expected
        assert app.service.capacity_demand() == expected
        page = (await app.client.get("/metrics")).text
        [line] = [row for row in page.splitlines() if row.startswith("tocom_capacity_demand ")]
        assert float(line.split()[1]) == expected
        app.engine.go.set()
        assert [answer.status_code for answer in (await first, await rest)] == [200, 200]
        await app.service.drain()
        assert app.service.capacity_demand() > 0  # type: ignore[operator]

    tell(model_path, story, queue_size=4, max_batch_size=1)


def test_refuses_a_degree_that_the_model_does_not_have(model_path: str) -> None:  # noqa: F811
    """At the start, with what there is."""
    with pytest.raises(SettingsError, match="steady_r=99: the model has degrees 0 to"):
        tell(model_path, no_story, steady_r=99)


async def no_story(app: App) -> None:
    """Nothing: it does not come to that."""


def test_is_not_known_before_warm_up(model_path: str) -> None:  # noqa: F811
    """Announced, without a value: nothing that a sum or an autoscaler could take for a load."""

    async def story(app: App) -> None:
        assert app.service.capacity_demand() is None
        page = (await app.client.get("/metrics")).text
        assert "# TYPE tocom_capacity_demand gauge" in page
        assert "\ntocom_capacity_demand " not in page

    tell(model_path, story, warm=False)

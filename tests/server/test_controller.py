"""The controller: modes, pins, bounds, floor, and what it reports."""

import pytest

from server.controller import Controller
from server.errors import BadParameter
from server.levels import LevelTable
from server.policy import Decision, StaticPolicy, ThresholdPolicy
from server.stats import BatchStats, LoadSnapshot, SwitchStats
from tests.server.fakes import ManualClock, linear_speedup, points

SPEED = linear_speedup(100.0, 2.0, 16)
IDLE = LoadSnapshot(0.0, 0, 0.0, 0, 0.0, None)


class Wish:
    """A policy that wants what the test tells it, and remembers what it was shown."""

    def __init__(self, r: int = 0) -> None:
        self.r = r
        self.seen: list[LoadSnapshot] = []

    def decide(self, load: LoadSnapshot, current_r: int) -> Decision:
        """Return the level nearest to the wish."""
        self.seen.append(load)
        assert current_r in [level.r for level in load.levels]
        nearest = min(load.levels, key=lambda level: abs(level.r - self.r))
        return Decision(nearest.r, "wish")


def build(policy=None, *, r_source: int = 0, degrees=tuple(range(17)), accuracy=None, **options):
    """Return a controller with 17 measured levels, its clock and its switch records."""
    clock = ManualClock()
    switches: list[SwitchStats] = []
    levels = LevelTable(points(SPEED, degrees, accuracy=accuracy or (lambda r: None)))
    controller = Controller(
        policy or Wish(),
        levels,
        r_source,
        clock,
        slo_s=0.25,
        on_switch=[switches.append],
        **options,
    )
    return controller, clock, switches


def test_policy_decides_in_auto_mode() -> None:
    """The policy sees the SLO and the levels, and its word is the next degree."""
    policy = Wish(7)
    controller, _, _ = build(policy)
    assert controller.next_r(IDLE) == 7
    assert policy.seen[0].slo_s == 0.25
    assert [level.r for level in policy.seen[0].levels] == list(range(17))


def test_pin_holds_until_auto() -> None:
    """A pin keeps the policy out; auto lets it in again from where the degree is."""
    policy = Wish(3)
    controller, _, _ = build(policy)
    controller.pin(12)
    assert controller.next_r(IDLE) == 12
    assert (controller.status().mode, policy.seen) == ("pinned", [])
    controller.auto()
    assert (controller.status().mode, controller.status().r) == ("auto", 12)
    assert controller.next_r(IDLE) == 3


def test_pin_with_ttl_ends_by_itself() -> None:
    """After ttl_s the policy decides again, with or without traffic in between."""
    controller, clock, _ = build(Wish(3))
    controller.pin(12, ttl_s=60)
    clock.now += 59.0
    assert controller.next_r(IDLE) == 12
    assert controller.status().pinned_ttl_s == pytest.approx(1.0)
    clock.now += 1.0
    status = controller.status()
    assert (status.mode, status.pinned_ttl_s) == ("auto", None)
    assert controller.next_r(IDLE) == 3


def test_a_new_pin_replaces_the_old_one_with_its_ttl() -> None:
    """Pinning without a ttl after pinning with one holds for good."""
    controller, clock, _ = build()
    controller.pin(12, ttl_s=1)
    controller.pin(5)
    clock.now += 100
    assert controller.next_r(IDLE) == 5


@pytest.mark.parametrize("r", [-1, 17, 1000])
def test_pin_outside_the_model_is_refused(r: int) -> None:
    """The message names the value and the range; nothing changes."""
    controller, _, _ = build()
    with pytest.raises(BadParameter, match=f"r={r} .* 0 to 16"):
        controller.pin(r)
    assert controller.status().mode == "auto"


def test_pin_between_sparse_levels_is_refused() -> None:
    """With gaps between the levels the message lists them."""
    controller, _, _ = build(degrees=(0, 8, 16))
    with pytest.raises(BadParameter, match="0, 8, 16"):
        controller.pin(4)


@pytest.mark.parametrize("ttl_s", [0.0, -1.0, float("nan"), float("inf")])
def test_bad_ttl_is_refused(ttl_s: float) -> None:
    """A time to live is a positive, finite number of seconds."""
    controller, _, _ = build()
    with pytest.raises(BadParameter, match="ttl_s"):
        controller.pin(4, ttl_s=ttl_s)
    assert controller.status().mode == "auto"


def test_bounds_limit_the_policy_but_not_a_pin() -> None:
    """Outside its bounds the controller does not go; the operator may."""
    policy = Wish(16)
    controller, _, _ = build(policy)
    controller.bound(min_r=2, max_r=9)
    assert controller.next_r(IDLE) == 9
    policy.r = 0
    assert controller.next_r(IDLE) == 2
    controller.pin(16)
    assert controller.next_r(IDLE) == 16
    controller.auto()
    assert controller.status().r == 9


def test_new_bounds_move_the_degree_at_once() -> None:
    """Bounds take effect without waiting for a batch; an omitted one stays."""
    controller, _, _ = build(Wish(16))
    controller.next_r(IDLE)
    controller.bound(max_r=8)
    status = controller.status()
    assert (status.r, status.min_r, status.max_r) == (8, 0, 8)
    controller.bound(min_r=4)
    assert (controller.status().min_r, controller.status().max_r) == (4, 8)


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        ({"min_r": 9, "max_r": 3}, "min_r=9 .* max_r=3"),
        ({"max_r": 17}, "max_r=17 .* 0 to 16"),
        ({"min_r": -1}, "min_r=-1 .* 0 to 16"),
    ],
)
def test_bad_bounds_are_refused(bounds: dict[str, int], message: str) -> None:
    """Crossed bounds and unknown degrees change nothing."""
    controller, _, _ = build()
    with pytest.raises(BadParameter, match=message):
        controller.bound(**bounds)
    assert (controller.status().min_r, controller.status().max_r) == (0, 16)


def test_max_r_of_the_settings_is_a_bound() -> None:
    """The start-up bound is like one set later, and refused if the model has no such degree."""
    controller, _, _ = build(Wish(16), max_r=6)
    assert controller.next_r(IDLE) == 6
    with pytest.raises(BadParameter, match="max_r=20"):
        build(max_r=20)


def test_rests_at_the_degree_of_the_checkpoint() -> None:
    """A model fine-tuned at 8 rests at 8; the operator may let it go lower."""
    controller, _, _ = build(Wish(0), r_source=8)
    assert controller.status().r == 8
    assert controller.next_r(IDLE) == 8
    controller.bound(min_r=0)
    assert controller.next_r(IDLE) == 0


def falling(r: int) -> float | None:
    """Return an accuracy that falls with r; unknown at r=5."""
    return None if r == 5 else 0.9 - 0.01 * r


def test_accuracy_floor_excludes_levels() -> None:
    """Levels known to be below the floor are never chosen; unknown ones are, pins may be."""
    controller, _, _ = build(Wish(16), accuracy=falling, min_accuracy=0.865)
    assert controller.status().allowed == (0, 1, 2, 3, 5)
    assert controller.next_r(IDLE) == 5
    controller.pin(16)
    assert controller.next_r(IDLE) == 16


def test_impossible_accuracy_floor_is_refused() -> None:
    """A floor above every level is a mistake, at start-up and through bounds."""
    with pytest.raises(BadParameter, match=r"min_accuracy=0\.95"):
        build(accuracy=lambda r: 0.9, min_accuracy=0.95)
    controller, _, _ = build(accuracy=falling, min_accuracy=0.865)
    with pytest.raises(BadParameter, match="floor"):
        controller.bound(min_r=8)


def test_static_policy_through_the_controller() -> None:
    """A static degree holds whatever the load."""
    controller, _, _ = build(StaticPolicy(5))
    assert controller.next_r(IDLE) == 5


def test_status_tells_the_last_change() -> None:
    """From, to, why and how long ago."""
    controller, clock, _ = build(Wish(0))
    assert controller.status().last_change is None
    controller.pin(12)
    clock.now += 2.0
    change = controller.status().last_change
    assert change is not None
    assert (change.r_from, change.r_to, change.reason) == (0, 12, "pinned")
    assert change.age_s == pytest.approx(2.0)


def test_decays_without_traffic() -> None:
    """Asked a few times a second, the controller comes back to rest with no request at all."""
    controller, clock, _ = build(ThresholdPolicy(dwell_s=2.0))
    overload = LoadSnapshot(clock.now, 200, 1.0, 0, 500.0, None)
    assert controller.next_r(overload) == 16
    for _ in range(60):
        clock.now += 0.25
        controller.next_r(LoadSnapshot(clock.now, 0, 0.0, 0, 0.0, None))
    assert controller.status().r == 0


def batch(r: int, merge_s: float = 0.0, limited: bool = False) -> BatchStats:
    """Return a batch at a degree."""
    return BatchStats(r, 32, merge_s, 32 / SPEED(r), 5.0, limited)


def test_switches_of_the_weights_are_reported() -> None:
    """Each change between batches is one record, with its reason and the merge's seconds."""
    controller, _, switches = build()
    controller.observe_batch(batch(0))
    controller.pin(12)
    controller.observe_batch(batch(12, merge_s=0.01))
    controller.observe_batch(batch(12))
    assert switches == [SwitchStats(0, 12, "pinned", 0.01, 5.0)]


def test_switches_for_single_requests_are_told_apart() -> None:
    """There and back for a request's own max_r is the request's doing, not the policy's."""
    controller, _, switches = build(Wish(12))
    controller.next_r(IDLE)
    for record in (batch(12), batch(4, limited=True), batch(12)):
        controller.observe_batch(record)
    assert [switch.reason for switch in switches] == ["wish", "request-limit", "request-limit"]


def test_batches_refresh_the_levels() -> None:
    """What the status shows, and what the queue estimates with, follows live batches."""
    controller, _, _ = build()
    for _ in range(60):
        controller.observe_batch(BatchStats(0, 32, 0.0, 32 / 50, 0.0))
    assert controller.status().levels[0].images_per_s == pytest.approx(50, rel=0.01)
    assert controller.estimate_batch_s(0, 10) == pytest.approx(0.2, rel=0.01)

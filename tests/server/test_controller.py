"""The controller: modes, holds, bounds, floor, and what it reports."""

import logging
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from server.agreement import Agreement, Comparison
from server.controller import Controller
from server.errors import BadParameter
from server.policy import Decision, StaticPolicy
from server.stats import BatchStats, LoadSnapshot, SwitchStats
from tests.server.fake_table import DEGREES, SetTable
from tests.server.fakes import ManualClock

IDLE = LoadSnapshot(0.0)
FALLING = {r: 0.9 - 0.01 * r for r in DEGREES}


class Wish:
    """A policy that wants what the test tells it, and remembers what it was shown."""

    def __init__(self, r: int = 0) -> None:
        self.r = r
        self.reason = "wish"
        self.seen: list[tuple[LoadSnapshot, int]] = []

    def decide(self, load: LoadSnapshot, current_r: int) -> Decision:
        """Return the level nearest to the wish."""
        self.seen.append((load, current_r))
        assert current_r in [level.r for level in load.levels]
        nearest = min(load.levels, key=lambda level: abs(level.r - self.r))
        return Decision(nearest.r, self.reason, max_batch=3)


class Bench:
    """A controller over a table that the test sets, its clock, its policy and its switches."""

    def __init__(
        self,
        policy: Any = None,
        *,
        r_source: int = 0,
        table: SetTable | None = None,
        **options: Any,
    ) -> None:
        self.policy = policy or Wish()
        self.clock = ManualClock()
        self.switches: list[SwitchStats] = []
        self.table = table or SetTable()
        stand_in: Any = self.table
        self.controller = Controller(
            self.policy,
            stand_in,
            r_source,
            self.clock,
            slo_s=0.25,
            on_switch=[self.switches.append],
            **options,
        )

    def next_r(self) -> int:
        """Return the degree of the next batch."""
        return self.controller.decide(IDLE).r

    @property
    def mode(self) -> str:
        """Who decides at present."""
        return self.controller.status().mode


def degrees(controller: Controller) -> tuple[int, ...]:
    """Return the degrees that the next batches may have."""
    return tuple(level.r for level in controller.levels())


def test_policy_decides_in_auto_mode() -> None:
    """The policy sees the SLO and the levels; its word, batch size included, comes next."""
    bench = Bench(Wish(7))
    assert bench.controller.decide(IDLE) == Decision(7, "wish", max_batch=3)
    load, current_r = bench.policy.seen[0]
    assert (load.slo_s, current_r) == (0.25, 0)
    assert [level.r for level in load.levels] == list(DEGREES)
    assert degrees(bench.controller) == DEGREES


def test_pin_holds_until_auto() -> None:
    """A pin keeps the policy out; auto lets it in again from where the degree is."""
    bench = Bench(Wish(3))
    bench.controller.pin(12)
    assert bench.controller.decide(IDLE) == Decision(12, "pinned")
    assert (bench.mode, bench.policy.seen) == ("pinned", [])
    bench.controller.auto()
    assert (bench.mode, bench.controller.status().r) == ("auto", 12)
    assert bench.next_r() == 3


def test_pin_with_ttl_ends_by_itself() -> None:
    """After ttl_s the policy decides again, with or without traffic in between."""
    bench = Bench(Wish(3))
    bench.controller.pin(12, ttl_s=60)
    bench.clock.now += 59.0
    assert bench.next_r() == 12
    assert bench.controller.status().pinned_ttl_s == pytest.approx(1.0)
    bench.clock.now += 1.0
    status = bench.controller.status()
    assert (status.mode, status.pinned_ttl_s) == ("auto", None)
    assert bench.next_r() == 3


def test_a_new_pin_replaces_the_old_one_with_its_ttl() -> None:
    """Pinning without a ttl after pinning with one holds for good."""
    bench = Bench()
    bench.controller.pin(12, ttl_s=1)
    bench.controller.pin(5)
    bench.clock.now += 100
    assert bench.next_r() == 5


@pytest.mark.parametrize("r", [-1, 17, 1000])
@pytest.mark.parametrize("hold", ["pin", "shadow"])
def test_holding_no_degree_of_the_model_is_refused(hold: str, r: int) -> None:
    """The message names the value and the range; nothing changes."""
    bench = Bench()
    with pytest.raises(BadParameter, match=f"r={r} .* 0 to 16"):
        getattr(bench.controller, hold)(r)
    assert bench.mode == "auto"


def test_pin_between_sparse_levels_is_refused() -> None:
    """With gaps between the levels the message lists them."""
    bench = Bench(table=SetTable(degrees=(0, 8, 16)))
    with pytest.raises(BadParameter, match="0, 8, 16"):
        bench.controller.pin(4)


@pytest.mark.parametrize("ttl_s", [0.0, -1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("hold", ["pin", "shadow"])
def test_bad_ttl_is_refused(hold: str, ttl_s: float) -> None:
    """A time to live is a positive, finite number of seconds; else nothing changes."""
    bench = Bench()
    with pytest.raises(BadParameter, match="ttl_s"):
        getattr(bench.controller, hold)(4, ttl_s=ttl_s)
    assert (bench.mode, bench.controller.status().r) == ("auto", 0)


def test_bounds_limit_the_policy_but_not_a_pin() -> None:
    """Outside its bounds the controller does not go; the operator may."""
    bench = Bench(Wish(16))
    bench.controller.bound(min_r=2, max_r=9)
    assert bench.next_r() == 9
    bench.policy.r = 0
    assert bench.next_r() == 2
    bench.controller.pin(16)
    assert bench.next_r() == 16
    bench.controller.auto()
    assert bench.controller.status().r == 9


def test_new_bounds_move_the_degree_at_once() -> None:
    """Bounds take effect without waiting for a batch; an omitted one stays."""
    bench = Bench(Wish(16))
    bench.next_r()
    bench.controller.bound(max_r=8)
    status = bench.controller.status()
    assert (status.r, status.min_r, status.max_r) == (8, 0, 8)
    bench.controller.bound(min_r=4)
    assert (bench.controller.status().min_r, bench.controller.status().max_r) == (4, 8)


def test_refused_bounds_change_nothing() -> None:
    """Crossed bounds are answered with the allowed range."""
    bench = Bench()
    with pytest.raises(BadParameter, match="0 to 16"):
        bench.controller.bound(min_r=9, max_r=3)
    assert (bench.controller.status().min_r, bench.controller.status().max_r) == (0, 16)


def test_max_r_of_the_settings_is_a_bound() -> None:
    """The start-up bound is like one set later, and refused if the model has no such degree."""
    assert Bench(Wish(16), max_r=6).next_r() == 6
    with pytest.raises(BadParameter, match="max_r=20"):
        Bench(max_r=20)


def test_rests_at_the_degree_of_the_checkpoint() -> None:
    """A model fine-tuned at 8 rests at 8; the operator may let it go lower."""
    bench = Bench(Wish(0), r_source=8)
    assert bench.controller.status().r == 8
    assert bench.next_r() == 8
    bench.controller.bound(min_r=0)
    assert bench.next_r() == 0


def test_pins_leave_one_level() -> None:
    """What has to be given up is judged by the degree that is held, not by those that are not."""
    bench = Bench(table=SetTable(slow=(5,)))
    bench.controller.pin(5)
    assert degrees(bench.controller) == (5,)
    bench.controller.shadow()
    assert degrees(bench.controller) == (5,)
    bench.controller.auto()
    assert 5 not in degrees(bench.controller) and len(degrees(bench.controller)) == 16


def test_a_degree_that_does_not_pay_is_never_chosen() -> None:
    """The policy is not even shown it; a pin may have it."""
    bench = Bench(Wish(3), table=SetTable(slow=(3,)))
    assert bench.next_r() in (2, 4)
    assert 3 not in [level.r for level in bench.policy.seen[0][0].levels]
    assert 3 not in bench.controller.status().allowed
    bench.controller.pin(3)
    assert bench.next_r() == 3


def test_an_answer_outside_the_levels_is_brought_back() -> None:
    """Even a policy that breaks its contract gets nothing below the floor."""

    class Rogue:
        def decide(self, load: LoadSnapshot, current_r: int) -> Decision:
            return Decision(16, "rogue")

    bench = Bench(Rogue(), table=SetTable(accuracy=FALLING), min_accuracy=0.86)
    assert bench.controller.decide(IDLE) == Decision(4, "rogue")
    assert bench.controller.status().r == 4


def test_accuracy_floor_binds_automatic_choices_only() -> None:
    """The policy never goes below the floor or to what is unknown; a pin may."""
    accuracy = {r: value for r, value in FALLING.items() if r != 2}
    bench = Bench(Wish(16), table=SetTable(accuracy=accuracy), min_accuracy=0.865)
    assert bench.controller.status().allowed == (0, 1, 3)
    assert bench.next_r() == 3
    bench.controller.pin(16)
    assert bench.next_r() == 16
    bench.controller.auto()
    assert bench.controller.status().r == 3


def test_a_degree_that_sinks_below_the_floor_is_left_with_the_next_decision() -> None:
    """Live accuracy may change the table at any time; a content policy does not keep it there."""
    bench = Bench(Wish(4), table=SetTable(accuracy=FALLING), min_accuracy=0.86)
    assert bench.next_r() == 4
    bench.policy.r = 3
    bench.table.set_accuracy(FALLING | {4: 0.85})
    assert bench.controller.decide(IDLE) == Decision(3, "accuracy-floor", max_batch=3)
    change = bench.controller.status().last_change
    assert change is not None and (change.r_from, change.reason) == (4, "accuracy-floor")


def test_impossible_accuracy_floor_is_refused() -> None:
    """A floor above every level is a mistake, at start-up and through bounds."""
    with pytest.raises(BadParameter, match=r"min_accuracy=0\.95"):
        Bench(table=SetTable(accuracy=FALLING), min_accuracy=0.95)
    bench = Bench(table=SetTable(accuracy=FALLING), min_accuracy=0.865)
    with pytest.raises(BadParameter, match="floor"):
        bench.controller.bound(min_r=8)


def test_static_policy_through_the_controller() -> None:
    """A static degree holds whatever the load."""
    assert Bench(StaticPolicy(5)).next_r() == 5


def test_a_failing_policy_leaves_the_degree() -> None:
    """Who asks hears of the failure; the degree stays."""

    class Broken:
        def decide(self, load: LoadSnapshot, current_r: int) -> Decision:
            raise ZeroDivisionError

    bench = Bench(Broken())
    with pytest.raises(ZeroDivisionError):
        bench.next_r()
    assert bench.controller.status().r == 0


# --- Shadow mode --------------------------------------------------------------------------------


def test_shadow_holds_the_degree_and_tells_the_policys(caplog: pytest.LogCaptureFixture) -> None:
    """R stays where it is; each change of the policy's mind is logged and shown."""
    bench = Bench(Wish(9))
    bench.next_r()
    bench.controller.shadow()
    caplog.clear()
    with caplog.at_level(logging.INFO):
        for wish in (9, 12, 12, 4):
            bench.policy.r = wish
            assert bench.controller.decide(IDLE) == Decision(9, "shadow")
    told = [record.message for record in caplog.records]
    assert told == ["shadow: would set r=12 (wish)", "shadow: would set r=4 (wish)"]
    status = bench.controller.status()
    assert (status.mode, status.r) == ("shadow", 9)
    assert status.shadow is not None
    assert (status.shadow.r, status.shadow.reason, status.shadow.ttl_s) == (4, "wish", None)


def test_shadow_policy_goes_on_from_its_own_degree() -> None:
    """It is asked as if it had been heard, not as if the degree had sprung back."""
    bench = Bench(Wish(12), mode="shadow")
    assert [bench.next_r(), bench.next_r()] == [0, 0]
    assert [current for _, current in bench.policy.seen] == [0, 12]


def test_shadow_may_hold_another_degree() -> None:
    """As with a pin, neither bounds nor floor apply to it; they do to what would be done."""
    bench = Bench(Wish(16), table=SetTable(accuracy=FALLING), min_accuracy=0.86, max_r=3)
    bench.controller.shadow(12)
    assert bench.next_r() == 12
    status = bench.controller.status()
    assert status.shadow is not None and status.shadow.r == 3


def test_shadow_from_the_start() -> None:
    """With mode=shadow in the settings the server stays at rest until someone says otherwise."""
    bench = Bench(Wish(16), r_source=8, mode="shadow")
    assert (bench.next_r(), bench.mode) == (8, "shadow")
    bench.controller.auto()
    assert (bench.next_r(), bench.mode) == (16, "auto")
    assert bench.controller.status().shadow is None


def test_shadow_with_ttl_ends_by_itself() -> None:
    """Then the policy is heard."""
    bench = Bench(Wish(16))
    bench.controller.shadow(ttl_s=60)
    bench.clock.now += 59
    assert bench.next_r() == 0
    shadow = bench.controller.status().shadow
    assert shadow is not None and shadow.ttl_s == pytest.approx(1)
    bench.clock.now += 1
    assert (bench.mode, bench.next_r()) == ("auto", 16)


def test_a_pin_that_ends_gives_way_to_shadow() -> None:
    """Whoever watches the policy does not want a passing pin to let it loose."""
    bench = Bench(Wish(16))
    bench.controller.shadow(2)
    bench.controller.pin(7, ttl_s=10)
    assert (bench.mode, bench.next_r()) == ("pinned", 7)
    assert bench.controller.status().shadow is None
    bench.clock.now += 10
    assert (bench.mode, bench.next_r()) == ("shadow", 2)


def test_shadow_that_ends_under_a_pin_leaves_the_pin() -> None:
    """The later of the two ends by its own time."""
    bench = Bench(Wish(16))
    bench.controller.shadow(2, ttl_s=5)
    bench.controller.pin(7, ttl_s=10)
    bench.clock.now += 6
    assert (bench.mode, bench.next_r()) == ("pinned", 7)
    bench.clock.now += 4
    assert (bench.mode, bench.next_r()) == ("auto", 16)


def test_bounds_do_not_move_a_held_degree() -> None:
    """In shadow mode bounds change what would be done, not what is."""
    bench = Bench(Wish(0))
    bench.controller.shadow()
    bench.controller.bound(min_r=5)
    assert bench.next_r() == 0
    shadow = bench.controller.status().shadow
    assert shadow is not None and shadow.r == 5


# --- What it reports ----------------------------------------------------------------------------


def test_status_tells_the_last_change() -> None:
    """From, to, why and how long ago."""
    bench = Bench()
    assert bench.controller.status().last_change is None
    bench.controller.pin(12)
    bench.clock.now += 2.0
    change = bench.controller.status().last_change
    assert change is not None
    assert (change.r_from, change.r_to, change.reason) == (0, 12, "pinned")
    assert change.age_s == pytest.approx(2.0)


def test_status_tells_accuracy_and_agreement() -> None:
    """The floor, what is expected of the present degree, and what live traffic shows."""
    agreement = Agreement(ManualClock())
    agreement.add(Comparison(4, True))
    table = SetTable(accuracy=FALLING)
    bench = Bench(Wish(4), table=table, min_accuracy=0.8, agreement=agreement)
    bench.next_r()
    status = bench.controller.status()
    assert status.min_accuracy == 0.8
    assert status.expected_accuracy == pytest.approx(0.86)
    assert status.agreement[4].samples == 1


def batch(r: int, merge_s: float = 0.0, limited: bool = False) -> BatchStats:
    """Return a batch at a degree."""
    return BatchStats(r, 8, merge_s, 0.08, 5.0, limited)


def test_batches_teach_the_table() -> None:
    """Each live batch reaches it."""
    bench = Bench()
    bench.controller.observe_batch(batch(3))
    assert bench.table.observed == [batch(3)]


def test_switches_of_the_weights_are_reported() -> None:
    """Each change between batches is one record, with its reason and the merge's seconds."""
    bench = Bench()
    bench.controller.observe_batch(batch(0))
    bench.controller.pin(12)
    bench.controller.observe_batch(batch(12, merge_s=0.01))
    bench.controller.observe_batch(batch(12))
    assert bench.switches == [SwitchStats(0, 12, "pinned", 0.01, 5.0)]


def test_switches_for_single_requests_are_told_apart() -> None:
    """There and back for a request's own max_r is the request's doing, not the policy's."""
    bench = Bench(Wish(12))
    bench.next_r()
    for record in (batch(12), batch(4, limited=True), batch(12)):
        bench.controller.observe_batch(record)
    assert [switch.reason for switch in bench.switches] == [
        *("wish", "request-limit", "request-limit"),
    ]


# --- Whatever happens ---------------------------------------------------------------------------


TIMES = st.none() | st.floats(0.01, 10) | st.sampled_from([-1.0, 0.0, float("inf")])


class Operation(RuleBasedStateMachine):
    """An operator, a clock, a table and a policy that do what they like."""

    @initialize(
        r_source=st.integers(0, 16),
        mode=st.sampled_from(["auto", "shadow"]),
        floor=st.none() | st.floats(0.75, 0.9),
    )
    def begin(self, r_source: int, mode: str, floor: float | None) -> None:
        """Start with what is known of the accuracy at the start."""
        accuracy = FALLING | {r_source: 0.95}
        self.floor = floor
        self.bench = Bench(
            r_source=r_source, table=SetTable(accuracy=accuracy), min_accuracy=floor, mode=mode
        )

    @rule(r=st.integers(-1, 17), ttl_s=TIMES)
    def pin(self, r: int, ttl_s: float | None) -> None:
        """Pin, well or badly."""
        self.attempt(lambda: self.bench.controller.pin(r, ttl_s), r)

    @rule(r=st.none() | st.integers(-1, 17), ttl_s=TIMES)
    def shadow(self, r: int | None, ttl_s: float | None) -> None:
        """Watch the policy."""
        present = self.bench.controller.status().r
        self.attempt(lambda: self.bench.controller.shadow(r, ttl_s), present if r is None else r)

    @rule()
    def auto(self) -> None:
        """Let go."""
        self.bench.controller.auto()

    @rule(low=st.none() | st.integers(-1, 17), high=st.none() | st.integers(-1, 17))
    def bound(self, low: int | None, high: int | None) -> None:
        """Bound, well or badly."""
        self.attempt(lambda: self.bench.controller.bound(low, high))

    @rule(seconds=st.floats(0, 20), wish=st.integers(0, 16))
    def go_on(self, seconds: float, wish: int) -> None:
        """Let time pass and the policy change its mind."""
        self.bench.clock.now += seconds
        self.bench.policy.r = wish

    @rule(figures=st.dictionaries(st.sampled_from(DEGREES), st.floats(0.7, 1.0)))
    def learn(self, figures: dict[int, float]) -> None:
        """Let live accuracy change the table."""
        self.bench.table.set_accuracy(FALLING | figures)

    @rule(slow=st.sets(st.sampled_from(DEGREES)))
    def slow_down(self, slow: set[int]) -> None:
        """Let degrees stop to pay."""
        self.bench.table.set_paying(tuple(slow))

    def attempt(self, change: Any, r: int | None = None) -> None:
        """Ask for a change; a refusal must leave the status as it was."""
        before = self.bench.controller.status()
        try:
            change()
        except BadParameter:
            assert self.bench.controller.status() == before
        else:
            assert r is None or self.bench.controller.status().r == r

    @invariant()
    def keeps_its_promises(self) -> None:
        """A held degree holds; an automatic one is within bounds, paying, and above the floor."""
        controller = self.bench.controller
        before = controller.status()
        decision = controller.decide(IDLE)
        status = controller.status()
        assert decision.r == status.r
        offered = status.allowed
        if status.mode == "auto":
            self.check_automatic(decision.r, offered)
            return
        assert decision.r == before.r
        assert [level.r for level in controller.levels()] == [decision.r]
        if status.shadow is not None:
            self.check_automatic(status.shadow.r, offered)

    def check_automatic(self, r: int, offered: tuple[int, ...]) -> None:
        """Check a degree that nobody but the policy has chosen."""
        status = self.bench.controller.status()
        assert r in offered and status.min_r <= r <= status.max_r
        within = [p for p in status.levels if status.min_r <= p.r <= status.max_r]
        best = max(p.expected_accuracy or 0.0 for p in within)
        chosen = next(p for p in within if p.r == r)
        if self.floor is not None:
            assert (chosen.expected_accuracy or 0.0) >= min(self.floor, best)


TestOperation = Operation.TestCase


@given(st.lists(st.integers(0, 16), min_size=1, max_size=30))
def test_shadow_mode_never_changes_the_degree(wishes: list[int]) -> None:
    """Whatever the policy wants, the held degree is served, and its last wish is shown."""
    bench = Bench(Wish(), mode="shadow", table=SetTable(accuracy=FALLING))
    for now, wish in enumerate(wishes):
        bench.policy.r = wish
        assert bench.controller.decide(replace(IDLE, now=float(now))).r == 0
    shadow = bench.controller.status().shadow
    assert shadow is not None and shadow.r == wishes[-1]


def test_a_fixed_degree_is_served_though_it_does_not_pay() -> None:
    """The static policy is the operator's word: only that degree is reachable, paying or not."""
    bench = Bench(StaticPolicy(8), table=SetTable(slow=[8]))
    assert bench.controller.decide(IDLE).r == 8
    assert [one.r for one in bench.controller.levels()] == [8]

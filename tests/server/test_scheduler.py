"""The scheduler: order, degree, size, and who is given up, in time that the test moves."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.scheduler import PendingRequest, Scheduler
from server.stats import BatchStats
from tests.server.fakes import FakeDial, believed

SLO_S = 1.0
AT_ZERO = 100.0
FASTEST = 200.0


def seconds(r: int, size: int) -> float:
    """Return what a batch takes: 100 images/s at r=0, 200 at r=16."""
    return size / (AT_ZERO + (FASTEST - AT_ZERO) * r / 16)


@dataclass
class Line:
    """A scheduler with a machine, and the books of what became of each request."""

    r: int = 0
    limit: int = 8
    batch_size: int | None = None
    slo_s: float = SLO_S
    shed_late: bool = True
    queue_size: int = 10_000
    reachable: Sequence[int] | None = None
    max_batch: int | None = None
    believe: Callable[[int, int], float] = seconds
    take: Callable[[int, int], float] = seconds
    now: float = 100.0
    fates: dict[int, str] = field(default_factory=dict)
    batches: list[tuple[float, int, list[PendingRequest]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        levels = believed(self.believe, max_batch_size=self.limit, batch_size=self.batch_size)
        dial = FakeDial(
            levels, lambda load: self.r, reachable=self.reachable, max_batch=self.max_batch
        )
        self.scheduler: Scheduler[PendingRequest] = Scheduler(
            dial,
            max_batch_size=self.limit,
            queue_size=self.queue_size,
            slo_s=self.slo_s,
            shed_late=self.shed_late,
        )
        self._ids = itertools.count()
        self.scheduler.batch_ended(BatchStats(self.r, 1, 0.0, 0.0, self.now))  # beliefs are fresh

    def add(self, *, waited_s: float = 0.0, deadline_s: float | None = None, **wishes) -> int:
        """Admit a request that came `waited_s` ago and is worth nothing after `deadline_s`."""
        came = self.now - waited_s
        deadline = None if deadline_s is None else self.now + deadline_s
        request = PendingRequest(next(self._ids), came, came, deadline, **wishes)
        self.scheduler.hold(1)
        self.scheduler.admit(request)
        self.scheduler.hold(-1)
        return request.id

    def step(self) -> list[int]:
        """Serve the next batch and return who was in it."""
        selection = self.scheduler.next_batch(self.now)
        for fate, some in (("expired", selection.expired), ("shed", selection.shed)):
            for request in some:
                assert request.id not in self.fates
                self.fates[request.id] = fate
        batch = selection.batch
        if batch:
            self.batches.append((self.now, selection.r, batch))
            self.scheduler.batch_started(self.now, len(batch), selection.r)
            took_s = self.take(selection.r, len(batch))
            self.now += took_s
            stats = BatchStats(selection.r, len(batch), 0.0, took_s, self.now - took_s)
            self.scheduler.batch_ended(stats)
            for request in batch:
                assert request.id not in self.fates
                self.fates[request.id] = "late" if self.now > request.due + 1e-9 else "in time"
                self.scheduler.answered(self.now, request)
        return [request.id for request in batch]

    def empty(self) -> None:
        """Serve all that wait."""
        while len(self.scheduler):
            self.step()


WISHES = st.fixed_dictionaries(
    {
        "waited_s": st.floats(0, 2),
        "deadline_s": st.none() | st.floats(-0.5, 3),
        "max_r": st.none() | st.integers(0, 16),
        "priority": st.integers(0, 2),
    }
)


@settings(max_examples=120, deadline=None)
@given(
    waves=st.lists(
        st.tuples(st.lists(WISHES, max_size=12), st.integers(0, 16), st.floats(0, 0.5)),
        max_size=5,
    ),
    limit=st.integers(1, 12),
    efficient=st.integers(1, 12),
    shed_late=st.booleans(),
    slower=st.sampled_from([1.0, 0.5, 3.0]),
)
def test_every_request_ends_once_and_rightly(
    waves, limit: int, efficient: int, shed_late: bool, slower: float
) -> None:
    """Whatever comes: one end each; limits, deadlines and one degree per batch are kept."""
    line = Line(
        limit=limit,
        batch_size=min(limit, efficient),
        shed_late=shed_late,
        take=lambda r, size: slower * seconds(r, size),
    )
    admitted = []
    for wishes, r, pause_s in waves:
        line.now += pause_s
        line.r = r
        admitted += [line.add(**wish) for wish in wishes]
        line.step()
    line.empty()
    assert sorted(line.fates) == admitted
    for at, r, batch in line.batches:
        assert 1 <= len(batch) <= limit
        for request in batch:
            assert request.max_r is None or r <= request.max_r
            assert request.deadline is None or request.deadline > at
    if not shed_late:
        assert "shed" not in line.fates.values()
    if slower <= 1 and limit <= efficient:  # belief was right: what was begun is in time
        own = [x for _, _, batch in line.batches for x in batch if x.deadline is not None]
        assert all(line.fates[x.id] == "in time" or x.due - x.arrived_at < 3 for x in own)


def test_nothing_waits_nothing_runs() -> None:
    """An empty queue gives an empty selection."""
    selection = Line(r=3).scheduler.next_batch(0.0)
    assert (selection.batch, selection.r, selection.expired, selection.shed) == ([], 3, [], [])


def test_first_come_first_served_among_equals() -> None:
    """Without deadlines and priorities the order is that of the first bytes."""
    line = Line(limit=2)
    line.add(waited_s=0.1)
    second, third = line.add(waited_s=0.3), line.add(waited_s=0.2)
    assert line.step() == [second, third]


def test_earliest_deadline_first() -> None:
    """A tight deadline overtakes, a far one yields; the SLO is the deadline of who has none."""
    line = Line(limit=1)
    plain, far, near = line.add(), line.add(deadline_s=5.0), line.add(deadline_s=0.3)
    assert [line.step() for _ in range(3)] == [[near], [plain], [far]]


def test_priority_comes_before_deadline() -> None:
    """High before normal before low, however near the lower one's deadline is."""
    line = Line(limit=1)
    low, normal, high = (
        line.add(priority=2, deadline_s=0.1),
        line.add(priority=1, deadline_s=0.2),
        line.add(priority=0),
    )
    assert [line.step() for _ in range(3)] == [[high], [normal], [low]]


def test_nobody_starves() -> None:
    """Under an endless stream of high priority that keeps the machine busy, low gets its turn."""
    line = Line(limit=1, shed_late=False)
    low = line.add(priority=2, deadline_s=60.0)
    served: list[int] = []
    while low not in served and line.now < 200.0:
        line.add(priority=0)
        served += line.step()
    assert low in served
    assert line.now - 100.0 > 2.0  # it did have to wait


def test_a_far_deadline_does_not_mean_for_ever() -> None:
    """Who allows 20 s yields to those who allow one, and is served before they are over."""
    line = Line(limit=1, shed_late=False)
    patient = line.add(deadline_s=20.0)
    served: list[int] = []
    while patient not in served and line.now < 200.0:
        line.add()
        served += line.step()
    assert line.fates[patient] == "in time"
    assert line.now > 110.0


def test_patient_work_of_low_priority_yields_for_as_long_as_it_can() -> None:
    """Much of it, due in a minute, does not make fresh high priority late meanwhile."""
    line = Line(r=16, limit=4)
    for _ in range(100):
        line.add(priority=2, deadline_s=60.0)
    high: list[int] = []
    while line.now < 150.0:
        high.append(line.add(priority=0))
        line.step()
    assert {line.fates[one] for one in high if one in line.fates} == {"in time"}


def test_high_priority_takes_a_place_of_low_priority() -> None:
    """A full queue gives up its last in order for one of a higher priority, and only for that."""
    line = Line(queue_size=3)
    for priority in (1, 2, 2):
        line.add(priority=priority, deadline_s=60.0)
    assert line.scheduler.make_room(1, 2) == []
    victims = line.scheduler.make_room(2, 0)
    assert [victim.priority for victim in victims] == [2, 2]
    assert line.scheduler.make_room(3, 1) == []
    assert line.scheduler.refusal(line.now, 1, priority=0) is None


def test_held_places_stand_behind_a_higher_priority() -> None:
    """A bulk upload that is being decoded does not make the door refuse what goes before it."""
    line = Line(r=16)
    line.scheduler.hold(300, priority=2)
    assert line.scheduler.refusal(line.now, 1, priority=0) is None
    assert line.scheduler.refusal(line.now, 1, priority=2) is not None


def test_a_slow_decode_costs_nobody_the_answer() -> None:
    """An image that took longer to decode than the SLO allows is served, not shed."""
    line = Line()
    image = line.add(waited_s=0.0)
    line.empty()
    assert line.fates[image] == "in time"
    request = PendingRequest(99, line.now, line.now - 5.0)
    line.scheduler.admit(request)
    assert line.step() == [99]


def test_an_untested_belief_is_tried() -> None:
    """Believed far too slow: after a second without a batch one request is let through."""
    line = Line(believe=lambda r, size: 10.0 * size)
    assert line.scheduler.refusal(line.now, 1, deadline=line.now + 0.5) is not None
    line.now += 1.5
    assert line.scheduler.refusal(line.now, 1, deadline=line.now + 0.5) is None
    probe = line.add(deadline_s=0.5)
    assert line.step() == [probe]
    assert line.fates[probe] == "in time"


def test_a_large_limited_request_gets_the_time_of_its_own_degree() -> None:
    """Images that accept no compression take longer together; none of them is shed for that."""
    line = Line(r=16, slo_s=0.1)
    assert line.scheduler.refusal(line.now, 32, max_r=0) is None
    for _ in range(32):
        line.scheduler.admit(PendingRequest(200 + _, line.now, line.now, max_r=0, companions=31))
    line.empty()
    assert set(line.fates.values()) == {"in time"}


def test_the_floor_holds_below_the_bounds() -> None:
    """A request that accepts less than the bounds is served at a degree that keeps the floor."""
    line = Line(r=12, reachable=[12, 16])
    levels = line.scheduler._dial.table.points()
    line.scheduler._dial.keeping = lambda: levels[:2]  # type: ignore[method-assign]
    line.add(max_r=5)
    line.step()
    assert [r for _, r, _ in line.batches] == [1]


def test_low_max_r_gets_its_own_batch() -> None:
    """The first in order sets the degree; others of that degree join, the rest wait their turn."""
    line = Line(r=12)
    first, free = line.add(waited_s=0.4, max_r=4), line.add(waited_s=0.3)
    like_first, like_free = line.add(waited_s=0.2, max_r=4), line.add(waited_s=0.1, max_r=14)
    assert line.step() == [first, like_first]
    assert line.step() == [free, like_free]
    assert [r for _, r, _ in line.batches] == [4, 12]


def test_a_limit_between_levels_that_pay_is_served_below_it() -> None:
    """A degree that is not faster than a lower one is not used, for a limited request either."""
    line = Line(r=12, believe=lambda r, size: size / (80.0 if r == 3 else 100.0 + r))
    line.add(max_r=3)
    line.step()
    assert [r for _, r, _ in line.batches] == [2]


def test_limited_requests_do_not_hold_the_others_back() -> None:
    """A slow batch of limited requests stops where it would make the others late."""
    line = Line(r=16, limit=8)
    for _ in range(8):
        line.add(waited_s=0.02, max_r=0)  # 10 ms each
    for _ in range(8):
        line.add(deadline_s=0.08)  # 40 ms together
    line.empty()
    assert list(line.fates.values()) == ["in time"] * 16


def test_batch_shrinks_to_its_tightest_deadline() -> None:
    """A request that can be in time is not made late by company."""
    line = Line(believe=lambda r, size: 0.1 * size)
    line.add(deadline_s=0.25)
    for _ in range(7):
        line.add()
    assert len(line.step()) == 2


def test_overload_does_not_end_in_small_batches() -> None:
    """A head that could only be saved by a batch of its own is given up, or nobody gets faster.

    Single images take 30 ms, batches of eight 10 ms each: 70 images/s are too many for singles.
    """
    seconds = {size: 0.02 + 0.01 * size for size in range(1, 9)}
    pace = lambda r, size: seconds[size]  # noqa: E731
    line = Line(limit=8, slo_s=0.3, believe=pace, take=pace)
    served, next_at = 0, line.now
    for _ in range(60):
        line.add()  # a backlog beyond the SLO to begin with
    while line.now < 110.0:
        while next_at <= line.now:
            line.scheduler.note_arrival(next_at, 1)
            if line.scheduler.refusal(next_at, 1) is None:
                line.add(waited_s=line.now - next_at)
            next_at += 1 / 75
        served += len(line.step())
        line.now += 0.0005
    in_time = list(line.fates.values()).count("in time")
    assert in_time >= 0.95 * 75 * 10


def test_batches_are_as_large_as_pays() -> None:
    """Beyond the efficient size only the waiting would grow; a policy may ask for another size."""
    line = Line(batch_size=3)
    asked = Line(batch_size=3, max_batch=5)
    for each in (line, asked):
        for _ in range(8):
            each.add()
    assert (len(line.step()), len(asked.step())) == (3, 5)


def test_expired_work_is_not_begun() -> None:
    """A passed deadline, and one that no batch could keep, cost no compute."""
    line = Line(believe=lambda r, size: 0.1 * size)
    passed, hopeless, fine = (
        line.add(deadline_s=-0.1),
        line.add(deadline_s=0.05),
        line.add(deadline_s=0.3),
    )
    assert line.step() == [fine]
    assert line.fates[passed] == line.fates[hopeless] == "expired"


def test_what_is_late_by_load_is_shed_and_the_rest_in_time() -> None:
    """More than the fastest degree serves within the SLO: the surplus goes, nobody else is late."""
    line = Line(r=16)
    for _ in range(300):  # 200 can be served within the SLO
        line.add()
    line.empty()
    counts = {fate: list(line.fates.values()).count(fate) for fate in set(line.fates.values())}
    assert counts["in time"] >= 188
    assert not counts.get("late", 0)
    assert counts["shed"] >= 60


def test_without_shedding_all_are_served_late() -> None:
    """The operator may prefer late answers to refusals."""
    line = Line(r=16, shed_late=False)
    for _ in range(300):
        line.add()
    line.empty()
    assert set(line.fates.values()) == {"in time", "late"}


def test_the_lowest_priority_is_shed_first() -> None:
    """High and normal requests are served; what is given up is low."""
    line = Line(r=16)
    for _ in range(150):
        line.add(priority=2)
    for priority in [0] * 50 + [1] * 50:
        line.add(priority=priority)
    line.empty()
    given_up = [request_id for request_id, fate in line.fates.items() if fate == "shed"]
    assert given_up
    assert max(given_up) < 150
    assert all(line.fates[high] == "in time" for high in range(150, 250))


def test_in_overload_costly_limits_are_given_up_first() -> None:
    """A request that accepts no compression costs twice; two others are served in its place."""
    line = Line(r=16)
    for index in range(240):
        line.add(max_r=0 if index % 2 else None)
    line.empty()
    lost = [i for i, fate in line.fates.items() if fate == "shed"]
    limited = [i for i in lost if i % 2]
    assert len(limited) > 60
    assert len(lost) - len(limited) < 10


def test_the_slo_binds_only_where_it_can_be_kept() -> None:
    """A machine too slow for the SLO serves one after the other; the load is not at fault."""
    line = Line(slo_s=0.001, believe=lambda r, size: 0.1 * size)
    for _ in range(3):
        line.add()
    line.empty()
    assert set(line.fates.values()) == {"in time"}


def test_room_is_bounded() -> None:
    """Waiting and decoding images count; the time to come back is that of the work ahead."""
    line = Line(queue_size=4, shed_late=False)
    line.add()
    line.scheduler.hold(2)
    assert line.scheduler.refusal(line.now, 1) is None
    refusal = line.scheduler.refusal(line.now, 2)
    assert refusal is not None
    assert refusal.why == "full"
    assert refusal.retry_after_s == pytest.approx(3 / FASTEST)


def test_the_door_reckons_with_what_is_ahead() -> None:
    """Who would not be reached in time is refused; a higher priority has less ahead of it."""
    line = Line(r=16)
    for _ in range(260):
        line.add(priority=1)
    refusal = line.scheduler.refusal(line.now, 1)
    assert refusal is not None
    assert refusal.why == "late"
    assert refusal.retry_after_s == pytest.approx(260 / FASTEST, rel=0.05)
    assert line.scheduler.refusal(line.now, 1, priority=0) is None
    assert line.scheduler.refusal(line.now, 1, deadline=line.now + 5) is None


def test_the_door_reckons_with_the_running_batch() -> None:
    """A batch that has just begun delays everybody behind it."""
    line = Line(r=16, slo_s=0.05, limit=32, believe=seconds)
    line.scheduler.batch_started(line.now, 32, 0)
    assert line.scheduler.refusal(line.now, 1) is not None
    assert line.scheduler.refusal(line.now + 0.3, 1) is None


def test_a_pin_is_the_fastest_there_is() -> None:
    """While a slow degree is pinned, the door and the shedding reckon with that one."""
    line = Line(r=0, reachable=[0])
    for _ in range(130):
        line.add()
    assert line.scheduler.refusal(line.now, 1) is not None
    line.empty()
    fates = list(line.fates.values())
    assert fates.count("shed") > 5
    assert {r for _, r, _ in line.batches} == {0}


def test_a_failing_policy_stops_nothing() -> None:
    """The degree stays what it was."""
    line = Line(r=5)
    line.add()
    line.step()

    def broken(load: object) -> int:
        raise RuntimeError("broken")

    line.scheduler._dial.choose = broken  # type: ignore[attr-defined]
    line.add()
    line.step()
    assert [r for _, r, _ in line.batches] == [5, 5]


def test_the_snapshot_tells_what_there_is() -> None:
    """Slacks and limits in order of service, held places, rates and counters."""
    line = Line()
    line.add(waited_s=0.4, max_r=3)
    line.add(waited_s=0.1)
    line.scheduler.hold(2)
    line.scheduler.note_arrival(line.now, 4)
    load = line.scheduler.load(line.now)
    assert load.backlog.slack_s.tolist() == pytest.approx([0.6, 0.9])
    assert load.backlog.max_r[0] == 3
    assert (load.queue_length, load.decoding, load.answered, load.late) == (2, 2, 0, 0)
    assert load.oldest_wait_s == pytest.approx(0.4)
    assert load.arrival_rate > load.steady_rate > 0
    line.empty()
    after = line.scheduler.load(line.now)
    assert (after.answered, after.late, after.queue_length) == (2, 0, 0)

"""Which requests form a batch: one degree, inside the limits, nobody starved."""

from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from server.scheduler import PendingRequest, select_batch
from tests.strategies import queues

NOW = 100.0


def request(id: int, waited_s: float = 0.0, **options) -> PendingRequest:
    """Return a request that came `waited_s` ago."""
    return PendingRequest(id, NOW - waited_s, **options)


def ids(requests: Sequence[PendingRequest]) -> list[int]:
    """Return the ids, in order."""
    return [r.id for r in requests]


def per_image(seconds: float):
    """Return an estimate that is proportional to the batch size."""
    return lambda r, size: seconds * size


@settings(max_examples=100, deadline=None)
@given(
    queue=queues(),
    r=st.integers(0, 16),
    limit=st.integers(1, 40),
    image_s=st.sampled_from([0.0, 0.001, 0.05, 1.0]),
    max_batch_s=st.sampled_from([0.0, 0.1, 1.0, 100.0]),
)
def test_every_selection_keeps_the_rules(
    queue: list[PendingRequest], r: int, limit: int, image_s: float, max_batch_s: float
) -> None:
    """Whatever waits: limits kept, one degree that suits all, expired ones out, no idling."""
    before = list(queue)
    selection = select_batch(queue, NOW, r, limit, per_image(image_s), max_batch_s)

    assert queue == before
    assert len(selection.batch) <= limit
    assert len({id(p) for p in selection.batch}) == len(selection.batch)
    assert all(p.max_r is None or selection.r <= p.max_r for p in selection.batch)
    assert all(p.degree(r) == selection.r for p in selection.batch)
    expired = [p for p in queue if p.deadline is not None and p.deadline <= NOW]
    assert ids(selection.expired) == ids(expired)
    assert not set(ids(selection.batch)) & set(ids(expired))
    assert bool(selection.batch) == (len(expired) < len(queue))
    seconds = image_s * len(selection.batch)
    assert len(selection.batch) <= 1 or seconds <= max_batch_s + 1e-9
    # Whoever could have been in time alone is in time in this batch.
    for p in selection.batch:
        if p.deadline is not None and p.deadline >= NOW + image_s:
            assert NOW + seconds <= p.deadline + 1e-9


@settings(max_examples=60, deadline=None)
@given(queue=queues(), r=st.integers(0, 16), limit=st.integers(1, 40))
def test_everybody_is_served_in_the_end(queue: list[PendingRequest], r: int, limit: int) -> None:
    """Emptying a queue batch by batch handles each request once, as served or as expired."""
    handled: list[int] = []
    waiting, now = list(queue), NOW
    while waiting:
        selection = select_batch(waiting, now, r, limit)
        gone = ids(selection.batch) + ids(selection.expired)
        assert gone
        handled += gone
        waiting = [p for p in waiting if p.id not in set(gone)]
        now += 0.1
    assert sorted(handled) == ids(queue)


def test_empty_queue_gives_an_empty_batch() -> None:
    """Nothing waits, nothing runs."""
    nobody: list[PendingRequest] = []
    selection = select_batch(nobody, NOW, 3, 8)
    assert (selection.batch, selection.r, selection.expired) == ([], 3, [])


def test_first_come_first_served_among_equals() -> None:
    """Without deadlines and priorities the order is that of arrival."""
    queue = [request(2, 0.1), request(0, 0.3), request(1, 0.2)]
    assert ids(select_batch(queue, NOW, 0, 2).batch) == [0, 1]


def test_earliest_deadline_first() -> None:
    """A tight deadline overtakes; one beyond the common patience does not fall behind."""
    queue = [request(0, 0.2), request(1, 0.1, deadline=NOW + 60), request(2, deadline=NOW + 0.3)]
    assert ids(select_batch(queue, NOW, 0, 3).batch) == [2, 0, 1]


def test_priority_comes_before_deadline() -> None:
    """High before normal before low."""
    queue = [
        request(0, 0.2, priority=2),
        request(1, 0.1, priority=1, deadline=NOW + 0.1),
        request(2, 0.0, priority=0),
    ]
    assert ids(select_batch(queue, NOW, 0, 3).batch) == [2, 1, 0]


def test_low_priority_ages() -> None:
    """Two seconds of waiting put a low priority before fresh high ones."""
    fresh = [request(i, 0.0, priority=0) for i in range(1, 9)]
    assert ids(select_batch([request(0, 1.9, priority=2), *fresh], NOW, 0, 1).batch) == [1]
    assert ids(select_batch([request(0, 2.1, priority=2), *fresh], NOW, 0, 1).batch) == [0]


def test_patience_protects_from_a_stream_of_deadlines() -> None:
    """Who has no deadline is not overtaken for ever by those who have one."""
    urgent = [request(i, 0.0, deadline=NOW + 0.2) for i in range(1, 9)]
    assert ids(select_batch([request(0, 0.7), *urgent], NOW, 0, 1).batch) == [1]
    assert ids(select_batch([request(0, 0.9), *urgent], NOW, 0, 1).batch) == [0]


def test_low_max_r_gets_its_own_batch() -> None:
    """The first in order sets the degree; others of that degree join, the rest wait their turn."""
    queue = [
        request(0, 0.4, max_r=4),
        request(1, 0.3),
        request(2, 0.2, max_r=4),
        request(3, 0.1, max_r=14),
    ]
    first = select_batch(queue, NOW, 12, 8)
    assert (first.r, ids(first.batch)) == (4, [0, 2])
    second = select_batch([queue[1], queue[3]], NOW, 12, 8)
    assert (second.r, ids(second.batch)) == (12, [1, 3])


def test_low_max_r_does_not_hold_the_others_back() -> None:
    """Behind the others in order, it waits for them and not they for it."""
    queue = [request(0, 0.3), request(1, 0.2, max_r=0), request(2, 0.1)]
    selection = select_batch(queue, NOW, 12, 8)
    assert (selection.r, ids(selection.batch)) == (12, [0, 2])


def test_batch_shrinks_to_its_tightest_deadline() -> None:
    """A request that can be in time is not made late by company."""
    queue = [request(0, deadline=NOW + 0.25), *(request(i) for i in range(1, 9))]
    assert len(select_batch(queue, NOW, 0, 8, per_image(0.1)).batch) == 2


def test_company_that_would_be_late_is_left_for_the_next_batch() -> None:
    """Who cannot ride in a batch of this size in time is passed over, not dragged along."""
    queue = [request(0, priority=0), request(1, priority=0), request(2, deadline=NOW + 0.25)]
    selection = select_batch([*queue, request(3)], NOW, 0, 8, per_image(0.1))
    assert ids(selection.batch) == [0, 1, 3]


def test_hopeless_requests_go_last_but_are_not_dropped() -> None:
    """Who would be late even alone yields to the others, and is served if nobody else waits."""
    hopeless = request(0, 0.5, deadline=NOW + 0.05)
    estimate = per_image(0.1)
    both = select_batch([hopeless, request(1)], NOW, 0, 1, estimate)
    assert (ids(both.batch), both.expired) == ([1], [])
    assert ids(select_batch([hopeless], NOW, 0, 1, estimate).batch) == [0]


def test_one_image_is_served_however_long_it_takes() -> None:
    """A budget shorter than any batch still lets one image through."""
    queue = [request(0), request(1)]
    assert len(select_batch(queue, NOW, 0, 8, per_image(9.0), 0.1).batch) == 1


def test_estimate_is_asked_for_the_degree_of_the_batch() -> None:
    """A batch at a request's lower degree is measured by that degree's pace."""
    queue = [request(i, max_r=0) for i in range(8)]
    selection = select_batch(
        queue, NOW, 16, 8, lambda r, size: size * (0.1 if r == 0 else 0.01), max_batch_s=0.4
    )
    assert (selection.r, len(selection.batch)) == (0, 4)

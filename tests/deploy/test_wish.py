"""What is asked of all replicas: folded as one controller would have it, whatever the order."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.ray.fleet_link import _put_to
from deploy.ray.wish import Hold, Wish
from server.schemas import CompressionQuery
from tests.server.test_controller import Bench

NOW = 100.0

DEGREES = st.sampled_from([0, 4, 8, 12, 16])
TTL = st.sampled_from([None, 5.0, 50.0])
QUERIES = st.one_of(
    st.builds(lambda r, ttl_s: CompressionQuery(r=r, ttl_s=ttl_s), DEGREES, TTL),
    st.builds(lambda r, ttl_s: CompressionQuery(mode="shadow", r=r, ttl_s=ttl_s), DEGREES, TTL),
    st.just(CompressionQuery(mode="auto")),
    st.builds(lambda r: CompressionQuery(min_r=r), st.sampled_from([0, 4])),
    st.builds(lambda r: CompressionQuery(max_r=r), st.sampled_from([8, 16])),
)


def asked(*queries: CompressionQuery, now: float = NOW) -> Wish:
    """A wish after all of these."""
    wish = Wish()
    for version, query in enumerate(queries, 1):
        wish = wish.after(query, now, version)
    return wish


def test_a_pin_holds_until_its_time_is_over():
    """Then what was before holds again."""
    wish = asked(CompressionQuery(mode="shadow", r=4), CompressionQuery(r=8, ttl_s=10))
    assert wish.mode == "pinned"
    assert wish.held == Hold(8, NOW + 10)
    assert wish.at(NOW + 9.9) == wish
    later = wish.at(NOW + 10)
    assert (later.mode, later.held, later.version) == ("shadow", Hold(4, None), wish.version)


def test_shadow_mode_ends_in_auto():
    """As the controller has it."""
    wish = asked(CompressionQuery(mode="shadow", r=4, ttl_s=10))
    assert wish.mode == "shadow"
    assert wish.at(NOW + 11).mode == "auto"


def test_bounds_leave_the_pin_alone():
    """And each other."""
    wish = asked(CompressionQuery(r=8), CompressionQuery(min_r=4), CompressionQuery(max_r=12))
    assert (wish.mode, wish.min_r, wish.max_r) == ("pinned", 4, 12)


def test_auto_ends_all_holds():
    """A pin, and shadow mode below it."""
    wish = asked(
        CompressionQuery(mode="shadow", r=4), CompressionQuery(r=8), CompressionQuery(mode="auto")
    )
    assert (wish.mode, wish.held) == ("auto", None)


def test_on_its_way_it_knows_no_clock():
    """Whose clock is ahead by however much gets what is left of the time."""
    wish = asked(CompressionQuery(r=8, ttl_s=10))
    sent = wish.shifted(-(NOW + 4))
    received = sent.shifted(5_000.0)
    assert received.pin is not None
    assert received.pin.ttl_s(5_000.0) == pytest.approx(6)


@given(st.lists(st.tuples(QUERIES, st.sampled_from([0.0, 1.0, 10.0])), max_size=8))
def test_a_replica_that_starts_later_is_where_the_others_are(
    story: list[tuple[CompressionQuery, float]],
) -> None:
    """Mode, held degree, what is left of its time, bounds: from the wish alone."""
    old, new = Bench(), Bench()
    wish = Wish()
    for version, (query, pause_s) in enumerate(story, 1):
        before, wish = wish, wish.after(query, old.clock(), version)
        _put_to(old.controller, before, wish, old.clock())
        old.clock.now += pause_s
    new.clock.now = old.clock.now
    _put_to(new.controller, Wish(), wish, new.clock())
    ours, theirs = new.controller.status(), old.controller.status()
    assert (ours.mode, ours.min_r, ours.max_r) == (theirs.mode, theirs.min_r, theirs.max_r)
    assert ours.pinned_ttl_s == pytest.approx(theirs.pinned_ttl_s)
    if ours.mode != "auto":  # there the policy decides, and starts from where it is
        assert ours.r == theirs.r

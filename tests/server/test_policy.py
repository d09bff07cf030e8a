"""The fixed degree, and the two choices that policies share."""

from hypothesis import given

from server.policy import Decision, StaticPolicy, fastest, nearest
from server.stats import LoadSnapshot
from tests.server.situations import LEVELS, level, levels, snapshot, snapshots


def test_static_policy_ignores_the_load() -> None:
    """The static policy always gives its degree."""
    policy = StaticPolicy(5)
    assert policy.decide(snapshot(waiting=1_000, waited_s=9.0), 0) == Decision(5, "static")
    assert policy.decide(snapshot(), 16) == Decision(5, "static")


def test_static_policy_keeps_to_the_allowed_levels() -> None:
    """A fixed degree outside the bounds becomes the nearest inside."""
    assert StaticPolicy(9).decide(snapshot(levels=LEVELS[:4]), 0).r == 3
    assert StaticPolicy(2).decide(snapshot(levels=LEVELS[6:]), 6).r == 6


@given(load=snapshots())
def test_static_policy_chooses_what_is_offered(load: LoadSnapshot) -> None:
    """Whatever the levels, the choice is one of them."""
    assert StaticPolicy(7).decide(load, load.levels[0].r).r in {item.r for item in load.levels}


def test_nearest_takes_the_lower_of_two() -> None:
    """Between two equally close degrees the more accurate one is nearest."""
    offered = levels(degrees=(0, 4, 8))
    assert nearest(6, offered) == 4
    assert nearest(7, offered) == 8
    assert nearest(4, offered) == 4


def test_fastest_looks_at_the_throughput_not_at_the_degree() -> None:
    """A higher degree that is slower is not the fastest; of equal ones the lowest is."""
    offered = (level(0, 100.0), level(4, 180.0), level(8, 150.0), level(12, 180.0))
    assert fastest(offered).r == 4

"""What simulated requests ask for: shares that are kept, draws that follow the seed."""

from collections import Counter

import pytest

from server.errors import SettingsError
from server.request_mix import parse_mix
from server.simulated_requests import Arrival

TIMES = [0.01 * i for i in range(5000)]


def test_without_a_mix_requests_ask_for_nothing() -> None:
    """Times only."""
    assert parse_mix([]).arrivals([0.5, 1.5], 0) == [Arrival(0.5), Arrival(1.5)]


def test_shares_are_kept_and_the_rest_asks_for_nothing() -> None:
    """Each field by itself, with what is left over at its default."""
    mix = parse_mix(["priority=high:0.1,low:0.3", "max_r=0:0.2", "deadline_ms=150:0.5"])
    arrivals = mix.arrivals(TIMES, 0)
    priorities = Counter(arrival.priority for arrival in arrivals)
    assert [priorities[p] / 5000 for p in (0, 1, 2)] == pytest.approx([0.1, 0.6, 0.3], abs=0.03)
    limited = [arrival for arrival in arrivals if arrival.max_r is not None]
    assert len(limited) / 5000 == pytest.approx(0.2, abs=0.03)
    assert {arrival.deadline_s for arrival in arrivals} == {None, 0.15}
    with_both = sum(arrival.deadline_s is not None for arrival in limited)
    assert with_both / len(limited) == pytest.approx(0.5, abs=0.07)  # independent draws


def test_a_seed_repeats_the_draws() -> None:
    """Also when another field is added."""
    alone = parse_mix(["max_r=0:0.5"])
    beside = parse_mix(["max_r=0:0.5", "priority=high:0.5"])
    limits = [arrival.max_r for arrival in alone.arrivals(TIMES, 3)]
    assert limits == [arrival.max_r for arrival in beside.arrivals(TIMES, 3)]
    assert limits != [arrival.max_r for arrival in alone.arrivals(TIMES, 4)]


def test_says_whether_degrees_are_limited() -> None:
    """The oracle needs to know."""
    assert parse_mix(["max_r=0:0.5"]).limits_r
    assert not parse_mix(["priority=high:0.5"]).limits_r


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["colour=red:1"], "'colour=red:1': expected priority="),
        (["priority"], "'priority': expected"),
        (["priority=urgent:0.1"], "cannot read 'urgent:0.1'"),
        (["max_r=-1:0.1"], "cannot read '-1:0.1'"),
        (["max_r=4"], "cannot read '4'"),
        (["deadline_ms=0:0.1"], "cannot read '0:0.1'"),
        (["deadline_ms=nan:0.1"], "cannot read"),
        (["max_r=0:0.7,4:0.7"], "at most 1 together"),
        (["max_r=0:-0.1"], "from 0 to 1"),
        (["max_r=0:nan"], "from 0 to 1"),
        (["max_r=0:0.1", "max_r=4:0.1"], "twice"),
    ],
)
def test_refuses_what_is_no_mix(texts: list[str], message: str) -> None:
    """The error shows what was given and what was expected."""
    with pytest.raises(SettingsError, match=message):
        parse_mix(texts)

"""All policies by name: what holds for each of them, and what does not depend on the rule."""

from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.aimd_policy import AimdPolicy
from server.demand_policy import DemandPolicy
from server.policies import BUILDERS, build_policy
from server.policy import Policy, StaticPolicy
from server.settings import Settings
from server.slackfit_policy import SlackFitPolicy
from server.stats import LoadSnapshot
from server.threshold_policy import ThresholdPolicy
from tests.server.situations import LEVELS, snapshot, snapshots

ADAPTIVE = sorted(set(BUILDERS) - {"static"})


def policy_named(name: str, static_r: int = 0) -> Policy:
    """Return a fresh policy with a dwell time of a second."""
    return build_policy(name, static_r=static_r, dwell_s=1.0, slo_s=0.25)


def test_every_name_of_the_setting_builds_its_policy() -> None:
    """What the setting allows and what can be built are the same names."""
    assert set(get_args(Settings.model_fields["policy"].annotation)) == set(BUILDERS)
    classes = {name: type(policy_named(name)) for name in BUILDERS}
    assert classes == {
        "demand": DemandPolicy,
        "static": StaticPolicy,
        "threshold": ThresholdPolicy,
        "slackfit": SlackFitPolicy,
        "aimd": AimdPolicy,
    }


def test_static_gets_its_degree() -> None:
    """The fixed degree arrives where it is used."""
    assert policy_named("static", static_r=7).decide(snapshot(), 0).r == 7


@pytest.mark.parametrize("name", ["demand", "threshold", "aimd"])
def test_the_dwell_time_arrives(name: str) -> None:
    """With a dwell time of 50 s nobody who waits has lowered r after 45 s, but within a minute."""
    policy = build_policy(name, static_r=0, dwell_s=50.0, slo_s=0.25)
    degrees = [policy.decide(snapshot(float(now)), 16).r for now in range(61)]
    assert set(degrees[:46]) == {16}
    assert min(degrees) < 16


def test_an_unknown_name_is_refused() -> None:
    """The message names the word and the choices."""
    with pytest.raises(ValueError, match=r"'turbo'.*demand, static, threshold, slackfit, aimd"):
        policy_named("turbo")


@pytest.mark.parametrize("name", ["demand", "threshold", "aimd"])
def test_a_negative_dwell_time_is_refused(name: str) -> None:
    """Time does not run backwards."""
    with pytest.raises(ValueError, match=r"dwell_s=-1"):
        build_policy(name, static_r=0, dwell_s=-1.0, slo_s=0.25)


@pytest.mark.parametrize("name", ADAPTIVE)
@settings(max_examples=60, deadline=None)
@given(loads=st.lists(snapshots(), min_size=1, max_size=6), data=st.data())
def test_only_levels_that_are_there_and_pay(
    name: str, loads: list[LoadSnapshot], data: st.DataObject
) -> None:
    """Whatever happens, r is one of the levels, and one that pays if there is one."""
    policy = policy_named(name)
    for load in loads:
        current = data.draw(st.sampled_from([level.r for level in load.levels]))
        decision = policy.decide(load, current)
        paying = {level.r for level in load.levels if level.pays}
        assert decision.r in (paying or {level.r for level in load.levels})
        assert decision.max_batch is None or decision.max_batch >= 1


@pytest.mark.parametrize("name", sorted(BUILDERS))
@settings(max_examples=20, deadline=None)
@given(loads=st.lists(snapshots(), min_size=1, max_size=6))
def test_the_same_loads_give_the_same_decisions(name: str, loads: list[LoadSnapshot]) -> None:
    """A policy's only state is what it was shown: no clock, no chance, nothing shared."""
    decisions = [
        [policy.decide(load, load.levels[0].r) for load in loads]
        for policy in (policy_named(name), policy_named(name))
    ]
    assert decisions[0] == decisions[1]


@pytest.mark.parametrize("name", ADAPTIVE)
def test_overload_raises_at_once(name: str) -> None:
    """r=0 needs 0.4 s for 40 images, and the first has 0.05 s left: r rises with one decision."""
    load = snapshot(waiting=40, waited_s=0.2, rate=150.0)
    assert policy_named(name).decide(load, 0).r > 0


@pytest.mark.parametrize("name", ADAPTIVE)
def test_an_empty_queue_brings_r_down(name: str) -> None:
    """Half a minute without a request gives all accuracy back."""
    policy, r = policy_named(name), 16
    for step in range(120):
        r = policy.decide(snapshot(step / 4), r).r
    assert r == 0


@pytest.mark.parametrize("name", ADAPTIVE)
def test_a_single_level_is_kept(name: str) -> None:
    """With everything else out of bounds there is nothing to decide, under any load."""
    only = LEVELS[5:6]
    policy = policy_named(name)
    assert policy.decide(snapshot(levels=only), 5).r == 5
    assert policy.decide(snapshot(1.0, waiting=200, rate=900.0, levels=only), 5).r == 5

"""How many replicas: as Kubernetes' HPA would count them."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.ray.capacity_policy import DEMAND, CapacityPolicy


def wanted(target: int, *demands: float, policy: CapacityPolicy | None = None) -> int:
    """The number that the policy wants where `target` are there and these have reported."""
    reported = {f"replica {i}": demand for i, demand in enumerate(demands)}
    context: Any = SimpleNamespace(
        target_num_replicas=target, aggregated_metrics={DEMAND: reported} if demands else {}
    )
    number, state = (policy or CapacityPolicy())(context)
    assert state == {}
    return number


@pytest.mark.parametrize(
    ("present", "demands", "number"),
    [
        (1, [0.8], 1),
        (1, [0.87], 1),  # within the tolerance
        (1, [0.9], 2),
        (1, [3.0], 4),
        (2, [1.5, 1.5], 4),
        (4, [3.0], 4),  # those that start have not reported yet: they are waited for
        (4, [0.75, 0.75, 0.75, 0.75], 4),
        (4, [0.1, 0.1, 0.1, 0.1], 1),
        (4, [0.0, 0.0, 0.0, 0.0], 1),
        (3, [], 3),
        (3, [math.nan, math.inf], 3),
    ],
)
def test_demand_is_brought_to_the_target(present: int, demands: list[float], number: int):
    """All demand over what one replica should have, rounded up."""
    assert wanted(present, *demands) == number


@given(st.floats(0, 50), st.integers(1, 40))
def test_constant_load_does_not_oscillate(load: float, present: int):
    """Once there are as many as it wants, sharing the load evenly, it wants no other number."""
    there = wanted(present, *[load / present] * present)
    there = wanted(there, *[load / there] * there)
    assert wanted(there, *[load / there] * there) == there


def test_nonsense_is_refused():
    """When the application is deployed, not when it should scale."""
    with pytest.raises(ValueError, match="target=0"):
        CapacityPolicy(target=0)
    with pytest.raises(ValueError, match="tolerance=1"):
        CapacityPolicy(tolerance=1)

"""The API's types: what is accepted, and which combinations mean nothing."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from server.schemas import ClassifyQuery, ClassifyResponse, CompressionQuery


def test_defaults_of_classify() -> None:
    """Without parameters: five classes, normal priority, no deadline, any degree."""
    query = ClassifyQuery()
    assert (query.top_k, query.priority, query.deadline_ms, query.max_r) == (
        5,
        "normal",
        None,
        None,
    )


@pytest.mark.parametrize(
    "wrong",
    [
        {"top_k": 0},
        {"deadline_ms": 0},
        {"deadline_ms": float("inf")},
        {"deadline_ms": 4e6},
        {"max_r": -1},
        {"priority": "HIGH"},
        {"unknown": 1},
    ],
)
def test_wrong_classify_parameters(wrong: dict[str, object]) -> None:
    """Out of range, misspelt or unknown: refused."""
    with pytest.raises(ValidationError):
        ClassifyQuery.model_validate(wrong)


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "r": st.integers(0, 20),
            "mode": st.just("auto"),
            "ttl_s": st.floats(0.1, 100),
            "min_r": st.integers(0, 20),
            "max_r": st.integers(0, 20),
        },
    )
)
def test_every_accepted_combination_means_one_thing(given_parameters: dict[str, object]) -> None:
    """Either a pin (ttl or not), or automatic mode and bounds; never a mix, never nothing."""
    names = set(given_parameters)
    pin = "r" in names and names <= {"r", "ttl_s"}
    automatic = bool(names) and names <= {"mode", "min_r", "max_r"}
    try:
        CompressionQuery.model_validate(given_parameters)
    except ValidationError:
        assert not (pin or automatic)
    else:
        assert pin or automatic


def test_result_and_failure_are_told_apart() -> None:
    """A result with a problem is read back as such, not as a result without predictions."""
    problem = {"type": "/p", "title": "t", "status": 400, "detail": "d", "request_id": "1"}
    answer = ClassifyResponse.model_validate(
        {"request_id": "1", "model": "m", "results": [{"filename": "a", "problem": problem}]}
    )
    assert "problem" in answer.model_dump()["results"][0]

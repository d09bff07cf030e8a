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
            "mode": st.sampled_from(["auto", "shadow"]),
            "ttl_s": st.floats(0.1, 100),
            "min_r": st.integers(0, 20),
            "max_r": st.integers(0, 20),
        },
    )
)
def test_every_accepted_combination_means_one_thing(given_parameters: dict[str, object]) -> None:
    """A held degree, or automatic mode, shadow and bounds; never a mix, never nothing."""
    names, mode = set(given_parameters), given_parameters.get("mode")
    pin = "r" in names and names <= {"r", "ttl_s"}
    held = {"r", "mode"} <= names <= {"r", "mode", "ttl_s"} and mode == "shadow"
    automatic = bool(names) and names <= {"mode", "min_r", "max_r"}
    shadow = mode == "shadow" and "r" not in names
    try:
        CompressionQuery.model_validate(given_parameters)
    except ValidationError:
        assert not (pin or held or automatic or shadow)
    else:
        assert pin or held or automatic or shadow


@pytest.mark.parametrize("name", ["r", "min_r", "max_r"])
@pytest.mark.parametrize("value", ["x", "1.5", "", "nan", "1e400", "9" * 5000])
def test_what_is_no_degree_is_told_where_they_are_listed(name: str, value: str) -> None:
    """The schema does not know the model, so it points to what does."""
    with pytest.raises(ValidationError, match="GET /compression lists"):
        CompressionQuery.model_validate({name: value})


@pytest.mark.parametrize(
    "wrong",
    [
        {"mode": "fast"},
        {"r": 1, "ttl_s": 0},
        {"r": 1, "ttl_s": -1},
        {"r": 1, "ttl_s": float("nan")},
        {"r": 1, "ttl_s": float("inf")},
        {"mode": "shadow", "ttl_s": 4e7},
        {"mode": "auto", "ttl_s": 5},
        {"unknown": 1},
    ],
)
def test_wrong_compression_parameters(wrong: dict[str, object]) -> None:
    """Unknown modes and names, and times that are none, are refused."""
    with pytest.raises(ValidationError):
        CompressionQuery.model_validate(wrong)


def test_degrees_out_of_range_are_left_to_the_controller() -> None:
    """It knows the model's range and names it; the documentation still says at least 0."""
    assert CompressionQuery.model_validate({"r": "-1"}).r == -1
    schema = CompressionQuery.model_json_schema()["properties"]["r"]["anyOf"][0]
    assert schema == {"minimum": 0, "type": "integer"}


def test_result_and_failure_are_told_apart() -> None:
    """A result with a problem is read back as such, not as a result without predictions."""
    problem = {"type": "/p", "title": "t", "status": 400, "detail": "d", "request_id": "1"}
    answer = ClassifyResponse.model_validate(
        {"request_id": "1", "model": "m", "results": [{"filename": "a", "problem": problem}]}
    )
    assert "problem" in answer.model_dump()["results"][0]

"""The short way to `POST /classify` is the framework's way, only shorter."""

from typing import Annotated, Any
from unittest.mock import Mock
from urllib.parse import urlencode

import pytest
from fastapi import FastAPI, Query
from hypothesis import given
from hypothesis import strategies as st
from starlette.testclient import TestClient

from server import classification
from server.classification import ClassifyEndpoint
from server.schemas import ClassifyQuery

app = FastAPI()


@app.post("/classify")
def echo(query: Annotated[ClassifyQuery, Query()]) -> ClassifyQuery:
    """What the framework makes of a query."""
    return query


CLIENT = TestClient(app)
ENDPOINT = ClassifyEndpoint(Mock())

VALUES = [
    "1",
    "5",
    "05",
    " 7",
    "0",
    "-1",
    "1.0",
    "1e3",
    "nan",
    "inf",
    "",
    "true",
    "high",
    "low",
    "é",
]
PAIRS = st.tuples(
    st.sampled_from(["top_k", "deadline_ms", "max_r", "priority", "topk"]), st.sampled_from(VALUES)
)


def scope(query: bytes, **changes: Any) -> dict[str, Any]:
    """A request as ASGI describes it."""
    plain = {"type": "http", "method": "POST", "path": "/classify", "query_string": query}
    return plain | changes


@given(st.lists(PAIRS, max_size=4))
def test_it_reads_queries_as_the_framework_does(pairs: list[tuple[str, str]]) -> None:
    """It takes what the framework accepts, with the same values, and nothing else."""
    query = urlencode(pairs)
    answer = CLIENT.post(f"/classify?{query}")
    taken = ENDPOINT.takes(scope(query.encode()))
    assert taken == (answer.status_code == 200)
    if taken:
        assert classification._parse(query.encode()).model_dump() == answer.json()


@pytest.mark.parametrize(
    "changes",
    [
        {"type": "lifespan"},
        {"type": "websocket"},
        {"method": "GET"},
        {"method": "OPTIONS"},
        {"path": "/classify/"},
        {"path": "/model"},
        {"query_string": b"top_k=1&" * 100},
    ],
)
def test_it_takes_nothing_else(changes: dict[str, Any]) -> None:
    """Other paths and methods are the framework's, and so are queries too long to be kept."""
    assert ENDPOINT.takes(scope(b"top_k=1"))
    assert not ENDPOINT.takes(scope(b"top_k=1", **changes))

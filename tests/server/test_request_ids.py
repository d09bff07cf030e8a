"""Where a request's id comes from, and what is not taken for one."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.request_ids import TraceParent, identify, parse_traceparent

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PARENT = f"00-{TRACE}-{SPAN}-01"


def of(*headers: tuple[str, str]) -> tuple[str, TraceParent | None]:
    """The id and trace of a request with these headers."""
    return identify([(name.encode(), value.encode("latin-1")) for name, value in headers])


def test_the_clients_own_id_goes_first() -> None:
    """X-Request-ID before traceparent, whatever their order; the trace is known all the same."""
    expected = ("mine", TraceParent(TRACE, SPAN, 1))
    assert of(("x-request-id", "mine"), ("traceparent", PARENT)) == expected
    assert of(("traceparent", PARENT), ("x-request-id", "mine")) == expected


def test_a_trace_names_its_requests() -> None:
    """Without an id of its own, or with one that is none, a request is called as its trace."""
    assert of(("traceparent", PARENT))[0] == TRACE
    assert of(("x-request-id", "two words"), ("traceparent", PARENT))[0] == TRACE


@pytest.mark.parametrize(
    "given_id", ["", "two words", "line\nbreak", "x" * 129, "é", "\x1b[31m", '"quoted"', "a;b"]
)
def test_what_is_no_plain_token_is_replaced(given_id: str) -> None:
    """Such an id would end in logs and headers."""
    made, trace = of(("x-request-id", given_id))
    assert re.fullmatch("[0-9a-f]{32}", made) and trace is None


@given(st.text(max_size=200))
def test_an_id_is_always_a_plain_token(text: str) -> None:
    """Whatever a client sends."""
    made, _ = identify([(b"x-request-id", text.encode("utf-8", "replace"))])
    assert re.fullmatch(r"[\w.:/+=@-]{1,128}", made, re.ASCII)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "00",
        f"00-{TRACE}-{SPAN}",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-01-more",
        f"00-{TRACE}-{SPAN}-01\n",
        f"01-{TRACE}-{SPAN}-01-{'x' * 300}",
    ],
)
def test_no_traceparent(text: str) -> None:
    """The standard has the header ignored where it is malformed."""
    assert parse_traceparent(text) is None


def test_traceparents() -> None:
    """Flags are read, and versions to come may bring more."""
    assert parse_traceparent(f"00-{TRACE}-{SPAN}-00") == TraceParent(TRACE, SPAN, 0)
    assert parse_traceparent(f"cc-{TRACE}-{SPAN}-03-more") == TraceParent(TRACE, SPAN, 3)

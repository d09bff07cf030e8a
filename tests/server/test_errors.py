"""The errors a client can meet: complete, stable and distinct."""

import inspect

import pytest

from server import errors
from server.errors import Draining, NotReady, QueueFull, RateLimited, ServeError

KINDS = [
    kind
    for _, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, ServeError) and kind is not ServeError
]


def build(kind: type[ServeError]) -> ServeError:
    """Construct an error of any kind."""
    return (
        kind("why", retry_after_s=2.0) if issubclass(kind, QueueFull | RateLimited) else kind("why")
    )


@pytest.mark.parametrize("kind", KINDS)
def test_tree_in_docstring_is_true(kind: type[ServeError]) -> None:
    """The tree at the top of the module lists each kind with its status and type."""
    [line] = [row for row in (errors.__doc__ or "").splitlines() if f" {kind.__name__} " in row]
    assert f" {kind.status} " in line
    assert kind.type in line


@pytest.mark.parametrize("kind", KINDS)
def test_problem_has_the_members_of_rfc_9457(kind: type[ServeError]) -> None:
    """Type, title and status come from the kind, the detail from the instance."""
    problem = build(kind).problem()
    assert problem == {
        "type": kind.type,
        "title": kind.title,
        "status": kind.status,
        "detail": "why",
    }


def test_types_are_distinct() -> None:
    """A client can tell every kind by its type."""
    assert len({kind.type for kind in KINDS}) == len(KINDS) == 26


@pytest.mark.parametrize(("wait_s", "header"), [(0.0, "1"), (1.0, "1"), (1.01, "2"), (4.2, "5")])
def test_retry_after_is_whole_seconds_rounded_up(wait_s: float, header: str) -> None:
    """Retry-After never sends a client back too early, nor at once."""
    assert QueueFull("full", retry_after_s=wait_s).headers == {"Retry-After": header}


def test_unavailable_says_what_to_do() -> None:
    """Warming up asks to come back; shutting down asks to leave the connection."""
    assert NotReady().headers == {"Retry-After": "1"}
    assert Draining().headers == {"Connection": "close"}


def test_headers_are_not_shared() -> None:
    """Changing one error's headers leaves the next one's alone."""
    Draining().headers["X"] = "1"
    assert "X" not in Draining().headers

"""What clients are told where Ray's proxy speaks for itself, or says nothing at all."""

import asyncio
from collections.abc import Sequence
from typing import Any

import httpx
import pytest
from starlette.types import ASGIApp, Receive, Scope, Send

from deploy.ray.proxy_answers import CALLBACK, ProxyAnswers, middlewares

Head = tuple[int, Sequence[tuple[bytes, bytes]]]


def proxy(head: Head | None, body: bytes = b"") -> ASGIApp:
    """A proxy that answers this, or nothing, and adds its id as Ray's does."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if head is None:
            return
        status, headers = head
        given = dict(scope["headers"])[b"x-request-id"]
        added = [*headers, (b"x-request-id", given), (b"X-Request-ID", given)]
        await send({"type": "http.response.start", "status": status, "headers": added})
        await send({"type": "http.response.body", "body": body[:3], "more_body": True})
        await send({"type": "http.response.body", "body": body[3:]})

    return app


def get(app: ASGIApp, path: str = "/classify", **headers: str) -> httpx.Response:
    """What a client gets."""

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(ProxyAnswers(app))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.get(path, headers=headers)

    return asyncio.run(ask())


TEXT = (b"content-type", b"text/plain; charset=utf-8")


def test_a_lost_replica_is_a_503_that_says_when_to_come_back():
    """Ray ends such a request without an answer."""
    answer = get(proxy(None), **{"X-Request-ID": "mine"})
    assert answer.status_code == 503
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["retry-after"] == "1"
    problem = answer.json()
    assert problem["type"] == "/problems/replica-lost"
    assert problem["status"] == 503
    assert problem["request_id"] == answer.headers["x-request-id"] == "mine"


@pytest.mark.parametrize(
    ("status", "kind", "retry"),
    [
        (404, "not-found", None),
        (408, "request-timeout", None),
        (429, "queue-full", "1"),
        (503, "not-ready", "1"),
    ],
)
def test_the_proxys_own_words_become_problems(status: int, kind: str, retry: str | None):
    """None of its text gets through."""
    answer = get(proxy((status, [TEXT]), b"some words of Ray's"))
    assert answer.status_code == answer.json()["status"] == status
    assert answer.json()["type"] == f"/problems/{kind}"
    assert answer.headers.get("retry-after") == retry
    assert "Ray's" not in answer.json()["title"]


def test_what_ray_says_of_coming_back_is_kept():
    """It knows when."""
    answer = get(proxy((429, [TEXT, (b"retry-after", b"7")]), b"later"))
    assert answer.headers.get_list("retry-after") == ["7"]


@pytest.mark.parametrize("status", [200, 404, 429, 503])
def test_the_servers_answers_pass(status: int):
    """Problems of its own too, and the id is there once."""
    head = (status, [(b"content-type", b"application/problem+json"), (b"retry-after", b"3")])
    answer = get(proxy(head, b"as it is"))
    assert (answer.status_code, answer.content) == (status, b"as it is")
    assert answer.headers["retry-after"] == "3"
    assert len(answer.headers.get_list("x-request-id")) == 1


def test_an_odd_id_is_replaced_for_all_sides():
    """Neither the proxy's answer nor a log repeats what a stranger made up."""
    answer = get(proxy((200, [TEXT])), **{"X-Request-ID": "two words"})
    assert len(answer.headers["x-request-id"]) == 32


def test_the_proxys_own_paths_are_left_alone():
    """Load balancers read them as Ray wrote them."""
    given: dict[str, Any] = {"X-Request-ID": "mine"}
    answer = get(proxy((503, [TEXT]), b"draining"), "/-/healthz", **given)
    assert (answer.status_code, answer.text) == (503, "draining")


def test_ray_finds_it_by_its_name():
    """The variable names what is there."""
    module, name = CALLBACK.split(":")
    assert (module, name) == (middlewares.__module__, middlewares.__name__)
    (middleware,) = middlewares()
    assert middleware.cls is ProxyAnswers  # type: ignore[comparison-overlap]

"""Both clients against a scripted server: what is repeated, when, and what in the end is told."""

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

import tocom_client
from tests.client.scripted import JPEG, Kind, Script, ask, problem, served
from tocom_client import NEVER, AsyncClient, Client, RetryBudget, RetryPolicy
from tocom_client.conversation import GRACE_S

both = pytest.mark.parametrize("kind", ["sync", "async"])

CONNECT = httpx.ConnectError("[Errno 111] Connection refused")
BROKEN = httpx.RemoteProtocolError("Server disconnected without sending a response.")
SLOW = httpx.ReadTimeout("timed out")
FULL = problem(429, "overloaded", Retry_After="3")
WARMING = problem(503, "not-ready")


@both
def test_one_image_goes_raw_and_comes_back_typed(kind: Kind, tmp_path: Path) -> None:
    """Type, wishes and id on the way there; the record, with the file's name, on the way back."""
    (tmp_path / "cat.jpg").write_bytes(JPEG)
    script = Script((served(),))
    found = script.ask(
        kind, "classify", tmp_path / "cat.jpg", top_k=1, max_r=8, priority="low", request_id="mine"
    )
    assert found.top == tocom_client.Prediction("cat", 3, 0.75)
    assert (found.r, found.batch_size, found.queue_ms, found.compute_ms) == (4, 2, 1.5, 30.0)
    assert (found.model, found.request_id, found.filename) == ("some model", "theirs", "cat.jpg")
    (request,) = script.requests
    assert (request.method, request.url.path, request.content) == ("POST", "/classify", JPEG)
    assert request.headers["content-type"] == "image/jpeg"
    assert request.headers["x-request-id"] == "mine"
    assert dict(request.url.params) == {"top_k": "1", "max_r": "8", "priority": "low"}
    assert "authorization" not in request.headers


@both
def test_a_server_that_names_a_time_is_obeyed(kind: Kind) -> None:
    """Neither earlier nor much later, and every attempt carries the same id."""
    for draw in (0.0, 1.0):
        script = Script((FULL, WARMING, served()), draw=draw)
        assert script.ask(kind, "classify", JPEG).r == 4
        assert script.slept == pytest.approx([3.75, 0.2] if draw else [3.0, 0.1])
        assert len({request.headers["x-request-id"] for request in script.requests}) == 1


@both
def test_a_date_is_a_time_too(kind: Kind) -> None:
    """It counts from the answer's own date, whatever this machine's clock says."""
    date = "Wed, 21 Oct 2015 07:28:00 GMT"
    later = "Wed, 21 Oct 2015 07:28:07 GMT"
    script = Script((problem(503, "draining", Retry_After=later, Date=date), served()))
    script.ask(kind, "classify", JPEG)
    assert script.slept == [7.0]


@both
def test_waits_double_where_nobody_names_them(kind: Kind) -> None:
    """Up to the policy's longest one, and for as many attempts as it allows."""
    script = Script((WARMING,), draw=1.0)
    policy = RetryPolicy(attempts=6, first_delay_s=1, longest_delay_s=5)
    with pytest.raises(tocom_client.NotReady) as caught:
        ask(script.client(kind, retry=policy), "classify", JPEG)
    assert script.slept == [1, 2, 4, 5, 5]
    assert caught.value.attempts == 6 and "6 attempts" in str(caught.value)


@both
@pytest.mark.parametrize(
    ("status", "slug", "error"),
    [
        (400, "not-an-image", tocom_client.InvalidImage),
        (401, "unauthorized", tocom_client.Unauthorized),
        (404, "not-found", tocom_client.Refused),
        (409, "reload-in-progress", tocom_client.ReloadInProgress),
        (413, "image-too-large", tocom_client.InvalidImage),
        (422, "bad-parameter", tocom_client.InvalidParameter),
        (500, "forward-failed", tocom_client.ServerFailed),
        (504, "deadline-expired", tocom_client.DeadlineExceeded),
    ],
)
def test_what_would_fail_again_is_not_repeated(
    kind: Kind, status: int, slug: str, error: type[Exception]
) -> None:
    """Not even where the answer names a time; and the error says all that the problem does."""
    script = Script((problem(status, slug, Retry_After="1"),))
    with pytest.raises(tocom_client.TocomClientError) as caught:
        script.ask(kind, "classify", JPEG)
    told = caught.value
    assert type(told) is error
    assert (told.status, told.type, told.title) == (status, f"/problems/{slug}", slug)
    assert (told.detail, told.request_id, told.attempts) == (f"{slug} happened", "theirs", 1)
    assert len(script.requests) == 1 and script.slept == []


@both
def test_an_answer_of_somebody_else_is_told_as_such(kind: Kind) -> None:
    """A proxy's page is no problem document; its status decides, and what it said is shown."""
    with pytest.raises(tocom_client.ServerFailed, match=r"answered 502: '<h1>Bad gateway'"):
        Script((httpx.Response(502, text="<h1>Bad gateway"),)).ask(kind, "classify", JPEG)
    with pytest.raises(tocom_client.UnexpectedAnswer, match="no JSON but '<html>'"):
        Script((httpx.Response(200, text="<html>"),)).ask(kind, "model")
    with pytest.raises(tocom_client.UnexpectedAnswer, match="has no 'name'"):
        Script((httpx.Response(200, json={}),)).ask(kind, "model")
    with pytest.raises(tocom_client.UnexpectedAnswer, match="1 images were sent"):
        Script((served(2),)).ask(kind, "classify", JPEG)
    with pytest.raises(tocom_client.UnexpectedAnswer, match="answered 302"):
        Script((httpx.Response(302, headers={"Location": "/login"}),)).ask(kind, "model")


@both
@pytest.mark.parametrize("lost", [CONNECT, BROKEN, httpx.ReadError("reset"), httpx.ConnectTimeout])
def test_a_lost_connection_is_tried_again(kind: Kind, lost: Any) -> None:
    """A classification may be done twice without harm."""
    lost = lost if isinstance(lost, Exception) else lost("timed out")
    script = Script((lost, served()))
    assert script.ask(kind, "classify", JPEG).r == 4
    assert script.slept == [0.05]


@both
def test_a_server_that_takes_too_long_is_not_asked_again(kind: Kind) -> None:
    """It would have to do the same again beside what it already does."""
    script = Script((SLOW,))
    with pytest.raises(tocom_client.ConnectionFailed, match="did not answer in time") as caught:
        script.ask(kind, "classify", JPEG)
    assert len(script.requests) == 1 and caught.value.sent


@both
def test_a_reload_is_only_repeated_if_it_cannot_have_begun(kind: Kind) -> None:
    """It is the one call that does harm when it is done twice."""
    status = {
        "state": "loading",
        "model": "m",
        "bank": "auto",
        "started_at": "2026-01-02T03:04:05Z",
    }
    script = Script((CONNECT, WARMING, httpx.Response(202, json=status)))
    assert script.ask(kind, "reload", "m", r_source=0, wait_s=90).state == "loading"
    assert json.loads(script.requests[-1].content) == {"model": "m", "r_source": 0, "wait_s": 90}
    script = Script((BROKEN,))
    with pytest.raises(tocom_client.ConnectionFailed):
        script.ask(kind, "reload", "m")
    assert len(script.requests) == 1


@both
def test_a_deadline_counts_down_from_attempt_to_attempt(kind: Kind) -> None:
    """The server is told what is left, and each attempt may take no longer than that."""
    refused = problem(429, "queue-full", Retry_After="1")
    script = Script(((0.5, refused), (0.25, refused), served()))
    script.ask(kind, "classify", JPEG, deadline_s=10)
    assert script.queries("deadline_ms") == ["10000", "8500", "7250"]
    within = [request.extensions["timeout"] for request in script.requests]
    assert isinstance(within[-1]["read"], float)
    assert script.sent_at == pytest.approx([1000, 1001.5, 1002.75])


@both
def test_nothing_is_waited_for_that_the_deadline_does_not_outlive(kind: Kind) -> None:
    """The call ends at once with what the server said, not with the deadline."""
    script = Script((problem(429, "overloaded", Retry_After="9"),))
    with pytest.raises(tocom_client.Overloaded) as caught:
        script.ask(kind, "classify", JPEG, deadline_s=5)
    assert script.slept == [] and caught.value.retry_after_s == 9
    script = Script((problem(429, "overloaded", Retry_After="61"),))
    with pytest.raises(tocom_client.Overloaded):
        script.ask(kind, "classify", JPEG)
    assert script.slept == []


@both
def test_a_deadline_that_passes_is_its_own_error(kind: Kind) -> None:
    """Whether the server is silent, or the connection ends too late to try again."""
    for lost in (SLOW, BROKEN):
        script = Script(((2.0 + GRACE_S, lost),))
        with pytest.raises(tocom_client.DeadlineExceeded, match="within 2 s") as caught:
            script.ask(kind, "classify", JPEG, deadline_s=2.0, request_id="mine")
        assert len(script.requests) == 1
        assert caught.value.status is None and caught.value.request_id == "mine"


@both
def test_a_budget_keeps_retries_a_share_of_the_calls(kind: Kind) -> None:
    """Once it is spent each call is sent once; calls that need no retry fill it again."""
    script = Script((CONNECT,))
    budget = RetryBudget(share=0.5, reserve=2)
    counts = []
    for _ in range(5):
        with pytest.raises(tocom_client.ConnectionFailed) as caught:
            ask(script.client(kind, budget=budget), "classify", JPEG)
        counts.append(caught.value.attempts)
    assert counts == [3, 1, 2, 1, 2]
    assert script.slept and len(script.requests) == sum(counts)


def test_who_ran_out_of_budget_is_told() -> None:
    """The note tells it from a call that was refused for good."""
    with pytest.raises(tocom_client.ConnectionFailed) as caught:
        ask(Script((CONNECT,)).client("sync", budget=RetryBudget(reserve=0)), "model")
    assert "have been retries" in caught.value.__notes__[0]


@both
def test_a_client_may_never_repeat(kind: Kind) -> None:
    """For whoever measures."""
    script = Script((FULL,))
    with pytest.raises(tocom_client.Overloaded):
        ask(script.client(kind, retry=NEVER), "compression")
    assert len(script.requests) == 1


@both
def test_a_server_is_waited_for(kind: Kind) -> None:
    """First nobody is there, then it warms up, then it is ready."""
    script = Script((CONNECT, WARMING, problem(429, "rate-limited"), httpx.Response(200, json={})))
    assert script.ask(kind, "wait_until_ready", 10) is None
    assert script.slept == [0.1, 0.2, 0.4]
    assert [request.url.path for request in script.requests] == ["/readyz"] * 4


@both
def test_a_server_is_not_waited_for_too_long(kind: Kind) -> None:
    """The error is the last answer, and says how long it was."""
    script = Script(((0.5, WARMING),))
    with pytest.raises(tocom_client.NotReady, match="not-ready happened") as caught:
        script.ask(kind, "wait_until_ready", 5)
    assert script.now - 1000 <= 5 and "within 5 s" in caught.value.__notes__[0]
    with pytest.raises(tocom_client.ConnectionFailed):
        Script((CONNECT,)).ask(kind, "wait_until_ready", 5)


@both
def test_readiness_is_looked_at_once(kind: Kind) -> None:
    """Nobody there is a no; something else there is an error."""
    assert Script((httpx.Response(200, json={}),)).ask(kind, "ready") is True
    for no in (WARMING, CONNECT, SLOW):
        script = Script((no,))
        assert script.ask(kind, "ready") is False
        assert len(script.requests) == 1
    with pytest.raises(tocom_client.Refused):
        Script((httpx.Response(404, text="not here"),)).ask(kind, "ready")


@both
def test_the_dial_sends_what_was_asked_and_nothing_else(kind: Kind) -> None:
    """Each change as the query that the server takes."""
    script = Script((httpx.Response(200, json=DIAL),))
    for method, args, options in (
        ("pin", (12,), {"ttl_s": 0.5}),
        ("pin", (3,), {}),
        ("auto", (), {}),
        ("shadow", (), {"ttl_s": 60}),
        ("shadow", (2,), {}),
        ("bound", (2, 6), {}),
        ("bound", (), {"max_r": 6}),
        ("compression", (), {}),
    ):
        assert script.ask(kind, method, *args, **options).levels[0].images_per_s == 40.0
    assert [request.url.query.decode() for request in script.requests] == [
        *("r=12&ttl_s=0.5", "r=3", "mode=auto", "mode=shadow&ttl_s=60", "mode=shadow&r=2"),
        *("min_r=2&max_r=6", "max_r=6", ""),
    ]
    assert [request.method for request in script.requests] == ["PUT"] * 7 + ["GET"]


LEVEL = {
    **{"r": 0, "relative_throughput": 1, "images_per_s": 40, "batch_size": 8, "measured": True},
    **{"pays": True, "allowed": True, "expected_accuracy": None, "agreement": None},
}
DIAL = {"mode": "auto", "r": 0, "r_source": 0, "min_r": 0, "max_r": 12, "levels": [LEVEL]}


@both
def test_a_key_is_sent_and_never_shown(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given or from the environment; with it goes no word of it into repr or errors."""
    monkeypatch.setenv("TOCOM_API_KEY", "from-the-environment")
    script = Script((problem(401, "unauthorized"),))
    for given, sent in (("given", "given"), (None, "from-the-environment")):
        client = script.client(kind, api_key=given)
        assert sent not in repr(client) and sent not in repr(vars(client))
        with pytest.raises(tocom_client.Unauthorized) as caught:
            ask(client, "model")
        assert sent not in str(caught.value)
        assert script.requests[-1].headers["authorization"] == f"Bearer {sent}"


def test_the_address_may_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else it is where `tocom serve` listens by itself; a path before the API is kept."""
    monkeypatch.delenv("TOCOM_URL", raising=False)
    assert repr(Client()) == "Client('http://127.0.0.1:8000')"
    monkeypatch.setenv("TOCOM_URL", "https://gateway.example/vision/")
    assert repr(AsyncClient()) == "AsyncClient('https://gateway.example/vision')"
    script = Script((served(),))
    ask(script.client("sync", base_url="https://gateway.example/vision/"), "classify", JPEG)
    assert script.requests[0].url.path == "/vision/classify"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"base_url": "localhost:8000"}, "expected one such as http://127.0.0.1:8000"),
        ({"base_url": "ftp://host"}, "expected one such as"),
        ({"api_key": "two\nlines"}, "is it complete"),
        ({"api_key": "a b"}, "is it complete"),
        ({"timeout_s": 0}, "timeout_s=0"),
        ({"timeout_s": float("nan")}, "timeout_s=nan"),
    ],
)
def test_arguments_without_sense_are_refused(options: dict[str, Any], said: str) -> None:
    """At once, by both clients, with what was expected."""
    for kind in (Client, AsyncClient):
        with pytest.raises(ValueError, match=said):
            kind(**options)


@both
@pytest.mark.parametrize("deadline_s", [0, -1, float("inf"), float("nan")])
def test_a_deadline_without_sense_is_refused(kind: Kind, deadline_s: float) -> None:
    """Before anything is sent."""
    script = Script((served(),))
    with pytest.raises(ValueError, match="expected seconds, more than 0"):
        script.ask(kind, "classify", JPEG, deadline_s=deadline_s)
    assert script.requests == []

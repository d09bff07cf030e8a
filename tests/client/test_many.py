"""Many images: order, company, bad ones among them, how many at once, and how far it is."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import httpx
import pytest

import tocom_client
from tests.client.scripted import (
    JPEG,
    RESULT,
    Kind,
    Script,
    ask,
    images_in,
    problem,
    served_as_many_as_sent,
)
from tocom_client import AsyncClient, Client, NotReady, Progress
from tocom_client.classifying import MOST_BYTES

both = pytest.mark.parametrize("kind", ["sync", "async"])

BAD = b"bad"


def refuses_bad_ones(request: httpx.Request) -> httpx.Response:
    """What a server does: a bad image has its own problem, unless there is no good one."""
    count, body = images_in(request), request.content
    # A part ends with its content, a blank line before it.
    bad = [BAD in part for part in body.split(b'name="file"')[1:]] if count > 1 else [body == BAD]
    if all(bad):
        return problem(400, "not-an-image")
    failed = {"filename": None, "problem": problem(400, "not-an-image").json()}
    results = [failed if one else RESULT for one in bad]
    return httpx.Response(200, json={"request_id": "x", "model": "m", "results": results})


@both
@pytest.mark.parametrize("per_request", [1, 3, 4, 100])
def test_order_is_kept_and_bad_ones_stop_nobody(
    kind: Kind, per_request: int, tmp_path: Path
) -> None:
    """Neither what the server refuses nor what cannot be read here."""
    (tmp_path / "good.jpg").write_bytes(JPEG)
    images: list[Any] = [JPEG, BAD, tmp_path / "missing.jpg", BAD, tmp_path / "good.jpg", JPEG] * 3
    seen: list[Progress] = []
    script = Script((refuses_bad_ones,))
    outcomes = script.ask(
        kind, "classify_many", images, per_request=per_request, on_progress=seen.append
    )
    assert [outcome.place for outcome in outcomes] == list(range(18))
    assert [outcome.source for outcome in outcomes] == images
    assert [outcome.error is None for outcome in outcomes] == [
        True,
        False,
        False,
        False,
        True,
        True,
    ] * 3
    for outcome in outcomes:
        assert (outcome.classification is None) == (outcome.problem is not None)
    assert outcomes[0].classification.top.label == "cat"
    assert outcomes[1].problem.type == "/problems/not-an-image"
    assert outcomes[1].problem.status == 400 and outcomes[1].problem.request_id == "theirs"
    assert outcomes[2].filename == "missing.jpg" and outcomes[2].problem.status == 0
    assert "No such file" in outcomes[2].problem.detail
    assert outcomes[4].classification.filename == "good.jpg"
    assert seen[0] == Progress(1, 0, 18) and seen[-1] == Progress(18, 9, 18)
    assert [progress.done for progress in seen] == list(range(1, 19))


@both
def test_a_group_that_is_refused_as_a_whole_is_sent_one_by_one(kind: Kind) -> None:
    """Too many bytes together, or one among them that spoils the form."""

    def small_requests_only(request: httpx.Request) -> httpx.Response:
        alone = images_in(request) == 1
        return served_as_many_as_sent(request) if alone else problem(413, "image-too-large")

    script = Script((small_requests_only,))
    outcomes = script.ask(kind, "classify_many", [JPEG] * 4, per_request=4)
    assert [outcome.error for outcome in outcomes] == [None] * 4
    assert [images_in(request) for request in script.requests] == [4, 1, 1, 1, 1]


@both
def test_large_images_travel_alone(kind: Kind) -> None:
    """A request with several stays below what servers usually take."""
    script = Script((served_as_many_as_sent,))
    large = bytes(MOST_BYTES // 2 + 1)
    outcomes = script.ask(kind, "classify_many", [large, JPEG, large, JPEG], per_request=4)
    assert len(outcomes) == 4
    assert [images_in(request) for request in script.requests] == [2, 2]


@both
def test_it_is_patient_with_an_overload(kind: Kind) -> None:
    """Longer than a single call, and without spending the client's budget of retries."""
    full = problem(429, "overloaded", Retry_After="1")
    script = Script((*[full] * 9, served_as_many_as_sent))
    client = script.client(kind, budget=tocom_client.RetryBudget(reserve=0))
    (outcome,) = ask(client, "classify_many", [JPEG])
    assert outcome.error is None and script.slept == [*[1.0] * 5, 1.6, *[2.5] * 3]


@both
def test_a_server_that_fails_is_the_images_problem(kind: Kind) -> None:
    """Each image of the group carries it; the next group is tried all the same."""
    script = Script((problem(500, "forward-failed"), served_as_many_as_sent))
    outcomes = script.ask(kind, "classify_many", [JPEG] * 4, per_request=2, concurrency=1)
    assert [type(outcome.error) for outcome in outcomes] == [
        *[tocom_client.ServerFailed] * 2,
        *[type(None)] * 2,
    ]


@both
def test_a_bad_key_ends_it(kind: Kind) -> None:
    """No image would fare better, so that thousands of them need not be sent."""
    script = Script((problem(401, "unauthorized"),))
    with pytest.raises(tocom_client.Unauthorized):
        script.ask(kind, "classify_many", [JPEG] * 1000, concurrency=2, per_request=1)
    assert len(script.requests) <= 8


@both
@pytest.mark.parametrize("options", [{"concurrency": 0}, {"per_request": 0}, {"deadline_s": 0}])
def test_nonsense_is_refused_at_once(kind: Kind, options: dict[str, int]) -> None:
    """By the call itself, before the first outcome is asked for."""
    client = Script((served_as_many_as_sent,)).client(kind)
    with pytest.raises(ValueError, match=next(iter(options))):
        client.classify_many([JPEG], **options)


def test_so_many_requests_at_once_and_no_more_sync() -> None:
    """Threads: as many as asked for meet in the server, and never one more."""
    together = threading.Barrier(3)
    lock, under_way, most = threading.Lock(), [0], [0]

    def handler(request: httpx.Request) -> httpx.Response:
        with lock:
            under_way[0] += 1
            most[0] = max(most[0], under_way[0])
        together.wait(30)
        with lock:
            under_way[0] -= 1
        together.wait(30)
        return served_as_many_as_sent(request)

    with Client("http://h", transport=httpx.MockTransport(handler)) as client:
        assert len(list(client.classify_many([JPEG] * 9, concurrency=3, per_request=1))) == 9
    assert most == [3]


def test_so_many_requests_at_once_and_no_more_async() -> None:
    """Tasks, likewise; and the source may be an asynchronous one."""
    under_way, most = 0, 0

    async def handler(request: httpx.Request) -> httpx.Response:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        for _ in range(50):
            await asyncio.sleep(0)
        under_way -= 1
        return served_as_many_as_sent(request)

    async def source() -> AsyncIterator[bytes]:
        for _ in range(20):
            await asyncio.sleep(0)
            yield JPEG

    async def main() -> None:
        transport = httpx.MockTransport(handler)
        async with AsyncClient("http://h", transport=transport) as client:
            found = client.classify_many(source(), concurrency=3, per_request=2)
            assert [outcome.place async for outcome in found] == list(range(20))

    asyncio.run(main())
    assert most == 3


def test_images_are_taken_as_they_are_needed() -> None:
    """A source without end is no problem; who stops early has asked for a few too many."""
    taken = 0

    def endless() -> Iterator[bytes]:
        nonlocal taken
        while True:
            taken += 1
            yield JPEG

    script = Script((served_as_many_as_sent,))
    with script.client("sync") as client:
        outcomes = client.classify_many(endless(), concurrency=2, per_request=3)
        assert next(outcomes).place == 0
        outcomes.close()
        assert taken <= 2 * 2 * 3
    assert len(script.requests) * 3 <= taken


def test_who_leaves_early_cancels_what_is_under_way() -> None:
    """With the generator closed no task is left behind."""
    started = cancelled = 0

    async def handler(request: httpx.Request) -> httpx.Response:
        nonlocal started, cancelled
        started += 1
        if started == 1:
            return served_as_many_as_sent(request)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled += 1
            raise
        raise AssertionError("nobody sets the event")

    async def main() -> None:
        async with AsyncClient("http://h", transport=httpx.MockTransport(handler)) as client:
            found = client.classify_many([JPEG] * 10, concurrency=3, per_request=1)
            async with aclosing(found) as outcomes:
                async for outcome in outcomes:
                    assert outcome.place == 0
                    while started < 4:
                        await asyncio.sleep(0)
                    break
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(main())
    assert (started, cancelled) == (4, 3)


def test_nobody_there_is_every_images_problem() -> None:
    """The caller decides when to give up: each outcome says that there was no server."""
    script = Script((problem(503, "draining"),))
    (one, two) = script.ask("sync", "classify_many", [JPEG, JPEG], retry=tocom_client.NEVER)
    assert isinstance(one.error, NotReady) and isinstance(two.error, NotReady)

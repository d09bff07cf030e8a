"""The HTTP client against a small server of its own: what it sends, and what it reads."""

import asyncio
import gc
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from server.open_loop import Answer, Client, Watch, closed_loop, open_loop, watch
from tests.server.fake_target import FakeTarget, Machine
from tests.server.fakes import loop_time, run_virtual
from tocom_client import NotReady

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

RESULT = {
    "r": 4,
    "batch_size": 2,
    "queue_ms": 1.5,
    "compute_ms": 30.25,
    "predictions": [{"label": "cat", "index": 3, "score": 0.75}],
}
FILES = tuple(f"picture {number}".encode() for number in range(5))


@asynccontextmanager
async def target(handler: Handler):
    """The URL of a server with one handler for everything."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handler)
    async with TestServer(app) as server:
        yield str(server.make_url("/"))


def ask(handler: Handler, asking: Callable[[Client], Awaitable[Any]], **options: Any) -> Any:
    """What a client makes of a server with this handler."""

    async def main() -> Any:
        async with target(handler) as url, Client(url, FILES, 0, **options) as client:
            return await asking(client)

    return asyncio.run(main())


async def serve_result(request: web.Request) -> web.Response:
    """A result, whatever was sent."""
    return web.json_response({"results": [RESULT]})


def test_the_collector_leaves_alone_what_was_there_before() -> None:
    """Looking through it takes a quarter of a second, which would be the server's latency."""
    old: list[int] = [1]

    def looked_through() -> bool:
        return any(found is old for found in gc.get_objects())

    async def look(_: Client) -> bool:
        return looked_through()

    assert looked_through()
    assert not ask(serve_result, look)
    assert looked_through()


def test_the_key_in_the_environment_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the load as by the dial; without one no header is sent."""
    shown: list[str | None] = []

    async def handler(request: web.Request) -> web.Response:
        shown.append(request.headers.get("Authorization"))
        return web.json_response({"results": [RESULT]})

    monkeypatch.setenv("TOCOM_API_KEY", "tk_secret")
    ask(handler, lambda client: client.classify())
    monkeypatch.delenv("TOCOM_API_KEY")
    ask(handler, lambda client: client.classify())
    assert shown == ["Bearer tk_secret", None]


def test_an_answer_is_read() -> None:
    """Degree, batch, times and the likeliest class."""
    answer: Answer = ask(serve_result, lambda client: client.classify())
    (image,) = answer.images
    assert (answer.status, answer.error) == (200, "")
    assert (image.r, image.batch_size, image.queue_ms, image.compute_ms) == (4, 2, 1.5, 30.25)
    assert (image.index, image.score) == (3, 0.75)
    assert answer.sent_s <= answer.done_s


def test_all_pictures_are_sent_in_an_order_that_the_seed_fixes() -> None:
    """Each once per round, and `photo` tells which; another seed is another order."""

    async def echo(request: web.Request) -> web.Response:
        sent.append(await request.read())
        return web.json_response({"results": [RESULT]})

    async def ten(client: Client) -> list[int]:
        return [(await client.classify()).photo for _ in range(10)]

    sent: list[bytes] = []
    places = ask(echo, ten)
    assert [FILES[place] for place in places] == sent
    assert sorted(places[:5]) == sorted(places[5:]) == [0, 1, 2, 3, 4]
    assert ask(echo, ten) == places

    async def other_seed() -> list[int]:
        async with target(echo) as url, Client(url, FILES, 1) as client:
            return await ten(client)

    assert asyncio.run(other_seed()) != places


def test_a_deadline_is_sent_only_if_there_is_one() -> None:
    """As the server's query parameter."""

    async def look(request: web.Request) -> web.Response:
        queries.append(dict(request.query))
        return web.json_response({"results": [RESULT]})

    queries: list[dict[str, str]] = []
    ask(look, lambda client: client.classify())
    ask(look, lambda client: client.classify(), deadline_ms=250.0)
    assert queries == [{"top_k": "1"}, {"top_k": "1", "deadline_ms": "250"}]


@pytest.mark.parametrize(("header", "seconds"), [("2", 2.0), ("soon", None), (None, None)])
def test_a_refusal_says_when_to_come_back(header: str | None, seconds: float | None) -> None:
    """In whole seconds, if it says so."""

    async def refuse(request: web.Request) -> web.Response:
        headers = {} if header is None else {"Retry-After": header}
        return web.Response(status=429, headers=headers)

    answer = ask(refuse, lambda client: client.classify())
    assert (answer.status, answer.retry_after_s, answer.images) == (429, seconds, ())


def test_a_broken_connection_is_an_answer_too() -> None:
    """Status 0 with the reason; nothing is raised in the middle of a replay."""

    async def hang_up(request: web.Request) -> web.Response:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    answer = ask(hang_up, lambda client: client.classify())
    assert answer.status == 0
    assert "ServerDisconnectedError" in answer.error


def test_images_with_problems_are_left_out() -> None:
    """Of several files in one request."""

    async def half(request: web.Request) -> web.Response:
        return web.json_response({"results": [RESULT, {"filename": "b", "problem": {}}]})

    answer = ask(half, lambda client: client.classify_files(2))
    assert len(answer.images) == 1


def test_the_dial_is_turned_by_query() -> None:
    """Reading is a GET, changing a PUT, each sent once; a refusal of the change is raised."""

    async def dial(request: web.Request) -> web.Response:
        asked.append((request.method, request.path, dict(request.query)))
        status = 503 if request.query.get("r") == "99" else 200
        dial = {"mode": "auto", "r": 0, "r_source": 0, "min_r": 0, "max_r": 8, "levels": []}
        return web.json_response(dial, status=status)

    asked: list[tuple[str, str, dict[str, str]]] = []
    assert ask(dial, lambda client: client.control.compression()).mode == "auto"
    ask(dial, lambda client: client.control.pin(8))
    assert asked == [("GET", "/compression", {}), ("PUT", "/compression", {"r": "8"})]
    with pytest.raises(NotReady):
        ask(dial, lambda client: client.control.pin(99))
    assert len(asked) == 3


@pytest.mark.parametrize(
    ("page", "value"),
    [("tocom_slo_seconds 0.25\n", 0.25), ("tocom_slo_seconds_total 9\n", None)],
)
def test_a_gauge_is_read_by_its_whole_name(page: str, value: float | None) -> None:
    """NaN where the server has none of that name."""

    async def metrics(request: web.Request) -> web.Response:
        return web.Response(text="# HELP tocom_slo_seconds Text.\n" + page)

    found = ask(metrics, lambda client: client.gauge("tocom_slo_seconds"))
    assert found == value if value is not None else found != found


def test_open_loop_does_not_wait_for_answers() -> None:
    """Two requests due while the first is being served leave on time."""

    async def main() -> list[Answer]:
        return await open_loop(FakeTarget(Machine(image_s=1.0, max_batch=1)), [0.5, 0.6, 0.7])

    answers = run_virtual(main())
    assert [answer.sent_s for answer in answers] == pytest.approx([0.5, 0.6, 0.7])
    latencies = [answer.latency_s for answer in answers]
    assert latencies == pytest.approx([1.004, 1.904, 2.804], abs=1e-3)


def test_closed_loop_keeps_so_many_under_way() -> None:
    """Three connections fill batches of three, for the asked time."""

    async def main() -> tuple[list[Answer], float]:
        answers = await closed_loop(FakeTarget(Machine(max_batch=8)), 6.0, 3)
        return answers, loop_time()

    answers, ended_s = run_virtual(main())
    assert {answer.images[0].batch_size for answer in answers[10:-10]} == {3}
    assert ended_s == pytest.approx(6, abs=0.2)


def test_closed_loop_pauses_after_a_refusal() -> None:
    """Or refusing would take the server's time: at most one try a second and connection."""
    answers = run_virtual(closed_loop(FakeTarget(Machine(queue=0)), 10.0, 2))
    assert len(answers) == 20


def test_watching_goes_on_when_the_server_does_not_answer() -> None:
    """A failure is a record; a sample tells dial and queue."""

    class Deaf(FakeTarget):
        async def gauge(self, name: str) -> float:
            if loop_time() < 1.5:
                raise TimeoutError("no answer")
            return 7.0

    async def main() -> Watch:
        seen = Watch()
        watching = asyncio.create_task(watch(Deaf(Machine()), 1.0, seen))
        await asyncio.sleep(3.5)
        watching.cancel()
        return seen

    seen = run_virtual(main())
    assert len(seen.failures) == 2 and len(seen.samples) == 2
    assert (seen.samples[0].mode, seen.samples[0].queue_depth) == ("auto", 7.0)

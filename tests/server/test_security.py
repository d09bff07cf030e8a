"""The door: keys and scopes on every path and by either way, rates, and what the document says."""

import asyncio
import json
import logging
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from pydantic import SecretStr
from starlette.responses import PlainTextResponse

from server.access_settings import AccessSettings
from server.api_keys import new_key
from server.errors import SettingsError
from server.scopes import OPEN_FOLDERS, SCOPES_OF, wanted_scopes
from server.security import Guard, Security, check_exposure
from tests.server.test_app import PICTURE, Bench, kind, model_path, tell

__all__ = ["model_path"]  # a fixture

KEYS = {scope: new_key() for scope in ("inference", "control", "metrics")}
RING = SecretStr("\n".join(f"{scope}-user {scope} {key}" for scope, key in KEYS.items()))

ASKS = [
    ("POST", "/classify", {"inference"}),
    ("POST", "/classify?top_k=0", {"inference"}),
    ("POST", "/merges", {"inference"}),
    ("GET", "/model", {"inference"}),
    ("HEAD", "/model", {"inference"}),
    ("GET", "/compression", {"inference", "control"}),
    ("PUT", "/compression", {"control"}),
    ("POST", "/models/reload", {"control"}),
    ("GET", "/metrics", {"metrics"}),
    ("GET", "/events", {"metrics"}),
    ("GET", "/v2", {"inference"}),
    ("GET", "/v2/models/any", {"inference"}),
    ("GET", "/v2/models/any/versions/1/ready", {"inference"}),
    ("POST", "/v2/models/any/infer", {"inference"}),
    ("POST", "/v2/models/any/versions/1/infer", {"inference"}),
    ("POST", "/v2/models/any/unload", {"control"}),
    ("POST", "/v2/models/any/more/infer", {"control"}),
    ("POST", "/v2/repository/models/any/load", {"control"}),
    ("DELETE", "/classify", {"inference"}),
    ("GET", "/what/is/not/there", {"control"}),
    ("POST", "/console/anything", {"control"}),
]
OPEN = [
    *("/", "/healthz", "/readyz", "/docs", "/openapi.json", "/console/console.js"),
    *("/v2/health/live", "/v2/health/ready"),
]


class Door:
    """A guard before an application that lets everybody in; requests are headers only."""

    def __init__(self, clock: Any = lambda: 0.0, **settings: Any) -> None:
        self.refusals: list[str] = []
        self.guard = Guard(AccessSettings(**settings), clock, self.refusals.append)
        self.layer = Security(PlainTextResponse("in"), self.guard)

    def ask(
        self, method: str, target: str, headers: dict[str, str] | None = None, peer: str = "1.2.3.4"
    ) -> tuple[int, dict[str, str], Any]:
        """Status, headers and body of the answer."""
        path, _, query = target.partition("?")
        named = {"host": "localhost", **(headers or {})}
        messages: list[Any] = []
        scope = {
            **{"type": "http", "http_version": "1.1", "method": method, "path": path},
            "query_string": query.encode(),
            "headers": [(name.lower().encode(), text.encode()) for name, text in named.items()],
            "client": (peer, 1),
            "state": {"request_id": "id"},
        }

        async def send(message: Any) -> None:
            messages.append(message)

        asyncio.run(self.layer(scope, None, send))  # type: ignore[arg-type]
        start, body = messages
        answered = {name.decode(): text.decode() for name, text in start["headers"]}
        document = json.loads(body["body"]) if "json" in answered["content-type"] else None
        return start["status"], answered, document


@pytest.fixture(scope="module")
def door() -> Door:
    """One with a key for each scope."""
    return Door(api_keys=RING)


@pytest.mark.parametrize(("method", "target", "scopes"), ASKS)
def test_each_path_wants_its_scope(door: Door, method: str, target: str, scopes: set[str]) -> None:
    """No key and a wrong one are 401 and told how; a key without the scope 403 and told which."""
    for headers in ({}, {"authorization": f"Bearer {new_key()}"}, {"authorization": "Basic YTpi"}):
        status, answered, document = door.ask(method, target, headers)
        assert status == 401 and answered["www-authenticate"].startswith("Bearer")
        assert "X-API-Key" in told(target, document, "unauthorized")
    for scope, key in KEYS.items():
        for headers in ({"authorization": f"bearer {key}"}, {"x-api-key": key}):
            status, _, document = door.ask(method, target, headers)
            assert status == (200 if scope in scopes else 403)
            if status == 403:
                detail = told(target, document, "missing-scope")
                assert all(repr(wanted) in detail for wanted in scopes)
                assert key not in json.dumps(document)


def told(target: str, document: Any, slug: str) -> str:
    """What a refusal says, in the form that belongs to the path."""
    if target.startswith("/v2"):
        assert set(document) == {"error"}
        return str(document["error"])
    assert document["type"] == f"/problems/{slug}"
    return str(document["detail"])


@pytest.mark.parametrize("path", OPEN)
def test_pages_and_probes_are_open(door: Door, path: str) -> None:
    """A browser and a load balancer have no key yet."""
    assert door.ask("GET", path)[0] == 200


def check_routes(app: FastAPI) -> None:
    """A path that has no line is closed to all but `control`; say in `scopes` what it wants."""
    paths = app.openapi()["paths"].items()
    documented = {(method.upper(), path) for path, methods in paths for method in methods}
    own = {
        (m, getattr(r, "path", "")) for r in app.routes for m in getattr(r, "methods", None) or ()
    }
    assert len(documented | own) >= 10
    lines = {(method, path) for path, by_method in SCOPES_OF.items() for method in by_method}
    missing = {
        (method, path)
        for method, path in (documented | own) - lines
        if method != "HEAD" and not path.startswith(OPEN_FOLDERS)
    }
    assert missing == set()


@pytest.mark.parametrize(
    "path", ["/Metrics", "/metrics/", "//metrics", "/console/../metrics", "/x"]
)
def test_what_only_looks_like_a_path_is_closed(path: str) -> None:
    """Paths are compared as they are; the router does so too."""
    assert wanted_scopes("GET", path) in ({"control"}, set())
    assert wanted_scopes("POST", path) == {"control"}


def test_without_keys_all_is_open_but_not_to_foreign_pages() -> None:
    """On loopback nobody needs a key; another site's page and a rebound name stay outside."""
    door = Door()
    assert door.ask("PUT", "/compression")[0] == 200
    status, _, document = door.ask("PUT", "/compression", {"origin": "http://evil.example"})
    assert (status, document["type"]) == (403, "/problems/cross-site")
    status, _, document = door.ask("PUT", "/compression", {"host": "evil.example"})
    assert (status, document["type"]) == (421, "/problems/unknown-host")
    assert door.refusals == ["cross_site", "unknown_host"]


def test_with_keys_any_host_name_will_do(door: Door) -> None:
    """Who has no key gains nothing by rebinding; a list of names still holds."""
    headers = {"host": "tocom.example", "x-api-key": KEYS["metrics"]}
    assert door.ask("GET", "/metrics", headers)[0] == 200
    strict = Door(api_keys=RING, allowed_hosts="tocom.example")
    assert strict.ask("GET", "/metrics", headers)[0] == 200
    assert strict.ask("GET", "/metrics", headers | {"host": "10.0.0.1"})[0] == 421


def test_a_client_is_slowed_down() -> None:
    """By address, behind a trusted proxy by the client's, and by key wherever it comes from."""
    now = 0.0
    limits = {"rate_limit": 0.5, "rate_burst": 2, "trusted_proxies": "10.0.0.0/8"}
    door = Door(lambda: now, **limits)
    assert [door.ask("GET", "/model")[0] for _ in range(3)] == [200, 200, 429]
    assert [door.ask("GET", "/healthz")[0] for _ in range(3)] == [200] * 3
    status, answered, document = door.ask("GET", "/model", {"x-forwarded-for": "9.9.9.9"})
    assert (status, answered["retry-after"]) == (429, "2")
    assert document["type"] == "/problems/rate-limited"
    for client in ("9.9.9.8", "9.9.9.9"):
        seen = [
            door.ask("GET", "/model", {"x-forwarded-for": f"1.1.1.1, {client}"}, "10.0.0.1")[0]
            for _ in range(3)
        ]
        assert seen == [200, 200, 429]
    now = 2.0
    assert door.ask("GET", "/model")[0] == 200

    keyed = Door(lambda: 0.0, api_keys=RING, **limits)
    headers = {"x-api-key": KEYS["inference"]}
    seen = [keyed.ask("GET", "/model", headers, f"5.5.5.{n}")[0] for n in range(3)]
    assert seen == [200, 200, 429]
    guesses = [keyed.ask("GET", "/model", {"x-api-key": f"guess {n}"})[0] for n in range(3)]
    assert guesses == [401, 401, 429]


def test_two_of_a_header_are_refused() -> None:
    """Two readers could take different ones."""
    door = Door()
    scope = {"type": "http", "http_version": "1.1", "method": "GET", "path": "/", "client": None}
    twice = [(b"host", b"localhost"), (b"authorization", b"a"), (b"authorization", b"b")]
    with pytest.raises(Exception, match="two authorization headers"):
        door.guard.check({**scope, "headers": twice, "state": {}})
    lengths = [(b"host", b"localhost"), *[(b"inference-header-content-length", b"1")] * 2]
    with pytest.raises(Exception, match="two inference-header-content-length headers"):
        door.guard.check({**scope, "headers": lengths, "state": {}})
    door.guard.check({**scope, "headers": [*twice[:2], (b"accept", b"a"), (b"accept", b"b")]})


def test_keys_are_read_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A key that is taken out of the file stops working; a broken file changes nothing."""
    file = tmp_path / "keys"
    old, new = new_key(), new_key()
    file.write_text(f"alice metrics {old}\n")
    file.chmod(0o600)
    door = Door(api_keys_file=file)
    assert door.ask("GET", "/metrics", {"x-api-key": old})[0] == 200
    file.write_text(f"alice metrics {new}\n")
    with caplog.at_level(logging.INFO):
        door.guard.reload_keys()
    assert door.ask("GET", "/metrics", {"x-api-key": old})[0] == 401
    assert door.ask("GET", "/metrics", {"x-api-key": new})[0] == 200
    file.write_text(f"alice {new}\n")
    door.guard.reload_keys()
    assert door.ask("GET", "/metrics", {"x-api-key": new})[0] == 200
    assert "stay as they were" in caplog.text and new not in caplog.text


@pytest.mark.parametrize("address", ["0.0.0.0", "::", "192.0.2.1", "2001:db8::1"])
def test_a_public_address_wants_keys_or_a_word(address: str) -> None:
    """The message says all ways out."""
    with pytest.raises(SettingsError, match=r"TOCOM_API_KEYS_FILE.*TOCOM_ALLOW_ANONYMOUS=true"):
        check_exposure(AccessSettings(host=address), address)
    check_exposure(AccessSettings(host=address, allow_anonymous=True), address)
    check_exposure(AccessSettings(host=address, api_keys=RING), address)


@pytest.mark.parametrize("address", ["127.0.0.1", "127.8.8.8", "::1", "::ffff:127.0.0.1"])
def test_loopback_wants_nothing(address: str) -> None:
    """Only this machine can reach it."""
    check_exposure(AccessSettings(), address)


def test_a_websocket_does_not_go_past(door: Door) -> None:
    """There is none here; nothing behind the door hears of it."""
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(door.layer({"type": "websocket"}, None, send))  # type: ignore[arg-type]
    assert [message["type"] for message in sent] == ["websocket.close"]


def test_both_ways_in_are_guarded(model_path: str, caplog: pytest.LogCaptureFixture) -> None:
    """The short way of /classify and the framework's ask the same guard; keys stay unsaid."""

    async def story(bench: Bench) -> None:
        good = {"x-api-key": KEYS["inference"]}
        files = {"file": PICTURE}
        for query in ("", f"?deadline_ms={'9' * 6}&{'&' * 300}", "?top_k=0"):  # both ways
            answer = await bench.client.post(f"/classify{query}", files=files)
            assert kind(answer) == (401, "unauthorized")
            wrong = {"x-api-key": KEYS["metrics"]}
            answer = await bench.client.post(f"/classify{query}", files=files, headers=wrong)
            assert kind(answer) == (403, "missing-scope")
            assert answer.json()["request_id"] == answer.headers["x-request-id"]
        answer = await bench.client.post("/classify", files=files, headers=good)
        assert answer.status_code == 200
        assert bench.engine.sizes == [1]
        page = await bench.client.get("/metrics", headers={"x-api-key": KEYS["metrics"]})
        assert 'tocom_requests_total{outcome="denied"} 6.0' in page.text
        assert 'tocom_refusals_total{reason="unauthorized"} 3.0' in page.text
        assert not any(key in page.text + caplog.text for key in KEYS.values())
        docs = await bench.client.get("/docs")
        assert "frame-ancestors 'none'" in docs.headers["content-security-policy"]
        check_routes(bench.app)
        check_document((await bench.client.get("/openapi.json")).json())

    with caplog.at_level(logging.DEBUG):
        tell(model_path, story, api_keys=RING)


def check_document(document: dict[str, Any]) -> None:
    """Every operation tells its key, and the answers that the door may give."""
    assert set(document["components"]["securitySchemes"]) == {"bearer", "header"}
    operations = [
        (path, method, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    assert len(operations) >= 7
    for path, method, operation in operations:
        closed = bool(wanted_scopes(method.upper(), path))
        assert ("security" in operation) == closed == ("401" in operation["responses"])
        assert {"400", "403", "408", "414", "421", "431", "503"} <= set(operation["responses"])

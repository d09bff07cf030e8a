"""Wiring: one FastAPI application around one ``Service``."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import APIRouter, FastAPI
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server import console, events, merges, open_inference
from server.classification import CLIENT_GONE, ClassifyEndpoint
from server.clock import monotonic
from server.engine import Engine, load_engine
from server.inference_endpoint import InferenceEndpoint, is_inference
from server.problems import add_problem_handlers, failure_response, internal_problem
from server.request_ids import identify
from server.request_record import RequestOutcome, RequestRecord
from server.routes import router
from server.security import Guard, Security
from server.security_document import document_security
from server.service import Service
from server.settings import Settings
from server.stats import notify
from tocom_core import __version__

logger = logging.getLogger(__name__)

_DESCRIPTION = """
Classifies images with a Vision Transformer whose speed can be dialled while it runs: each layer
merges `r` similar tokens, and a load controller picks `r` unless one is pinned.

Every error is an `application/problem+json` document (RFC 9457) that says what to do.
"""

_OUTCOMES: dict[int, RequestOutcome] = {
    200: "ok",
    400: "bad_image",
    413: "bad_image",
    415: "bad_image",
    422: "bad_parameter",
    429: "shed",
    CLIENT_GONE: "abandoned",
    504: "expired",
}


def create_app(
    settings: Settings, *, engine: Engine | None = None, api: APIRouter = router
) -> FastAPI:
    """Build the application.

    The model is loaded here, so that a wrong path fails at once; it is warmed up in the background
    once the application runs, and ``/readyz`` says when that is done.

    Args:
        settings: how to serve.
        engine: the model, if it is loaded already.
        api: the handlers; `deploy.ray` has others for some paths.

    Raises:
        TocomError: the model or bank cannot be loaded.
        SettingsError: the settings do not fit this machine or model.
    """
    service = Service(engine or load_engine(settings), settings, __version__)
    app = Application(service)
    for part in (api, open_inference.router, merges.router, events.router, console.router):
        app.include_router(part)
    add_problem_handlers(app)
    return app


class Application(FastAPI):
    """FastAPI, and beside it the short way to the endpoints that are called all the time."""

    def __init__(self, service: Service) -> None:
        super().__init__(
            title="ToCom Serve",
            version=__version__,
            description=_DESCRIPTION,
            lifespan=_lifespan,
            redirect_slashes=False,  # a redirect would say the host that the client made up
            redoc_url=None,
        )
        guard = Guard(service.settings, monotonic, service.metrics.observe_refusal)
        self.state.service = service
        self.state.guard = guard
        self.add_middleware(Security, guard=guard)
        self.add_middleware(RequestContext, service=service)
        self._short_ways = [
            (endpoint, RequestContext(Security(endpoint, guard), service))
            for endpoint in (ClassifyEndpoint(service), InferenceEndpoint(service))
        ]

    def openapi(self) -> dict[str, Any]:
        """The document of the API, with what the guard adds to each operation."""
        if self.openapi_schema is None:
            document = super().openapi()
            document["components"]["schemas"] |= open_inference.request_schema()
            self.openapi_schema = document_security(document, self.state.guard.wants_keys)
        return self.openapi_schema

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection of ASGI."""
        for endpoint, way in self._short_ways:
            if endpoint.takes(scope):
                await way(scope, receive, send)
                return
        await super().__call__(scope, receive, send)


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Warm up in the background; at the end drain, if nobody did before."""
    service: Service = app.state.service
    app.state.starting = asyncio.create_task(service.start())
    app.state.starting.add_done_callback(_log_failed_start)
    yield
    app.state.starting.cancel()
    await service.drain()
    await service.stop()


def _log_failed_start(starting: "asyncio.Task[object]") -> None:
    if not starting.cancelled() and (error := starting.exception()) is not None:
        logger.critical("start-up failed: %s", error)


class RequestContext:
    """Around what answers: each request gets an id, a record, and one entry in the books.

    `request_ids` says where the id is from; the answer carries it.  An exception that nothing else
    turned into an answer is logged under it and answered without details.
    """

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app = app
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection of ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        arrived_at = monotonic()
        request_id, trace = identify(scope["headers"])
        client = scope.get("client")
        record = RequestRecord(
            *(request_id, trace, scope["method"], scope["path"], arrived_at),
            client=client[0] if client else None,
        )
        state = scope.setdefault("state", {})
        state.update(request_id=request_id, arrived_at=arrived_at, record=record)

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode())]
                if self._service.draining:
                    MutableHeaders(scope=message)["Connection"] = "close"
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except Exception:
            logger.exception("request %s failed: %s %s", request_id, scope["method"], scope["path"])
            if record.status:
                raise  # the answer has begun: only cutting it off tells the client
            answer = failure_response(scope["path"], internal_problem(request_id))
            await answer(scope, receive, send_with_id)
        finally:
            record.ended_at = monotonic()
            if _classifies(scope["method"], scope["path"]):
                record.outcome = state.get("outcome") or self._outcome(record.status)
                self._service.metrics.observe_request(record.outcome, record.duration_s)
            notify(self._service.on_finished, record)

    def _outcome(self, status: int) -> RequestOutcome:
        if status == 503:
            return "draining" if self._service.draining else "not_ready"
        return _OUTCOMES.get(status, "failed" if status else "abandoned")


def _classifies(method: str, path: str) -> bool:
    return (path == "/classify" and method == "POST") or is_inference(method, path)

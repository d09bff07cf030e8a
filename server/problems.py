"""Every failure as RFC 9457 ``application/problem+json``, whoever noticed it.

Ours (``ServeError``), the framework's (validation, unknown path, wrong method) and bugs all leave
by this door, so that a client sees one form, with a stable ``type``, and never a stack trace. Below
``/v2`` that form is the Open Inference Protocol's, ``{"error": "…"}``.
"""

import logging
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic_core import to_json
from starlette.exceptions import HTTPException

from server.errors import BadParameter, ServeError
from server.schemas import Problem

logger = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"
PROTOCOL_PATH = "/v2"
"""Below it the Open Inference Protocol is spoken."""


def problem_of(error: ServeError, request_id: str) -> Problem:
    """The problem document of one of our errors."""
    return Problem(
        type=error.type,
        title=error.title,
        status=error.status,
        detail=error.detail,
        request_id=request_id,
    )


def problem_response(problem: Problem, headers: Mapping[str, str] | None = None) -> Response:
    """A problem document as answer."""
    return Response(
        problem.model_dump_json(),
        problem.status,
        dict(headers or {}),
        media_type=MEDIA_TYPE,
    )


def speaks_inference_protocol(path: str) -> bool:
    """Whether whoever asks for a path expects errors in the Open Inference Protocol's form."""
    return path == PROTOCOL_PATH or path.startswith(PROTOCOL_PATH + "/")


def failure_response(
    path: str, problem: Problem, headers: Mapping[str, str] | None = None
) -> Response:
    """A failure as answer, in the form that is spoken at the path that was asked for."""
    if not speaks_inference_protocol(path):
        return problem_response(problem, headers)
    error = to_json({"error": problem.detail})
    return Response(error, problem.status, dict(headers or {}), media_type="application/json")


def internal_problem(request_id: str) -> Problem:
    """What a client is told of a bug: nothing but where to find it in the log."""
    return Problem(
        type=ServeError.type,
        title=ServeError.title,
        status=ServeError.status,
        detail="The server made a mistake; tell its operator the request_id.",
        request_id=request_id,
    )


def add_problem_handlers(app: FastAPI) -> None:
    """Answer the framework's and our own errors with problem documents."""
    app.add_exception_handler(ServeError, _on_serve_error)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(HTTPException, _on_http_exception)


def documented(*errors: type[ServeError]) -> dict[int | str, dict[str, Any]]:
    """The OpenAPI entries of the problems that a route can answer with."""
    titles: dict[int, list[str]] = {}
    for error in errors:
        titles.setdefault(error.status, []).append(error.title)
    schema = {"schema": {"$ref": "#/components/schemas/Problem"}}
    return {
        status: {"description": " / ".join(texts), "content": {MEDIA_TYPE: schema}}
        for status, texts in titles.items()
    }


async def _on_serve_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ServeError)
    problem = problem_of(error, request.state.request_id)
    return failure_response(request.url.path, problem, error.headers)


async def _on_validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    detail = "; ".join(_sentence(item) for item in error.errors())
    problem = problem_of(BadParameter(detail), request.state.request_id)
    return failure_response(request.url.path, problem)


async def _on_http_exception(request: Request, error: Exception) -> Response:
    """An unknown path, a wrong method, and whatever else the framework refuses."""
    assert isinstance(error, HTTPException)
    title = HTTPStatus(error.status_code).phrase
    detail = str(error.detail)
    if error.status_code == HTTPStatus.NOT_FOUND:
        detail = f"There is nothing at {request.url.path[:200]!r}; /docs lists what there is."
        if speaks_inference_protocol(request.url.path):
            detail += " GET /v2 names the protocol's extensions; statistics are at /metrics."
    elif error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        allowed = (error.headers or {}).get("Allow", "another method")
        detail = f"{request.method} does not work here; use {allowed}."
    problem = Problem(
        type=f"/problems/{title.lower().replace(' ', '-')}",
        title=title,
        status=error.status_code,
        detail=detail,
        request_id=request.state.request_id,
    )
    return failure_response(request.url.path, problem, error.headers)


def _sentence(item: Mapping[str, Any]) -> str:
    """One of pydantic's complaints: which parameter, what it was, what is allowed."""
    where: Sequence[Any] = item.get("loc", ())
    message = str(item["msg"]).removeprefix("Value error, ")
    if item["type"] == "extra_forbidden":
        return f"there is no query parameter {str(where[-1])[:80]!r}; /docs lists them"
    if len(where) < 2:
        return message
    value = str(item.get("input"))[:80]
    return f"{where[-1]}={value!r}: {message[:1].lower()}{message[1:]}"

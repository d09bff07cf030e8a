"""`POST /classify`: query and body in, answer out, in as few steps as possible.

Under load the event loop's time is scarce, and half of it went into what a framework does around a
handler: layers of middleware, routing, dependencies, the validation of an answer that is valid by
construction.  So `routes` declares this endpoint, for the documentation and for whoever comes that
way, and `app` hands requests to `ClassifyEndpoint` directly.  Both end in `classify`; a query that
is not plainly good is left to the framework, which says what is wrong with it.
"""

from functools import lru_cache

from fastapi import Response
from pydantic_core import to_json
from starlette.datastructures import QueryParams
from starlette.types import Receive, Scope, Send

from server.errors import ServeError
from server.incoming import FilesForm, Incoming, Wishes
from server.interruption import ClientGone
from server.problems import problem_of, problem_response
from server.replies import image_result
from server.schemas import ClassifyQuery
from server.service import Service

CLIENT_GONE = 499
"""nginx's status for a client that did not wait; it never reaches anyone."""

QUERIES_KEPT = 256
LONGEST_KEPT_QUERY = 256
"""Bytes; clients repeat theirs, and those that do not must not fill the memory."""


class ClassifyEndpoint:
    """`POST /classify` as an ASGI application; needs `RequestContext` around it."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def takes(self, scope: Scope) -> bool:
        """Whether a request is for this endpoint, and its query is good."""
        return (
            scope["type"] == "http"
            and scope["path"] == "/classify"
            and scope["method"] == "POST"
            and _good_query(scope["query_string"]) is not None
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request of ASGI that it takes."""
        query = _good_query(scope["query_string"])
        assert query is not None
        state = scope["state"]
        request_id: str = state["request_id"]
        incoming = incoming_request(scope, receive)
        try:
            answer = await classify(self._service, incoming, query, request_id)
        except ServeError as error:
            incoming.record.problem = error.type
            answer = problem_response(problem_of(error, request_id), error.headers)
        await answer(scope, receive, send)


async def classify(
    service: Service, incoming: Incoming, query: ClassifyQuery, request_id: str
) -> Response:
    """Answer one request.

    Raises:
        ServeError: it was refused, or none of its files could be classified.
    """
    try:
        incoming.record.query = query
        served, answers = await service.classify(incoming, FilesForm(Wishes.of(query)))
    except ClientGone:
        return Response(status_code=CLIENT_GONE)
    errors = [a.result for a in answers if isinstance(a.result, ServeError)]
    if len(errors) == len(answers):
        raise errors[0]
    labels = served.labels
    reply = {  # a `ClassifyResponse`, valid by construction
        "request_id": request_id,
        "model": served.name,
        "results": [image_result(answer, labels, query.top_k, request_id) for answer in answers],
    }
    return Response(to_json(reply), media_type="application/json")


def incoming_request(scope: Scope, receive: Receive) -> Incoming:
    """What the intake needs to know of a request; needs `RequestContext` around it."""
    state = scope["state"]
    return Incoming(
        content_type=header(scope, b"content-type") or "",
        content_length=header(scope, b"content-length"),
        receive=receive,
        arrived_at=state["arrived_at"],
        record=state["record"],
    )


def header(scope: Scope, name: bytes) -> str | None:
    """The first header of this name, which is in lower case as ASGI delivers them."""
    for key, value in scope["headers"]:
        if key == name:
            text: str = value.decode("latin-1")
            return text
    return None


def _good_query(raw: bytes) -> ClassifyQuery | None:
    """The parameters of a query string, or None: the framework knows them, or why they are bad."""
    if len(raw) > LONGEST_KEPT_QUERY:
        return None
    try:
        return _parse(raw)
    except ValueError:
        return None


@lru_cache(QUERIES_KEPT)
def _parse(raw: bytes) -> ClassifyQuery:
    return ClassifyQuery.model_validate(dict(QueryParams(raw)))

"""``POST /v2/models/{name}/infer``: the short way, as `classification` has it.

`open_inference` declares the endpoint and hands on what comes through the framework; `app` brings
requests here directly. Both end in `infer`.
"""

import re

from fastapi import Response
from starlette.types import Receive, Scope, Send

from server.classification import CLIENT_GONE, header, incoming_request
from server.entries import ItemResult
from server.errors import BadInference, BadRequest, ServeError, UnknownModel
from server.inference_form import InferenceForm
from server.inference_model import VERSION
from server.inference_reply import inference_answer
from server.inference_request import known_as
from server.interruption import ClientGone
from server.problems import failure_response, problem_of
from server.service import Service

_PATH = re.compile(r"/v2/models/([^/]+)(?:/versions/([^/]+))?/infer")


class InferenceEndpoint:
    """The endpoint as an ASGI application; needs `RequestContext` around it."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def takes(self, scope: Scope) -> bool:
        """Whether a request is for this endpoint."""
        return scope["type"] == "http" and is_inference(scope["method"], scope["path"])

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request of ASGI that it takes."""
        found = _PATH.fullmatch(scope["path"])
        assert found is not None
        answer = await infer(self._service, scope, receive, *found.groups())
        await answer(scope, receive, send)


def is_inference(method: str, path: str) -> bool:
    """Whether a request asks for classes by the Open Inference Protocol."""
    return method == "POST" and path.endswith("/infer") and _PATH.fullmatch(path) is not None


async def infer(
    service: Service, scope: Scope, receive: Receive, name: str, version: str | None
) -> Response:
    """Answer one inference request, whatever becomes of it."""
    incoming = incoming_request(scope, receive)
    length, encoding = (header(scope, key) for key in (_HEAD_LENGTH, b"content-encoding"))
    form = InferenceForm(name, length, encoding)
    try:
        check_model(service, name, version)
        served, answers = await service.classify(incoming, form)
        results: list[ItemResult] = []
        for answer in answers:
            if isinstance(answer.result, ServeError):
                raise answer.result
            results.append(answer.result)
    except ClientGone:
        return Response(status_code=CLIENT_GONE)
    except ServeError as error:
        incoming.record.problem = error.type
        if isinstance(error, BadInference | BadRequest | UnknownModel):
            scope["state"]["outcome"] = "bad_parameter"
        problem = problem_of(error, scope["state"]["request_id"])
        return failure_response(scope["path"], problem, error.headers)
    assert form.asked is not None
    model = name, VERSION
    return inference_answer(form.asked, results, served.labels, model, form.rounding)


def check_model(service: Service, name: str, version: str | None) -> None:
    """Refuse a name or a version that is not served.

    Raises:
        UnknownModel: it is not.
    """
    served = known_as(service.engine.loaded.name)
    if name != served:
        raise UnknownModel(f"The model {name[:80]!r} is not served here; {served!r} is.")
    if version not in (None, VERSION):
        raise UnknownModel(
            f"The model {served!r} has no version {str(version)[:80]!r}; it has {VERSION!r}, which "
            "may be left out."
        )


_HEAD_LENGTH = b"inference-header-content-length"

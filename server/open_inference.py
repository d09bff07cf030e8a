"""The Open Inference Protocol (KServe's and Triton's v2), over the same queue as ``/classify``.

Thin handlers; docs/inference_protocol.md says what is supported. Errors below ``/v2`` have the
protocol's form wherever they are noticed (`problems`).
"""

from typing import Any, cast

from fastapi import APIRouter, Request, Response

from server.errors import (
    BadInference,
    DeadlineExpired,
    DeviceLost,
    Draining,
    ForwardFailed,
    ImageTooLarge,
    NotAnImage,
    NotReady,
    QueueFull,
    ServeError,
    UnknownModel,
    UnsupportedMedia,
)
from server.inference_endpoint import check_model
from server.inference_endpoint import infer as infer_by_name
from server.inference_model import model_config, model_entry, model_metadata, server_metadata
from server.inference_schemas import (
    InferenceAnswer,
    InferenceError,
    InferenceRequest,
    ModelEntry,
    ModelMetadata,
    ModelReady,
    ServerLive,
    ServerMetadata,
    ServerReady,
)
from server.problems import PROTOCOL_PATH
from server.service import Service

router = APIRouter(prefix=PROTOCOL_PATH, tags=["open inference protocol"])

_MODEL = "/models/{name}"
_OF_VERSION = "/models/{name}/versions/{version}"


def _failures(*errors: type[ServeError]) -> dict[int | str, dict[str, Any]]:
    titles: dict[int, list[str]] = {}
    for error in errors:
        titles.setdefault(error.status, []).append(error.title)
    return {
        status: {"model": InferenceError, "description": " / ".join(texts)}
        for status, texts in titles.items()
    }


_BINARY = {"schema": {"type": "string", "format": "binary"}}
_INFER_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "JSON, or with Inference-Header-Content-Length JSON and binary data.",
        "content": {
            "application/json": {"schema": {"$ref": "#/components/schemas/InferenceRequest"}},
            "application/octet-stream": _BINARY,
        },
    }
}
_INFER_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {"content": {"application/octet-stream": _BINARY}},
    **_failures(
        *(BadInference, NotAnImage, UnknownModel, ImageTooLarge, UnsupportedMedia, QueueFull),
        *(ForwardFailed, NotReady, Draining, DeviceLost, DeadlineExpired),
    ),
}
_UNKNOWN = _failures(UnknownModel)
_NOT_READY = _failures(NotReady, Draining, DeviceLost)


@router.get("", summary="The server's name, version and extensions")
async def server(request: Request) -> ServerMetadata:
    """Extensions are called as Triton calls them."""
    return server_metadata(request.app.version)


@router.get("/health/live", summary="Is the process alive?")
async def live() -> ServerLive:
    """As ``GET /healthz``."""
    return ServerLive(live=True)


@router.get("/health/ready", summary="Should requests come here?", responses=_NOT_READY)
async def ready(request: Request) -> ServerReady:
    """As ``GET /readyz``."""
    _service(request).check_ready()
    return ServerReady(ready=True)


@router.post("/repository/index", summary="Which models there are")
async def index(request: Request) -> list[ModelEntry]:
    """One at a time; it is changed by ``POST /models/reload``, not by this protocol."""
    service = _service(request)
    reason = ""
    try:
        service.check_ready()
    except ServeError as error:
        reason = error.detail
    return [model_entry(service.engine, reason)]


@router.get(
    _MODEL,
    summary="Inputs and outputs of the model",
    responses=_UNKNOWN,
    response_model_exclude_none=True,
)
@router.get(
    _OF_VERSION,
    summary="Inputs and outputs of a version",
    responses=_UNKNOWN,
    response_model_exclude_none=True,
)
async def metadata(request: Request, name: str, version: str | None = None) -> ModelMetadata:
    """Of the inputs, a request brings one."""
    service = _service(request)
    check_model(service, name, version)
    return model_metadata(service.engine)


@router.get(f"{_MODEL}/config", summary="Triton's configuration of the model", responses=_UNKNOWN)
@router.get(f"{_OF_VERSION}/config", summary="The same of a version", responses=_UNKNOWN)
async def config(request: Request, name: str, version: str | None = None) -> dict[str, Any]:
    """As far as it applies here."""
    service = _service(request)
    check_model(service, name, version)
    return model_config(service.engine, service.settings)


_READY_ANSWERS = _UNKNOWN | _NOT_READY


@router.get(f"{_MODEL}/ready", summary="Is the model ready?", responses=_READY_ANSWERS)
@router.get(f"{_OF_VERSION}/ready", summary="Is the version ready?", responses=_READY_ANSWERS)
async def model_ready(request: Request, name: str, version: str | None = None) -> ModelReady:
    """As ``GET /readyz``, of a model by its name."""
    service = _service(request)
    check_model(service, name, version)
    service.check_ready()
    return ModelReady(name=name, ready=True)


@router.post(
    f"{_MODEL}/infer",
    summary="Classify images",
    openapi_extra=_INFER_BODY,
    responses=_INFER_ANSWERS,
    response_model=InferenceAnswer,
)
@router.post(
    f"{_OF_VERSION}/infer",
    summary="Classify images with a version",
    openapi_extra=_INFER_BODY,
    responses=_INFER_ANSWERS,
    response_model=InferenceAnswer,
)
async def infer(request: Request, name: str, version: str | None = None) -> Response:
    """One input with one image or several; they are admitted all or none.

    Their deadline, priority and highest degree are parameters of the request.
    """
    return await infer_by_name(_service(request), request.scope, request.receive, name, version)


def request_schema() -> dict[str, Any]:
    """The schema of inference requests, which no handler declares as its body is read here."""
    schema = InferenceRequest.model_json_schema(ref_template="#/components/schemas/{model}")
    definitions: dict[str, Any] = schema.pop("$defs", {})
    return {**definitions, InferenceRequest.__name__: schema}


def _service(request: Request) -> Service:
    return cast(Service, request.app.state.service)

"""The HTTP API: thin handlers that parse, await and reply."""

from typing import Annotated, Any, cast

from fastapi import APIRouter, Body, Query, Request, Response

from server import classification
from server.errors import (
    BadParameter,
    DeadlineExpired,
    DeviceLost,
    Draining,
    ForwardFailed,
    ImageTooLarge,
    NotAnImage,
    NotReady,
    QueueFull,
    ReloadFailed,
    ReloadInProgress,
    UnsupportedMedia,
)
from server.problems import documented
from server.reload_schemas import ReloadRequest, ReloadStatus
from server.replies import compression_status, model_info
from server.schemas import (
    ClassifyQuery,
    ClassifyResponse,
    CompressionQuery,
    CompressionStatus,
    Health,
    ModelInfo,
)
from server.service import Service

router = APIRouter()

_BINARY = {"schema": {"type": "string", "format": "binary"}}
_CLASSIFY_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "One or more parts named `file`, or one raw image.",
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "properties": {
                        "file": {
                            "type": "array",
                            "minItems": 1,
                            "items": {"type": "string", "format": "binary"},
                        }
                    },
                }
            },
            "image/jpeg": _BINARY,
            "image/png": _BINARY,
            "image/webp": _BINARY,
            "image/*": _BINARY,
        },
    }
}


@router.post(
    "/classify",
    tags=["inference"],
    summary="Classify images",
    openapi_extra=_CLASSIFY_BODY,
    responses=documented(
        *(NotAnImage, ImageTooLarge, UnsupportedMedia, BadParameter, QueueFull),
        *(ForwardFailed, NotReady, Draining, DeviceLost, DeadlineExpired),
    ),
    response_model=ClassifyResponse,
)
async def classify(request: Request, query: Annotated[ClassifyQuery, Query()]) -> Response:
    """Several files are admitted all or none.

    A file that cannot be read carries a `problem` in its result; if none of them succeeded, the
    answer is the first file's problem.
    """
    incoming = classification.incoming_request(request.scope, request.receive)
    return await classification.classify(
        _service(request), incoming, query, request.state.request_id
    )


@router.get("/model", tags=["model"], summary="What is served")
async def model(request: Request) -> ModelInfo:
    """Name, labels, input, transform and digests of the model and its bank."""
    service = _service(request)
    return model_info(service.engine, service.reloads.status)


@router.post(
    "/models/reload",
    tags=["model"],
    summary="Change the model or its bank while it runs",
    status_code=202,
    responses={
        200: {"model": ReloadStatus, "description": "With wait_s: the new model is served."},
        **documented(BadParameter, ReloadInProgress, ReloadFailed, NotReady, Draining, DeviceLost),
    },
)
async def reload(
    request: Request, response: Response, body: Annotated[ReloadRequest | None, Body()] = None
) -> ReloadStatus:
    """Loads and warms the new one beside the old one, tries it, and swaps between two batches.

    Nothing that is in flight is lost, and whatever fails leaves the old one as it was. Without a
    body the present files are read again. 202: it has begun, and `GET /model` shows how it goes.
    """
    service = _service(request)
    service.check_open()
    wanted = body or ReloadRequest()
    status = service.reloads.start(wanted)
    if wanted.wait_s:
        status = await service.reloads.wait(wanted.wait_s)
    if status.state == "done":
        response.status_code = 200
    return status


@router.get(
    "/compression",
    tags=["compression"],
    summary="The present degree and its controller",
    responses=documented(NotReady),
)
async def compression(request: Request) -> CompressionStatus:
    """Mode, degree, bounds, what each degree wins and costs, and the last switch.

    In shadow mode also what the policy would do.
    """
    core = _service(request).core
    return compression_status(core.controller.status(), core.demand)


@router.put(
    "/compression",
    tags=["compression"],
    summary="Pin a degree, hand it back, watch the policy, or bound the controller",
    responses=documented(BadParameter, NotReady),
)
async def set_compression(
    request: Request, query: Annotated[CompressionQuery, Query()]
) -> CompressionStatus:
    """Holds from the next batch on; answers what `GET /compression` answers.

    A pin, and the degree that shadow mode holds, are the operator's word: bounds and accuracy
    floor apply to automatic choices only. A value that is refused (422) changes nothing.
    """
    core = _service(request).core
    controller = core.controller
    if query.min_r is not None or query.max_r is not None:
        controller.bound(query.min_r, query.max_r)
    if query.mode == "auto":
        controller.auto()
    elif query.mode == "shadow":
        controller.shadow(query.r, query.ttl_s)
    elif query.r is not None:
        controller.pin(query.r, query.ttl_s)
    return compression_status(controller.status(), core.demand)


@router.get("/healthz", tags=["health"], summary="Is the process alive?")
async def healthz() -> Health:
    """Answers as long as the server can answer at all."""
    return Health(status="ok")


@router.get(
    "/readyz",
    tags=["health"],
    summary="Should requests come here?",
    responses=documented(NotReady, Draining, DeviceLost),
)
async def readyz(request: Request) -> Health:
    """503 until the model is warm, while it fails, and once the server is shutting down."""
    _service(request).check_ready()
    return Health(status="ready")


@router.get(
    "/metrics",
    tags=["health"],
    summary="Prometheus metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
async def metrics(request: Request) -> Response:
    """Text or OpenMetrics, as the scraper asks for."""
    page, content_type = _service(request).metrics.render(request.headers.get("accept", ""))
    return Response(page, headers={"Content-Type": content_type})


def _service(request: Request) -> Service:
    return cast(Service, request.app.state.service)

"""``POST /merges``: what merging did to one image, as numbers or as a picture.

For eyes, not for serving: it takes one image at a time, and only while nobody waits to be served.
"""

import asyncio
import io
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal, cast

import numpy as np
from fastapi import APIRouter, Query, Request, Response
from PIL import Image
from pydantic import BaseModel, Field
from pydantic_core import to_json
from torch import Tensor

from server import classification
from server.core import Core
from server.engine import Engine
from server.errors import (
    BadParameter,
    Busy,
    Draining,
    ForwardFailed,
    ImageTooLarge,
    NotAnImage,
    NotReady,
    UnsupportedMedia,
)
from server.interruption import ClientGone
from server.problems import documented
from server.schemas import ModelDegree
from server.schemas import Query as StrictQuery
from server.service import Service
from tocom_core.framing import Frame, framed
from tocom_core.visualisation import Layer, MergeMap, picture

router = APIRouter()

_BINARY = {"schema": {"type": "string", "format": "binary"}}
_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "One part named `file`, or one raw image.",
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "properties": {"file": {"type": "string", "format": "binary"}},
                }
            },
            "image/jpeg": _BINARY,
            "image/png": _BINARY,
            "image/*": _BINARY,
        },
    }
}

SMALLEST_PICTURE = 448
"""Shorter side of the drawn picture in pixels, at least."""


class MergesQuery(StrictQuery):
    """Query parameters of ``POST /merges``."""

    r: ModelDegree | None = Field(None, description="Degree; default: the present one.")
    layers: bool = Field(False, description="Answer with the groups behind every layer.")
    format: Literal["json", "png"] = Field(
        "json", description="png: a drawing, each group in its mean colour and outlined."
    )


class Grid(BaseModel):
    """How the model cuts its input into patches."""

    height: int
    width: int


class PictureSize(BaseModel):
    """The picture as decoded: upright, of a large JPEG scaled down."""

    width: int
    height: int


class Crop(BaseModel):
    """The part of the picture that the model saw; where it was padded, it lies outside in part."""

    left: float
    top: float
    width: float
    height: float


class MergedLayer(BaseModel):
    """The tokens behind one layer."""

    tokens: int = Field(description="Patch tokens that are left.")
    groups: list[int] = Field(
        description="For each patch, row by row, the number of its group, from 0 in the order of "
        "their first patches; -1: the patch was pruned."
    )


class MergesResponse(BaseModel):
    """Answer of ``POST /merges``: patches with one group number are one token at the end."""

    request_id: str
    model: str
    method: Literal["merge", "prune"]
    r: int
    grid: Grid
    tokens: int = Field(description="Patch tokens behind the last layer.")
    groups: list[int] = Field(description="As in `layers`, behind the last one.")
    sizes: list[int] = Field(description="Patches of each group.")
    picture: PictureSize = Field(
        description="What `crop` counts in. It is the middle of the picture that was sent, scaled "
        "alike in both directions; all of it, unless that is longer than 32:1."
    )
    crop: Crop
    layers: list[MergedLayer] | None = Field(description="null unless asked for.")


@router.post(
    "/merges",
    tags=["inference"],
    summary="What merging did to one image",
    openapi_extra=_BODY,
    responses={
        200: {"content": {"image/png": {"schema": {"type": "string", "format": "binary"}}}},
        **documented(
            *(NotAnImage, ImageTooLarge, UnsupportedMedia, BadParameter, Busy),
            *(ForwardFailed, NotReady, Draining),
        ),
    },
    response_model=MergesResponse,
)
async def merges(request: Request, query: Annotated[MergesQuery, Query()]) -> Response:
    """Which patches became one token.

    One image at a time, and only while none waits to be classified; else 429 with `Retry-After`.
    """
    service = cast(Service, request.app.state.service)
    core = service.core
    r = core.controller.status().r if query.r is None else query.r
    _check_degree(core, r)
    incoming = classification.incoming_request(request.scope, request.receive)
    try:
        prepared = await service.prepare(
            incoming, partial(_prepare, core.engine), core.destination.input_side
        )
    except ClientGone:
        return Response(status_code=classification.CLIENT_GONE)
    if core.batcher.load().queue_length:
        raise Busy("Images wait to be classified; try again in a moment.", retry_after_s=1)
    merged = await core.merge_view.show(prepared.image, r)
    if query.format == "png":
        drawing = await asyncio.to_thread(_draw, prepared.image, merged)
        return Response(drawing, media_type="image/png")
    reply = _reply(core.engine, prepared, merged, query.layers, request.state.request_id)
    return Response(to_json(reply), media_type="application/json")


@dataclass(frozen=True)
class _Prepared:
    """An image as the model gets it, and where it lies in the picture that was sent."""

    image: Tensor
    frame: Frame
    size: tuple[int, int]


def _prepare(engine: Engine, image: Image.Image) -> _Prepared:
    pixels, frame = framed(engine.loaded.transform, image)
    return _Prepared(pixels, frame, image.size)


def _check_degree(core: Core, r: int) -> None:
    degrees = core.controller.table.degrees
    if r not in degrees:
        raise BadParameter(
            f"r={r} is no degree of this model; it has {degrees[0]} to {degrees[-1]}, see "
            "GET /compression"
        )


def _draw(image: Tensor, merged: MergeMap) -> bytes:
    pixels = Image.fromarray(np.ascontiguousarray(image.permute(1, 2, 0).numpy()))
    scale = -(-SMALLEST_PICTURE // min(pixels.size))
    file = io.BytesIO()
    picture(pixels, merged.layers[-1], merged.grid, scale).save(file, "PNG")
    return file.getvalue()


def _reply(
    engine: Engine, prepared: _Prepared, merged: MergeMap, layers: bool, request_id: str
) -> MergesResponse:
    last, frame = merged.layers[-1], prepared.frame
    return MergesResponse(
        request_id=request_id,
        model=engine.loaded.name,
        method=engine.model.method,
        r=merged.r,
        grid=Grid(height=merged.grid[0], width=merged.grid[1]),
        tokens=last.tokens,
        groups=list(last.groups),
        sizes=list(last.sizes),
        picture=PictureSize(width=prepared.size[0], height=prepared.size[1]),
        crop=Crop(left=frame.left, top=frame.top, width=frame.width, height=frame.height),
        layers=[_layer(layer) for layer in merged.layers] if layers else None,
    )


def _layer(layer: Layer) -> MergedLayer:
    return MergedLayer(tokens=layer.tokens, groups=list(layer.groups))

"""The server's HTTP API: what each request looks like, and what its answer becomes."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias, TypeVar

from tocom_client.errors import TocomClientError, UnexpectedAnswer, error_class
from tocom_client.images import EncodedImage
from tocom_client.json_records import decode
from tocom_client.results import (
    Classification,
    CompressionStatus,
    ModelInfo,
    Problem,
    ReloadStatus,
)
from tocom_client.wire import Answer, Call

T = TypeVar("T")

Priority: TypeAlias = Literal["high", "normal", "low"]

ImageAnswer: TypeAlias = Classification | TocomClientError


@dataclass(frozen=True, slots=True)
class Wishes:
    """How images are to be classified.

    Attributes:
        top_k: how many classes to return of each.
        deadline_s: seconds for the whole call, retries included; None: no deadline.
        max_r: no more compression than this degree; beats a pin.
        priority: whose images go first under load.
    """

    top_k: int = 5
    deadline_s: float | None = None
    max_r: int | None = None
    priority: Priority = "normal"

    def __post_init__(self) -> None:
        seconds = self.deadline_s
        if seconds is not None and not (math.isfinite(seconds) and seconds > 0):
            raise ValueError(f"deadline_s={seconds}: expected seconds, more than 0")

    def query(self) -> dict[str, str]:
        """What of it the server is told; the deadline is another one in each attempt."""
        bound = {} if self.max_r is None else {"max_r": str(self.max_r)}
        return {"top_k": str(self.top_k), **bound, "priority": self.priority}


def classify_call(images: tuple[EncodedImage, ...], wishes: Wishes) -> Call[list[ImageAnswer]]:
    """`POST /classify`: one result for each image, in their order."""

    def read(answer: Answer) -> list[ImageAnswer]:
        body = _object(answer)
        results = body.get("results")
        if not isinstance(results, list) or len(results) != len(images):
            raise UnexpectedAnswer(f"{len(images)} images were sent, and the answer has others")
        return [_image(body, one, image) for one, image in zip(results, images, strict=True)]

    return Call("POST", "/classify", read, wishes.query(), images, deadlined=True)


def model_call() -> Call[ModelInfo]:
    """`GET /model`."""
    return Call("GET", "/model", _record(ModelInfo))


def compression_call() -> Call[CompressionStatus]:
    """`GET /compression`."""
    return Call("GET", "/compression", _record(CompressionStatus))


def dial_call(**changes: float | str | None) -> Call[CompressionStatus]:
    """`PUT /compression`; what is None is not sent."""
    query = {name: _text(value) for name, value in changes.items() if value is not None}
    return Call("PUT", "/compression", _record(CompressionStatus), query)


def reload_call(wait_s: float, **changes: float | str | None) -> Call[ReloadStatus]:
    """`POST /models/reload`; what is None stays as it is.

    Done twice it may load twice, so that a request which the server may have seen is not repeated.
    """
    body = {name: value for name, value in changes.items() if value is not None}
    return Call(
        "POST",
        "/models/reload",
        _record(ReloadStatus),
        json={**body, "wait_s": wait_s},
        repeatable=False,
        extra_s=wait_s,
    )


def metrics_call() -> Call[str]:
    """`GET /metrics`, as text."""
    return Call("GET", "/metrics", lambda answer: answer.body.decode())


def _text(value: float | str) -> str:
    return f"{value:.15g}" if isinstance(value, float) else str(value)


def _record(kind: type[T]) -> Callable[[Answer], T]:
    return lambda answer: decode(kind, answer.json())


def _object(answer: Answer) -> Mapping[str, Any]:
    body = answer.json()
    if not isinstance(body, dict):
        raise UnexpectedAnswer("the answer is no object of JSON; is this a ToCom server?")
    return body


def _image(body: Mapping[str, Any], one: object, image: EncodedImage) -> ImageAnswer:
    """One result: the image's classes, or what was wrong with it."""
    if isinstance(one, dict) and "problem" in one:
        problem = decode(Problem, one["problem"], "the problem")
        return error_class(problem.type, problem.status)(
            problem.detail,
            status=problem.status,
            type=problem.type,
            title=problem.title,
            request_id=problem.request_id,
        )
    return replace(
        decode(Classification, one, "the result"),
        model=str(body.get("model", "")),
        request_id=str(body.get("request_id", "")),
        filename=image.filename,
    )

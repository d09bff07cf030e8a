"""Requests and answers of the HTTP API as types; the OpenAPI page is generated from them.

Names and fields are the contract: clients rely on them, so they change only with a new version.
"""

from collections.abc import Callable
from datetime import datetime
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    WrapValidator,
    model_validator,
)

from server.reload_schemas import Degree, ReloadStatus

PriorityName = Literal["high", "normal", "low"]


class Query(BaseModel):
    """Base of query parameters: a misspelt name is refused, not ignored."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ClassifyQuery(Query):
    """Query parameters of ``POST /classify``."""

    top_k: int = Field(
        5, ge=1, description="How many classes to return per image, at most all of them."
    )
    deadline_ms: float | None = Field(
        None,
        gt=0,
        le=3_600_000,
        description="Give up (504) when the answer is not ready this many milliseconds after the "
        "first byte of the request.",
    )
    max_r: Degree | None = Field(
        None, description="Accept no more compression than this degree; beats a pinned one."
    )
    priority: PriorityName = Field("normal", description="Whose images go first under load.")


def _whole_number(value: object, read: Callable[[object], int]) -> int:
    """Say where the allowed degrees stand, as a schema does not know the model."""
    try:
        return read(value)
    except ValidationError:
        raise ValueError(
            "expected a whole number, one of the degrees that GET /compression lists"
        ) from None


ModelDegree = Annotated[int, Field(json_schema_extra={"minimum": 0}), WrapValidator(_whole_number)]
"""A degree as `PUT /compression` takes it."""


class CompressionQuery(Query):
    """Query parameters of ``PUT /compression``.

    That a degree is one of the model's is for the controller to check, which names their range.
    """

    r: ModelDegree | None = Field(
        None, description="Pin this degree; with `mode=shadow`, hold it meanwhile."
    )
    mode: Literal["auto", "shadow"] | None = Field(
        None,
        description="`auto` ends a pin and shadow mode; `shadow` holds the degree and shows what "
        "the policy would do.",
    )
    ttl_s: float | None = Field(
        None,
        gt=0,
        le=31_536_000,
        description="With `r` or `mode=shadow`: ends by itself after this many seconds.",
    )
    min_r: ModelDegree | None = Field(None, description="No automatic choice is lower than this.")
    max_r: ModelDegree | None = Field(None, description="No automatic choice is higher than this.")

    @model_validator(mode="after")
    def _one_meaning(self) -> Self:
        """Refuse combinations of which one half would be ignored."""
        if self.ttl_s is not None and self.r is None and self.mode != "shadow":
            raise ValueError(
                "ttl_s=… says how long a pin or shadow mode lasts, so it needs r=… or mode=shadow "
                "beside it"
            )
        bounds = self.min_r is not None or self.max_r is not None
        if self.r is None and self.mode is None and not bounds:
            raise ValueError(
                "nothing to change; give r=… to pin a degree, mode=auto to end a pin, mode=shadow "
                "to watch the policy, or min_r=… and max_r=… to bound the controller"
            )
        if self.r is not None and self.mode == "auto":
            raise ValueError("r=… pins a degree and mode=auto ends a pin; give one of the two")
        if self.r is not None and bounds:
            raise ValueError(
                "r=… holds a degree, min_r=… and max_r=… bound the controller; send two requests"
            )
        return self


class Problem(BaseModel):
    """Why something did not work (RFC 9457)."""

    model_config = ConfigDict(frozen=True)

    type: str = Field(description="Stable name of the kind of problem.")
    title: str = Field(description="The same for every problem of this type.")
    status: int
    detail: str = Field(description="What was wrong this time, and what to do about it.")
    request_id: str = Field(description="Also in the X-Request-ID header and the server's log.")


class Prediction(BaseModel):
    """One class and its probability."""

    label: str
    index: int
    score: float


class ImageResult(BaseModel):
    """What the model saw in one image."""

    filename: str | None = Field(description="As sent; null for a raw body.")
    r: int = Field(description="Degree of compression that this image was classified with.")
    batch_size: int = Field(description="Images in the batch that it was part of.")
    queue_ms: float
    compute_ms: float
    predictions: list[Prediction] = Field(description="Most likely class first.")


class FailedImage(BaseModel):
    """An image of a request that was not classified while others were."""

    filename: str | None
    problem: Problem


class ClassifyResponse(BaseModel):
    """Answer of ``POST /classify``; one result per file, in the order they were sent."""

    request_id: str
    model: str
    results: list[ImageResult | FailedImage]


class BankInfo(BaseModel):
    """The loaded token compensator."""

    digest: str
    arch: str
    num_groups: int = Field(description="K: the highest degree that is compensated.")
    rank: int
    scaling: float


class ModelInfo(BaseModel):
    """Answer of ``GET /model``."""

    name: str
    architecture: str
    digest: str = Field(description="SHA-256 of the model's weights.")
    labels: list[str]
    input_size: tuple[int, int, int] = Field(description="Channels, height, width.")
    transform: dict[str, Any] = Field(description="How images are resized, cropped, normalised.")
    method: Literal["merge", "prune"]
    prop_attn: bool
    r_source: int = Field(description="The degree that the model was fine-tuned at.")
    max_r: int = Field(description="The highest degree that this server accepts.")
    bank: BankInfo | None = Field(description="null: plain merging, without compensation.")
    device: str
    dtype: str
    backend: str = Field(
        description="What computes a batch: eager (PyTorch), compiled, graphs (CUDA) or onnx."
    )
    lanes: int = Field(1, description="Between how many a batch is shared out by images, on a CPU.")
    reload: ReloadStatus | None = Field(
        None, description="The last POST /models/reload; null: there was none."
    )


class LiveAgreement(BaseModel):
    """How often a degree's answers were those of ``r_source``, from served images run again."""

    agreement: float = Field(description="Share of compared images with the same class.")
    low: float = Field(description="Lower end of the 95 % interval.")
    high: float = Field(description="Upper end of the 95 % interval.")
    samples: int = Field(description="Comparisons that it is from, the newest ones.")


class Level(BaseModel):
    """One degree: what it wins and what it costs."""

    r: int
    relative_throughput: float = Field(description="Compared with r=0.")
    images_per_s: float = Field(description="Believed throughput, with batches of `batch_size`.")
    batch_size: int = Field(description="The smallest batch that is next to the best throughput.")
    measured: bool = Field(description="false: its speed is derived from other degrees.")
    pays: bool = Field(description="Whether it is faster here than every lower degree.")
    allowed: bool = Field(
        description="Whether an automatic choice may take it: it pays, lies within the bounds and "
        "keeps the accuracy floor."
    )
    expected_accuracy: float | None = Field(
        description="Top-1, or agreement with r_source, from 0 to 1; null where unknown."
    )
    agreement: LiveAgreement | None = Field(description="null: never compared of late.")


class ShadowDecision(BaseModel):
    """What the policy would do if it were heard."""

    r: int
    reason: str
    ttl_s: float | None = Field(description="Seconds until shadow mode ends by itself.")


class Switch(BaseModel):
    """The last change of degree."""

    r_from: int
    r_to: int
    reason: str
    at: datetime


class CompressionStatus(BaseModel):
    """Answer of ``GET`` and ``PUT /compression``."""

    mode: Literal["auto", "pinned", "shadow"]
    r: int
    r_source: int
    min_r: int
    max_r: int
    min_accuracy: float | None = Field(description="Floor of automatic choices; null: none.")
    expected_accuracy: float | None = Field(description="Of the present degree, where known.")
    pinned_ttl_s: float | None = Field(description="Seconds until a pin ends by itself.")
    shadow: ShadowDecision | None = Field(description="null outside of shadow mode.")
    levels: list[Level]
    last_switch: Switch | None
    steady_r: int = Field(description="The degree that capacity_demand reckons with.")
    capacity_demand: float = Field(
        description="How many replicas like this one the load of the last 15 s needs at steady_r."
    )


class Health(BaseModel):
    """Answer of the health checks."""

    status: Literal["ok", "ready"]

"""Requests and answers of the Open Inference Protocol as types, for checks and documentation.

Names and fields are the protocol's. What is not known is refused, as everywhere here: a misspelt
``max_r`` must not be taken for none.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from server.schemas import PriorityName

LONGEST_DEADLINE_MS = 3_600_000


class _Asked(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class InputParameters(_Asked):
    """What is said of an input beside its data."""

    binary_data_size: int | None = Field(
        None, ge=0, description="The data follows the JSON, so many bytes of it."
    )
    content_type: Literal["base64"] | None = Field(
        None, description="BYTES in JSON are base64, as MLServer's clients send them."
    )


class InputTensor(_Asked):
    """Images as one tensor; the model's metadata lists the names, types and shapes."""

    name: str = Field(max_length=200)
    shape: list[Annotated[int, Field(ge=0)]] = Field(max_length=8)
    datatype: str = Field(max_length=16)
    parameters: InputParameters | None = None
    data: list[Any] | None = Field(None, description="Flat or nested; or as binary data.")


class OutputParameters(_Asked):
    """How an output is wanted."""

    binary_data: bool | None = Field(None, description="Behind the JSON instead of in it.")
    classification: int | None = Field(
        None, ge=1, description="So many classes, as 'probability:index:label', instead of all."
    )


class RequestedOutput(_Asked):
    """An output that is wanted."""

    name: str = Field(max_length=200)
    parameters: OutputParameters | None = None


class RequestParameters(_Asked):
    """What a request asks for beside its classes; as in the query of ``POST /classify``."""

    deadline_ms: float | None = Field(
        None,
        gt=0,
        le=LONGEST_DEADLINE_MS,
        description="Give up (504) so many milliseconds after the first byte of the request.",
    )
    timeout: int | None = Field(
        None,
        ge=0,
        le=1000 * LONGEST_DEADLINE_MS,
        description="The same in microseconds, as Triton has it; 0: none.",
    )
    max_r: int | None = Field(None, ge=0, description="Accept no more compression than this.")
    priority: Annotated[int, Field(ge=0)] | PriorityName | None = Field(
        None, description="A word, or Triton's number: 1 is high, 2 and 0 normal, all else low."
    )
    binary_data_output: bool = Field(False, description="All outputs behind the JSON.")


class InferenceRequest(_Asked):
    """Body of ``POST /v2/models/{name}/infer``: one input with one image or several."""

    id: str | None = Field(None, max_length=1024, description="Comes back with the answer.")
    model_name: str | None = Field(
        None, max_length=200, description="KServe's client sends it; the path decides."
    )
    parameters: RequestParameters | None = None
    inputs: list[InputTensor] = Field(min_length=1, max_length=1)
    outputs: list[RequestedOutput] | None = Field(None, max_length=1)


class InferenceError(BaseModel):
    """Why something did not work, in the protocol's form."""

    error: str


class TensorInfo(BaseModel):
    """An input or output of the model; -1 is any number of images."""

    name: str
    datatype: str
    shape: list[int]
    parameters: dict[str, str | bool | float] | None = Field(
        None, description="What the values stand for, in words."
    )


class OutputTensor(BaseModel):
    """An output."""

    name: str
    datatype: str
    shape: list[int]
    data: list[float] | list[str] | None = Field(
        None, description="Row by row; null: it follows the JSON."
    )
    parameters: dict[str, int] | None = None


class AnswerParameters(BaseModel):
    """How the images fared; of several, the highest of each figure."""

    r: int = Field(description="Degree of compression.")
    batch_size: int
    queue_ms: float
    compute_ms: float
    rounding: float | None = Field(
        None,
        description="FP32 input only: how far the farthest value was from the byte that it was "
        "taken for, in levels of 0 to 255.",
    )


class InferenceAnswer(BaseModel):
    """Answer of ``POST /v2/models/{name}/infer``."""

    model_name: str
    model_version: str
    id: str | None = None
    parameters: AnswerParameters
    outputs: list[OutputTensor]


class ServerMetadata(BaseModel):
    """Answer of ``GET /v2``."""

    name: str
    version: str
    extensions: list[str]


class ServerLive(BaseModel):
    """Answer of ``GET /v2/health/live``."""

    live: bool


class ServerReady(BaseModel):
    """Answer of ``GET /v2/health/ready``."""

    ready: bool


class ModelReady(BaseModel):
    """Answer of ``GET /v2/models/{name}/ready``."""

    name: str
    ready: bool


class ModelMetadata(BaseModel):
    """Answer of ``GET /v2/models/{name}``; of the inputs, one is sent."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorInfo]
    outputs: list[TensorInfo]


class ModelEntry(BaseModel):
    """A line of ``POST /v2/repository/index``."""

    name: str
    version: str
    state: Literal["READY", "UNAVAILABLE"]
    reason: str

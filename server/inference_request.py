"""The head of an inference request and its tensor, checked: what is asked for, and of which images.

`parse` looks at nothing twice and at nothing large on purpose: how many values the JSON may have is
bounded before it is read, as reading them holds up everybody, on whatever thread it is done.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError
from pydantic_core import from_json

from server.errors import BadInference, ImageTooLarge
from server.inference_framing import elements
from server.inference_schemas import InferenceRequest, InputTensor, RequestParameters
from server.schemas import ClassifyQuery, PriorityName

MOST_JSON_VALUES = 200_000
"""An image of 224 x 224 as numbers fits; reading so many takes some ten milliseconds."""

_MOST_MEMBERS = 32
"""Of any list or object beside the data: none has reason to have more."""

IMAGE, PIXELS, NORMALISED = "image", "pixels", "pixel_values"
"""The inputs: encoded images, RGB bytes, normalised floats."""

DATATYPES = {IMAGE: "BYTES", PIXELS: "UINT8", NORMALISED: "FP32"}
OUTPUT = "probabilities"

_ARRAYS: dict[str, tuple[type[np.generic], str]] = {
    "UINT8": (np.uint8, "iu"),
    "FP32": (np.float32, "iuf"),
}
"""The type in memory, and the kinds of numbers that stand for it in JSON."""

_PRIORITIES: dict[int, PriorityName] = {0: "normal", 1: "high", 2: "normal"}


def known_as(name: str) -> str:
    """A model's name in the protocol's paths: of `hf-hub:owner/name`, what is behind the slash."""
    return name.rsplit("/", 1)[-1]


@dataclass(frozen=True)
class Inference:
    """An inference request that makes sense by itself.

    Attributes:
        id: the client's.
        query: what it asks for, in the words of ``POST /classify``.
        input: which of the inputs it brings.
        shape: of the tensor, as told and as it is.
        images: one element or sub-array of the first dimension each; base64 is a text still.
        binary: the output is wanted behind the JSON.
        classes: so many classes are wanted as texts; None: all as numbers.
    """

    id: str | None
    query: ClassifyQuery
    input: str
    shape: tuple[int, ...]
    images: Sequence[memoryview | str | NDArray[Any]]
    binary: bool
    classes: int | None


def parse(head: memoryview, tail: memoryview, most_images: int) -> Inference:
    """Read a request.

    Args:
        head: its JSON.
        tail: its binary data.
        most_images: that it may bring.

    Raises:
        BadInference: it is malformed, or asks for what there is not.
        ImageTooLarge: it has too many values as JSON.
    """
    asked = _asked(bytes(head))
    parameters = asked.parameters or RequestParameters()
    binary, classes = _output(asked, parameters)
    (tensor,) = asked.inputs
    return Inference(
        id=asked.id,
        query=_query(parameters),
        input=tensor.name,
        shape=tuple(tensor.shape),
        images=_images(tensor, tail, most_images),
        binary=binary,
        classes=classes,
    )


def _asked(head: bytes) -> InferenceRequest:
    if head.count(b",") > MOST_JSON_VALUES:
        raise ImageTooLarge(
            f"The JSON has more than {MOST_JSON_VALUES} values; send the tensor as binary data, "
            "which is smaller and faster too"
        )
    try:
        document = from_json(head, allow_inf_nan=False, cache_strings="keys")
    except (ValueError, RecursionError) as error:
        raise BadInference(
            f"The request is not JSON ({str(error)[:120]}); binary data goes behind it, with the "
            "header Inference-Header-Content-Length"
        ) from error
    _check_members(document)
    try:
        return InferenceRequest.model_validate(document)
    except ValidationError as error:
        raise BadInference(_sentences(error)) from error


def _check_members(value: Any) -> None:
    """Refuse what would only be long to refuse later; the data is looked at elsewhere."""
    if not isinstance(value, dict | list):
        return
    if len(value) > _MOST_MEMBERS:
        raise BadInference(
            f"A list or object of the request has {len(value)} members; only 'data' may have more "
            f"than {_MOST_MEMBERS}"
        )
    if isinstance(value, list):
        members = value
    else:
        members = [member for name, member in value.items() if name != "data"]
    for member in members:
        _check_members(member)


def _sentences(error: ValidationError) -> str:
    """What is wrong with the first few members, and where."""
    found = error.errors(include_url=False, include_context=False, include_input=False)
    told = []
    for item in found[:3]:
        where = ".".join(str(step)[:80] for step in item["loc"]) or "the request"
        if item["type"] == "extra_forbidden":
            told.append(f"{where} is not known here; docs/inference_protocol.md lists what is")
        else:
            told.append(f"{where}: {item['msg'][:1].lower()}{item['msg'][1:]}")
    return "; ".join(told)


def _query(parameters: RequestParameters) -> ClassifyQuery:
    deadlines = []
    if parameters.deadline_ms is not None:
        deadlines.append(parameters.deadline_ms)
    if parameters.timeout:
        deadlines.append(parameters.timeout / 1000)
    priority = parameters.priority
    if isinstance(priority, int):
        priority = _PRIORITIES.get(priority, "low")
    return ClassifyQuery(
        top_k=5,
        deadline_ms=min(deadlines, default=None),
        max_r=parameters.max_r,
        priority=priority or "normal",
    )


def _output(asked: InferenceRequest, parameters: RequestParameters) -> tuple[bool, int | None]:
    """Whether the output is wanted as binary data, and how many classes of it as texts."""
    binary = parameters.binary_data_output
    if not asked.outputs:
        return binary, None
    (output,) = asked.outputs
    if output.name != OUTPUT:
        raise BadInference(f"There is no output {output.name[:80]!r}; the model has {OUTPUT!r}")
    wanted = output.parameters
    if wanted is None:
        return binary, None
    return (binary if wanted.binary_data is None else wanted.binary_data), wanted.classification


def _images(
    tensor: InputTensor, tail: memoryview, most_images: int
) -> Sequence[memoryview | str | NDArray[Any]]:
    datatype = DATATYPES.get(tensor.name)
    if datatype is None:
        known = ", ".join(f"{name!r} ({kind})" for name, kind in DATATYPES.items())
        raise BadInference(f"There is no input {tensor.name[:80]!r}; send one of {known}")
    if tensor.datatype != datatype:
        raise BadInference(
            f"The input {tensor.name!r} is {datatype} and not {tensor.datatype[:80]!r}"
        )
    count = tensor.shape[0] if tensor.shape else 0
    if not 1 <= count <= most_images:
        raise BadInference(
            f"The shape {tensor.shape} brings {count} images; a request has 1 to {most_images}, "
            "which the first dimension counts"
        )
    size = tensor.parameters.binary_data_size if tensor.parameters else None
    _check_data(tensor, size, len(tail))
    if datatype == "BYTES":
        return _encoded(tensor, tail, size is not None)
    kind, kinds = _ARRAYS[datatype]
    if size is not None:
        return _array_behind(tensor, tail, np.dtype(kind).newbyteorder("<"))
    return _array_of_json(tensor, np.dtype(kind), kinds)


def _check_data(tensor: InputTensor, size: int | None, behind: int) -> None:
    """The data is in one place, and what is behind the JSON belongs to it to the last byte."""
    if (size is None) == (tensor.data is None):
        raise BadInference(
            f"The input {tensor.name!r} needs its values in 'data', or behind the JSON with the "
            "parameter 'binary_data_size'; one of the two"
        )
    if (size or 0) != behind:
        raise BadInference(
            f"binary_data_size is {size or 0}, but {behind} bytes follow the JSON; their numbers "
            "must be the same"
        )


def _encoded(tensor: InputTensor, tail: memoryview, behind: bool) -> Sequence[memoryview | str]:
    count = tensor.shape[0]
    if tensor.shape not in ([count], [count, 1]):
        raise BadInference(f"The shape {tensor.shape} of BYTES is not [{count}] or [{count}, 1]")
    base64 = tensor.parameters is not None and tensor.parameters.content_type == "base64"
    if behind and not base64:
        return elements(tail, count)
    if behind:
        return [str(element, "latin-1") for element in elements(tail, count)]
    if not base64:
        raise BadInference(
            "JSON holds no binary data: send BYTES behind it (binary_data_size), or as base64 with "
            'the parameter "content_type": "base64" of the input'
        )
    texts = _flat(tensor.data)
    if len(texts) != count or not all(isinstance(text, str) for text in texts):
        raise BadInference(f"The shape {tensor.shape} wants {count} texts as data")
    return texts


def _flat(data: list[Any] | None) -> list[Any]:
    """`[[a], [b]]` as `[a, b]`."""
    values = data or []
    nested = all(isinstance(value, list) and len(value) == 1 for value in values)
    return [value[0] for value in values] if nested else values


def _array_behind(
    tensor: InputTensor, tail: memoryview, kind: np.dtype[Any]
) -> Sequence[NDArray[Any]]:
    expected = math.prod(tensor.shape) * kind.itemsize
    if expected != len(tail):
        raise BadInference(
            f"The shape {tensor.shape} of {tensor.datatype} takes {expected} bytes, and "
            f"binary_data_size is {len(tail)}"
        )
    return list(np.frombuffer(tail, kind).reshape(tensor.shape))


def _array_of_json(tensor: InputTensor, kind: np.dtype[Any], kinds: str) -> Sequence[NDArray[Any]]:
    # numpy would take a long text among numbers for a reason to make texts of them all, as long.
    if not _types(tensor.data) <= {int, float, list}:
        raise BadInference(f"The data of {tensor.name!r} has values that are no numbers")
    try:
        values = np.array(tensor.data)
    except (ValueError, OverflowError) as error:
        raise BadInference(f"The data of {tensor.name!r} is not nested evenly") from error
    if values.dtype.kind not in kinds:
        raise BadInference(f"The data of {tensor.name!r} has values that are not {tensor.datatype}")
    if values.size != math.prod(tensor.shape):
        raise BadInference(
            f"The shape {tensor.shape} takes {math.prod(tensor.shape)} values, and the data of "
            f"{tensor.name!r} has {values.size}"
        )
    if kind == np.uint8 and not (values.min() >= 0 and values.max() <= 255):
        raise BadInference(f"The data of {tensor.name!r} has values outside of 0 to 255")
    with np.errstate(over="ignore"):  # too large for a float32 is infinite, and refused as such
        return list(values.astype(kind).reshape(tensor.shape))


def _types(data: list[Any] | None) -> set[type]:
    """The types of all values, however deep."""
    found = set(map(type, data or ()))
    if list in found:
        for value in data or ():
            if isinstance(value, list):
                found |= _types(value)
    return found

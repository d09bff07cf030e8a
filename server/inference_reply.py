"""Results as the Open Inference Protocol tells them, as JSON or with binary data behind it."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from fastapi import Response
from pydantic_core import to_json

from server.entries import ItemResult
from server.inference_framing import HEAD_LENGTH, packed
from server.inference_request import OUTPUT, Inference
from server.replies import best


def inference_answer(
    asked: Inference,
    results: Sequence[ItemResult],
    labels: tuple[str, ...],
    model: tuple[str, str],
    rounding: float | None,
) -> Response:
    """The answer to a request, all of whose images were classified.

    Args:
        asked: the request.
        results: of its images, in their order.
        labels: of the classes.
        model: its name and version.
        rounding: see `PixelFormat.of_normalised`; None where no floats came.
    """
    head: dict[str, Any] = {"model_name": model[0], "model_version": model[1]}
    if asked.id is not None:
        head["id"] = asked.id
    head["parameters"] = _parameters(results, rounding)
    if asked.classes is None:
        output, raw = _numbers(results, asked.binary)
    else:
        output, raw = _texts(results, labels, asked.classes, asked.binary)
    head["outputs"] = [output]
    body = to_json(head)
    if raw is None:
        return Response(body, media_type="application/json")
    headers = {HEAD_LENGTH: str(len(body))}
    return Response(body + raw, headers=headers, media_type="application/octet-stream")


def _parameters(results: Sequence[ItemResult], rounding: float | None) -> dict[str, Any]:
    """How the images fared; of several, the highest of each figure."""
    parameters: dict[str, Any] = {
        "r": max(result.r for result in results),
        "batch_size": max(result.batch_size for result in results),
        "queue_ms": round(max(result.queue_s for result in results) * 1000, 3),
        "compute_ms": round(max(result.compute_s for result in results) * 1000, 3),
    }
    if rounding is not None:
        parameters["rounding"] = round(rounding, 3)
    return parameters


def _numbers(results: Sequence[ItemResult], binary: bool) -> tuple[dict[str, Any], bytes | None]:
    """The probabilities of all classes."""
    scores = np.stack([result.output for result in results])
    output = {"name": OUTPUT, "datatype": "FP32", "shape": list(scores.shape)}
    if not binary:
        return output | {"data": scores.ravel().tolist()}, None
    raw = scores.astype("<f4").tobytes()
    return output | {"parameters": {"binary_data_size": len(raw)}}, raw


def _texts(
    results: Sequence[ItemResult], labels: tuple[str, ...], classes: int, binary: bool
) -> tuple[dict[str, Any], bytes | None]:
    """The likeliest classes; the numbers are those of ``POST /classify`` to the last digit."""
    texts = [
        f"{score}:{index}:{labels[index]}"
        for result in results
        for index, score in best(result.output, classes)
    ]
    shape = [len(results), len(texts) // len(results)]
    output = {"name": OUTPUT, "datatype": "BYTES", "shape": shape}
    if not binary:
        return output | {"data": texts}, None
    raw = packed(text.encode() for text in texts)
    return output | {"parameters": {"binary_data_size": len(raw)}}, raw

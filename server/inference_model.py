"""What the Open Inference Protocol is told of the server and its model."""

from typing import Any

from server.engine import Engine
from server.inference_request import DATATYPES, IMAGE, NORMALISED, OUTPUT, PIXELS, known_as
from server.inference_schemas import ModelEntry, ModelMetadata, ServerMetadata, TensorInfo
from server.settings import Settings

VERSION = "1"
"""Of the model: there is one at a time; `GET /model` tells its digest."""

PLATFORM = "tocom_vit"

EXTENSIONS = (
    *("binary_tensor_data", "classification", "parameters", "schedule_policy"),
    "model_configuration",
)
"""Triton's names of what there is beside the protocol itself."""

_CONFIG_TYPES = {"BYTES": "TYPE_STRING", "UINT8": "TYPE_UINT8", "FP32": "TYPE_FP32"}


def server_metadata(version: str) -> ServerMetadata:
    """The answer of ``GET /v2``."""
    return ServerMetadata(name="tocom-serve", version=version, extensions=list(EXTENSIONS))


def model_metadata(engine: Engine) -> ModelMetadata:
    """The answer of ``GET /v2/models/{name}``."""
    return ModelMetadata(
        name=known_as(engine.loaded.name),
        versions=[VERSION],
        platform=PLATFORM,
        inputs=[_info(name, shape, engine) for name, shape in _inputs(engine).items()],
        outputs=[TensorInfo(name=OUTPUT, datatype="FP32", shape=[-1, len(engine.labels)])],
    )


def model_entry(engine: Engine, reason: str) -> ModelEntry:
    """The line of the repository's index; no reason: it is ready."""
    return ModelEntry(
        name=known_as(engine.loaded.name),
        version=VERSION,
        state="UNAVAILABLE" if reason else "READY",
        reason=reason,
    )


def model_config(engine: Engine, settings: Settings) -> dict[str, Any]:
    """The answer of ``GET /v2/models/{name}/config``: Triton's configuration, as far as it applies.

    A request may bring ``max_batch_size`` images; larger batches than the server's own are split.
    """
    return {
        "name": known_as(engine.loaded.name),
        "platform": PLATFORM,
        "backend": engine.backend,
        "version_policy": {"latest": {"num_versions": 1}},
        "max_batch_size": min(settings.max_files, settings.queue_size),
        "input": [
            {
                "name": name,
                "data_type": _CONFIG_TYPES[DATATYPES[name]],
                "dims": shape[1:],
                "optional": True,
            }
            for name, shape in _inputs(engine).items()
        ],
        "output": [
            {"name": OUTPUT, "data_type": "TYPE_FP32", "dims": [len(engine.labels)]},
        ],
        "dynamic_batching": {
            "max_queue_delay_microseconds": round(settings.max_queue_delay_ms * 1000),
            "priority_levels": 3,
            "default_priority_level": 2,
        },
    }


def _inputs(engine: Engine) -> dict[str, list[int]]:
    channels, height, width = engine.loaded.input_size
    return {
        IMAGE: [-1, 1],
        PIXELS: [-1, height, width, channels],
        NORMALISED: [-1, channels, height, width],
    }


def _info(name: str, shape: list[int], engine: Engine) -> TensorInfo:
    loaded = engine.loaded
    told: dict[str, dict[str, str | bool | float]] = {
        IMAGE: {"content": "encoded image files; resized and cropped here"},
        PIXELS: {"content": "RGB bytes, resized and cropped, not normalised", "layout": "NHWC"},
        NORMALISED: {
            "content": "RGB, resized, cropped, and normalised: (byte / 255 - mean) / std",
            "layout": "NCHW",
            "mean": ", ".join(map(str, loaded.mean)),
            "std": ", ".join(map(str, loaded.std)),
        },
    }
    parameters = {"optional": True, **told[name]}
    return TensorInfo(name=name, datatype=DATATYPES[name], shape=shape, parameters=parameters)

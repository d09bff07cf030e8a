"""What the server knows, put into the words of the API's schemas."""

from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
from numpy.typing import NDArray

from server.capacity_demand import CapacityDemand
from server.control_status import ControllerStatus, DegreeChange
from server.engine import Engine
from server.errors import ServeError
from server.intake import Answer
from server.problems import problem_of
from server.reload_schemas import ReloadStatus
from server.schemas import (
    BankInfo,
    CompressionStatus,
    FailedImage,
    Level,
    LiveAgreement,
    ModelInfo,
    ShadowDecision,
    Switch,
)
from tocom_core.bank import Bank
from tocom_core.operating_point import OperatingPoint


def image_result(
    answer: Answer, labels: tuple[str, ...], top_k: int, request_id: str
) -> dict[str, Any] | FailedImage:
    """One file's entry in the answer of ``POST /classify``: `ImageResult` without its checks.

    The figures are the server's own; checking them takes as long as finding the best classes.
    """
    result = answer.result
    if isinstance(result, ServeError):
        return FailedImage(filename=answer.filename, problem=problem_of(result, request_id))
    return {
        "filename": answer.filename,
        "r": result.r,
        "batch_size": result.batch_size,
        "queue_ms": round(result.queue_s * 1000, 3),
        "compute_ms": round(result.compute_s * 1000, 3),
        "predictions": [
            {"label": labels[index], "index": index, "score": score}
            for index, score in best(result.output, top_k)
        ],
    }


def best(scores: NDArray[np.float32], top_k: int) -> list[tuple[int, float]]:
    """Index and score of the likeliest classes, these first; of equal ones the lower index."""
    if top_k < len(scores):  # sorting them all takes longer than finding the few
        partitioned = scores.copy()
        partitioned.partition(-top_k)
        candidates = (scores >= partitioned[-top_k]).nonzero()[0]
    else:
        candidates = np.arange(len(scores))
    order = candidates[(-scores[candidates]).argsort(kind="stable")][:top_k]
    return list(zip(order.tolist(), scores[order].tolist(), strict=True))


def model_info(engine: Engine, reload: ReloadStatus | None = None) -> ModelInfo:
    """The answer of ``GET /model``."""
    loaded, bank = engine.loaded, engine.bank
    return ModelInfo(
        name=loaded.name,
        architecture=loaded.architecture,
        digest=loaded.digest,
        labels=list(loaded.labels),
        input_size=loaded.input_size,
        transform=dict(loaded.transform_info),
        method=engine.model.method,
        prop_attn=engine.model.prop_attn,
        r_source=engine.r_source,
        max_r=engine.max_r,
        bank=None if bank is None else _bank_info(bank, engine.scaling),
        device=engine.device_names,
        dtype=engine.precision,
        backend=engine.backend,
        lanes=engine.lanes,
        reload=reload,
    )


def compression_status(status: ControllerStatus, demand: CapacityDemand) -> CompressionStatus:
    """The answer of ``GET`` and ``PUT /compression``."""
    change, shadow = status.last_change, status.shadow
    return CompressionStatus(
        mode=status.mode,
        r=status.r,
        r_source=status.r_source,
        min_r=status.min_r,
        max_r=status.max_r,
        min_accuracy=status.min_accuracy,
        expected_accuracy=status.expected_accuracy,
        pinned_ttl_s=status.pinned_ttl_s,
        shadow=None if shadow is None else ShadowDecision(**asdict(shadow)),
        levels=[_level(level, status) for level in status.levels],
        last_switch=None if change is None else _switch(change),
        steady_r=demand.steady_r,
        capacity_demand=demand.value(),
    )


def _level(level: OperatingPoint, status: ControllerStatus) -> Level:
    compared = status.agreement.get(level.r)
    return Level(
        r=level.r,
        relative_throughput=level.relative_throughput,
        images_per_s=level.images_per_s,
        batch_size=level.batch_size,
        measured=level.measured,
        pays=level.pays,
        allowed=level.r in status.allowed,
        expected_accuracy=level.expected_accuracy,
        agreement=None if compared is None else LiveAgreement(**asdict(compared)),
    )


def _bank_info(bank: Bank, scaling: float | None) -> BankInfo:
    return BankInfo(
        digest=bank.digest,
        arch=bank.arch,
        num_groups=bank.num_groups,
        rank=bank.rank,
        scaling=bank.scaling if scaling is None else scaling,
    )


def _switch(change: DegreeChange) -> Switch:
    return Switch(
        r_from=change.r_from,
        r_to=change.r_to,
        reason=change.reason,
        at=datetime.now(UTC) - timedelta(seconds=change.age_s),
    )

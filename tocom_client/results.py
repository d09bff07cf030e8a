"""What a server answers, as frozen records; the names are those of the HTTP contract.

Durations carry their unit in the name; scores, shares and accuracies are from 0 to 1. A newer
server may tell more than is read here; that is no error.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any


@dataclass(frozen=True, slots=True)
class Problem:
    """Why something did not work (RFC 9457).

    Attributes:
        type: stable name of the kind of problem, a path; "" if the failure is the client's own.
        title: the kind of problem in a few words.
        status: HTTP status; 0: no answer came.
        detail: what was wrong this time, and what to do about it.
        request_id: what the server's log calls the request.
    """

    type: str
    title: str
    status: int
    detail: str
    request_id: str = ""


@dataclass(frozen=True, slots=True)
class Prediction:
    """One class and its probability."""

    label: str
    index: int
    score: float


@dataclass(frozen=True, slots=True)
class Classification:
    """What the model saw in one image.

    Attributes:
        predictions: most likely class first.
        r: the degree of compression that the image was classified with.
        batch_size: images in the batch that it was part of.
        queue_ms: how long it waited.
        compute_ms: how long its batch took.
        model: name of the model.
        request_id: what the server's log calls the request.
        filename: last part of the path that was given; None where there was no path.
    """

    predictions: tuple[Prediction, ...]
    r: int
    batch_size: int
    queue_ms: float
    compute_ms: float
    model: str = ""
    request_id: str = ""
    filename: str | None = None

    @property
    def top(self) -> Prediction:
        """The most likely class."""
        return self.predictions[0]


@dataclass(frozen=True, slots=True)
class BankInfo:
    """The token compensator of a model; `num_groups` is the highest degree it compensates."""

    digest: str
    arch: str
    num_groups: int
    rank: int
    scaling: float


@dataclass(frozen=True, slots=True)
class ReloadStatus:
    """A change of the model: how far it is, or how it ended.

    Attributes:
        state: `loading`, `warming_up`, `trying`, `done` (the new model is served) or `failed` (the
            old one still is).
        model: what is loaded, as the server's setting would say it.
        bank: likewise.
        started_at: when it began.
        seconds: how long it took; None while it goes on.
        images: that the new model was tried with.
        recent: those of them that had been served before.
        agreement: share with the same class as before; None where it was not compared.
        detail: why it failed.
    """

    state: str
    model: str
    bank: str
    started_at: datetime
    seconds: float | None = None
    images: int | None = None
    recent: int | None = None
    agreement: float | None = None
    detail: str | None = None


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What is served.

    Attributes:
        digest: SHA-256 of the model's weights.
        input_size: channels, height, width.
        transform: how images are resized, cropped, normalised.
        method: `merge` or `prune`.
        r_source: the degree that the model was fine-tuned at.
        max_r: the highest degree that this server accepts.
        bank: None: plain merging, without compensation.
        backend: what computes a batch.
        reload: the last change of the model; None: there was none.
        lanes: between how many a batch is shared out by images.
    """

    name: str
    architecture: str
    digest: str
    labels: tuple[str, ...]
    input_size: tuple[int, int, int]
    transform: Mapping[str, Any]
    method: str
    prop_attn: bool
    r_source: int
    max_r: int
    bank: BankInfo | None
    device: str
    dtype: str
    backend: str
    reload: ReloadStatus | None = None
    lanes: int = 1


@dataclass(frozen=True, slots=True)
class LiveAgreement:
    """How often a degree's answers were those of `r_source`; `low` to `high`: 95 % interval."""

    agreement: float
    low: float
    high: float
    samples: int


@dataclass(frozen=True, slots=True)
class Level:
    """One degree: what it wins and what it costs.

    Attributes:
        relative_throughput: compared with r=0.
        images_per_s: believed throughput, with batches of `batch_size`.
        measured: False: its speed is derived from other degrees.
        pays: whether it is faster here than every lower degree.
        allowed: whether an automatic choice may take it.
        expected_accuracy: top-1, or agreement with `r_source`; None where unknown.
        agreement: None: never compared of late.
    """

    r: int
    relative_throughput: float
    images_per_s: float
    batch_size: int
    measured: bool
    pays: bool
    allowed: bool
    expected_accuracy: float | None = None
    agreement: LiveAgreement | None = None


@dataclass(frozen=True, slots=True)
class ShadowDecision:
    """What the policy would do if it were heard; `ttl_s`: until shadow mode ends by itself."""

    r: int
    reason: str
    ttl_s: float | None = None


@dataclass(frozen=True, slots=True)
class Switch:
    """The last change of degree."""

    r_from: int
    r_to: int
    reason: str
    at: datetime


@dataclass(frozen=True, slots=True)
class CompressionStatus:
    """The dial.

    Attributes:
        mode: `auto`, `pinned` or `shadow`.
        r: the present degree.
        r_source: the degree that the model was fine-tuned at.
        min_r: no automatic choice is lower.
        max_r: no automatic choice is higher.
        levels: every degree that the server has.
        min_accuracy: floor of automatic choices; None: none.
        expected_accuracy: of the present degree; None where unknown.
        pinned_ttl_s: seconds until a pin ends by itself.
        shadow: None outside of shadow mode.
        last_switch: None: the degree has never changed.
        steady_r: the degree that `capacity_demand` reckons with.
        capacity_demand: replicas like this one that the load of the last 15 s needs at `steady_r`.
    """

    mode: str
    r: int
    r_source: int
    min_r: int
    max_r: int
    levels: tuple[Level, ...]
    min_accuracy: float | None = None
    expected_accuracy: float | None = None
    pinned_ttl_s: float | None = None
    shadow: ShadowDecision | None = None
    last_switch: Switch | None = None
    steady_r: int | None = None
    capacity_demand: float | None = None

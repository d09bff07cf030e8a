"""Where the time of a forward pass went: records, and how they are read from traces.

A trace holds spans (a stage began, and ended; stages lie within each other) and, of a GPU, what ran
there and from which moment on the CPU it was sent.  Time that belongs to no stage is ``other``, so
that the stages always add up to the whole.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

STAGES = (
    "copy",
    "preprocess",
    "stem",
    "attention",
    "matching",
    "merging",
    "mlp",
    "head",
    "gaps",
    "other",
)
"""In the order of a forward pass.

``copy``: between host and device.  ``preprocess``: bytes to normalised numbers.  ``stem``: patches
and positions.  ``attention``: with its norm and residual.  ``matching``: who merges.
``merging``: merging tokens, or dropping them.  ``mlp``: with its norm and residual.  ``head``: last
norm, pooling, classes, softmax.  ``gaps``: a GPU waits for the next kernel.  ``other``: all else.
"""
WHOLE = "whole"
"""The span around a forward pass."""


@dataclass(frozen=True)
class Span:
    """Something with a name that took from ``start`` to ``end``, in seconds."""

    name: str
    start: float
    end: float


@dataclass(frozen=True)
class DeviceWork:
    """A kernel or copy on a GPU: when the CPU sent it, and how long it ran, in seconds."""

    sent: float
    seconds: float


@dataclass(frozen=True)
class Breakdown:
    """One degree at one batch size.

    Attributes:
        backend: ``"eager"`` or ``"onnx"``.
        r: the degree.
        batch: images per forward pass.
        seconds: stage to its time; they add up to ``traced_s``.
        traced_s: a forward pass while it was traced.
        untraced_s: the same without tracing; what it really takes.
    """

    backend: str
    r: int
    batch: int
    seconds: Mapping[str, float]
    traced_s: float
    untraced_s: float

    def share(self, stage: str) -> float:
        """Of the traced pass, 0 to 1."""
        return self.seconds.get(stage, 0.0) / self.traced_s


def own_seconds(spans: Sequence[Span]) -> dict[str, float]:
    """Time of each stage without that of the stages inside it.

    Args:
        spans: of one pass on one thread: ``WHOLE`` and the stages within, properly nested.

    Returns:
        Stage to seconds, ``other`` for what is in the pass and in no stage.
    """
    seconds: dict[str, float] = {}
    open_spans: list[Span] = []
    for span in sorted(spans, key=lambda span: (span.start, -span.end)):
        while open_spans and open_spans[-1].end <= span.start:
            open_spans.pop()
        took = span.end - span.start
        name = "other" if span.name == WHOLE else span.name
        seconds[name] = seconds.get(name, 0.0) + took
        if open_spans:
            outer = "other" if open_spans[-1].name == WHOLE else open_spans[-1].name
            seconds[outer] -= took
        open_spans.append(span)
    return seconds


def device_seconds(spans: Sequence[Span], work: Iterable[DeviceWork]) -> dict[str, float]:
    """Time that a GPU spent on each stage, and on none: ``gaps``.

    Args:
        spans: as for ``own_seconds``, of the CPU; the pass ends when the GPU has finished.
        work: what ran on the GPU, on one stream; it belongs to the innermost stage that sent it.
    """
    whole = next(span for span in spans if span.name == WHOLE)
    seconds: dict[str, float] = {}
    for item in work:
        around = [span for span in spans if span.start <= item.sent <= span.end]
        inner = min(around, key=lambda span: span.end - span.start, default=whole)
        name = "other" if inner.name == WHOLE else inner.name
        seconds[name] = seconds.get(name, 0.0) + item.seconds
    seconds["gaps"] = max(0.0, whole.end - whole.start - sum(seconds.values()))
    return seconds


def faster_half(passes: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Mean of the stages over the faster half of some passes; a machine's hiccups are left out."""
    chosen = sorted(passes, key=lambda one: sum(one.values()))[: (len(passes) + 1) // 2]
    names = [name for name in (*STAGES, WHOLE) if any(name in one for one in chosen)]
    return {name: sum(one.get(name, 0.0) for one in chosen) / len(chosen) for name in names}

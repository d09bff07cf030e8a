"""Search for the scale of adapters: a short training with each, judged on held-out images.

AdaptFormer's scale depends on the task, and the papers that use it try 0.01 to 100 (Token
Compensator, ECCV 2024, section 4).  The candidates start from the same weights, with the same seed,
and differ in nothing else.  Each has a folder of its own, so that an interrupted search goes on
where it stopped.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Candidate:
    """How one scale did.

    Attributes:
        scale: ``s``.
        top1: share of the held-out images that were classified rightly.
        loss: mean cross-entropy on them, in nats.
    """

    scale: float
    top1: float
    loss: float


def search_scale(
    scales: Sequence[float], judge: Callable[[float], Mapping[str, float]]
) -> tuple[float, list[dict[str, float]]]:
    """Try each scale and take the best.

    Args:
        scales: the candidates.
        judge: trains with a scale and gives ``top1`` and ``loss`` on the held-out images.

    Returns:
        the scale with the highest top-1, of equals the one with the lowest loss; and the table of
        candidates, for the records.
    """
    candidates = []
    for scale in scales:
        figures = judge(scale)
        candidates.append(Candidate(scale, figures["top1"], figures["loss"]))
        logger.info("adapter scale %g: %.2f %%", scale, 100 * figures["top1"])
    best = max(candidates, key=_merit)
    logger.info("%s", _as_text(candidates, best))
    return best.scale, [asdict(candidate) for candidate in candidates]


def _merit(candidate: Candidate) -> tuple[float, float]:
    """Higher is better; a loss that is no number counts as the worst."""
    known = candidate.loss == candidate.loss
    return candidate.top1, -candidate.loss if known else float("-inf")


def _as_text(candidates: Sequence[Candidate], best: Candidate) -> str:
    lines = ["adapter scale  held-out top-1  loss"]
    lines += [
        f"{c.scale:13g}  {c.top1:14.2%}  {c.loss:.4f}{'  <- taken' if c is best else ''}"
        for c in candidates
    ]
    return "\n".join(lines)

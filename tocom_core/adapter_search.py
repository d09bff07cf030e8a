"""Search for the scale of adapters: a short training with each, judged on held-out images.

AdaptFormer's scale depends on the task, and the papers that use it try 0.01 to 100 (Token
Compensator, ECCV 2024, section 4).  The candidates start from the same weights, with the same seed,
and differ in nothing else.  Each has a folder of its own, so that an interrupted search goes on
where it stopped.
"""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tocom_core.errors import DivergedError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Candidate:
    """How one scale did.

    Attributes:
        scale: ``s``.
        top1: share of the held-out images that were classified rightly.
        loss: mean cross-entropy on them, in nats; not finite where the training diverged.
    """

    scale: float
    top1: float
    loss: float

    @property
    def learned(self) -> bool:
        """Whether its training came to an end that can be judged."""
        return math.isfinite(self.loss)

    def as_row(self) -> dict[str, float | None]:
        """For JSON, which has no word for a loss that is no number."""
        return {
            "scale": self.scale,
            "top1": self.top1,
            "loss": self.loss if self.learned else None,
        }


def search_scale(
    scales: Sequence[float], judge: Callable[[float], Mapping[str, float]], lr: float
) -> tuple[float, list[dict[str, float | None]]]:
    """Try each scale and take the best.

    Args:
        scales: the candidates.
        judge: trains with a scale and gives ``top1`` and ``loss`` on the held-out images.
        lr: the learning rate they are trained with, for the error.

    Returns:
        of those with a finite loss, the scale with the highest top-1, of equals the one with the
        lowest loss; and the table of candidates, for the records.

    Raises:
        DivergedError: no candidate has a finite loss.
    """
    candidates = []
    for scale in scales:
        figures = judge(scale)
        candidates.append(Candidate(scale, figures["top1"], figures["loss"]))
        logger.info("adapter scale %g: %.2f %%", scale, 100 * figures["top1"])
    learned = [candidate for candidate in candidates if candidate.learned]
    if not learned:
        raise DivergedError(
            f"--adapter-scale {' '.join(f'{scale:g}' for scale in scales)}: none of them has a "
            f"finite loss; give a lower --lr (now {lr:g}), or smaller scales"
        )
    best = max(learned, key=lambda candidate: (candidate.top1, -candidate.loss))
    logger.info("%s", _as_text(candidates, best))
    return best.scale, [candidate.as_row() for candidate in candidates]


def _as_text(candidates: Sequence[Candidate], best: Candidate) -> str:
    lines = ["adapter scale  held-out top-1  loss"]
    lines += [
        f"{c.scale:13g}  {c.top1:14.2%}  {c.loss:.4f}{'  <- taken' if c is best else ''}"
        for c in candidates
    ]
    return "\n".join(lines)

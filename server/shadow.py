"""Runs some served images again at `r_source` while nobody waits, and compares the answers.

No labels are needed, and no request waits for it: a share of the images is drawn as they are
served, the newest few are kept, and one at a time is run again as idle work. Since it happens
only while no request waits, images that were drawn under load are compared after it, or give way
to newer ones.
"""

import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from random import Random
from typing import Any

import numpy as np

from server.agreement import Comparison
from server.stats import BatchOutcome, notify

logger = logging.getLogger(__name__)

RunBatch = Callable[[Sequence[Any], int], Awaitable[BatchOutcome]]
CAPACITY = 32


class ShadowRunner:
    """Idle work: one kept image, run again at `r_source`.

    Args:
        run: the model: payloads and a degree in, one array of scores per payload out.
        r_source: the degree to compare with.
        share: of the images served at other degrees, so many are drawn, from 0 to 1.
        random: draws them.
        fits: whether one run is short enough to be done between requests.
        capacity: most images kept; beyond it the oldest gives way.
        on_comparison: told of each comparison.
    """

    def __init__(
        self,
        run: RunBatch,
        r_source: int,
        *,
        share: float,
        random: Random,
        fits: Callable[[], bool] = lambda: True,
        capacity: int = CAPACITY,
        on_comparison: Sequence[Callable[[Comparison], None]] = (),
    ) -> None:
        if not 0 <= share <= 1:
            raise ValueError(f"share={share} must lie from 0 to 1")
        self._run = run
        self._r_source = r_source
        self._share = share
        self._random = random
        self._fits = fits
        self._on_comparison = on_comparison
        self._kept: deque[tuple[Any, int, int]] = deque(maxlen=capacity)

    def offer(self, payload: Any, top1: int, r: int) -> None:
        """Draw this served image, or not; `top1` is the class that it was given at `r`.

        At `r_source` there is nothing to compare.
        """
        if r != self._r_source and self._random.random() < self._share:
            self._kept.append((payload, top1, r))

    async def step(self) -> bool:
        """Compare the oldest kept image; False where none is kept.

        A run that fails costs nobody an answer: it is logged, and the image is dropped.
        """
        if not self._kept or not self._fits():
            return False
        payload, top1, r = self._kept.popleft()
        try:
            outcome = await self._run([payload], self._r_source)
            (output,) = outcome.outputs
            if isinstance(output, Exception):
                raise output
            agrees = int(np.argmax(output)) == top1
        except Exception:
            logger.exception("running an image of r=%d again at r=%d failed", r, self._r_source)
            return True
        notify(self._on_comparison, Comparison(r, agrees))
        return True

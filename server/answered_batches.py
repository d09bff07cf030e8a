"""Which answers were computed together, found out from outside the server."""

import itertools
import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

SAME_BATCH_S = 1.0
"""Answers of one batch leave the server together; further apart they are not of one batch."""


class Served(Protocol):
    """What an answer says of one image."""

    @property
    def r(self) -> int:
        """The degree it was served at."""

    @property
    def batch_size(self) -> int:
        """Images of its batch."""

    @property
    def compute_ms(self) -> float:
        """Duration of its batch."""


class Answered(Protocol):
    """An answer with its images, none if it was refused."""

    @property
    def done_s(self) -> float:
        """When the answer was there."""

    @property
    def images(self) -> tuple[Served, ...]:
        """What it says of each image."""


@dataclass(slots=True)
class Batch:
    """Answers that were computed together; `seen` of `size` images reached this client."""

    size: int
    compute_s: float
    first_done_s: float
    last_done_s: float
    seen: int
    degrees: set[int]

    @property
    def is_whole(self) -> bool:
        """Whether it is as good as proven to be one batch, all of whose images were seen."""
        return self.seen == self.size and len(self.degrees) == 1


def find_batches(answers: Iterable[Answered]) -> list[Batch]:
    """Put together what was computed together, in order of completion.

    Answers carry no batch number, but `batch_size` and `compute_ms` (to the microsecond), which
    all images of a batch share and which two batches within a second hardly share by chance. A
    group that has exactly `batch_size` images (`seen == size`) is as good as proven to be one
    batch; a larger one would be a coincidence, a smaller one had images of other clients.
    """
    groups: dict[tuple[int, float], list[Batch]] = defaultdict(list)
    for answer in sorted(answers, key=lambda answer: answer.done_s):
        for image in answer.images:
            known = groups[image.batch_size, image.compute_ms]
            if not known or answer.done_s - known[-1].last_done_s > SAME_BATCH_S:
                at, took_s = answer.done_s, image.compute_ms / 1000
                known.append(Batch(image.batch_size, took_s, at, at, 0, set()))
            known[-1].seen += 1
            known[-1].last_done_s = answer.done_s
            known[-1].degrees.add(image.r)
    found = [batch for group in groups.values() for batch in group]
    return sorted(found, key=lambda batch: batch.first_done_s)


def own_seconds(batches: Iterable[tuple[float, float]]) -> list[float]:
    """Return for how long each batch was computed after the one before it was done.

    Args:
        batches: when each was done and what it took, in order of completion.
    """
    found, free_s = [], -math.inf
    for done_s, compute_s in batches:
        found.append(max(0.0, done_s - max(free_s, done_s - compute_s)))
        free_s = max(free_s, done_s)
    return found


def count_switches(batches: Iterable[Batch]) -> int:
    """Count how often the degree differs from one batch to the next."""
    degrees = [r for batch in batches for r in sorted(batch.degrees)]
    return sum(one != other for one, other in itertools.pairwise(degrees))

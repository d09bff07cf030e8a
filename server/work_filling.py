"""How much work of what value fits into the windows of many jobs: exactly, without a solver.

Jobs with windows `[release, due]` share one machine that may interrupt any of them. Which amounts
of work can be done is a *polymatroid*: the work of any set of jobs is at most the time that their
windows cover. Over a polymatroid a sum of concave functions, one a job, is maximised by a greedy
rule (Federgruen and Groenevelt, "The greedy procedure for resource allocation problems",
Operations Research 34, 1986): take the pieces of all functions by falling slope, and give each as
much work as still fits. What no longer fits never will, so each piece is looked at once.

Where windows are *agreeable* (whoever is released first is due first), working first come, first
served does whatever can be done at all, and a piece of a whole class of jobs takes one pass.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from server.stats import FloatArray, IntArray


@dataclass(frozen=True, slots=True)
class Offer:
    """One way to serve a job: the work it takes (seconds, positive) and what it is worth."""

    work_s: float
    value: float


@dataclass(frozen=True, slots=True)
class Filling:
    """The most valuable choice at a given bonus: jobs served, and their value without bonus."""

    served: float
    value: float


@dataclass(frozen=True, slots=True)
class _Piece:
    """A stretch of one class's concave function: from the work of one offer to the next's."""

    kind: int
    work_s: float
    served: float
    value: float
    slope: float


class WorkWindows:
    """Jobs with agreeable windows on one machine, each of one of a few classes.

    Args:
        release_s: `(n,)` when each may be begun; rising.
        due_s: `(n,)` when each must be done; rising, none before its release.
        kind: `(n,)` the class of each, an index into the offers that `fill` is given.

    Raises:
        ValueError: windows that are not agreeable, or a job due before its release.
    """

    def __init__(self, release_s: FloatArray, due_s: FloatArray, kind: IntArray) -> None:
        if np.any(np.diff(release_s) < 0) or np.any(np.diff(due_s) < 0):
            raise ValueError("expected release and due times that both rise from job to job")
        if np.any(due_s < release_s):
            raise ValueError("expected no job to be due before its release")
        self._release_s = release_s
        self._due_s = due_s
        self._releases = release_s.tolist()
        self._kind = kind

    def fill(self, offers: Sequence[Sequence[Offer]], bonus: float) -> Filling:
        """Maximise value + `bonus` × jobs served, where a job may be served in fractions.

        Args:
            offers: per class, the ways to serve a job of it; none means never.
            bonus: what serving a job at all is worth; negative makes it cost something.

        Returns:
            An optimum.
        """
        pieces = [
            piece
            for kind, offered in enumerate(offers)
            for piece in _concave_pieces(kind, offered, bonus)
        ]
        pieces.sort(key=lambda piece: -piece.slope)
        work_s = np.zeros(len(self._kind))
        served = value = 0.0
        for piece in pieces:
            more = self._raised(work_s, np.where(self._kind == piece.kind, piece.work_s, 0.0))
            share = float((more - work_s).sum()) / piece.work_s
            served += share * piece.served
            value += share * piece.value
            work_s = more
        return Filling(served, value)

    def _raised(self, work_s: FloatArray, extra_s: FloatArray) -> FloatArray:
        """Add up to `extra_s` to each job, as far as all others keep what they have.

        The latest time by which job `i` may be finished so that all later ones still make it is
        `min over j ≥ i of due_j − (work of i+1 … j)`.
        """
        before = np.cumsum(work_s)
        latest = before + np.minimum.accumulate((self._due_s - before)[::-1])[::-1]
        wanted = work_s + extra_s
        raised = []
        free = -np.inf
        for release, want, end in zip(
            self._releases, wanted.tolist(), latest.tolist(), strict=True
        ):
            start = release if release > free else free
            free = start + want
            if free > end:
                free = end if end > start else start
            raised.append(free - start)
        return np.maximum(work_s, raised)


def _concave_pieces(kind: int, offers: Sequence[Offer], bonus: float) -> list[_Piece]:
    """Return the upper concave hull of the offers and of doing nothing, by falling slope."""
    hull = [Offer(0.0, -bonus)]  # not served: no bonus
    for offer in sorted(offers, key=lambda offer: (offer.work_s, -offer.value)):
        if offer.value <= hull[-1].value:
            continue
        while len(hull) > 1 and _slope(hull[-2], offer) >= _slope(hull[-2], hull[-1]):
            hull.pop()
        hull.append(offer)
    pieces = []
    for index, (low, high) in enumerate(itertools.pairwise(hull)):
        first = index == 0
        work_s, value = high.work_s - low.work_s, high.value - (0.0 if first else low.value)
        pieces.append(_Piece(kind, work_s, float(first), value, _slope(low, high)))
    return pieces


def _slope(low: Offer, high: Offer) -> float:
    return (high.value - low.value) / (high.work_s - low.work_s)

"""The requests of a simulation, and the book in which each gets exactly one answer."""

from collections.abc import Sequence
from dataclasses import dataclass

from server.fates import UNKNOWN, Fate, Outcome


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request for one image.

    Attributes:
        at_s: when it is sent.
        priority: 0 high, 1 normal, 2 low.
        max_r: the highest degree it accepts; None accepts any.
        deadline_s: how long after `at_s` its answer is worth nothing; None means never.
    """

    at_s: float
    priority: int = 1
    max_r: int | None = None
    deadline_s: float | None = None


@dataclass(frozen=True, slots=True)
class BatchRecord:
    """One batch: when and where it was computed, and who had to wait on meanwhile."""

    started_at: float
    ended_at: float
    server: int
    r: int
    size: int
    still_waiting: int


class Ledger:
    """The fate of each arrival, and all batches.

    Attributes:
        batches: in the order in which they ended.
    """

    def __init__(self, arrivals: Sequence[Arrival]) -> None:
        self._arrivals = arrivals
        self._fates: list[Fate | None] = [None] * len(arrivals)
        self._open = len(arrivals)
        self.batches: list[BatchRecord] = []

    @property
    def complete(self) -> bool:
        """Whether every request has its answer."""
        return not self._open

    def is_open(self, index: int) -> bool:
        """Whether this request has no answer yet."""
        return self._fates[index] is None

    def close(
        self,
        index: int,
        at: float,
        outcome: Outcome,
        *,
        r: int | None = None,
        correct: float = UNKNOWN,
        batch_size: int = 0,
    ) -> None:
        """Note the answer of a request.

        Raises:
            RuntimeError: it has one.
        """
        if self._fates[index] is not None:
            raise RuntimeError(f"request {index} was answered twice")
        due_s = self._arrivals[index].at_s
        self._fates[index] = Fate(due_s, at, outcome, r, correct, batch_size)
        self._open -= 1

    def fates(self) -> list[Fate]:
        """Return all fates, in the order of the arrivals.

        Raises:
            RuntimeError: a request has no answer.
        """
        known = [fate for fate in self._fates if fate is not None]
        if self._open:
            raise RuntimeError(f"{self._open} of {len(self._fates)} requests were never answered")
        return known

"""The waiting requests in their order of service, kept sorted as they come and go.

The scheduler looks at the whole queue before each batch, so sorting it each time would cost more
than the decision. Here a request is inserted where it belongs (bisection, one memory move), and
what the decision computes with, the due times and limits, lies in arrays beside the requests.
"""

from collections.abc import Iterator
from itertools import compress
from typing import Generic, TypeVar

import numpy as np

from server.stats import NO_LIMIT, FloatArray, IntArray

ItemT = TypeVar("ItemT")

_FIRST_ROOM = 64


class DueQueue(Generic[ItemT]):
    """Items sorted by a fixed key; of equal keys the one that came first is first.

    Attributes:
        items: in order; not to be changed from outside.
    """

    def __init__(self) -> None:
        self.items: list[ItemT] = []
        self._keys = np.empty(_FIRST_ROOM)
        self._dues = np.empty(_FIRST_ROOM)
        self._limits = np.empty(_FIRST_ROOM, np.int64)

    def __len__(self) -> int:
        """Return how many items there are."""
        return len(self.items)

    def __iter__(self) -> Iterator[ItemT]:
        """Iterate in order."""
        return iter(self.items)

    @property
    def dues(self) -> FloatArray:
        """When each is due, in order: `(n,)`, a view that the next change makes invalid."""
        return self._dues[: len(self.items)]

    @property
    def limits(self) -> IntArray:
        """The highest degree each accepts, in order: `(n,)`, such a view too."""
        return self._limits[: len(self.items)]

    def ahead_of(self, key: float) -> int:
        """Count the items that come before a new one with this key."""
        count = len(self.items)
        if not count or key >= self._keys[count - 1]:
            return count  # as mostly: who comes last is due last
        return int(self._keys[:count].searchsorted(key, side="right"))

    def add(self, item: ItemT, key: float, due: float, max_r: int | None = None) -> None:
        """Insert an item where its key belongs, behind its equals."""
        count = len(self.items)
        if count == len(self._keys):
            self._make_room()
        at = self.ahead_of(key)
        limit = NO_LIMIT if max_r is None else max_r
        for values, value in ((self._keys, key), (self._dues, due), (self._limits, limit)):
            if at < count:
                values[at + 1 : count + 1] = values[at:count]
            values[at] = value
        self.items.insert(at, item)

    def remove(self, item: ItemT, key: float) -> bool:
        """Take out an item that was added with this key; False if it is not there."""
        count = len(self.items)
        at = int(self._keys[:count].searchsorted(key, side="left"))
        while at < count and self._keys[at] == key:
            if self.items[at] is item:
                self.take(np.array([at]))
                return True
            at += 1
        return False

    def take(self, places: IntArray) -> list[ItemT]:
        """Take out the items at these rising places and return them in this order."""
        gone = len(places)
        if not gone:
            return []
        count, first, end = len(self.items), int(places[0]), int(places[-1]) + 1
        if gone == end - first:  # side by side, as mostly
            taken = self.items[first:end]
            del self.items[first:end]
        else:
            taken = self._sort_out(first, end, places)
        for values in (self._keys, self._dues, self._limits):
            values[end - gone : count - gone] = values[end:count]
        return taken

    def _sort_out(self, first: int, end: int, places: IntArray) -> list[ItemT]:
        """Take out these, from `first` to before `end`, and move those between them together."""
        goes = np.zeros(end - first, bool)
        goes[places - first] = True
        stays = ~goes
        stretch = self.items[first:end]
        self.items[first:end] = compress(stretch, stays.tobytes())
        for values in (self._keys, self._dues, self._limits):
            values[first : end - len(places)] = values[first:end][stays]
        return list(compress(stretch, goes.tobytes()))

    def _make_room(self) -> None:
        room = 2 * len(self._keys)
        self._keys = np.resize(self._keys, room)
        self._dues = np.resize(self._dues, room)
        self._limits = np.resize(self._limits, room)

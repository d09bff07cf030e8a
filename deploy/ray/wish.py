"""What an operator asks of all replicas, as a value that can be handed around.

`PUT /compression` reaches one replica. What it asks is folded into a `Wish`, which `ControlRoom`
keeps and every replica takes, those that start later too. Moments lie on the monotonic clock of
whoever holds the wish; on its way from one process to another it is relative to now (`shifted`), so
that no two clocks need agree.
"""

from dataclasses import dataclass, replace
from typing import Literal

from server.schemas import CompressionQuery


@dataclass(frozen=True, slots=True)
class Hold:
    """A degree that is held: `r`, until some moment or for good."""

    r: int
    until: float | None

    def is_over(self, now: float) -> bool:
        """Whether its time has passed."""
        return self.until is not None and now >= self.until

    def ttl_s(self, now: float) -> float | None:
        """Seconds that are left; None: it does not end by itself."""
        return None if self.until is None else self.until - now

    def shifted(self, seconds: float) -> "Hold":
        """The same hold by a clock that is so many seconds ahead."""
        return self if self.until is None else replace(self, until=self.until + seconds)


@dataclass(frozen=True, slots=True)
class Wish:
    """All that was asked so far.

    Attributes:
        version: of two wishes the higher one holds; 0: nothing was ever asked.
        base: what holds without a pin; None: what the settings say.
        shadow: the degree held in shadow mode; None unless `base` is shadow.
        pin: beats `base`.
        min_r: lower bound of automatic choices; None: never asked for.
        max_r: upper bound; likewise.
    """

    version: int = 0
    base: Literal["auto", "shadow"] | None = None
    shadow: Hold | None = None
    pin: Hold | None = None
    min_r: int | None = None
    max_r: int | None = None

    def at(self, now: float) -> "Wish":
        """What is left of it at that moment: without holds whose time is over."""
        wish = self
        if wish.shadow is not None and wish.shadow.is_over(now):
            wish = replace(wish, base="auto", shadow=None)
        if wish.pin is not None and wish.pin.is_over(now):
            wish = replace(wish, pin=None)
        return wish

    def after(self, query: CompressionQuery, now: float, version: int) -> "Wish":
        """What holds once this was asked too, as a single server's controller would have it.

        Args:
            query: what is asked; shadow mode with the degree that it holds.
            now: by the clock of whoever holds the wish.
            version: of the wish that comes out.
        """
        wish = replace(self.at(now), version=version)
        if query.min_r is not None:
            wish = replace(wish, min_r=query.min_r)
        if query.max_r is not None:
            wish = replace(wish, max_r=query.max_r)
        until = None if query.ttl_s is None else now + query.ttl_s
        if query.mode == "auto":
            return replace(wish, base="auto", shadow=None, pin=None)
        if query.mode == "shadow" and query.r is not None:
            return replace(wish, base="shadow", shadow=Hold(query.r, until), pin=None)
        if query.r is not None:
            return replace(wish, pin=Hold(query.r, until))
        return wish

    def shifted(self, seconds: float) -> "Wish":
        """The same wish by a clock that is so many seconds ahead."""
        return replace(
            self,
            shadow=self.shadow and self.shadow.shifted(seconds),
            pin=self.pin and self.pin.shifted(seconds),
        )

    @property
    def mode(self) -> Literal["auto", "pinned", "shadow"] | None:
        """The mode that is asked for; None: what the settings say."""
        return self.base if self.pin is None else "pinned"

    @property
    def held(self) -> Hold | None:
        """The degree that is asked for."""
        return self.shadow if self.pin is None else self.pin

"""Who decides the degree: the policy, or an operator.

The controller stands between the load and the scheduler. It holds the mode and the operator's
wishes, asks the policy, and answers `decide` before each batch. The wiring also calls `decide` a
few times a second, so that the degree comes back down, and holds end, without traffic. Everything
runs on the event loop; there are no locks.

Three modes: in `auto` the policy decides; `pinned` holds the operator's degree; `shadow` holds one
too, while the policy goes on deciding as if it were heard: what it would do is logged and shown,
so that a policy can be watched on real traffic before it is trusted. Its own degree, not the held
one, is then what it starts from, or it would raise the degree over and over. The queue that it
sees, though, is that of the held degree.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from server.agreement import Agreement
from server.bounds import Bounds
from server.clock import Clock
from server.control_status import ControllerStatus, DegreeChange, Mode, ShadowStatus
from server.errors import BadParameter
from server.operating_table import OperatingTable
from server.policy import Decision, Policy, StaticPolicy, nearest
from server.stats import BatchStats, LoadSnapshot, SwitchStats, notify
from tocom_core.operating_point import OperatingPoint

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Hold:
    """A degree that the operator holds, until some time or for good."""

    r: int
    until: float | None

    def is_over(self, now: float) -> bool:
        return self.until is not None and now >= self.until

    def ttl_s(self, now: float) -> float | None:
        return None if self.until is None else self.until - now


class Controller:
    """Mode, holds, bounds and the present degree.

    Args:
        policy: decides in mode `auto`, and is watched in mode `shadow`.
        table: what is believed of each degree; refreshed by `observe_batch`.
        r_source: the degree of the checkpoint; where the controller rests without load.
        clock: seconds, monotonic.
        slo_s: the latency to keep.
        mode: how to begin.
        max_r: no automatic choice is higher; None means the highest degree.
        min_accuracy: no automatic choice is expected to be less accurate.
        agreement: shown in the status.
        on_switch: called for each change of the live weights.

    Raises:
        BadParameter: bounds or accuracy floor leave no degree.

    Attributes:
        table: as given.
    """

    def __init__(
        self,
        policy: Policy,
        table: OperatingTable,
        r_source: int,
        clock: Clock,
        *,
        slo_s: float,
        mode: Literal["auto", "shadow"] = "auto",
        max_r: int | None = None,
        min_accuracy: float | None = None,
        agreement: Agreement | None = None,
        on_switch: Sequence[Callable[[SwitchStats], None]] = (),
    ) -> None:
        self.table = table
        self._policy = policy
        self._r_source = r_source
        self._clock = clock
        self._slo_s = slo_s
        self._agreement = agreement
        self._on_switch = on_switch
        self._bounds = Bounds(table, r_source, max_r=max_r, min_accuracy=min_accuracy)
        self._r = nearest(r_source, self._offered())
        self._reason = "start"
        self._last_change: DegreeChange | None = None
        self._changed_at = 0.0
        self._last_batch: BatchStats | None = None
        self._pin: _Hold | None = None
        self._shadow: _Hold | None = None
        self._would = Decision(self._r, "start")
        if mode == "shadow":
            self.shadow()

    def decide(self, load: LoadSnapshot) -> Decision:
        """Return the degree for the next batch under this load, and its size where that matters.

        Whatever the policy raises passes through, and leaves the degree as it is.
        """
        self._end_holds_that_are_due()
        if self._pin is not None:
            return Decision(self._r, "pinned")
        here = self._r if self._shadow is None else self._would.r
        decision = self._ask(load, here)
        if self._shadow is not None:
            self._note(decision)
            return Decision(self._r, "shadow")
        self._move(decision.r, decision.reason, logging.DEBUG)
        return decision

    def levels(self) -> tuple[OperatingPoint, ...]:
        """Return the degrees that the next batches may have, ascending, at least one.

        It is the held one alone while the operator holds one, else what the policy may choose.
        """
        if self._mode() == "auto":
            return self._offered()
        return tuple(level for level in self.table.points() if level.r == self._r)

    def keeping(self) -> tuple[OperatingPoint, ...]:
        """Return the degrees for requests that accept less than any of `levels()`."""
        return self._bounds.keeping()

    def start_at(self, r: int) -> None:
        """Begin at a degree, or the nearest that may be chosen, instead of at `r_source`."""
        self._move(nearest(r, self._offered()), "reload")

    def check_degree(self, r: int) -> None:
        """Refuse a degree that cannot be pinned or held.

        Raises:
            BadParameter: the model has no such degree.
        """
        degrees = self.table.degrees
        if r not in degrees:
            known = f"{degrees[0]} to {degrees[-1]}"
            if len(degrees) != degrees[-1] - degrees[0] + 1:
                known = ", ".join(map(str, degrees))
            raise BadParameter(f"r={r} is no degree of this model; it has {known}")

    def pin(self, r: int, ttl_s: float | None = None) -> None:
        """Hold the degree at `r`, for `ttl_s` seconds or until `auto`.

        It is the operator's word: neither the bounds nor the accuracy floor apply. When its time
        is over, what was before holds again: `shadow`, or else `auto`.

        Raises:
            BadParameter: the model has no such degree, or the time is not positive.
        """
        self.check_degree(r)
        self._pin = _Hold(r, self._ends_at(ttl_s))
        self._move(r, "pinned")

    def shadow(self, r: int | None = None, ttl_s: float | None = None) -> None:
        """Hold the present degree, or `r`, while the policy decides without being heard.

        As with a pin, the held degree is the operator's word; bounds and floor apply to what the
        policy would do. After `ttl_s` seconds the policy is heard again.

        Raises:
            BadParameter: the model has no such degree, or the time is not positive.
        """
        held = self._r if r is None else r
        self.check_degree(held)
        self._shadow = _Hold(held, self._ends_at(ttl_s))
        self._pin = None
        self._would = Decision(nearest(held, self._offered()), "start")
        self._move(held, "shadow")

    def auto(self) -> None:
        """Hand the degree back to the policy, which starts from where it is."""
        self._pin = self._shadow = None
        self._move(nearest(self._r, self._offered()), "auto")

    def bound(self, min_r: int | None = None, max_r: int | None = None) -> None:
        """Bound what the policy may choose; None leaves that bound as it is.

        Raises:
            BadParameter: not a degree of the model, the wrong way round, or no degree is left that
                is known to keep the accuracy floor.
        """
        self._bounds.set(
            self._bounds.low if min_r is None else min_r,
            self._bounds.high if max_r is None else max_r,
        )
        if self._mode() == "auto":
            self._move(nearest(self._r, self._offered()), "bounds")

    def observe_batch(self, batch: BatchStats) -> None:
        """Learn from a served batch: its duration, and whether the live weights were switched."""
        self.table.observe(batch)
        before, self._last_batch = self._last_batch, batch
        r_before = self._r_source if before is None else before.r
        if batch.r == r_before:
            return
        limited = batch.limited or (before is not None and before.limited)
        reason = "request-limit" if limited else self._reason
        switch = SwitchStats(r_before, batch.r, reason, batch.merge_s, batch.started_at)
        notify(self._on_switch, switch)

    def status(self) -> ControllerStatus:
        """Return the present state; a hold whose time is over is already gone from it."""
        self._end_holds_that_are_due()
        now = self._clock()
        change, mode = self._last_change, self._mode()
        shadow = None
        if mode == "shadow" and self._shadow is not None:
            shadow = ShadowStatus(self._would.r, self._would.reason, self._shadow.ttl_s(now))
        return ControllerStatus(
            mode=mode,
            r=self._r,
            r_source=self._r_source,
            min_r=self._bounds.low,
            max_r=self._bounds.high,
            min_accuracy=self._bounds.min_accuracy,
            pinned_ttl_s=None if self._pin is None else self._pin.ttl_s(now),
            last_change=change and replace(change, age_s=now - self._changed_at),
            levels=self.table.points(),
            allowed=tuple(level.r for level in self._offered()),
            shadow=shadow,
            agreement={} if self._agreement is None else self._agreement.estimates(),
        )

    def _mode(self) -> Mode:
        if self._pin is not None:
            return "pinned"
        return "auto" if self._shadow is None else "shadow"

    def _ask(self, load: LoadSnapshot, r: int) -> Decision:
        """Ask the policy what comes after `r`; its answer is always one of the levels offered."""
        levels = self._offered()
        here = nearest(r, levels)
        decision = self._policy.decide(replace(load, slo_s=self._slo_s, levels=levels), here)
        allowed = nearest(decision.r, levels)
        if here == allowed != r:  # the policy is content, but `r` itself is offered no more
            return replace(decision, r=allowed, reason=self._bounds.objection(r))
        return decision if decision.r == allowed else replace(decision, r=allowed)

    def _offered(self) -> tuple[OperatingPoint, ...]:
        """Return what the policy may choose; a fixed degree leaves only that one.

        A fixed degree is the operator's word, so it need not pay.
        """
        if not isinstance(self._policy, StaticPolicy):
            return self._bounds.offered()
        allowed = self._bounds.allowed()
        r = nearest(self._policy.r, allowed)
        return tuple(level for level in allowed if level.r == r)

    def _note(self, decision: Decision) -> None:
        """Remember what the policy would do, and log it when that changes."""
        if decision.r != self._would.r:
            logger.info("shadow: would set r=%d (%s)", decision.r, decision.reason)
        self._would = decision

    def _end_holds_that_are_due(self) -> None:
        now = self._clock()
        if self._shadow is not None and self._shadow.is_over(now):
            self._shadow = None
            if self._pin is None:
                self._move(nearest(self._r, self._offered()), "shadow-expired")
        if self._pin is not None and self._pin.is_over(now):
            self._pin = None
            if self._shadow is None:
                self._move(nearest(self._r, self._offered()), "pin-expired")
            else:
                self._move(self._shadow.r, "pin-expired")

    def _move(self, r: int, reason: str, level: int = logging.INFO) -> None:
        """Take a degree; what a policy chooses, several times a second, is logged for debugging."""
        if r == self._r:
            return
        logger.log(level, "r %d -> %d (%s)", self._r, r, reason)
        self._last_change = DegreeChange(self._r, r, reason, age_s=0.0)
        self._changed_at = self._clock()
        self._r, self._reason = r, reason

    def _ends_at(self, ttl_s: float | None) -> float | None:
        if ttl_s is None:
            return None
        if not 0 < ttl_s < float("inf"):
            raise BadParameter(f"ttl_s={ttl_s} must be a positive number of seconds")
        return self._clock() + ttl_s

"""What a new model's parts take over from those of the model before it.

The operator's word holds on (a pin, shadow mode, bounds), as far as the new model has such degrees;
what is known of the load holds on, or the first second after a change would look like silence. What
was learned of the old model (durations, agreement) does not.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from server.control_status import ControllerStatus
from server.controller import Controller
from server.errors import BadParameter

logger = logging.getLogger(__name__)


def room_after(
    predecessor: asyncio.Event, room: Callable[[], Awaitable[None]]
) -> Callable[[], Awaitable[None]]:
    """Room on the machine for the new model: none before the old one's last batch is over."""

    async def room_now() -> None:
        await predecessor.wait()
        await room()

    return room_now


def take_over(before: ControllerStatus, highest_before: int, after: Controller) -> None:
    """Let the new controller go on where the old one stands.

    Args:
        before: the state of the old one.
        highest_before: the highest degree that it could have.
        after: the new one, as it is made.
    """
    highest = after.table.degrees[-1]
    low = min(before.min_r, highest)
    high = None if before.max_r == highest_before else min(before.max_r, highest)
    try:
        after.bound(low, high)
    except BadParameter as error:
        logger.warning("bounds min_r=%d max_r=%d end: %s", before.min_r, before.max_r, error.detail)
    after.start_at(before.r)
    try:
        if before.mode == "pinned":
            after.pin(before.r, before.pinned_ttl_s)
        elif before.mode == "shadow":
            after.shadow(before.r, None if before.shadow is None else before.shadow.ttl_s)
        elif after.status().mode == "shadow":  # which is how the settings let it begin
            after.auto()
    except BadParameter as error:
        logger.warning("the %s degree ends with its model: %s", before.mode, error.detail)

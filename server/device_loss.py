"""A device that is lost: what is done about it, and what the process ends with.

After some errors (an illegal access, a failed assertion in a kernel, a card that fell off the bus)
every later call on the device fails too, for as long as the process lives. So the server says that
it is not ready, answers what it holds, and ends with an exit code of its own, for its supervisor to
start it anew.
"""

import logging
import os
import threading
from collections.abc import Awaitable, Callable
from typing import ParamSpec, TypeVar

from server.errors import DeviceLost

P = ParamSpec("P")
T = TypeVar("T")

logger = logging.getLogger(__name__)

EXIT_CODE = 3
"""Of a process that lost its device; nothing else ends with it."""

EXIT_WITHIN_S = 10.0
"""The bound: what is left of the process after that is ended the hard way."""


def telling(
    on_lost: Callable[[], None], call: Callable[P, Awaitable[T]]
) -> Callable[P, Awaitable[T]]:
    """The same call, whose loss of the device is told as well as raised."""

    async def told(*arguments: P.args, **named: P.kwargs) -> T:
        try:
            return await call(*arguments, **named)
        except DeviceLost:
            on_lost()
            raise

    return told


def end_within(seconds: float = EXIT_WITHIN_S) -> None:
    """End this process soon, even if its orderly end hangs in a driver."""
    timer = threading.Timer(seconds, _end_now)
    timer.daemon = True
    timer.start()


def _end_now() -> None:
    logger.critical("the end took too long; leaving at once: exit_code=%d", EXIT_CODE)
    logging.shutdown()
    os._exit(EXIT_CODE)

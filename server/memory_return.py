"""Gives freed memory back to the operating system in a quiet moment.

What is freed stays with the C library, which hands it out again faster than the system could. But
after a burst of large or broken images, decoded side by side, or after a reload, a process can hold
a hundred megabytes that nobody uses: each thread has an arena of its own, and one small block at
its end keeps all below it. Where a container's limit counts every page, that is somebody else's
memory. glibc's `malloc_trim` returns whole free pages of all arenas; elsewhere nothing is done.

It is the last of all idle work: a measurement that came right after it would pay for getting the
pages back.
"""

import asyncio
import ctypes
import logging
import os
from collections.abc import Callable
from pathlib import Path

from server.clock import Clock
from server.idle import IdleWork

logger = logging.getLogger(__name__)

LOOK_EVERY_S = 1.0
RETURN_EVERY_S = 10.0
"""Returning costs little, but whoever needs the pages again must have them zeroed first."""
WORTH_BYTES = 32 * 2**20
"""Less growth than this is left alone."""

STATM = Path("/proc/self/statm")


class MemoryReturn:
    """Idle work after all other idle work: return what the process has grown by and not kept.

    Args:
        rest: all other idle work; memory is returned when it has nothing to do.
        clock: seconds.
        resident_bytes: resident memory of the process; None where the system does not tell.
        give_back: returns free pages to the system; None where the C library cannot.
    """

    def __init__(
        self,
        rest: IdleWork,
        clock: Clock,
        *,
        resident_bytes: Callable[[], int] | None,
        give_back: Callable[[], object] | None,
    ) -> None:
        self._rest = rest
        self._clock = clock
        self._resident_bytes = resident_bytes
        self._give_back = give_back
        self._least = 0  # so that the first look returns what starting up has left behind
        self._look_at = self._return_at = clock()

    async def step(self) -> bool:
        """Do a step of the rest; if it has none and memory has grown, return what is free."""
        if await self._rest.step():
            return True
        now = self._clock()
        if self._resident_bytes is None or self._give_back is None or now < self._look_at:
            return False
        self._look_at = now + LOOK_EVERY_S
        before = self._resident_bytes()
        self._least = min(self._least, before)
        if before < self._least + WORTH_BYTES or now < self._return_at:
            return False
        self._return_at = now + RETURN_EVERY_S
        await asyncio.to_thread(self._give_back)
        # What is still there is in use: only growth beyond it is worth another try.
        self._least = self._resident_bytes()
        logger.debug("returned %.0f MB to the system", (before - self._least) / 1e6)
        return True


def resident_bytes() -> Callable[[], int] | None:
    """Return what reads this process' resident memory, from Linux's /proc; None elsewhere."""
    if not STATM.exists():
        return None
    page = os.sysconf("SC_PAGE_SIZE")
    return lambda: int(STATM.read_text().split()[1]) * page


def malloc_trim() -> Callable[[], object] | None:
    """Return glibc's `malloc_trim(0)`; None with another C library."""
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # musl, macOS, Windows
        return None
    trim.argtypes, trim.restype = (ctypes.c_size_t,), ctypes.c_int
    return lambda: trim(0)

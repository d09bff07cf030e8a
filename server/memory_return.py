"""Gives freed memory back to the operating system in a quiet moment.

What is freed stays with the C library, which hands it out again faster than the system could. But
after a burst of large or broken images, decoded side by side, or after a reload, a process can hold
a hundred megabytes that nobody uses: each thread has an arena of its own, and one small block at
its end keeps all below it. Where a container's limit counts every page, that is somebody else's
memory. glibc's `malloc_trim` returns whole free pages of all arenas; elsewhere nothing is done.

Whoever needs the pages again must have them zeroed first, so it is the last of all idle work: no
measurement shall pay for that.
"""

import asyncio
import ctypes
import logging
import os
from collections.abc import Callable
from pathlib import Path

from server.clock import Clock

logger = logging.getLogger(__name__)

RETURN_EVERY_S = 10.0
WORTH_BYTES = 32 * 2**20
"""Less growth than this is left alone."""

STATM = Path("/proc/self/statm")


class MemoryReturn:
    """Idle work: return what the process has grown by and not kept.

    Args:
        clock: seconds.
        resident_bytes: resident memory of the process; microseconds, as each step looks.
        give_back: returns free pages to the system; milliseconds, in a thread of its own.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        resident_bytes: Callable[[], int],
        give_back: Callable[[], object],
    ) -> None:
        self._clock = clock
        self._resident_bytes = resident_bytes
        self._give_back = give_back
        self._least = 0  # so that the first step returns what starting up has left behind
        self._not_before = clock()

    @classmethod
    def of_this_process(cls, clock: Clock) -> "MemoryReturn | None":
        """Return the one for this process; None without Linux's /proc and glibc."""
        give_back = _malloc_trim()
        if give_back is None or not STATM.exists():
            return None
        return cls(clock, resident_bytes=_resident_bytes, give_back=give_back)

    async def step(self) -> bool:
        """Return what is free if memory has grown, unless that was done a moment ago."""
        before = self._resident_bytes()
        self._least = min(self._least, before)
        now = self._clock()
        if before < self._least + WORTH_BYTES or now < self._not_before:
            return False
        self._not_before = now + RETURN_EVERY_S
        await asyncio.to_thread(self._give_back)
        # What is still there is in use: only growth beyond it is worth another try.
        self._least = self._resident_bytes()
        logger.debug("returned %.0f MB to the system", (before - self._least) / 1e6)
        return True


def _resident_bytes() -> int:
    return int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _malloc_trim() -> Callable[[], object] | None:
    """Return glibc's `malloc_trim(0)`; None with another C library."""
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # musl, macOS, Windows
        return None
    trim.argtypes, trim.restype = (ctypes.c_size_t,), ctypes.c_int
    return lambda: trim(0)

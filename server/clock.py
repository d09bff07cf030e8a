"""Time as an argument, so that a test of batching or control never sleeps.

Whatever needs the time takes a `Clock`; only the wiring (`app`, `cli`) passes the real one.
"""

import time
from collections.abc import Callable

Clock = Callable[[], float]
"""Seconds since an arbitrary start; never runs backwards."""

monotonic: Clock = time.monotonic

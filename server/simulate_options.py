"""What `tocom simulate` can be told."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from server.errors import SettingsError
from server.simulated_machine import SlowDown
from tocom_core.options import option

_SLOW = re.compile(r"(\d+\.?\d*)-(\d+\.?\d*)x(\d+\.?\d*)")

_RANGES: Sequence[tuple[str, float, bool]] = (
    ("scale", 0, True),
    ("seeds", 0, False),
    ("slo_ms", 0, True),
    ("capacity", 0, True),
    ("servers", 1, False),
    ("noise", 0, False),
    ("switch_ms", 0, False),
    ("max_batch_size", 1, False),
    ("max_queue_delay_ms", 0, False),
    ("queue_size", 1, False),
    ("dwell_s", 0, False),
    ("max_r", 0, False),
    ("min_accuracy", 0, False),
    ("startup_s", 0, False),
    ("scale_every_s", 0, True),
    ("scale_target", 0, True),
    ("scale_down_s", 0, False),
    ("max_replicas", 1, False),
    ("steady_r", 0, False),
)
"""Flag, least value, and whether that itself is refused."""


@dataclass(frozen=True, kw_only=True)
class SimulateOptions:
    """Options of `tocom simulate`."""

    profile: str = option(help="profile of the model on its device, as tocom profile writes it")
    trace: tuple[str, ...] = option(
        help="constant:MxS, step:MxS,MxS,…, ramp:M-MxS or gamma:MxS,cv2=C (M times the capacity at "
        "r=0 for S seconds), step, ramp or gamma alone for an example of it, or a CSV of arrival "
        "times in seconds; several give a table each"
    )
    policy: tuple[str, ...] = option(
        ("demand", "static:min", "static:max", "threshold", "slackfit", "aimd"),
        help="with blanks or commas between: demand, static:R, static:min, static:max, threshold, "
        "slackfit, aimd",
    )
    search_static: bool = option(False, help="also find and show the best static degree")
    scale: tuple[float, ...] = option(
        (1.0,),
        help="multiply all rates; for a CSV its mean rate as a multiple of the capacity; several "
        "give a table each",
    )
    duration: float | None = option(None, help="replay at most so many seconds of a CSV")
    start: float | None = option(
        None, help="where in the rescaled CSV they begin; unset: each seed chooses"
    )
    seeds: tuple[int, ...] = option((0, 1, 2), help="one set of arrivals each")
    slo_ms: float | None = option(
        None, help="what counts as in time; unset: 10 times the latency of a single request"
    )
    capacity: float | None = option(
        None,
        help="images/s of one server that the trace refers to; unset: the profile's at r=0",
    )
    servers: int = option(
        1, help="so many behind a balancer that picks the one with the fewest unanswered requests"
    )
    mix: tuple[str, ...] = option(
        (),
        help="what requests ask for: priority=high:0.1,low:0.3 max_r=0:0.05 deadline_ms=150:0.2 "
        "(values and their shares)",
    )
    noise: float = option(0.0, help="spread of batch durations: 0.1 is about 10 %")
    switch_ms: float = option(0.0, help="what a change of the degree takes")
    slow: tuple[str, ...] = option(
        (), help="slow spells, as 20-40x1.5: 1.5 times as slow from second 20 to 40"
    )
    max_batch_size: int | None = option(None, help="as of the server; unset: the profile's")
    max_queue_delay_ms: float = option(2.0, help="as of the server")
    queue_size: int = option(256, help="as of the server")
    shed_late: bool = option(True, help="as of the server")
    dwell_s: float | None = option(None, help="as of the server")
    max_r: int | None = option(None, help="as of the server")
    min_accuracy: float | None = option(None, help="as of the server")
    autoscale: Literal["none", "capacity-demand", "cpu"] = option(
        "none",
        help="change the number of servers, at least --servers, as Kubernetes' autoscaler does, by "
        "tocom_capacity_demand or by the share of time in which they compute; without the oracle",
    )
    startup_s: float = option(60.0, help="how long a server that is added takes until it serves")
    scale_every_s: float = option(15.0, help="how often the autoscaler decides")
    scale_target: float | None = option(
        None, help="mean of the signal that it aims at; unset: 0.8 for capacity-demand, 0.7 for cpu"
    )
    scale_down_s: float = option(
        300.0, help="of what was wanted in so long the most is kept, before servers are taken away"
    )
    max_replicas: int = option(10, help="most servers that it may ask for")
    steady_r: int | None = option(None, help="as of the server, for capacity-demand")
    oracle: bool = option(True, help="compare with the offline bound")
    plot: str | None = option(
        None, help="picture of the first seed's timeline, one per trace and scale"
    )
    output: str | None = option(
        None, help="folder for report.json, report.md and a CSV of requests per policy and seed"
    )

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        for name, low, strict in _RANGES:
            given = getattr(self, name)
            for value in given if isinstance(given, tuple) else (given,):
                good = value is None or (math.isfinite(value) and value >= low)
                if not good or (strict and value == low):
                    flag = "--" + name.replace("_", "-")
                    words = f"more than {low:g}" if strict else f"{low:g} or more"
                    raise SettingsError(f"{flag} {value:g}: expected {words}")
        if self.min_accuracy is not None and self.min_accuracy > 1:
            raise SettingsError(f"--min-accuracy {self.min_accuracy:g}: expected 0 to 1")
        if self.autoscale != "none" and self.max_replicas < self.servers:
            raise SettingsError(
                f"--max-replicas {self.max_replicas}: expected at least --servers {self.servers}"
            )
        if len(set(self.seeds)) < len(self.seeds):
            raise SettingsError(f"--seeds {self.seeds}: expected different numbers")


def parse_slow_down(text: str) -> SlowDown:
    """Read a slow spell such as `20-40x1.5`.

    Raises:
        SettingsError: it is none.
    """
    found = _SLOW.fullmatch(text)
    if found is None:
        raise SettingsError(f"--slow {text!r}: expected START-ENDxFACTOR, such as 20-40x1.5")
    start_s, end_s, factor = map(float, found.groups())
    if not start_s < end_s or factor < 1:
        raise SettingsError(f"--slow {text!r}: expected an end after the start, a factor from 1 on")
    return SlowDown(start_s, end_s, factor)

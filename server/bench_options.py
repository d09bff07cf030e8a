"""What `tocom bench` can be told."""

import math
from dataclasses import dataclass

from server.arrivals import Trace, parse_trace
from server.errors import SettingsError
from tocom_core.options import option


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """Options of `tocom bench`."""

    url: str | None = option(None, help="a server that runs already; else one is started")
    trace: str | None = option(
        None,
        help="constant:MxS, step:MxS,MxS,…, ramp:M-MxS or gamma:MxS,cv2=C (M times the capacity at "
        "r=0 for S seconds; ',even' or ',cv2=C' at the end changes the Poisson arrivals), step, "
        "ramp or gamma alone for an example of it, or a CSV of arrival times in seconds",
    )
    scale: float = option(
        1.0, help="multiply all rates; for a CSV its mean rate as a multiple of the capacity"
    )
    duration: float | None = option(None, help="replay at most so many seconds of a CSV")
    start: float | None = option(
        None, help="where in the rescaled CSV they begin; unset: each seed chooses"
    )
    seeds: tuple[int, ...] = option((0, 1, 2), help="one replay each")
    images: str | None = option(
        None,
        help="JPEGs, with labels to know what is right: a folder, a parquet file, WebDataset "
        "shards or hub:owner/name; unset: noise, of which nobody knows",
    )
    split: str | None = option("test", help="part of them, where there are parts")
    image_count: int = option(1000, help="different images at most")
    slo_ms: float | None = option(
        None, help="what counts as in time; unset: 10 times the latency of a single r=0 request"
    )
    capacity: float | None = option(
        None, help="images/s at r=0 that the trace refers to; unset: measured"
    )
    deadline_ms: float | None = option(None, help="deadline sent with each request; unset: none")
    output: str | None = option(
        None, help="folder for report.json, report.md, a CSV of requests and a plot per seed"
    )
    plot: bool = option(True, help="draw a timeline per seed into the output folder")
    save_profile: str | None = option(
        None, help="also measure batches under load, before the replay, and write a profile here"
    )

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        if self.trace is None and self.save_profile is None:
            raise SettingsError("nothing to do: give a --trace, or --save-profile")
        if self.url is not None and not self.url.startswith(("http://", "https://")):
            raise SettingsError(f"--url {self.url}: expected one such as http://127.0.0.1:8000")
        for name in ("slo_ms", "capacity", "deadline_ms"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise SettingsError(f"--{name.replace('_', '-')} {value:g}: expected more than 0")
        if self.image_count < 1:
            raise SettingsError(f"--image-count {self.image_count}: expected 1 or more")
        if not self.seeds or min(self.seeds) < 0 or len(set(self.seeds)) < len(self.seeds):
            raise SettingsError(f"--seeds {self.seeds}: expected different numbers of 0 or more")

    def parsed_trace(self) -> Trace | None:
        """Return the trace, if one is to be replayed."""
        if self.trace is None:
            return None
        return parse_trace(
            self.trace, scale=self.scale, duration_s=self.duration, start_s=self.start
        )

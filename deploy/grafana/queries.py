"""Pieces of PromQL that the panels share.

`$instance` is a variable of the dashboard, `$__rate_interval` Grafana's own: at least four scrapes.
"""

OBJECTIVE = 0.99
"""Share of the owed images that should be in time; the rules of `deploy/prometheus` have it too."""

HERE = 'instance=~"$instance"'
WINDOW = "[$__rate_interval]"
OWED = f'tocom_images_total{{outcome!~"bad_image|abandoned", {HERE}}}'
OFFERED = f"tocom_images_total{{{HERE}}}"


def rate(metric: str, *, by: str = "") -> str:
    """Return the summed rate of a counter, whole or by a label."""
    grouped = f" by ({by}) " if by else ""
    return f"sum{grouped}(rate({metric}{WINDOW}))"


def quantile(q: float, histogram: str, *, labels: str = "", by: str = "") -> str:
    """Return a quantile of a histogram, over all instances."""
    where = f"{labels}, {HERE}" if labels else HERE
    grouped = f"le, {by}" if by else "le"
    buckets = f"sum by ({grouped}) (rate({histogram}_bucket{{{where}}}{WINDOW}))"
    return f"histogram_quantile({q:g}, {buckets})"


def mean(histogram: str, *, by: str = "") -> str:
    """Return the mean of a histogram's observations."""
    total, count = (f"{histogram}_{part}{{{HERE}}}" for part in ("sum", "count"))
    return f"{rate(total, by=by)} / {rate(count, by=by)}"


def weighted_by_images(by_degree: str) -> str:
    """Return the mean of a figure per degree, weighted by the images that each degree served."""
    served = f"rate(tocom_inferred_images_total{{{HERE}}}{WINDOW})"
    pair = "on (job, instance, r)"
    figure = f"{by_degree}{{{HERE}}}"
    return f"sum({served} * {pair} {figure}) / sum({served} and {pair} {figure})"


ATTAINMENT = f"{rate(f'tocom_in_time_images_total{{{HERE}}}')} / {rate(OWED)}"

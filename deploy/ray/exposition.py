"""One page of metrics from those of all replicas, each series with a label `replica`.

Every replica counts for itself, and whoever asks Ray's proxy gets to any of them: a counter read
that way would jump. So `GET /metrics` asks them all, and Prometheus has one target.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
"""The format that is read and written here."""


@dataclass(slots=True)
class _Family:
    comments: list[str]
    samples: list[str] = field(default_factory=list)


def merge(pages: Mapping[str, bytes], missing: int = 0) -> bytes:
    """Merge pages in Prometheus' text format.

    Args:
        pages: by replica; families may be missing from some.
        missing: how many replicas sent none, which the page says.
    """
    families: dict[str, _Family] = {}
    for replica, page in sorted(pages.items()):
        for name, family in _families(page.decode().splitlines()):
            merged = families.setdefault(name, _Family(family.comments))
            merged.samples += (_labelled(sample, replica) for sample in family.samples)
    lines = [
        "# HELP tocom_replicas Replicas by whether this page has their metrics.",
        "# TYPE tocom_replicas gauge",
        f'tocom_replicas{{state="told"}} {len(pages)}',
        f'tocom_replicas{{state="missing"}} {missing}',
    ]
    for family in families.values():
        lines += [*family.comments, *family.samples]
    return ("\n".join(lines) + "\n").encode()


def _families(lines: Iterable[str]) -> Iterable[tuple[str, _Family]]:
    """The families of a page, each of which begins with its HELP and TYPE."""
    name, family = "", _Family([])
    for line in lines:
        if line.startswith("# "):
            kind, of = line.split(" ", 3)[1:3]
            if kind in ("HELP", "TYPE") and of != name:
                if name:
                    yield name, family
                name, family = of, _Family([])
            family.comments.append(line)
        elif line:
            family.samples.append(line)
    if name:
        yield name, family


def _labelled(sample: str, replica: str) -> str:
    """A sample with one label more; a metric's name has neither spaces nor braces."""
    brace, space = sample.find("{"), sample.find(" ")
    if 0 <= brace < space:
        return f'{sample[:brace]}{{replica="{replica}",{sample[brace + 1 :]}'
    return f'{sample[:space]}{{replica="{replica}"}}{sample[space:]}'

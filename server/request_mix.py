"""What the requests of a simulated load ask for: shares of priorities, limits and deadlines.

    priority=high:0.1,low:0.3     a tenth high, three tenths low, the rest normal
    max_r=0:0.05,8:0.2            a twentieth accepts no merging, a fifth up to r=8
    deadline_ms=150:0.2           a fifth is worth nothing after 150 ms

Each request draws each of them independently of the others; a seed fixes the draws.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from server.errors import SettingsError
from server.simulated_requests import Arrival

PRIORITIES = {"high": 0, "normal": 1, "low": 2}
GRAMMAR = "expected priority=high:SHARE,…, max_r=R:SHARE,… or deadline_ms=MS:SHARE,…"


@dataclass(frozen=True, slots=True)
class RequestMix:
    """Shares of what requests ask for.

    Attributes:
        choices: field of `Arrival` → value → share; who is left over asks for nothing.
    """

    choices: Mapping[str, Mapping[Any, float]] = field(default_factory=dict)

    @property
    def limits_r(self) -> bool:
        """Whether some requests have their own `max_r`."""
        return "max_r" in self.choices

    def arrivals(self, times: Sequence[float], seed: int) -> list[Arrival]:
        """Return one request per time, with what it asks for."""
        drawn: dict[str, list[Any]] = {}
        for name in sorted(self.choices):
            values, shares = list(self.choices[name]), list(self.choices[name].values())
            rng = np.random.default_rng([seed, *name.encode()])
            places = np.searchsorted(np.cumsum(shares), rng.random(len(times)), side="right")
            default = getattr(ORDINARY, name)
            drawn[name] = [values[p] if p < len(values) else default for p in places.tolist()]
        return [
            Arrival(time, **{name: column[i] for name, column in drawn.items()})
            for i, time in enumerate(times)
        ]


ORDINARY = Arrival(0.0)


def parse_mix(texts: Sequence[str]) -> RequestMix:
    """Read what the module describes, one text per field.

    Raises:
        SettingsError: it cannot be read, or shares are not.
    """
    choices: dict[str, Mapping[Any, float]] = {}
    for text in texts:
        name, _, rest = text.partition("=")
        if name not in READERS or not rest:
            raise SettingsError(f"--mix {text!r}: {GRAMMAR}")
        target, read = READERS[name]
        if target in choices:
            raise SettingsError(f"--mix gives {name} twice; put all its shares into one")
        choices[target] = _shares(text, rest, read)
    return RequestMix(choices)


def _shares(text: str, rest: str, read: Callable[[str], Any]) -> dict[Any, float]:
    shares: dict[Any, float] = {}
    for part in rest.split(","):
        value, _, share = part.partition(":")
        try:
            shares[read(value)] = float(share)
        except (KeyError, ValueError):
            raise SettingsError(f"--mix {text!r}: cannot read {part!r}; {GRAMMAR}") from None
    if not all(0 <= share <= 1 for share in shares.values()) or sum(shares.values()) > 1 + 1e-9:
        raise SettingsError(f"--mix {text!r}: expected shares from 0 to 1, at most 1 together")
    return shares


def _degree(text: str) -> int:
    if int(text) < 0:
        raise ValueError(text)
    return int(text)


def _milliseconds(text: str) -> float:
    if not 0 < float(text) < math.inf:
        raise ValueError(text)
    return float(text) / 1000


READERS: Mapping[str, tuple[str, Callable[[str], Any]]] = {
    "priority": ("priority", PRIORITIES.__getitem__),
    "max_r": ("max_r", _degree),
    "deadline_ms": ("deadline_s", _milliseconds),
}
"""Name on the command line → field of `Arrival`, and how a value is read."""

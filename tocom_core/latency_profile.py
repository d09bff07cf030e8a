"""What was measured of one model on one device: latency per (degree, batch), accuracy per degree.

A profile is the file that a server starts from instead of measuring anew (`profile.json` beside
the model, or what `tocom profile` writes), and what a simulation of that server needs to know. Here
is only what was measured, checked value by value; `latency_fit` and `accuracy_belief` say what to
believe of it.
"""

import json
import math
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, TypeVar, cast, get_args

from tocom_core.accuracy_belief import believed_accuracy
from tocom_core.errors import ProfileError

FORMAT_VERSION = 1
LARGEST_BATCH = 1 << 16
"""Every batch size gets an estimate: a slip of the keyboard must not cost gigabytes."""
SHORTEST_S, LONGEST_S = 1e-9, 86_400.0
"""What lies outside is no duration of a forward, but a mistake in the unit or worse."""

Source = Literal["evaluation", "agreement"]
Record = TypeVar("Record")


@dataclass(frozen=True, slots=True)
class Measurement:
    """How long the forward of one batch takes at one degree.

    Attributes:
        r: the degree.
        batch: images in the batch.
        seconds: median duration over the runs.
        spread: how much single runs differ: standard deviation of log(duration), so that 0.05 is
            about 5 %; 0 where there was one run.
        runs: how often it was run.

    Raises:
        ProfileError: a value is out of its range.
    """

    r: int
    batch: int
    seconds: float
    spread: float = 0.0
    runs: int = 1

    def __post_init__(self) -> None:
        _check_whole("r", self.r, 0)
        _check_whole("batch", self.batch, 1)
        _check_number("seconds", self.seconds, SHORTEST_S, LONGEST_S)
        _check_number("spread", self.spread, 0, 10)
        _check_whole("runs", self.runs, 1)


@dataclass(frozen=True, slots=True)
class Accuracy:
    """How good the answers at one degree are, and how that is known.

    Attributes:
        r: the degree.
        value: a fraction from 0 to 1.
        source: `evaluation`, top-1 on labelled images; or `agreement`, how often the answer is the
            one at `r_source`.
        images: over so many images.

    Raises:
        ProfileError: a value is out of its range.
    """

    r: int
    value: float
    source: Source
    images: int

    def __post_init__(self) -> None:
        _check_whole("r", self.r, 0)
        _check_number("value", self.value, 0, 1)
        if self.source not in get_args(Source):
            raise ProfileError(f"source={self.source!r} must be one of {get_args(Source)}")
        _check_whole("images", self.images, 1)


@dataclass(frozen=True, slots=True)
class ServingOverhead:
    """What a request costs besides its forward, in seconds each.

    Attributes:
        before_queue_s: from when a request is due until it joins the queue (network, decoding).
        after_batch_s: from the end of its batch until the client has its answer.
        interference_s: how much longer the running batch takes for each request that arrives.

    Raises:
        ProfileError: a value is out of its range.
    """

    before_queue_s: float
    after_batch_s: float
    interference_s: float

    def __post_init__(self) -> None:
        for field in fields(self):
            _check_number(field.name, getattr(self, field.name), 0, LONGEST_S)


@dataclass(frozen=True)
class LatencyProfile:
    """All that was measured of one model on one device.

    Attributes:
        device: what it was measured on, such as its name and the threads used; free form.
        model: which model it was, such as its name, digest and dtype; free form.
        work: every degree of the model → multiply-adds of a forward relative to r=0, at most 1.
        measurements: each (degree, batch) at most once; at least two, as one cannot tell what a
            batch costs from what an image costs (one is enough where there is but one to measure).
        accuracies: what is known of the accuracy, at most one per degree and source.
        serving: what a request costs beside its forward; None where that was not measured.
        max_batch_size: most images in one batch.

    Raises:
        ProfileError: a value is out of its range, or contradicts another.
    """

    device: Mapping[str, str | int]
    model: Mapping[str, Any]
    work: Mapping[int, float]
    measurements: Sequence[Measurement]
    accuracies: Sequence[Accuracy] = ()
    serving: ServingOverhead | None = None
    max_batch_size: int = 32

    def __post_init__(self) -> None:
        _check_whole("max_batch_size", self.max_batch_size, 1, LARGEST_BATCH)
        _check_work(self.work)
        for name in ("measurements", "accuracies"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        self._check_degrees()
        _check_once("measurements", ((m.r, m.batch) for m in self.measurements))
        _check_once("accuracies", ((a.r, a.source) for a in self.accuracies))
        needed = min(2, len(self.work) * self.max_batch_size)
        if len(self.measurements) < needed:
            raise ProfileError(
                f"measurements holds {len(self.measurements)}; at least {needed} are needed: "
                "measure the lowest degree with one image and the highest with a full batch"
            )

    @property
    def degrees(self) -> tuple[int, ...]:
        """All degrees, ascending."""
        return tuple(sorted(self.work))

    @property
    def lanes(self) -> int:
        """Between how many a batch was shared out by images, as `device` says; else 1."""
        told = self.device.get("lanes")
        return told if isinstance(told, int) and told > 0 else 1

    @property
    def r_source(self) -> int:
        """The degree of the checkpoint, as `model` says; the lowest one where it does not."""
        told = self.model.get("r_source")
        return told if isinstance(told, int) and told in self.work else self.degrees[0]

    def measured_accuracy(self) -> dict[int, Accuracy]:
        """Degree → what was measured: in an evaluation if there was any, else the agreement.

        The two are never mixed, as they are different things.
        """
        sources = {accuracy.source for accuracy in self.accuracies}
        source = "evaluation" if "evaluation" in sources else "agreement"
        return {a.r: a for a in self.accuracies if a.source == source}

    def expected_accuracy(self) -> dict[int, float]:
        """Degree → accuracy as it should be believed: what was measured, less what is chance."""
        measured = self.measured_accuracy()
        return believed_accuracy(
            {r: accuracy.value for r, accuracy in measured.items()},
            self.r_source,
            {r: accuracy.images for r, accuracy in measured.items()},
        )

    def save(self, path: str | Path) -> None:
        """Write the profile as JSON; a file that is there is replaced in one step.

        Raises:
            ProfileError: the place cannot be written, or `device` or `model` is not JSON.
        """
        content = {"format_version": FORMAT_VERSION, **asdict(self)}
        partial = Path(f"{path}.partial")
        try:
            partial.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", "utf-8")
            partial.replace(path)
        except (OSError, ValueError, TypeError) as error:
            partial.unlink(missing_ok=True)
            raise ProfileError(f"{path}: the profile cannot be written: {error}") from error

    @classmethod
    def load(cls, path: str | Path) -> "LatencyProfile":
        """Read a profile.

        Raises:
            ProfileError: the file cannot be read, or a value in it is not what it must be; the
                message names file and field.
        """
        try:
            content = json.loads(Path(path).read_text("utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise ProfileError(f"{path}: the profile cannot be read: {error}") from error
        with _inside(f"{path}"):
            return _parse_profile(content)

    def _check_degrees(self) -> None:
        for name, records in (("measurements", self.measurements), ("accuracies", self.accuracies)):
            for record in records:
                if record.r not in self.work:
                    raise ProfileError(f"{name}: r={record.r} is no degree of work={self.degrees}")
        for m in self.measurements:
            if m.batch > self.max_batch_size:
                raise ProfileError(
                    f"measurements: batch={m.batch} is more than "
                    f"max_batch_size={self.max_batch_size}"
                )


def _check_whole(name: str, value: object, least: int, most: float = math.inf) -> None:
    if type(value) is not int or not least <= value <= most:
        wanted = f"{least} or more" if most == math.inf else f"between {least} and {most}"
        raise ProfileError(f"{name}={value!r:.80} must be a whole number, {wanted}")


def _check_number(name: str, value: object, least: float, most: float) -> None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not (is_number and least <= cast(float, value) <= most):
        raise ProfileError(f"{name}={value!r:.80} must be a number between {least} and {most}")


def _check_work(work: Mapping[int, float]) -> None:
    if not work:
        raise ProfileError("work is empty; it must hold every degree of the model")
    for r, share in work.items():
        _check_whole("work: r", r, 0)
        _check_number(f"work[{r}]", share, 1e-6, 1)


def _check_once(name: str, keys: Iterable[Hashable]) -> None:
    for key, times in Counter(keys).items():
        if times > 1:
            raise ProfileError(f"{name} holds {key} {times} times; once is expected")


# --- Reading ------------------------------------------------------------------------------------


@contextmanager
def _inside(place: str) -> Iterator[None]:
    """Prefix the errors of one part of the file with where they stand."""
    try:
        yield
    except ProfileError as error:
        raise ProfileError(f"{place}: {error}") from error


def _parse_profile(content: object) -> LatencyProfile:
    values = _expect("the profile", content, dict)
    version = values.pop("format_version", None)
    if version != FORMAT_VERSION:
        raise ProfileError(
            f"format_version={version!r} must be {FORMAT_VERSION}; measure again with "
            "`tocom profile`, or update tocom-serve"
        )
    _check_names(values, LatencyProfile)
    for name in ("device", "model"):
        _expect(name, values[name], dict)
    values["work"] = dict(_parse_work(values["work"]))
    values["measurements"] = _parse_list("measurements", values["measurements"], Measurement)
    values["accuracies"] = _parse_list("accuracies", values.get("accuracies", []), Accuracy)
    if values.get("serving") is not None:
        values["serving"] = _parse_record("serving", values["serving"], ServingOverhead)
    return LatencyProfile(**values)


def _parse_work(content: object) -> Iterator[tuple[int, float]]:
    for r, share in _expect("work", content, dict).items():
        if not (r.isdecimal() and len(r) < 10):
            raise ProfileError(f"work: r={r!r:.80} must be a whole number, 0 or more")
        yield int(r), share


def _parse_list(name: str, content: object, record: type[Record]) -> list[Record]:
    items = _expect(name, content, list)
    return [_parse_record(f"{name}[{i}]", item, record) for i, item in enumerate(items)]


def _parse_record(name: str, content: object, record: type[Record]) -> Record:
    with _inside(name):
        values = _expect("it", content, dict)
        _check_names(values, record)
        return record(**values)


def _expect(name: str, content: object, kind: type[dict[str, Any]] | type[list[Any]]) -> Any:
    if not isinstance(content, kind):
        raise ProfileError(f"{name} is {content!r:.80}; it must be a {kind.__name__}")
    return content


def _check_names(values: Mapping[str, object], record: type[Any]) -> None:
    known = {field.name: field.default is MISSING for field in fields(record)}
    for name in values:
        if name not in known:
            raise ProfileError(f"{name!r:.80} is no field; expected are {sorted(known)}")
    for name, needed in known.items():
        if needed and name not in values:
            raise ProfileError(f"{name!r} is missing")

"""The only module that knows Prometheus: turns plain records into metrics.

The rest of the server emits the frozen records of ``stats`` and exposes a few numbers; this module
observes them.  It has its own registry, so that two servers in one process (as in tests) do not
share counts.  Labels take few values by construction: outcomes, stages, modes, degrees and the
policy's reasons.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache, partial
from typing import Literal, get_args

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    ProcessCollector,
)
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from server.agreement import Comparison
from server.control_figures import control_figures
from server.control_status import ControllerStatus
from server.machine_figures import GpuUse, machine_figures
from server.request_record import RequestOutcome
from server.stats import (
    BatchStats,
    Figure,
    Outcome,
    RefusalReason,
    RequestStats,
    SwitchStats,
)

ReloadOutcome = Literal["done", "failed", "disagreed"]
"""How a reload ended: `disagreed` with the model before, which is still served."""

_LATENCY_BUCKETS = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.25),
    *(0.5, 0.75, 1.0, 2.5, 5.0, 10.0, 30.0),
)
_SWITCH_BUCKETS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5)
_BATCH_BUCKETS = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128)
_MODES = ("auto", "pinned", "shadow")


class Metrics:
    """All metrics of one server.

    Args:
        slo_s: the latency that the operator promised; it becomes a bucket boundary, so that the
            share of answers within it can be read off exactly.
    """

    def __init__(self, slo_s: float) -> None:
        self._slo_s = slo_s
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._add_requests(tuple(sorted({*_LATENCY_BUCKETS, slo_s})))
        self._add_batches()
        self._add_state()
        self._add_control()
        self._slo.set(slo_s)

    def _add_requests(self, buckets: tuple[float, ...]) -> None:
        # Looking up the series of a label takes longer than counting, and this is done seven times
        # per request.
        self._requests_of = cache(
            self._counter(
                "tocom_requests",
                "Classification requests by how they ended; each is counted exactly once.",
                "outcome",
                get_args(RequestOutcome),
            ).labels
        )
        self._request_seconds_of = cache(
            self._histogram(
                "tocom_request_duration_seconds",
                "From the first byte of a classification request to its answer, by outcome.",
                buckets,
                "outcome",
            ).labels
        )
        self._images_of = cache(
            self._counter(
                "tocom_images",
                "Images by how they ended; a request has one or more.",
                "outcome",
                get_args(Outcome),
            ).labels
        )
        self._in_time = Counter(
            "tocom_in_time_images",
            "Images classified within the SLO, counted from their request's last byte; their share "
            "of all that were offered (tocom_images_total) is the attainment.",
            registry=self.registry,
        )
        self._stages_of = cache(
            self._histogram(
                "tocom_image_stage_seconds",
                "Where classified images spent their time: decode, queue or compute.",
                buckets,
                "stage",
            ).labels
        )
        self._slo = self._gauge("tocom_slo_seconds", "Latency that the controller aims at.")

        self._refusals = self._counter(
            "tocom_refusals",
            "What was refused at the door, by reason; connections that were closed too.",
            "reason",
            get_args(RefusalReason),
        )

    def _add_batches(self) -> None:
        self._inferred = self._counter(
            "tocom_inferred_images", "Images that went through the model, by degree.", "r"
        )
        self._batch_size = self._histogram(
            "tocom_batch_size", "Images per forward pass.", _BATCH_BUCKETS
        )
        self._batch_seconds = self._histogram(
            "tocom_batch_compute_seconds", "Duration of forward passes.", _LATENCY_BUCKETS
        )
        self._device_busy = self._counter(
            "tocom_device_busy_seconds",
            "Time in which each device had a batch to compute; its rate is the share of use.",
            "device",
        )
        self._switches = self._counter(
            "tocom_switches", "Changes of degree, by the reason for them.", "reason"
        )
        self._switch_seconds = self._histogram(
            "tocom_switch_duration_seconds",
            "Time to merge another degree into the weights.",
            _SWITCH_BUCKETS,
        )

    def _add_state(self) -> None:
        self._queue_depth = self._gauge("tocom_queue_depth", "Images waiting for a batch.")
        self._admitted = self._gauge(
            "tocom_admitted_images", "Images that wait for a batch or are being decoded."
        )
        self._queue_capacity = self._gauge(
            "tocom_queue_capacity_images", "Beyond so many admitted images requests are refused."
        )
        self._in_flight = self._gauge(
            "tocom_in_flight_requests", "Classification requests being handled."
        )
        self._r = self._gauge("tocom_compression_degree", "Degree r of the next batch.")
        self._mode = self._gauge(
            "tocom_compression_mode", "1 for the mode that is on: auto, pinned or shadow.", "mode"
        )
        self._ready = self._gauge("tocom_ready", "1 if warmed up, healthy and not draining.")

    def _add_control(self) -> None:
        self._arrival_rate = self._gauge(
            "tocom_arrival_rate", "Images per second that are offered, admitted or not."
        )
        self._cells = self._gauge(
            "tocom_profile_cells",
            "Pairs of degree and batch size whose duration is measured on this machine, or is "
            "missing still.",
            "state",
        )
        self._reloads = self._counter(
            "tocom_reloads",
            "Reloads of the model by how they ended; all but done left the old one in place.",
            "outcome",
            get_args(ReloadOutcome),
        )
        self._compared = Counter(
            "tocom_compared_images",
            "Served images that were run again at r_source, by their degree and whether the most "
            "likely class was the same.",
            ["r", "agrees"],
            registry=self.registry,
        )
        self._control: Callable[[], ControllerStatus | None] = lambda: None
        self._demand: Callable[[], float | None] = lambda: None
        self._gpus: Callable[[], Mapping[int, GpuUse]] = dict
        self.registry.register(
            _FigureCollector(lambda: control_figures(self._control(), self._demand()))
        )
        self.registry.register(_FigureCollector(lambda: machine_figures(self._gpus())))
        self._infos: dict[str, Info] = {}

    def watch(
        self,
        *,
        queue_depth: Callable[[], float],
        in_flight: Callable[[], float],
        r: Callable[[], float],
        mode: Callable[[], str],
        ready: Callable[[], bool],
    ) -> None:
        """Read these whenever metrics are asked for."""
        self._queue_depth.set_function(queue_depth)
        self._in_flight.set_function(in_flight)
        self._r.set_function(r)
        self._ready.set_function(lambda: float(ready()))
        for name in _MODES:
            self._mode.labels(name).set_function(partial(_is_on, name, mode))

    def watch_control(
        self,
        *,
        state: Callable[[], ControllerStatus | None],
        arrival_rate: Callable[[], float],
        profile_cells: Callable[[], tuple[int, int]],
        capacity_demand: Callable[[], float | None] = lambda: None,
    ) -> None:
        """Read these whenever metrics are asked for.

        Args:
            state: None as long as there is no controller.
            arrival_rate: offered images per second.
            profile_cells: how many pairs of degree and batch size are measured, and are not.
            capacity_demand: how many replicas like this one the offered load needs.
        """
        self._control, self._demand = state, capacity_demand
        self._arrival_rate.set_function(arrival_rate)
        self._cells.labels("measured").set_function(lambda: profile_cells()[0])
        self._cells.labels("missing").set_function(lambda: profile_cells()[1])

    def watch_queue(self, *, admitted: Callable[[], float], capacity: int) -> None:
        """Read how many images hold a place in the queue whenever metrics are asked for."""
        self._admitted.set_function(admitted)
        self._queue_capacity.set(capacity)

    def watch_gpus(self, use: Callable[[], Mapping[int, GpuUse]]) -> None:
        """Read the use of each device that is a GPU whenever metrics are asked for."""
        self._gpus = use

    def describe(self, version: str, model: Mapping[str, str], bank: Mapping[str, str]) -> None:
        """Publish what is being served, again after a change; ``bank`` is empty without one."""
        self._info("tocom_build", "Version of the server.", {"version": version})
        self._info("tocom_model", "The model that is served.", model)
        self._info("tocom_bank", "The token compensator; no labels if none is loaded.", bank)

    def observe_request(self, outcome: RequestOutcome, seconds: float) -> None:
        """Count one classification request, whatever became of it."""
        self._requests_of(outcome).inc()
        self._request_seconds_of(outcome).observe(seconds)

    def observe_refusal(self, reason: RefusalReason) -> None:
        """Count one request or connection that did not get past the door."""
        self._refusals.labels(reason).inc()

    def observe_image(self, stats: RequestStats) -> None:
        """Count one image of a request."""
        self._images_of(stats.outcome).inc()
        if stats.outcome == "ok":
            took_s = stats.decode_s + stats.queue_s + stats.compute_s
            self._in_time.inc(took_s <= self._slo_s)
            self._stages_of("decode").observe(stats.decode_s)
            self._stages_of("queue").observe(stats.queue_s)
            self._stages_of("compute").observe(stats.compute_s)

    def observe_batch(self, stats: BatchStats) -> None:
        """Count one forward pass."""
        self._inferred.labels(str(stats.r)).inc(stats.size)
        self._batch_size.observe(stats.size)
        self._batch_seconds.observe(stats.compute_s)
        self._device_busy.labels(str(stats.device)).inc(max(0.0, stats.merge_s + stats.busy_s))

    def observe_switch(self, stats: SwitchStats) -> None:
        """Count one change of degree."""
        self._switches.labels(stats.reason).inc()
        self._switch_seconds.observe(stats.merge_s)

    def observe_reload(self, outcome: ReloadOutcome) -> None:
        """Count one reload."""
        self._reloads.labels(outcome).inc()

    def observe_comparison(self, comparison: Comparison) -> None:
        """Count one served image that was run again at `r_source`."""
        self._compared.labels(str(comparison.r), str(comparison.agrees).lower()).inc()

    def render(self, accept: str = "") -> tuple[bytes, str]:
        """The page for ``/metrics`` and its content type, in the format the scraper asks for."""
        encode, content_type = choose_encoder(accept)
        return encode(self.registry), content_type

    def _counter(self, name: str, text: str, label: str, values: Iterable[str] = ()) -> Counter:
        """A counter whose known label values start at 0, so that rates exist from the start."""
        counter = Counter(name, text, [label], registry=self.registry)
        for value in values:
            counter.labels(value)
        return counter

    def _histogram(self, name: str, text: str, buckets: Sequence[float], *labels: str) -> Histogram:
        return Histogram(name, text, labels, buckets=buckets, registry=self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(name, text, labels, registry=self.registry)

    def _info(self, name: str, text: str, labels: Mapping[str, str]) -> None:
        if name not in self._infos:
            self._infos[name] = Info(name, text, registry=self.registry)
        self._infos[name].info(dict(labels))


def _is_on(name: str, mode: Callable[[], str]) -> float:
    return float(mode() == name)


class _FigureCollector(Collector):
    """Reads figures when metrics are asked for."""

    def __init__(self, figures: Callable[[], Iterable[Figure]]) -> None:
        self._figures = figures

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """One gauge per figure."""
        for figure in self._figures():
            if figure.by_degree is not None:
                yield _labelled(figure, "r", figure.by_degree)
            elif figure.by_device is not None:
                yield _labelled(figure, "device", figure.by_device)
            else:
                yield GaugeMetricFamily(figure.name, figure.meaning, figure.value)


def _labelled(figure: Figure, label: str, values: Mapping[int, float]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(figure.name, figure.meaning, labels=[label])
    for name, value in values.items():
        family.add_metric([str(name)], value)
    return family

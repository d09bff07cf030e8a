"""Traces for OpenTelemetry, made of what was written down of requests and batches once they end.

A request is a server span with the children `decode`, `queue` and `compute`; a batch is a span of
its own, with the child `switch` where weights were merged, and each `compute` links to its batch.
Nothing is measured for the traces' sake: the event loop only hands the finished records over, and a
thread makes spans of them. Without the setting this module is not imported.

All else (endpoint, headers, sampling, service name) is set by the standard `OTEL_*` variables.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from queue import Full, Queue

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
)
from opentelemetry.util.types import AttributeValue

from server.clock import Clock, monotonic
from server.request_ids import TraceParent
from server.request_record import RequestRecord
from server.stats import BatchStats, RequestStats

SERVICE_NAME = "tocom-serve"
MOST_WAITING = 10_000
"""Records that wait for their spans; beyond it they are dropped, as traces must not fill memory."""
BATCHES_KEPT = 1024
"""Batches that a request may still link to."""
IMAGES_SHOWN = 16
"""Of a request; a span for each image of a large one would say the same over and over."""
SHORTEST_SWITCH_S = 10e-6
"""What takes less is the look at the clock, where no weights were merged."""
SERVER_FAULT = 500

Attributes = Mapping[str, AttributeValue]


class _RequestIds(RandomIdGenerator):
    """Gives a trace that begins here the id of its request, so that log and trace meet."""

    def __init__(self) -> None:
        self.wanted: int | None = None

    def generate_trace_id(self) -> int:
        wanted, self.wanted = self.wanted, None
        return super().generate_trace_id() if wanted is None else wanted


class Telemetry:
    """Observer of finished requests and of batches.

    Args:
        version: of the server.
        processor: takes the spans; None sends them to the collector that `OTEL_*` names.
        clock: the one that the records' times are of.
        wall: nanoseconds since 1970.
    """

    def __init__(
        self,
        version: str,
        processor: SpanProcessor | None = None,
        clock: Clock = monotonic,
        wall: Callable[[], int] = time.time_ns,
    ) -> None:
        self._ids = _RequestIds()
        # The variables OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES go before these.
        named = Resource({"service.name": SERVICE_NAME, "service.version": version})
        resource = named.merge(_told_by_variables())
        self._provider = TracerProvider(resource=resource, id_generator=self._ids)
        self._provider.add_span_processor(processor or BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("server", version)
        self._clock = clock
        self._wall = wall
        self._batches: OrderedDict[int, SpanContext] = OrderedDict()
        self._waiting: Queue[RequestRecord | BatchStats | None] = Queue(MOST_WAITING)
        self._last_r: dict[int, int] = {}
        self.dropped = 0
        self._thread = threading.Thread(target=self._work, name="telemetry", daemon=True)
        self._thread.start()

    def on_request(self, record: RequestRecord) -> None:
        """Take a finished request."""
        self._put(record)

    def on_batch(self, stats: BatchStats) -> None:
        """Take a batch, before the requests that were in it."""
        self._put(stats)

    def close(self, timeout_s: float = 5.0) -> None:
        """Send what is there, and end."""
        self._waiting.put(None)
        self._thread.join(timeout_s)
        self._provider.force_flush(int(timeout_s * 1000))
        self._provider.shutdown()

    def _put(self, record: RequestRecord | BatchStats) -> None:
        try:
            self._waiting.put_nowait(record)
        except Full:
            self.dropped += 1

    def _work(self) -> None:
        while (record := self._waiting.get()) is not None:
            if isinstance(record, BatchStats):
                self._trace_batch(record)
            else:
                self._trace_request(record)

    def _trace_request(self, record: RequestRecord) -> None:
        parent = _remote(record.trace)
        if record.trace is None:
            self._ids.wanted = _as_trace_id(record.request_id)
        span = self._tracer.start_span(
            f"{record.method} {record.path}" if record.outcome else record.method,
            context=parent,
            kind=SpanKind.SERVER,
            attributes=_request_attributes(record),
            start_time=self._ns(record.arrived_at),
        )
        if span.is_recording():
            if record.status >= SERVER_FAULT or record.outcome == "failed":
                span.set_status(Status(StatusCode.ERROR))
            within = trace.set_span_in_context(span)
            for number, image in enumerate(record.images[:IMAGES_SHOWN]):
                self._trace_image(within, image, number)
        span.end(self._ns(record.ended_at))

    def _trace_image(self, within: Context, image: RequestStats, number: int) -> None:
        """Decode, queue and compute, as far as the image came."""
        if image.queued_at is None:
            return
        told: dict[str, AttributeValue] = {"tocom.image": number}
        queued_at, started_at = image.queued_at, image.queued_at + image.queue_s
        self._child("decode", within, queued_at - image.decode_s, queued_at, told)
        self._child("queue", within, queued_at, started_at, told | {"tocom.outcome": image.outcome})
        if image.batch_id is None or image.r is None:
            return
        told |= {"tocom.r": image.r, "tocom.batch_size": image.batch_size}
        batch = self._batches.get(image.batch_id)
        links = [] if batch is None else [Link(batch, {"tocom.batch": image.batch_id})]
        self._child("compute", within, started_at, started_at + image.compute_s, told, links)

    def _trace_batch(self, stats: BatchStats) -> None:
        span = self._tracer.start_span(
            "batch",
            context=Context(),
            attributes={
                "tocom.batch": stats.id,
                "tocom.r": stats.r,
                "tocom.batch_size": stats.size,
                "tocom.limited": stats.limited,
                "tocom.device": stats.device,
            },
            start_time=self._ns(stats.started_at),
        )
        within = trace.set_span_in_context(span)
        switched_at = stats.started_at + stats.merge_s
        if stats.r != self._last_r.get(stats.device) and stats.merge_s > SHORTEST_SWITCH_S:
            self._child("switch", within, stats.started_at, switched_at, {"tocom.r": stats.r})
        self._child("forward", within, switched_at, switched_at + stats.compute_s, {})
        span.end(self._ns(stats.ended_at))
        self._last_r[stats.device] = stats.r
        self._batches[stats.id] = span.get_span_context()
        while len(self._batches) > BATCHES_KEPT:
            self._batches.popitem(last=False)

    def _child(
        self,
        name: str,
        within: Context,
        start: float,
        end: float,
        attributes: Attributes,
        links: Sequence[Link] = (),
    ) -> Span:
        span = self._tracer.start_span(
            name, within, attributes=attributes, links=links, start_time=self._ns(start)
        )
        span.end(self._ns(max(start, end)))
        return span

    def _ns(self, at: float) -> int:
        """A time of the server's clock as nanoseconds since 1970."""
        return self._wall() - round((self._clock() - at) * 1e9)


def _told_by_variables() -> Resource:
    """What `OTEL_SERVICE_NAME` and `OTEL_RESOURCE_ATTRIBUTES` say, without the SDK's defaults."""
    told = Resource.create().attributes
    unknown = str(told.get("service.name", "")).startswith("unknown_service")
    return Resource({k: v for k, v in told.items() if not (unknown and k == "service.name")})


def _request_attributes(record: RequestRecord) -> Attributes:
    attributes: dict[str, AttributeValue] = {
        "http.request.method": record.method,
        "url.path": record.path[:200],
        "http.response.status_code": record.status,
        "tocom.request_id": record.request_id,
    }
    if record.client is not None:
        attributes["client.address"] = record.client
    if record.outcome is not None:
        attributes["tocom.outcome"] = record.outcome
        attributes["http.request.body.size"] = record.bytes_in
        attributes["tocom.images"] = len(record.images)
    if record.query is not None and record.query.deadline_ms is not None:
        attributes["tocom.deadline_ms"] = record.query.deadline_ms
    if record.problem is not None:
        attributes["error.type"] = record.problem
    return attributes


def _remote(parent: TraceParent | None) -> Context:
    """The client's span as the one that is around; without one there is none."""
    if parent is None:
        return Context()
    context = SpanContext(
        int(parent.trace_id, 16), int(parent.span_id, 16), True, TraceFlags(parent.flags)
    )
    return trace.set_span_in_context(NonRecordingSpan(context), Context())


def _as_trace_id(request_id: str) -> int | None:
    """The id as a number if it is one of ours: 32 hexadecimal digits, not all zero."""
    try:
        return int(request_id, 16) or None if len(request_id) == 32 else None
    except ValueError:
        return None

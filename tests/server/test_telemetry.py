"""Spans: made of records, and received by a collector over a real socket."""

import gzip
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from server.request_ids import TraceParent
from server.request_record import RequestRecord
from server.stats import BatchStats, RequestStats
from server.telemetry import Telemetry

WALL_NS, NOW = 1_700_000_000_000_000_000, 100.0
OURS = "0af7651916cd43dd8448eb211c80319c"
BATCH = BatchStats(5, 2, 0.002, 0.03, 99.92, handover_s=0.001, id=7)


def served(batch_id: int = 7) -> RequestStats:
    """An image: decoded until 99.9, then 20 ms in the queue, then 30 ms in a batch of two."""
    return RequestStats("ok", 5, 0.01, 0.02, 0.03, 0.06, 99.9, batch_id, 2)


def request(**told: Any) -> RequestRecord:
    """A classification from 99.88 to 99.96."""
    defaults: dict[str, Any] = {
        **{"status": 200, "outcome": "ok", "ended_at": 99.96, "client": "10.0.0.9"},
        **{"bytes_in": 2000, "images": [served()]},
    }
    told = {"trace": None} | defaults | told
    return RequestRecord(OURS, method="POST", path="/classify", arrived_at=99.88, **told)


def spans_of(*records: RequestRecord | BatchStats) -> dict[str, ReadableSpan]:
    """The spans of these records, by name."""
    exporter = InMemorySpanExporter()
    telemetry = Telemetry(
        "1.2.3", SimpleSpanProcessor(exporter), clock=lambda: NOW, wall=lambda: WALL_NS
    )
    for record in records:
        if isinstance(record, BatchStats):
            telemetry.on_batch(record)
        else:
            telemetry.on_request(record)
    telemetry.close()
    assert telemetry.dropped == 0
    return {span.name: span for span in exporter.get_finished_spans()}


def seconds(span: ReadableSpan) -> tuple[float, float]:
    """Start and end on the server's clock."""
    assert span.start_time is not None and span.end_time is not None
    return tuple(round(NOW + (t - WALL_NS) / 1e9, 6) for t in (span.start_time, span.end_time))  # type: ignore[return-value]


def test_a_request_and_its_stages() -> None:
    """One server span, with decode, queue and compute below it, at the times that they had."""
    spans = spans_of(BATCH, request())
    root = spans["POST /classify"]
    assert root.kind is SpanKind.SERVER and root.parent is None
    assert seconds(root) == (99.88, 99.96)
    times = {"decode": (99.89, 99.9), "queue": (99.9, 99.92), "compute": (99.92, 99.95)}
    for name, expected in times.items():
        assert seconds(spans[name]) == expected
        assert spans[name].parent == root.context
    assert dict(spans["compute"].attributes or {}) == {
        "tocom.image": 0,
        "tocom.r": 5,
        "tocom.batch_size": 2,
    }
    told = root.attributes or {}
    assert told["http.response.status_code"] == 200 and told["client.address"] == "10.0.0.9"
    assert told["tocom.request_id"] == OURS and told["http.request.body.size"] == 2000


def test_compute_links_to_its_batch() -> None:
    """The batch is a trace of its own, with the switch before it as a child."""
    spans = spans_of(BATCH, request())
    batch = spans["batch"]
    (link,) = spans["compute"].links
    assert link.context == batch.context and batch.parent is None
    assert seconds(batch) == (99.92, 99.953)
    assert spans["switch"].parent == batch.context
    assert seconds(spans["switch"]) == (99.92, 99.922)
    assert seconds(spans["forward"]) == (99.922, 99.952)


def test_no_switch_no_span() -> None:
    """A batch of the same degree as the one before merges nothing."""
    again = BatchStats(5, 1, 0.000001, 0.03, 99.97, id=8)
    assert [name for name in spans_of(again)] == ["forward", "batch"]


def test_a_request_belongs_to_its_clients_trace() -> None:
    """The span of the traceparent is the parent; an unsampled one is left alone."""
    trace = TraceParent("ab" * 16, "cd" * 8, 1)
    spans = spans_of(request(trace=trace))
    root = spans["POST /classify"]
    assert root.context is not None and root.parent is not None
    assert f"{root.context.trace_id:032x}" == trace.trace_id
    assert f"{root.parent.span_id:016x}" == trace.span_id and root.parent.is_remote
    assert spans_of(request(trace=TraceParent("ab" * 16, "cd" * 8, 0))) == {}


def test_a_trace_that_begins_here_has_the_requests_id() -> None:
    """So that it is found from the log, where the id is one of ours."""
    root = spans_of(request())["POST /classify"]
    assert root.context is not None and f"{root.context.trace_id:032x}" == OURS
    record = request()
    record.request_id = "mine"
    root = spans_of(record)["POST /classify"]
    assert root.context is not None and root.context.trace_id > 0


def test_failures_are_errors() -> None:
    """5xx mark the span; what never reached the model has no compute below it."""
    shed = RequestStats("failed", None, 0.01, 0.02, 0.0, 0.06, 99.9)
    spans = spans_of(request(status=500, outcome="failed", problem="/problems/x", images=[shed]))
    root = spans["POST /classify"]
    assert root.status.status_code is StatusCode.ERROR
    assert (root.attributes or {})["error.type"] == "/problems/x"
    assert set(spans) == {"POST /classify", "decode", "queue"}


class Collector:
    """An OTLP receiver: takes what is posted to `/v1/traces`."""

    def __init__(self) -> None:
        self.requests: list[ExportTraceServiceRequest] = []
        self.headers: list[dict[str, str]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                assert self.path == "/v1/traces"
                outer.requests.append(ExportTraceServiceRequest.FromString(body))
                outer.headers.append(dict(self.headers))
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *arguments: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def collector() -> Iterator[Collector]:
    """A collector on a free port."""
    running = Collector()
    yield running
    running.server.shutdown()
    running.server.server_close()


def test_a_collector_receives_them(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over OTLP, to where the standard variables say, under the name that they say."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-key=abc")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "flowers")
    telemetry = Telemetry("1.2.3")
    telemetry.on_batch(BATCH)
    telemetry.on_request(request())
    telemetry.close()
    (resource,) = [r for message in collector.requests for r in message.resource_spans]
    told = {a.key: a.value.string_value for a in resource.resource.attributes}
    assert told["service.name"] == "flowers" and told["service.version"] == "1.2.3"
    spans = {s.name: s for scope in resource.scope_spans for s in scope.spans}
    assert set(spans) == {"batch", "switch", "forward", "POST /classify", *("decode", "queue")} | {
        "compute"
    }
    assert spans["POST /classify"].trace_id.hex() == OURS
    assert spans["compute"].links[0].span_id == spans["batch"].span_id
    assert collector.headers[0]["x-key"] == "abc"


def test_the_service_has_a_name_of_its_own(
    collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the variable."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
    monkeypatch.delenv("OTEL_SERVICE_NAME", raising=False)
    telemetry = Telemetry("1.2.3")
    telemetry.on_request(request())
    telemetry.close()
    told = {
        a.key: a.value.string_value
        for a in collector.requests[0].resource_spans[0].resource.attributes
    }
    assert told["service.name"] == "tocom-serve"

"""What a request is called, so that its answer, its log line and its trace can be found together.

The client's ``X-Request-ID`` if that is a plain token, else the trace of its ``traceparent`` (W3C
Trace Context), else an id of our own.  What does not look like one is replaced and never repeated:
it would be written into logs.
"""

import random
import re
from collections.abc import Iterable
from dataclasses import dataclass

_TOKEN = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")
_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_LONGEST = 256

Headers = Iterable[tuple[bytes, bytes]]


@dataclass(frozen=True, slots=True)
class TraceParent:
    """The span that a request belongs to, as its client names it.

    Attributes:
        trace_id: 32 hexadecimal digits, not all zero.
        span_id: 16 hexadecimal digits, not all zero.
        flags: bit 0 says that the client records this trace.
    """

    trace_id: str
    span_id: str
    flags: int


def identify(headers: Headers) -> tuple[str, TraceParent | None]:
    """The id of a request, and the trace that it belongs to.

    Args:
        headers: names in lower case, as ASGI delivers them; of several equal ones the first counts.
    """
    given = parent = None
    for name, value in headers:
        if name == b"x-request-id" and given is None:
            given = value.decode("latin-1")
        elif name == b"traceparent" and parent is None:
            parent = value.decode("latin-1")
    trace = None if parent is None else parse_traceparent(parent)
    if given is not None and _TOKEN.fullmatch(given):
        return given, trace
    if trace is not None:
        return trace.trace_id, trace
    # To find a request in the log by; nobody is kept from guessing it.
    return f"{random.getrandbits(128):032x}", None


def parse_traceparent(text: str) -> TraceParent | None:
    """Read a ``traceparent`` header; None where it is none, which the standard says to ignore."""
    found = _TRACEPARENT.fullmatch(text) if len(text) <= _LONGEST else None
    if found is None:
        return None
    version, trace_id, span_id, flags, more = found.groups()
    future = version != "00"
    if version == "ff" or (more and not future) or not int(trace_id, 16) or not int(span_id, 16):
        return None
    return TraceParent(trace_id, span_id, int(flags, 16))

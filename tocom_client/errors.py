"""Every way in which a call can fail.

    TocomClientError
    ├── Refused             what was asked cannot be done; to ask again changes nothing
    │   ├── InvalidImage    no image, a broken or too large one, or a file that cannot be read here
    │   ├── InvalidParameter  a degree, number or combination that the server does not take
    │   ├── Unauthorized    no API key, an unknown one, or one without the scope
    │   ├── ReloadInProgress  another model is being loaded
    │   └── ReloadFailed    the new model was not taken; the old one is served on
    ├── Overloaded          no room now; `retry_after_s` says when to come back
    │   └── RateLimited     this client alone sends more than it may
    ├── NotReady            warming up, shutting down, or without its device
    ├── DeadlineExceeded    no answer by the deadline of the call
    ├── ServerFailed        the server made a mistake
    ├── ConnectionFailed    nobody answered, or not to the end
    └── UnexpectedAnswer    what answered is no ToCom server, or one of another version

Which of them a problem document becomes is decided by its stable `type`, and by the HTTP status
where that is unknown: a proxy's own answers have none.
"""


class TocomClientError(Exception):
    """Root of what a call raises.

    Args:
        detail: what was wrong and how to mend it, in the server's words where it said so.
        status: HTTP status; None: no answer came.
        type: stable name of the kind of problem, e.g. `/problems/overloaded`; "" if none was told.
        title: the kind of problem in a few words.
        request_id: what the server's log calls the request.
        retry_after_s: seconds after which the server wants to be asked again; None: not told.

    Attributes:
        attempts: how often the request was sent.
        repeatable: whether the same request may succeed later without having been done twice.
    """

    repeatable: bool = False

    def __init__(
        self,
        detail: str,
        *,
        status: int | None = None,
        type: str = "",
        title: str = "",
        request_id: str = "",
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.status = status
        self.type = type
        self.title = title
        self.request_id = request_id
        self.retry_after_s = retry_after_s
        self.attempts = 1

    def __str__(self) -> str:
        facts = [] if self.status is None else [str(self.status)]
        facts += [self.type] if self.type else []
        facts += [f"request {self.request_id}"] if self.request_id else []
        facts += [f"{self.attempts} attempts"] if self.attempts > 1 else []
        return f"{self.detail} ({', '.join(facts)})" if facts else self.detail


class Refused(TocomClientError):
    """What was asked cannot be done as it is."""


class InvalidImage(Refused):
    """No image, a broken or too large one; without a status: a file that cannot be read here."""


class InvalidParameter(Refused):
    """A parameter has no meaning or lies outside its range."""


class Unauthorized(Refused):
    """No API key, one that the server does not know, or one that lacks the scope."""


class ReloadInProgress(Refused):
    """Another model is being loaded already."""


class ReloadFailed(Refused):
    """The new model was not taken; the one before is served as if nothing had been asked."""


class Overloaded(TocomClientError):
    """The server has no room now; nothing of the request was done."""

    repeatable = True


class RateLimited(Overloaded):
    """This key or address sends more than it may."""


class NotReady(TocomClientError):
    """The server is warming up, shutting down, or has lost its device."""

    repeatable = True


class DeadlineExceeded(TocomClientError):
    """The deadline of the call passed before its answer was there."""


class ServerFailed(TocomClientError):
    """The server made a mistake; its log knows more under `request_id`."""


class ConnectionFailed(TocomClientError):
    """Nobody answered, or the connection broke before the answer was complete.

    Attributes:
        sent: whether the request may have reached the server; then it may also have been done.
    """

    sent: bool = True


class UnexpectedAnswer(TocomClientError):
    """What answered is no ToCom server, or one of another version."""


_BY_TYPE: dict[str, type[TocomClientError]] = {
    "/problems/bad-request": Refused,
    "/problems/bad-inference-request": Refused,
    "/problems/unknown-model": Refused,
    "/problems/not-an-image": InvalidImage,
    "/problems/unauthorized": Unauthorized,
    "/problems/missing-scope": Unauthorized,
    "/problems/cross-site": Refused,
    "/problems/slow-request": Refused,
    "/problems/image-too-large": InvalidImage,
    "/problems/uri-too-long": Refused,
    "/problems/unsupported-media-type": InvalidImage,
    "/problems/unknown-host": Refused,
    "/problems/bad-parameter": InvalidParameter,
    "/problems/queue-full": Overloaded,
    "/problems/overloaded": Overloaded,
    "/problems/busy": Overloaded,
    "/problems/rate-limited": RateLimited,
    "/problems/headers-too-large": Refused,
    "/problems/reload-in-progress": ReloadInProgress,
    "/problems/reload-failed": ReloadFailed,
    "/problems/internal": ServerFailed,
    "/problems/forward-failed": ServerFailed,
    "/problems/device-lost": NotReady,
    "/problems/not-ready": NotReady,
    "/problems/draining": NotReady,
    "/problems/too-many-connections": Overloaded,
    "/problems/deadline-expired": DeadlineExceeded,
}

_BY_STATUS: dict[int, type[TocomClientError]] = {
    401: Unauthorized,
    403: Unauthorized,
    429: Overloaded,
    503: NotReady,
    504: DeadlineExceeded,
}


def error_class(type_: str, status: int) -> type[TocomClientError]:
    """The class of a problem with this `type`, or else with this HTTP status."""
    known = _BY_TYPE.get(type_) or _BY_STATUS.get(status)
    if known is not None:
        return known
    if 400 <= status < 500:
        return Refused
    return ServerFailed if 500 <= status < 600 else UnexpectedAnswer


def known_types() -> frozenset[str]:
    """The problem types that have a class of their own."""
    return frozenset(_BY_TYPE)

"""Every way in which a request can fail, and what its client is told.

    ServeError
    ├── BadRequest         400  /problems/bad-request
    ├── NotAnImage         400  /problems/not-an-image
    ├── Unauthorized       401  /problems/unauthorized        WWW-Authenticate
    ├── MissingScope       403  /problems/missing-scope
    ├── CrossSite          403  /problems/cross-site
    ├── SlowRequest        408  /problems/slow-request        Connection: close
    ├── ImageTooLarge      413  /problems/image-too-large
    ├── UriTooLong         414  /problems/uri-too-long
    ├── UnsupportedMedia   415  /problems/unsupported-media-type
    ├── UnknownHost        421  /problems/unknown-host
    ├── BadParameter       422  /problems/bad-parameter
    ├── BadInference       400  /problems/bad-inference-request
    ├── UnknownModel       404  /problems/unknown-model
    ├── QueueFull          429  /problems/queue-full          Retry-After
    │   ├── Overloaded     429  /problems/overloaded          Retry-After
    │   └── Busy           429  /problems/busy                Retry-After
    ├── RateLimited        429  /problems/rate-limited        Retry-After
    ├── HeadersTooLarge    431  /problems/headers-too-large
    ├── ReloadInProgress   409  /problems/reload-in-progress  Retry-After
    ├── ReloadFailed       422  /problems/reload-failed
    ├── ForwardFailed      500  /problems/forward-failed
    │   └── DeviceLost     503  /problems/device-lost         Connection: close
    ├── NotReady           503  /problems/not-ready           Retry-After
    ├── Draining           503  /problems/draining            Connection: close
    ├── TooManyConnections 503  /problems/too-many-connections
    └── DeadlineExpired    504  /problems/deadline-expired

Each class fixes its status, its stable `type` and its title (RFC 9457); each instance says in
`detail` what was wrong and what to do. `SettingsError` stands apart: it ends the start-up and
never reaches a client.
"""

import math
from collections.abc import Mapping
from typing import ClassVar


class ServeError(Exception):
    """Root of what a client can be told; rendered as `application/problem+json`.

    Attributes:
        status: HTTP status code.
        type: stable identifier of the kind of problem, a path relative to the server.
        title: the kind of problem in a few words, the same for every instance.
        detail: what was wrong with this request and how to mend it.
        headers: additional response headers.
    """

    status: ClassVar[int] = 500
    type: ClassVar[str] = "/problems/internal"
    title: ClassVar[str] = "Internal error"

    def __init__(self, detail: str, *, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.headers: dict[str, str] = dict(headers or {})

    def problem(self) -> dict[str, str | int]:
        """Return the members of the problem document."""
        return {
            "type": self.type,
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
        }


class NotAnImage(ServeError):
    """The bytes are no image, or a broken one."""

    status = 400
    type = "/problems/not-an-image"
    title = "Not a readable image"


class ImageTooLarge(ServeError):
    """Too many bytes, pixels or files."""

    status = 413
    type = "/problems/image-too-large"
    title = "Too large"


class UnsupportedMedia(ServeError):
    """The body's media type is none that the server reads."""

    status = 415
    type = "/problems/unsupported-media-type"
    title = "Unsupported media type"


class BadParameter(ServeError):
    """A parameter has no meaning or lies outside its range."""

    status = 422
    type = "/problems/bad-parameter"
    title = "Bad parameter"


class BadInference(ServeError):
    """A request of the Open Inference Protocol that is none, or does not fit the model."""

    status = 400
    type = "/problems/bad-inference-request"
    title = "Bad inference request"


class UnknownModel(ServeError):
    """The path names a model or a version that is not served."""

    status = 404
    type = "/problems/unknown-model"
    title = "Unknown model"


class QueueFull(ServeError):
    """No room in the queue for all images of the request, so none was admitted."""

    status = 429
    type = "/problems/queue-full"
    title = "Queue full"

    def __init__(self, detail: str, *, retry_after_s: float) -> None:
        """Say when to come back; the header carries whole seconds, at least one."""
        seconds = max(1, math.ceil(retry_after_s))
        super().__init__(detail, headers={"Retry-After": str(seconds)})
        self.retry_after_s = retry_after_s


class Overloaded(QueueFull):
    """Even the fastest degree could not answer within the latency objective."""

    type = "/problems/overloaded"
    title = "Overloaded"


class Busy(QueueFull):
    """What is done beside serving has no room now; classification may well have."""

    type = "/problems/busy"
    title = "Busy"


class ForwardFailed(ServeError):
    """The model failed on the batch or on this image of it."""

    status = 500
    type = "/problems/forward-failed"
    title = "Inference failed"


class DeviceLost(ForwardFailed):
    """The device cannot be used any more; the server ends and is started anew."""

    status = 503
    type = "/problems/device-lost"
    title = "Device lost"

    def __init__(
        self,
        detail: str = "The server lost its device and restarts; send the request to another one.",
    ) -> None:
        super().__init__(detail, headers={"Connection": "close"})


class ReloadInProgress(ServeError):
    """Another model is being loaded already."""

    status = 409
    type = "/problems/reload-in-progress"
    title = "Reload in progress"

    def __init__(
        self,
        detail: str = "Another reload is under way; try again when GET /model shows its end.",
    ) -> None:
        super().__init__(detail, headers={"Retry-After": "5"})


class ReloadFailed(ServeError):
    """The new model was not taken; the one before is served as if nothing had been asked."""

    status = 422
    type = "/problems/reload-failed"
    title = "Reload failed"

    def __init__(self, detail: str, *, agreement: float | None = None) -> None:
        """Say why; `agreement` is what was too little, if that is why."""
        super().__init__(detail)
        self.agreement = agreement


class NotReady(ServeError):
    """The model is still loading or warming up."""

    status = 503
    type = "/problems/not-ready"
    title = "Not ready"

    def __init__(self, detail: str = "The model is warming up; try again shortly.") -> None:
        super().__init__(detail, headers={"Retry-After": "1"})


class Draining(ServeError):
    """The server is shutting down and takes no new work."""

    status = 503
    type = "/problems/draining"
    title = "Shutting down"

    def __init__(
        self, detail: str = "The server is shutting down; send the request to another one."
    ) -> None:
        super().__init__(detail, headers={"Connection": "close"})


class DeadlineExpired(ServeError):
    """The request's own deadline passed before its answer was there."""

    status = 504
    type = "/problems/deadline-expired"
    title = "Deadline passed"


class BadRequest(ServeError):
    """What arrived is no HTTP that this server reads."""

    status = 400
    type = "/problems/bad-request"
    title = "Bad request"


class Unauthorized(ServeError):
    """The path wants an API key, and none that is known was given."""

    status = 401
    type = "/problems/unauthorized"
    title = "API key needed"

    def __init__(self, detail: str) -> None:
        super().__init__(detail, headers={"WWW-Authenticate": 'Bearer realm="tocom"'})


class MissingScope(ServeError):
    """The API key is good, but not for this."""

    status = 403
    type = "/problems/missing-scope"
    title = "API key lacks a scope"


class CrossSite(ServeError):
    """A browser sent it on behalf of another site's page."""

    status = 403
    type = "/problems/cross-site"
    title = "Request of another site"


class SlowRequest(ServeError):
    """The request did not arrive in the time that it may take."""

    status = 408
    type = "/problems/slow-request"
    title = "Request too slow"


class UriTooLong(ServeError):
    """The request line has too many bytes."""

    status = 414
    type = "/problems/uri-too-long"
    title = "URI too long"


class UnknownHost(ServeError):
    """The Host header names a host that this server is not."""

    status = 421
    type = "/problems/unknown-host"
    title = "Unknown host"


class RateLimited(ServeError):
    """This client sends more than it may."""

    status = 429
    type = "/problems/rate-limited"
    title = "Too many requests"

    def __init__(self, detail: str, *, retry_after_s: float) -> None:
        """Say when to come back; the header carries whole seconds, at least one."""
        seconds = max(1, math.ceil(retry_after_s))
        super().__init__(detail, headers={"Retry-After": str(seconds)})


class HeadersTooLarge(ServeError):
    """The headers have too many bytes, or there are too many of them."""

    status = 431
    type = "/problems/headers-too-large"
    title = "Headers too large"


class TooManyConnections(ServeError):
    """No room for one more connection, of anybody or of this client."""

    status = 503
    type = "/problems/too-many-connections"
    title = "Too many connections"


class SettingsError(Exception):
    """The configuration is wrong; the message is meant for the terminal, without a traceback."""

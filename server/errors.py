"""Every way in which a request can fail, and what its client is told.

    ServeError
    ├── NotAnImage         400  /problems/not-an-image
    ├── ImageTooLarge      413  /problems/image-too-large
    ├── UnsupportedMedia   415  /problems/unsupported-media-type
    ├── BadParameter       422  /problems/bad-parameter
    ├── QueueFull          429  /problems/queue-full          Retry-After
    │   └── Overloaded     429  /problems/overloaded          Retry-After
    ├── ForwardFailed      500  /problems/forward-failed
    ├── NotReady           503  /problems/not-ready           Retry-After
    ├── Draining           503  /problems/draining            Connection: close
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


class ForwardFailed(ServeError):
    """The model failed on the batch or on this image of it."""

    status = 500
    type = "/problems/forward-failed"
    title = "Inference failed"


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


class SettingsError(Exception):
    """The configuration is wrong; the message is meant for the terminal, without a traceback."""

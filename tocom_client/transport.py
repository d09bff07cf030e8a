"""httpx: how an attempt is put into it, and what its errors mean."""

import ipaddress
import math
import os
import ssl
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias
from urllib.parse import urlsplit

import httpx

from tocom_client.images import EncodedImage
from tocom_client.wire import Answer, Lost, Request

Verify: TypeAlias = bool | str | ssl.SSLContext
"""Whether the server's certificate is checked, or by which authorities: a file of theirs or a
context."""

DEFAULT_URL = "http://127.0.0.1:8000"
CONNECT_S = 5.0
KEEP_ALIVE_S = 3.0
"""Below the 5 s after which uvicorn closes an idle connection: a request could meet the close."""
CONNECTIONS = 100
LEAST_S = 0.001
PHASES = ("connect", "read", "write", "pool")


@dataclass(frozen=True, slots=True)
class Address:
    """Where the server is, and the headers that every request to it carries.

    The key is no part of what is shown of it.
    """

    url: str
    headers: "Secret"

    @classmethod
    def of(cls, base_url: str | None, api_key: str | None) -> "Address":
        """What was given, else what `TOCOM_URL` and `TOCOM_API_KEY` say.

        Raises:
            ValueError: the address or the key cannot be one.
        """
        url = (base_url or os.environ.get("TOCOM_URL") or DEFAULT_URL).rstrip("/")
        key = os.environ.get("TOCOM_API_KEY", "") if api_key is None else api_key
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"the address {url!r}: expected one such as {DEFAULT_URL}")
        if not (key.isascii() and key.isprintable()) or " " in key:
            raise ValueError("the API key has characters that no key has; is it complete?")
        bearer = {"Authorization": f"Bearer {key}"} if key else {}
        return cls(url, Secret({"User-Agent": "tocom-client", **bearer}))

    @property
    def behind_proxies(self) -> bool:
        """Whether the environment's proxies apply; none of them leads to this machine itself."""
        host = urlsplit(self.url).hostname or ""
        try:
            return not ipaddress.ip_address(host).is_loopback
        except ValueError:
            return host != "localhost"


class Secret(dict[str, str]):
    """Headers that do not show what is in them."""

    def __repr__(self) -> str:
        return f"<{len(self)} headers>"


class TimeLeft(Mapping[str, float]):
    """httpx's time-outs by phase: each phase may take what is left of the attempt.

    httpx takes a fixed number of seconds for connecting, sending and waiting, and starts anew for
    each. It looks the number up when the phase begins, so that this one can count down.
    """

    def __init__(self, clock: Callable[[], float], seconds: float) -> None:
        self._clock = clock
        self._ends = clock() + seconds

    def __getitem__(self, phase: str) -> float:
        left_s = max(LEAST_S, self._ends - self._clock())
        return min(left_s, CONNECT_S if phase == "connect" else math.inf)

    def __iter__(self) -> Iterator[str]:
        return iter(PHASES)

    def __len__(self) -> int:
        return len(PHASES)


def limits() -> httpx.Limits:
    """How many connections are kept, and for how long."""
    return httpx.Limits(max_connections=CONNECTIONS, keepalive_expiry=KEEP_ALIVE_S)


def built(
    http: "httpx.Client | httpx.AsyncClient", request: Request, clock: Callable[[], float]
) -> httpx.Request:
    """An attempt as httpx sends it."""
    headers = dict(request.headers)
    content = files = None
    if len(request.images) == 1:
        (image,) = request.images
        content, headers["Content-Type"] = image.data, image.media_type
    elif request.images:
        files = [("file", _part(place, image)) for place, image in enumerate(request.images)]
    return http.build_request(
        request.method,
        request.path,
        params=dict(request.query),
        headers=headers,
        content=content,
        files=files,
        json=request.json,
        extensions={"timeout": TimeLeft(clock, request.within_s)},
    )


def answer_of(response: httpx.Response) -> Answer:
    """A complete response."""
    headers = {name.lower(): value for name, value in response.headers.items()}
    return Answer(response.status_code, headers, response.content)


def loss_from(error: httpx.HTTPError) -> Lost:
    """What an error of httpx says of the request that met it."""
    told = str(error) or type(error).__name__
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout):
        return Lost("unsent", f"the server cannot be reached: {told}")
    if isinstance(error, httpx.TimeoutException):
        return Lost("slow", f"the server did not answer in time: {told}")
    if isinstance(error, httpx.ProxyError | httpx.UnsupportedProtocol):
        return Lost("unsent", f"the proxy does not lead to the server: {told}")
    return Lost("broken", f"the connection broke before the answer was complete: {told}")


def _part(place: int, image: EncodedImage) -> tuple[str, bytes, str]:
    """A part of a form; results come in order, so that nobody's file names need to travel."""
    return f"{place}", image.data, image.media_type

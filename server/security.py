"""The door: who may ask for what, before anything else looks at a request.

`Guard` decides from the headers alone, `Security` is the layer of ASGI that asks it. It stands in
front of both ways into the application, the framework's and the short one of what is asked most.
Limits on the connection itself are kept in `connections`, those on bodies in `uploads`.
"""

import logging
from collections.abc import Callable, Iterable, Mapping

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.access_settings import AccessSettings
from server.api_keys import ApiKey, KeyRing, load_keys
from server.client_address import ClientAddresses, parse_address
from server.clock import Clock
from server.cross_site import HostCheck, check_site
from server.errors import (
    BadRequest,
    CrossSite,
    MissingScope,
    RateLimited,
    ServeError,
    SettingsError,
    Unauthorized,
    UnknownHost,
)
from server.problems import failure_response, problem_of
from server.rate_limit import RateLimiter
from server.scopes import wanted_scopes
from server.stats import RefusalReason

logger = logging.getLogger(__name__)

_REFUSALS: dict[type[ServeError], RefusalReason] = {
    BadRequest: "bad_request",
    Unauthorized: "unauthorized",
    MissingScope: "missing_scope",
    CrossSite: "cross_site",
    UnknownHost: "unknown_host",
    RateLimited: "rate_limited",
}

HEADERS = (
    ("x-content-type-options", "nosniff"),
    ("x-frame-options", "DENY"),
    ("referrer-policy", "no-referrer"),
    ("cross-origin-resource-policy", "same-origin"),
)
"""On every answer: take it for what it says it is, frame it nowhere, tell nobody where one was."""

_DOCS_POLICY = (
    b"content-security-policy",
    b"default-src 'none'; script-src https: 'unsafe-inline'; style-src https: 'unsafe-inline'; "
    b"img-src 'self' https: data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    b"frame-ancestors 'none'",
)
"""For /docs, whose scripts come from where the framework says."""

_ONCE = frozenset(
    {b"host", b"authorization", b"x-api-key", b"content-type", b"origin"}
    | {b"content-encoding", b"inference-header-content-length"}
)
"""Headers of which two would let two readers of a request see two requests."""


class Guard:
    """Keys, scopes, hosts, sites and rates of one server.

    Args:
        settings: who may come in.
        clock: monotonic seconds.
        on_refusal: told the reason of each refusal.

    Raises:
        SettingsError: the API keys cannot be read.
    """

    def __init__(
        self,
        settings: AccessSettings,
        clock: Clock,
        on_refusal: Callable[[RefusalReason], None] = lambda reason: None,
    ) -> None:
        self._settings = settings
        self._keys = _keys_of(settings)
        self._addresses = ClientAddresses(settings.proxy_networks)
        self._limiter = (
            RateLimiter(settings.rate_limit, settings.rate_burst, clock)
            if settings.rate_limit
            else None
        )
        names = settings.host_names
        if names is None and self._keys is not None:
            names = frozenset({"*"})  # who has no key gains nothing by rebinding a name
        self._hosts = HostCheck(names)
        self._asks = self._keys is not None or self._limiter is not None
        self.on_refusal = on_refusal

    @property
    def wants_keys(self) -> bool:
        """Whether anything is closed to who has no key."""
        return self._keys is not None

    def reload_keys(self) -> None:
        """Read the file of keys anew; if it is wrong, the old ones stay."""
        try:
            self._keys = _keys_of(self._settings)
        except SettingsError as error:
            logger.error("API keys stay as they were: %s", error)
        else:
            logger.info("API keys read anew: %d known", len(self._keys or ()))

    def check(self, scope: Scope) -> None:
        """Refuse a request that may not come in.

        Raises:
            ServeError: why.
        """
        headers: dict[bytes, bytes] = dict(scope["headers"])
        if len(headers) != len(scope["headers"]):
            _refuse_doubles(scope["headers"])
        if b"host" in headers or scope["http_version"] != "1.0":
            self._hosts.require(headers.get(b"host"))
        method = scope["method"]
        if b"sec-fetch-site" in headers or b"origin" in headers:
            check_site(method, headers)
        if self._asks and (wanted := wanted_scopes(method, scope["path"])):
            self._admit(wanted, scope, headers)

    def _admit(self, wanted: frozenset[str], scope: Scope, headers: Mapping[bytes, bytes]) -> None:
        """Key, then rate, then scope: a wrong key costs its sender as much as a request."""
        shown = _shown_key(headers)
        key = self._keys.find(shown) if self._keys is not None and shown else None
        if self._limiter is not None:
            self._take_token(key, scope)
        if self._keys is None:
            return
        if key is None:
            what = "The API key is not known" if shown else "This path needs an API key"
            raise Unauthorized(
                f"{what}; send 'Authorization: Bearer KEY' or 'X-API-Key: KEY' with a key of this "
                f"server that has the scope {_either(wanted)}."
            )
        scope["state"]["api_key"] = key.name
        if not wanted & key.scopes:
            raise MissingScope(
                f"The API key {key.name!r} has the scope {_either(key.scopes)}, but this needs "
                f"{_either(wanted)}; ask the server's operator for one that has it."
            )

    def _take_token(self, key: ApiKey | None, scope: Scope) -> None:
        assert self._limiter is not None
        peer = (scope.get("client") or (None,))[0]
        client = f"key {key.name}" if key else self._addresses.client(peer, scope["headers"])
        if wait_s := self._limiter.take(client):
            raise RateLimited(
                f"This client may send {self._settings.rate_limit:g} requests/s on average; wait "
                f"{wait_s:.3g} s.",
                retry_after_s=wait_s,
            )


class Security:
    """Lets through to the application what the guard does not refuse."""

    def __init__(self, app: ASGIApp, guard: Guard) -> None:
        self._app = app
        self._guard = guard

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection of ASGI."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # there is no WebSocket here, so that none goes past the guard
            await send({"type": "websocket.close", "code": 1008})
            return
        try:
            self._guard.check(scope)
        except ServeError as error:
            await self._refuse(error, scope, receive, send)
            return
        if scope["path"] == "/docs":
            send = _with_docs_policy(send)
        await self._app(scope, receive, send)

    async def _refuse(self, error: ServeError, scope: Scope, receive: Receive, send: Send) -> None:
        reason = _REFUSALS[type(error)]
        self._guard.on_refusal(reason)
        state = scope["state"]
        state["outcome"] = "limited" if isinstance(error, RateLimited) else "denied"
        logger.debug("refused: reason=%s request_id=%s", reason, state["request_id"])
        problem = problem_of(error, state["request_id"])
        answer = failure_response(scope["path"], problem, error.headers)
        await answer(scope, receive, send)


def check_exposure(settings: AccessSettings, address: str) -> None:
    """Refuse to open an address that others can reach while nobody needs a key.

    Args:
        settings: who may come in.
        address: that was bound.

    Raises:
        SettingsError: it is no loopback address, and there are no keys.
    """
    bound = parse_address(address)
    if bound is None or bound.is_loopback or settings.allow_anonymous:
        return
    if settings.api_keys is None and settings.api_keys_file is None:
        raise SettingsError(
            f"host={settings.host!r} can be reached from other machines, and no API keys are set: "
            "name a file of them with TOCOM_API_KEYS_FILE ('tocom key' makes them), or listen on "
            "127.0.0.1; TOCOM_ALLOW_ANONYMOUS=true serves everybody who can reach it"
        )


def _keys_of(settings: AccessSettings) -> KeyRing | None:
    secret = settings.api_keys
    return load_keys(secret.get_secret_value() if secret else None, settings.api_keys_file)


def _shown_key(headers: Mapping[bytes, bytes]) -> bytes | None:
    """The key that a request shows, if it shows one."""
    kind, _, credentials = headers.get(b"authorization", b"").partition(b" ")
    if kind.lower() == b"bearer":
        return credentials.strip()
    return headers.get(b"x-api-key")


def _refuse_doubles(headers: Iterable[tuple[bytes, bytes]]) -> None:
    seen: set[bytes] = set()
    for name, _ in headers:
        if name in _ONCE and name in seen:
            raise BadRequest(f"The request has two {name.decode()} headers; send one.")
        seen.add(name)


def _either(scopes: Iterable[str]) -> str:
    return " or ".join(repr(scope) for scope in sorted(scopes))


def _with_docs_policy(send: Send) -> Send:
    async def send_with_policy(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message["headers"], _DOCS_POLICY]
        await send(message)

    return send_with_policy

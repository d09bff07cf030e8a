"""What a page of another site must not do through its visitor's browser.

A server on loopback without keys is reachable by every page that its user opens, in two ways. A
page can send requests across sites (it cannot read the answer, but a pin is set all the same):
browsers say so in ``Sec-Fetch-Site`` and ``Origin``. And a page's own host name can be made to
point to 127.0.0.1 (DNS rebinding), after which the browser takes us for that site: only ``Host``
tells. Names without a dot, ``localhost`` and bare addresses cannot be rebound, since no stranger
can own them.
"""

from collections.abc import Mapping
from functools import lru_cache

from server.client_address import parse_address
from server.errors import BadRequest, CrossSite, UnknownHost

_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
_OWN = frozenset({b"same-origin", b"none"})
_DEFAULT_PORTS = {"http": "80", "https": "443"}
_KEPT = 256


class HostCheck:
    """Whether a Host header names this server.

    Args:
        names: those that it has, `*` for any; None allows what cannot be rebound.
    """

    def __init__(self, names: frozenset[str] | None) -> None:
        self._names = names
        self._knows = lru_cache(_KEPT)(self._check)

    def require(self, host: bytes | None) -> None:
        """Refuse a request for another host.

        Raises:
            UnknownHost: it names one.
            BadRequest: there is no name at all.
        """
        if not host:
            raise BadRequest("The request has no Host header; HTTP/1.1 wants one.")
        if len(host) > 300 or not self._knows(host):
            raise UnknownHost(
                f"This server is not known as {host[:80].decode('latin-1')!r}; call it by its "
                "address, or let its operator add the name to TOCOM_ALLOWED_HOSTS."
            )

    def _check(self, host: bytes) -> bool:
        name = host_name(host.decode("latin-1"))
        if self._names is not None:
            return "*" in self._names or name in self._names
        if parse_address(name) is not None:
            return True
        return "." not in name.removesuffix(".") or name.endswith(".localhost")


def check_site(method: str, headers: Mapping[bytes, bytes]) -> None:
    """Refuse what a browser sends on behalf of another site, but for following a link.

    Args:
        method: the request's.
        headers: names in lower case.

    Raises:
        CrossSite: another site's page asks.
    """
    site = headers.get(b"sec-fetch-site")
    if site is not None:
        follows_link = method in _SAFE and headers.get(b"sec-fetch-mode") == b"navigate"
        foreign = site not in _OWN and not follows_link
    else:
        # Browsers that send no Sec-Fetch-Site send Origin with all that changes anything.
        origin = headers.get(b"origin")
        foreign = origin is not None and not _same_host(origin, headers.get(b"host", b""))
    if foreign:
        raise CrossSite(
            "A browser sent this on behalf of another site's page, which this server does not "
            "serve; call it from the console, or from your own server with an API key."
        )


def host_name(host: str) -> str:
    """The name or address of a Host header, without its port."""
    host = host.lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.rpartition(":")[0] if host.count(":") == 1 else host


def _same_host(origin: bytes, host: bytes) -> bool:
    """Whether host and port of both are the same; a proxy may have taken TLS off in between."""
    scheme, found, authority = origin.decode("latin-1").lower().partition("://")
    port = _DEFAULT_PORTS.get(scheme)
    if not found or port is None:
        return False
    return authority.removesuffix(f":{port}") == host.decode("latin-1").lower().removesuffix(
        f":{port}"
    )

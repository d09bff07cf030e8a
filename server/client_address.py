"""Whose request it is when proxies stand between.

A proxy appends the address that it was called from to ``X-Forwarded-For``. What stands left of the
last entry of a proxy that is trusted can be invented by anyone: so the list is read from its right
end, through trusted proxies only, and the first address that is none of them is the client.
"""

from collections.abc import Iterable, Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address

from server.access_settings import Network

Address = IPv4Address | IPv6Address

_KEPT = 1024
_LONGEST = 2048
"""Bytes of X-Forwarded-For that are read, from its end; a chain of proxies is shorter."""

_CLIENT_PREFIX_BITS = 64
"""An IPv6 client has a whole network of this size: limits count that, not one address of it."""


class ClientAddresses:
    """Finds the client's address behind the proxies that are trusted."""

    def __init__(self, trusted: Sequence[Network]) -> None:
        self._trusted = tuple(trusted)
        self._client = lru_cache(_KEPT)(self._find)

    def client(self, peer: str | None, headers: Iterable[tuple[bytes, bytes]]) -> str:
        """Who sent a request, in a form to count by; ``-`` if nobody can say.

        Args:
            peer: the address at the other end of the connection.
            headers: the request's, names in lower case.
        """
        if not self._trusted:
            return self._client(peer or "", "")
        values = [value for name, value in headers if name == b"x-forwarded-for"]
        return self._client(peer or "", b",".join(values)[-_LONGEST:].decode("latin-1"))

    def is_trusted(self, peer: str | None) -> bool:
        """Whether this is the address of a proxy that is trusted."""
        address = parse_address(peer or "")
        return address is not None and self._trusts(address)

    def _find(self, peer: str, forwarded_for: str) -> str:
        found = parse_address(peer)
        if found is None:
            return "-"
        for entry in reversed(forwarded_for.split(",")):
            if not self._trusts(found):
                break
            further = parse_address(entry)
            if further is None:
                break  # nobody vouches for what stands left of this
            found = further
        return counted_as(found)

    def _trusts(self, address: Address) -> bool:
        return any(
            address in network for network in self._trusted if network.version == address.version
        )


def parse_address(text: str) -> Address | None:
    """An IP address as proxies write it: bare, ``1.2.3.4:567``, ``[::1]`` or ``[::1]:567``."""
    text = text.strip().strip('"')
    if text.startswith("["):
        text, closed, _ = text[1:].partition("]")
        if not closed:
            return None
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def counted_as(address: Address) -> str:
    """One name for all addresses that one client has."""
    if isinstance(address, IPv4Address):
        return str(address)
    kept = int(address) >> (128 - _CLIENT_PREFIX_BITS) << (128 - _CLIENT_PREFIX_BITS)
    return f"{IPv6Address(kept)}/{_CLIENT_PREFIX_BITS}"

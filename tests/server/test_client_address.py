"""Who is the client behind proxies: the rightmost address that is none of ours."""

from ipaddress import ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.client_address import ClientAddresses, parse_address

PROXIES = ClientAddresses([ip_network("10.0.0.0/8"), ip_network("fd00::/8")])


def forwarded(*values: str) -> list[tuple[bytes, bytes]]:
    """X-Forwarded-For headers, in their order."""
    return [(b"x-forwarded-for", value.encode("latin-1")) for value in values]


@pytest.mark.parametrize(
    ("peer", "headers", "client"),
    [
        ("10.0.0.1", ["203.0.113.7"], "203.0.113.7"),
        ("10.0.0.1", ["1.1.1.1, 203.0.113.7"], "203.0.113.7"),
        ("10.0.0.1", ["1.1.1.1, 203.0.113.7, 10.2.2.2"], "203.0.113.7"),
        ("10.0.0.1", ["1.1.1.1", "203.0.113.7"], "203.0.113.7"),
        ("10.0.0.1", ["203.0.113.7:5678"], "203.0.113.7"),
        ("10.0.0.1", ['"[2001:db8::1]:5678"'], "2001:db8::/64"),
        ("10.0.0.1", ["2001:db8::1"], "2001:db8::/64"),
        ("10.0.0.1", ["::ffff:203.0.113.7"], "203.0.113.7"),
        ("::ffff:10.0.0.1", ["203.0.113.7"], "203.0.113.7"),
        ("fd00::1", ["203.0.113.7"], "203.0.113.7"),
        ("10.0.0.1", ["10.9.9.9, 10.8.8.8"], "10.9.9.9"),
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", [""], "10.0.0.1"),
        ("10.0.0.1", ["1.1.1.1, unknown"], "10.0.0.1"),
        ("10.0.0.1", ["1.1.1.1, unknown, 10.2.2.2"], "10.2.2.2"),
        ("10.0.0.1", ["1.1.1.1, 203.0.113.7,"], "10.0.0.1"),
        ("203.0.113.9", ["1.1.1.1"], "203.0.113.9"),
        ("203.0.113.9", ["10.0.0.1"], "203.0.113.9"),
        ("2001:db8:0:1:2:3:4:5", [], "2001:db8:0:1::/64"),
        ("fe80::1%eth0", [], "fe80::/64"),
        (None, ["1.1.1.1"], "-"),
        ("unix:", ["1.1.1.1"], "-"),
    ],
)
def test_the_client_is_whom_the_last_trusted_hop_saw(
    peer: str | None, headers: list[str], client: str
) -> None:
    """Anything to the left of that can be invented, and is not looked at."""
    assert PROXIES.client(peer, forwarded(*headers)) == client


@given(invented=st.text(st.characters(max_codepoint=255), max_size=80))
def test_a_client_cannot_choose_its_name(invented: str) -> None:
    """Whatever it sends, the address that a trusted proxy appends decides."""
    assert PROXIES.client("10.0.0.1", forwarded(f"{invented},203.0.113.7")) == "203.0.113.7"
    assert PROXIES.client("198.51.100.1", forwarded(invented)) == "198.51.100.1"


def test_without_trusted_proxies_the_header_is_ignored() -> None:
    """By default nobody is believed."""
    assert ClientAddresses([]).client("127.0.0.1", forwarded("1.1.1.1")) == "127.0.0.1"
    assert not ClientAddresses([]).is_trusted("127.0.0.1")
    assert PROXIES.is_trusted("10.1.1.1") and not PROXIES.is_trusted("11.1.1.1")


@pytest.mark.parametrize(
    "text", ["", "[", "[::1", "1.2.3", "1.2.3.4.5", "::1::", "a:b", "01.1.1.1"]
)
def test_malformed_addresses_are_none(text: str) -> None:
    """And raise nothing."""
    assert parse_address(text) is None

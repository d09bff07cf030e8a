"""Foreign pages in a visitor's browser: what they send across sites, and names they rebind."""

import pytest

from server.cross_site import HostCheck, check_site
from server.errors import BadRequest, CrossSite, UnknownHost

CANNOT_BE_REBOUND = (
    *("127.0.0.1", "127.0.0.1:8000", "[::1]", "[::1]:8000", "localhost", "LOCALHOST:8000"),
    *("app.localhost:1", "192.0.2.5", "server", "server:8000", "test", "localhost."),
)
CAN_BE_REBOUND = (
    *("evil.example", "evil.example:8000", "127.0.0.1.evil.example", "localhost.evil.example"),
    *("evil.example.", "evil.localhost.example", "a.b", "xn--e1aybc.example"),
)


@pytest.mark.parametrize("host", CANNOT_BE_REBOUND)
def test_own_names_are_known(host: str) -> None:
    """Addresses, localhost, and names that no stranger can own."""
    HostCheck(None).require(host.encode())


@pytest.mark.parametrize("host", CAN_BE_REBOUND)
def test_names_that_a_stranger_can_own_are_not(host: str) -> None:
    """They could point here today and elsewhere tomorrow."""
    with pytest.raises(UnknownHost, match="TOCOM_ALLOWED_HOSTS"):
        HostCheck(None).require(host.encode())


def test_a_list_of_names_is_exact() -> None:
    """Only those on it, in any case and with any port; `*` allows all."""
    check = HostCheck(frozenset({"tocom.example"}))
    check.require(b"Tocom.Example:443")
    for host in (b"localhost", b"127.0.0.1", b"x.tocom.example", b"tocom.example.evil.example"):
        with pytest.raises(UnknownHost):
            check.require(host)
    HostCheck(frozenset({"*"})).require(b"evil.example")


@pytest.mark.parametrize("host", [None, b""])
def test_no_name_is_a_bad_request(host: bytes | None) -> None:
    """HTTP/1.1 wants one."""
    with pytest.raises(BadRequest):
        HostCheck(None).require(host)


def test_a_huge_name_is_not_remembered() -> None:
    """It is refused without being looked at."""
    with pytest.raises(UnknownHost):
        HostCheck(frozenset({"*"})).require(b"a" * 10_000)


def headers(**values: str) -> dict[bytes, bytes]:
    """Headers of a browser's request to localhost."""
    named = {name.replace("_", "-").encode(): text.encode() for name, text in values.items()}
    return {b"host": b"localhost:8000", **named}


ALLOWED = (
    ("PUT", headers()),
    ("PUT", headers(sec_fetch_site="same-origin", origin="http://localhost:8000")),
    ("GET", headers(sec_fetch_site="none", sec_fetch_mode="navigate")),
    ("GET", headers(sec_fetch_site="cross-site", sec_fetch_mode="navigate")),
    ("POST", headers(origin="http://localhost:8000")),
    ("POST", headers(origin="http://LocalHost:8000")),
    ("POST", {b"host": b"tocom.example", b"origin": b"https://tocom.example"}),
    ("POST", {b"host": b"tocom.example:443", b"origin": b"https://tocom.example"}),
)
REFUSED = (
    ("PUT", headers(sec_fetch_site="cross-site")),
    ("PUT", headers(sec_fetch_site="same-site", origin="http://localhost:3000")),
    ("POST", headers(sec_fetch_site="cross-site", sec_fetch_mode="no-cors")),
    ("POST", headers(sec_fetch_site="cross-site", sec_fetch_mode="navigate")),
    ("GET", headers(sec_fetch_site="cross-site", sec_fetch_mode="no-cors")),
    ("GET", headers(sec_fetch_site="cross-site", sec_fetch_mode="cors")),
    ("GET", headers(sec_fetch_site="nonsense")),
    ("PUT", headers(origin="http://evil.example")),
    ("PUT", headers(origin="http://localhost:3000")),
    ("PUT", headers(origin="http://localhost")),
    ("PUT", headers(origin="null")),
    ("PUT", headers(origin="file://")),
    ("PUT", headers(origin="")),
    ("OPTIONS", headers(origin="http://evil.example", access_control_request_method="PUT")),
)


@pytest.mark.parametrize(("method", "given"), ALLOWED)
def test_own_pages_links_and_programs_may(method: str, given: dict[bytes, bytes]) -> None:
    """The console, curl, and a link from anywhere."""
    check_site(method, given)


@pytest.mark.parametrize(("method", "given"), REFUSED)
def test_foreign_pages_may_not(method: str, given: dict[bytes, bytes]) -> None:
    """Neither change anything nor make work, nor ask whether they might."""
    with pytest.raises(CrossSite):
        check_site(method, given)

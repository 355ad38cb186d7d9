"""The client's address behind proxies that are trusted."""

from ipaddress import ip_network

import pytest

from proxy.web.client_address import client_address

TRUSTED = [ip_network("10.0.0.0/8"), ip_network("fd00::/8"), ip_network("192.0.2.1")]
SEEN = [
    ("10.0.0.1", "", "10.0.0.1"),
    ("10.0.0.1", "203.0.113.7", "203.0.113.7"),
    ("10.0.0.1", "1.1.1.1, 203.0.113.7", "203.0.113.7"),
    ("10.0.0.1", "1.1.1.1, 203.0.113.7, 192.0.2.1,10.9.9.9", "203.0.113.7"),
    ("10.0.0.1", "10.0.0.2, 10.0.0.3", "10.0.0.2"),
    ("203.0.113.9", "1.1.1.1", "203.0.113.9"),
    ("10.0.0.1", "1.1.1.1, unknown", "10.0.0.1"),
    ("10.0.0.1", "1.1.1.1, unknown, 10.0.0.5", "10.0.0.5"),
    ("10.0.0.1", "203.0.113.7:51234", "203.0.113.7"),
    ("10.0.0.1", "[2001:db8::7]:443", "2001:db8::7"),
    ("fd00::1", "2001:db8::7", "2001:db8::7"),
    ("10.0.0.1", "fe80::1%anything at all", "fe80::1"),
    ("::ffff:10.0.0.1", "::ffff:203.0.113.7", "203.0.113.7"),
    ("10.0.0.1", "x" * 10_000, "10.0.0.1"),
    ("10.0.0.1", "203.0.113.7" + ", 10.0.0.2" * 100, "10.0.0.2"),
]


@pytest.mark.parametrize(("peer", "forwarded", "found"), SEEN)
def test_the_client_is_the_right_most_who_is_no_proxy_of_ours(peer: str, forwarded: str, found: str) -> None:
    headers = [(b"x-forwarded-for", forwarded.encode())] if forwarded else []
    assert client_address({"client": (peer, 1), "headers": headers}, TRUSTED) == found
    assert client_address({"client": None, "headers": headers}, TRUSTED) == ""


def test_several_headers_are_one_list() -> None:
    headers = [(b"x-forwarded-for", b"1.1.1.1, 203.0.113.7"), (b"x-forwarded-for", b"10.0.0.2")]
    assert client_address({"client": ("10.0.0.1", 1), "headers": headers}, TRUSTED) == "203.0.113.7"

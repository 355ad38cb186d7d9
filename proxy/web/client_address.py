"""Address of a request's sender: the peer's, or as a proxy of our own says it."""

from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from proxy.web.asgi import Scope

Networks = Sequence[IPv4Network | IPv6Network]
MOST_HOPS = 32
IPV6_PREFIX = 64
"""Length of the prefix that one customer of a provider is given, and may choose addresses from."""


def client_address(scope: Scope, trusted: Networks) -> str:
    """Sender of a request: the peer, or whom a proxy that we trust names. "" where there is no peer.

    Each proxy appends to X-Forwarded-For who connected to it, so only the entries from the right are worth anything:
    the first that is no proxy of ours is the client, and whatever stands to its left the client may have made up.
    """
    peer = scope.get("client")
    address = _address(peer[0]) if peer else None
    if address is None:
        return str(peer[0]) if peer else ""
    named = (
        b",".join(value for key, value in scope["headers"] if key == b"x-forwarded-for").decode("latin-1").split(",")
    )
    for entry in reversed(named[-MOST_HOPS:]):
        if not any(address in network for network in trusted):
            break
        before = _address(entry.strip())
        if before is None:
            break
        address = before
    return str(address)


def _address(text: str) -> IPv4Address | IPv6Address | None:
    """Read an address as proxies write it: alone, with a port, in brackets; IPv4 also where it is mapped into IPv6."""
    bare = (
        text[1:].partition("]")[0] if text.startswith("[") else text.partition(":")[0] if text.count(":") == 1 else text
    )
    try:
        found = ip_address(bare.partition("%")[0])  # a zone may be any text
    except ValueError:
        return None
    return found.ipv4_mapped or found if isinstance(found, IPv6Address) else found


def network_of(address: str) -> str:
    """Name by which whoever has an address is counted: of IPv6 the network that he may choose addresses from."""
    if ":" not in address:
        return address
    return str(ip_network((int(ip_address(address)) >> (128 - IPV6_PREFIX) << (128 - IPV6_PREFIX), IPV6_PREFIX)))

"""Delivers notices over HTTP: to the URL of the configuration, and to endpoints that somebody registered.

What is registered through an API must not lead into our own network (SSRF): its host is looked up here, every address
that it has must be a public one, and the connection is made to the address that was looked at, under the name's
certificate. Redirects are not followed, and of an answer hardly more than its status is read.
"""

import asyncio
import ipaddress
import socket

import httpx

USER_AGENT = "tollkeeper-notices/1"
DELIVERY_SECONDS = 5.0
WHOLE_SECONDS = 10.0
"""For everything of one delivery: somebody who answers a byte at a time must not hold it."""
MOST_ANSWER_BYTES = 16_384
NOT_PUBLIC = "its address is not a public one"
EMBEDDED = (ipaddress.ip_network("64:ff9b::/96"), ipaddress.ip_network("2002::/16"), ipaddress.ip_network("2001::/32"))
"""Networks whose addresses lead to others that stand inside them."""


class Poster:
    """POSTs to one URL, or (guarded) to whatever URL it is told."""

    def __init__(self, url: str = "", *, guarded: bool = False) -> None:
        """`url`: of the operator's app. `guarded`: only https, only to public addresses, past no proxy of ours."""
        self._url, self._guarded = url, guarded
        self._client = httpx.AsyncClient(
            timeout=DELIVERY_SECONDS,
            follow_redirects=False,
            headers={"user-agent": USER_AGENT},
            trust_env=not guarded,
        )

    async def __call__(self, body: bytes, headers: dict[str, str]) -> str:
        """Deliver to the one URL; "" when it was taken, else why not."""
        return await self.post(self._url, body, headers)

    async def post(self, url: str, body: bytes, headers: dict[str, str]) -> str:
        """Deliver; "" when it was taken, else why not."""
        try:
            async with asyncio.timeout(WHOLE_SECONDS):
                target, more, extensions = httpx.URL(url), dict(headers), {}
                if self._guarded:
                    address = await public_address(target)
                    if address is None:
                        return NOT_PUBLIC
                    more["host"] = target.netloc.decode("ascii")
                    extensions = {"sni_hostname": target.host}
                    target = target.copy_with(host=address)
                return await self._send(target, body, more, extensions)
        except TimeoutError:
            return "no whole answer in time"
        except (httpx.HTTPError, httpx.InvalidURL, OSError, UnicodeError) as error:
            return f"{type(error).__name__}: no answer"

    async def _send(self, url: httpx.URL, body: bytes, headers: dict[str, str], extensions: dict[str, str]) -> str:
        async with self._client.stream("POST", url, content=body, headers=headers, extensions=extensions) as answer:
            read = 0
            async for part in answer.aiter_raw():  # so that the connection can be used again
                read += len(part)
                if read > MOST_ANSWER_BYTES:
                    break
            return "" if answer.is_success else f"status {answer.status_code}"

    async def close(self) -> None:
        """Close connections."""
        await self._client.aclose()


async def public_address(url: httpx.URL) -> str | None:
    """Return an address of the URL's host, if it is https and all that the host has are public. Raises OSError."""
    if url.scheme != "https" or not url.host:
        return None
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(url.host, url.port or 443, type=socket.SOCK_STREAM)
    addresses = [str(row[4][0]).partition("%")[0] for row in found]
    return addresses[0] if addresses and all(is_public(address) for address in addresses) else None


def is_public(text: str) -> bool:
    """Tell whether an address leads to the public internet, and nowhere else."""
    address = ipaddress.ip_address(text)
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return is_public(str(address.ipv4_mapped))
        if any(address in network for network in EMBEDDED):
            return False
    return address.is_global and not address.is_multicast

"""Where events may be sent: public addresses alone, no redirect, hardly anything read, nobody waited for for long."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from billing.jobs import notice_delivery
from billing.jobs.notice_delivery import NOT_PUBLIC, Poster, is_public, public_address

PRIVATE = (
    "127.0.0.1",
    "10.1.2.3",
    "172.16.0.1",
    "192.168.1.1",
    "169.254.169.254",
    "100.64.0.1",
    "0.0.0.0",
    "224.0.0.1",
    "255.255.255.255",
    "::1",
    "::",
    "fe80::1",
    "fc00::1",
    "::ffff:10.0.0.1",
    "64:ff9b::a00:1",
    "2002:a00:1::",
    "ff02::1",
)
PUBLIC = ("1.1.1.1", "93.184.215.14", "2606:4700:4700::1111", "::ffff:1.1.1.1")


@pytest.mark.parametrize(("address", "wanted"), [*((one, False) for one in PRIVATE), *((one, True) for one in PUBLIC)])
def test_an_address_is_public_or_leads_to_a_network_of_somebodys_own(address: str, wanted: bool) -> None:
    assert is_public(address) is wanted


@pytest.mark.parametrize(
    ("url", "found", "wanted"),
    [
        ("https://app.example.com/e", ["1.1.1.1"], "1.1.1.1"),
        ("https://app.example.com/e", ["1.1.1.1", "10.0.0.1"], None),
        ("https://app.example.com/e", [], None),
        ("http://app.example.com/e", ["1.1.1.1"], None),
        ("ftp://app.example.com/e", ["1.1.1.1"], None),
    ],
)
async def test_a_host_is_taken_when_all_its_addresses_are_public(
    url: str, found: list[str], wanted: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def getaddrinfo(*_: Any, **__: Any) -> list[Any]:
        return [(2, 1, 6, "", (address, 443)) for address in found]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)
    assert await public_address(httpx.URL(url)) == wanted


async def test_the_connection_is_made_to_the_address_that_was_looked_at_under_the_hosts_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A name that leads elsewhere at the second look (DNS rebinding) is not looked up a second time."""
    seen: list[httpx.Request] = []
    poster = Poster(guarded=True)

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(204, content=nothing())

    async def nothing() -> AsyncIterator[bytes]:
        yield b""

    async def getaddrinfo(*_: Any, **__: Any) -> list[Any]:
        return [(2, 1, 6, "", ("1.1.1.1", 443))]

    poster._client = httpx.AsyncClient(transport=httpx.MockTransport(answer))
    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)
    assert await poster.post("https://app.example.com:8443/e?a=1", b"{}", {}) == ""
    (request,) = seen
    assert str(request.url) == "https://1.1.1.1:8443/e?a=1"
    assert (request.headers["host"], request.extensions["sni_hostname"]) == ("app.example.com:8443", "app.example.com")


@asynccontextmanager
async def server(answer: bytes, *, more: bool = False) -> AsyncIterator[tuple[str, list[bytes]]]:
    """A server that answers every request with these bytes, and (more) goes on for ever; its URL, and what it was sent."""
    asked: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(answer)
        try:
            while more:
                writer.write(b"x" * 4_096)
                await writer.drain()
                await asyncio.sleep(0)
        except OSError:
            pass
        finally:
            writer.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    yield f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}/e", asked
    listening.close()


async def test_what_is_guarded_reaches_nothing_private_by_name_or_by_number() -> None:
    async with server(b"HTTP/1.1 204 No Content\r\n\r\n") as (url, asked):
        poster = Poster(guarded=True)
        for there in (
            url,
            url.replace("http://127.0.0.1", "https://127.0.0.1"),
            url.replace("http://127.0.0.1", "https://localhost"),
        ):
            assert await poster.post(there, b"{}", {}) == NOT_PUBLIC
        await poster.close()
        assert asked == []
        open_poster = Poster()
        assert await open_poster.post(url, b"{}", {}) == ""
        await open_poster.close()


async def test_a_redirect_is_an_answer_like_any_other() -> None:
    async with server(b"HTTP/1.1 307 Temporary Redirect\r\nlocation: /elsewhere\r\ncontent-length: 0\r\n\r\n") as (
        url,
        asked,
    ):
        poster = Poster()
        assert await poster.post(url, b"{}", {}) == "status 307"
        await poster.close()
        assert len(asked) == 1


async def test_an_endless_answer_is_not_read_to_its_end() -> None:
    async with server(b"HTTP/1.1 200 OK\r\n\r\n", more=True) as (url, _):
        poster = Poster()
        assert await asyncio.wait_for(poster.post(url, b"{}", {}), 5) == ""
        await poster.close()


async def test_who_says_nothing_is_not_waited_for_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notice_delivery, "WHOLE_SECONDS", 0.2)
    async with server(b"") as (url, _):
        poster = Poster()
        assert await poster.post(url, b"{}", {})
        await poster.close()


async def test_who_is_not_there_gives_no_answer() -> None:
    poster = Poster()
    assert "no answer" in await poster.post("http://127.0.0.1:9/e", b"{}", {})
    assert "no answer" in await poster.post("http://[/e", b"{}", {})
    await poster.close()

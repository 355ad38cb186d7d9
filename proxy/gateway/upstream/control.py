"""Clients for our own questions to upstreams, beside the data path."""

import contextlib
import ssl
from collections.abc import AsyncIterator, Callable, Mapping

import certifi
import httpx
import msgspec

from config.secrets import Secret
from config.settings import Settings, Upstream, UpstreamEntry
from config.upstreams import DEFAULT_NAME, entries_of

CONTROL_SECONDS = 20.0


class UpstreamGone(httpx.HTTPError):
    """An upstream that is not configured any more cannot be asked."""


def headers_for(entry: UpstreamEntry, key: Secret) -> dict[str, str]:
    """Return the headers that say to an upstream who we are."""
    found: dict[str, str] = {}
    if key:
        found |= {"api-key": key.reveal()} if entry.dialect == "azure" else {"Authorization": f"Bearer {key.reveal()}"}
    if entry.organization:
        found["OpenAI-Organization"] = entry.organization
    if entry.project:
        found["OpenAI-Project"] = entry.project
    return found


def control_client(settings: Upstream, headers: Mapping[str, str]) -> httpx.AsyncClient:
    """Make a client of the upstream at `settings.base_url`; `headers` say who we are."""
    verify = ssl.create_default_context(cafile=settings.ca_file or certifi.where())
    return httpx.AsyncClient(base_url=settings.base_url, headers=headers, verify=verify, timeout=CONTROL_SECONDS)


@contextlib.asynccontextmanager
async def opened_clients(
    settings: Settings, keys: Mapping[str, Secret]
) -> AsyncIterator[Callable[[str], httpx.AsyncClient]]:
    """Open a client of each upstream, found by its name in records: for commands, which have no connections."""
    entries = entries_of(settings)
    async with contextlib.AsyncExitStack() as stack:
        clients: dict[str, httpx.AsyncClient] = {}
        for entry in entries:
            there = msgspec.structs.replace(settings.upstream, base_url=entry.base_url)
            client = control_client(there, headers_for(entry, keys[entry.name]))
            clients[entry.name] = await stack.enter_async_context(client)

        def client_of(recorded: str) -> httpx.AsyncClient:
            client = clients.get(recorded or DEFAULT_NAME)
            if client is None:
                raise UpstreamGone(f"upstream {recorded!r} is not configured any more")
            return client

        yield client_of

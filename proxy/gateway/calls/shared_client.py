"""Answers that a browser hands to the page of another origin."""

from proxy.gateway.services import ClientSide

Headers = list[tuple[bytes, bytes]]


class SharedClient:
    """A client whose answers a page of another origin may read."""

    def __init__(self, client: ClientSide, shared: Headers) -> None:
        """Stand before `client`; `shared` are the headers that say who may read."""
        self._client, self._shared = client, shared

    async def read_body(self) -> bytes:
        """See ClientSide."""
        return await self._client.read_body()

    def let_go(self) -> None:
        """See ClientSide."""
        self._client.let_go()

    async def respond(self, status: int, headers: Headers, body: bytes) -> None:
        """See ClientSide."""
        await self._client.respond(status, [*headers, *self._shared], body)

    async def start(self, status: int, headers: Headers) -> None:
        """See ClientSide."""
        await self._client.start(status, [*headers, *self._shared])

    async def write(self, data: bytes, *, last: bool = False) -> None:
        """See ClientSide."""
        await self._client.write(data, last=last)

    def write_now(self, data: bytes) -> bool:
        """See ClientSide."""
        return self._client.write_now(data)

    @property
    def keeps_up(self) -> bool:
        """See ClientSide."""
        return self._client.keeps_up

    async def drained(self) -> None:
        """See ClientSide."""
        await self._client.drained()

    @property
    def started(self) -> bool:
        """See ClientSide."""
        return self._client.started

    def abort(self) -> None:
        """See ClientSide."""
        self._client.abort()

"""A Stripe simulator per test, with the official client, a plain HTTP client and a webhook receiver."""

import asyncio
import importlib.util
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

if importlib.util.find_spec("stripe") is None:
    collect_ignore_glob = ["test_*.py"]
else:
    import stripe

    from sandbox.stripe import Server, Settings, start
    from sandbox.stripe.account.settings import Webhook

    Client = stripe.StripeClient

KEY = "sk_test_sandbox"
SECRET = "whsec_of_the_tests"


class Receiver:
    """A webhook endpoint on raw sockets: keeps what it gets, and answers as told."""

    def __init__(self) -> None:
        self.requests: list[tuple[dict[str, str], bytes]] = []
        self.answers: list[int] = []
        """Statuses of the next answers; 200 afterwards; 0 closes without an answer."""
        self.delay_s = 0.0
        self.busy = self.busiest = 0
        self.url = ""

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/hooks"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
                headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:])}
                body = await reader.readexactly(int(headers["content-length"]))
                self.requests.append((headers, body))
                self.busy += 1
                self.busiest = max(self.busiest, self.busy)
                await asyncio.sleep(self.delay_s)
                self.busy -= 1
                status = self.answers.pop(0) if self.answers else 200
                if not status:
                    break
                writer.write(f"HTTP/1.1 {status} X\r\nlocation: /elsewhere\r\ncontent-length: 0\r\n\r\n".encode())
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def stop(self) -> None:
        self._server.close()

    @property
    def events(self) -> list[dict[str, Any]]:
        return [json.loads(body) for _, body in self.requests]

    @property
    def types(self) -> list[str]:
        return [event["type"] for event in self.events]


class Box:
    """A running simulator with its clients."""

    def __init__(self, server: "Server", http: httpx.AsyncClient, client: "Client", receiver: Receiver) -> None:
        self.server, self.http, self.client, self.v1, self.receiver = server, http, client, client.v1, receiver

    async def control(self, method: str, path: str, body: Any = None, *, status: int = 200) -> Any:
        answer = await self.http.request(method, f"/__stripe/{path}", json=body)
        assert answer.status_code == status, answer.text
        return answer.json()

    async def settings(self, **fields: Any) -> Any:
        return await self.control("PUT", "settings", fields)

    async def chaos(self, **fields: Any) -> Any:
        return await self.settings(delivery=fields)

    async def drain(self) -> None:
        assert (await self.control("POST", "drain", {"timeout_s": 20}))["drained"]

    async def record(self, **wanted: str) -> Any:
        return (await self.http.get("/__stripe/record", params=wanted)).json()

    async def session(self, amount: int = 999, **fields: Any) -> Any:
        price = {"currency": "usd", "unit_amount": amount, "product_data": {"name": "Credits"}}
        params: dict[str, Any] = {
            "mode": "payment",
            "success_url": "http://shop.example/done?session={CHECKOUT_SESSION_ID}",
            "cancel_url": "http://shop.example/cancelled",
            "line_items": [{"price_data": price, "quantity": 1}],
        }
        return await self.v1.checkout.sessions.create_async(params | fields)

    async def pay(self, session_id: str, *, status: int = 200, **fields: Any) -> Any:
        return await self.control("POST", f"sessions/{session_id}/pay", fields, status=status)

    async def paid(self, amount: int = 999, outcome: str = "succeed", **fields: Any) -> Any:
        """A session that has been paid, retrieved with its charge."""
        session = await self.session(amount, **fields)
        await self.pay(session.id, outcome=outcome)
        return await self.v1.checkout.sessions.retrieve_async(session.id, {"expand": ["payment_intent.latest_charge"]})

    async def types(self) -> list[str]:
        """All event types so far, oldest first."""
        events = await self.v1.events.list_async({"limit": 100})
        return [event.type for event in reversed(events.data)]

    async def raw(self, method: str, path: str, body: str = "", **headers: str) -> httpx.Response:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        named = {"authorization": f"Bearer {KEY}", "content-type": "application/x-www-form-urlencoded"} | named
        return await self.http.request(method, path, content=body, headers=named)


Boxes = Callable[..., Any]


@pytest_asyncio.fixture
async def receiver() -> AsyncIterator[Receiver]:
    made = Receiver()
    await made.start()
    yield made
    await made.stop()


@pytest.fixture
def settings(tmp_path: Path, receiver: Receiver) -> "Settings":
    """Settings of the simulator; a test module may override the fixture."""
    return Settings(record=tmp_path / "record.jsonl", webhooks=(Webhook(url=receiver.url, secret=SECRET),))


@pytest_asyncio.fixture
async def box(settings: "Settings", receiver: Receiver) -> AsyncIterator[Box]:
    """A running simulator."""
    server = await start(settings)
    client = stripe.StripeClient(
        KEY, base_addresses={"api": server.url}, http_client=stripe.HTTPXClient(timeout=5), max_network_retries=0
    )
    async with httpx.AsyncClient(base_url=server.url, trust_env=False, timeout=10) as http:
        yield Box(server, http, client, receiver)
    await client._requestor._client.close_async()
    await server.close()

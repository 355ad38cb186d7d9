"""Events onto the wire: signed, copied, delayed, dropped, retried and cut as the settings say."""

import asyncio
import contextlib
import hashlib
import hmac
import json
import random
import ssl
import time
from typing import Any, Final, Literal
from urllib.parse import urlsplit

import httpx
import msgspec

from sandbox.stripe.account.settings import Delivery, Signature
from sandbox.stripe.account.world import Obj, World, public
from sandbox.stripe.webhooks import endpoints

_BACK_OFF_S: Final = (60, 300, 1800, 7200, 18_000, 36_000, 43_200)
_POLL_S: Final = 0.005
_HEADERS: Final = {
    "accept": "*/*; q=0.5, application/xml",
    "cache-control": "no-cache",
    "content-type": "application/json; charset=utf-8",
    "user-agent": "Stripe/1.0 (+https://stripe.com/docs/webhooks)",
}


def signature_header(secrets: list[str], body: bytes, timestamp: int, kind: Signature = "valid") -> str | None:
    """`Stripe-Signature`: one v1 per secret, and the v0 of test mode that receivers must ignore."""
    if kind == "missing":
        return None
    if kind == "malformed":
        return "v1=00,t"
    used = ["whsec_not_the_secret"] if kind == "wrong_secret" else secrets
    payload = str(timestamp).encode() + b"." + body
    parts = [f"t={timestamp}"]
    if kind != "v0_only":
        parts += [f"v1={hmac.new(secret.encode(), payload, hashlib.sha256).hexdigest()}" for secret in used]
    parts.append(f"v0={hmac.new(b'v0', payload, hashlib.sha256).hexdigest()}")
    return ",".join(parts)


class Attempt(msgspec.Struct, kw_only=True):
    """One request."""

    at: float
    copy: int
    status: int | None = None
    error: str | None = None
    ms: float = 0.0


class Sending(msgspec.Struct, kw_only=True):
    """One event on its way to one endpoint."""

    event: str
    type: str
    endpoint: str
    url: str
    state: Literal["pending", "delivered", "failed", "dropped"] = "pending"
    copies: int = 1
    left: int = 1
    """Copies still under way."""
    attempts: list[Attempt] = []


class Deliveries:
    """Sender of every event to every endpoint that wants it."""

    def __init__(self, world: World) -> None:
        """Make the client; a loop must be running."""
        self._world = world
        self._client = httpx.AsyncClient(
            trust_env=False, follow_redirects=False, limits=httpx.Limits(max_connections=None)
        )
        self._tasks: set[asyncio.Task[None]] = set()
        self.sendings: list[Sending] = []
        self._number = 0
        self._resumed = asyncio.Event()
        self.settings_changed()

    def settings_changed(self) -> None:
        """Take over parallelism and pause from the settings."""
        live = self._world.live.delivery
        self._slots = asyncio.Semaphore(live.parallel)
        if live.paused:
            self._resumed.clear()
        else:
            self._resumed.set()

    @property
    def pending(self) -> int:
        """Copies still under way."""
        return len(self._tasks)

    async def drain(self, timeout_s: float) -> bool:
        """Wait until nothing is under way; returns whether that came to pass."""
        end = time.monotonic() + timeout_s
        while self.pending:
            if time.monotonic() > end:
                return False
            await asyncio.sleep(_POLL_S)
        return True

    async def close(self) -> None:
        """Give up all that is under way."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._client.aclose()

    # -- choosing --------------------------------------------------------------------------------

    def submit(self, event: Obj, only: str | None = None) -> None:
        """Send an event to the endpoints that want it, or once more to one of them."""
        endpoints = [found for found in self._world.objects["webhook_endpoint"].values() if _wants(found, event, only)]
        waiting = event.setdefault("_waiting", [])
        waiting += [endpoint["id"] for endpoint in endpoints if only is None and endpoint["id"] not in waiting]
        event["pending_webhooks"] = len(waiting)
        for endpoint in endpoints:
            self._start(event, endpoint)

    def _start(self, event: Obj, endpoint: Obj) -> None:
        live = self._world.live.delivery
        self._number += 1
        # Its own sequence per delivery: what happens to an event does not depend on how the others fare.
        rng = random.Random(f"{live.seed}:{self._number}")  # noqa: S311 - chaos is no secret
        dropped = rng.random() < live.drop
        copies = rng.randint(live.copies_min, live.copies_max)
        sending = Sending(
            event=event["id"],
            type=event["type"],
            endpoint=endpoint["id"],
            url=endpoint["url"],
            copies=copies,
            attempts=[],
        )
        self.sendings.append(sending)
        if dropped:
            sending.state, sending.left = "dropped", 0
            return
        sending.left = copies
        self._send_copies(sending, event, endpoint, rng)

    def _send_copies(self, sending: Sending, event: Obj, endpoint: Obj, rng: random.Random) -> None:
        live, body = self._world.live.delivery, public(event)
        for copy in range(sending.copies - sending.left, sending.copies):
            delay_s = (live.delay_ms + rng.uniform(0, live.shuffle_ms)) / 1000
            self._spawn(self._deliver(sending, event, body, endpoint, copy, delay_s, random.Random(rng.random())))  # noqa: S311

    def resume(self, sendings: list[Sending]) -> None:
        """Send anew the events that were under way when a former simulator was stopped."""
        self.sendings, self._number = sendings, len(sendings)
        for sending in sendings:
            event = self._world.objects["event"].get(sending.event)
            endpoint = self._world.objects["webhook_endpoint"].get(sending.endpoint)
            if sending.state != "pending":
                sending.left = 0
            elif event is None or endpoint is None:
                sending.state, sending.left = "failed", 0
            else:
                sending.url = endpoint["url"]
                self._send_copies(sending, event, endpoint, random.Random(f"{sending.event}:{sending.endpoint}"))  # noqa: S311

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # -- sending ---------------------------------------------------------------------------------

    async def _deliver(
        self, sending: Sending, event: Obj, body: Obj, endpoint: Obj, copy: int, delay_s: float, rng: random.Random
    ) -> None:
        try:
            await asyncio.sleep(delay_s)
            arrived = await self._until_accepted(sending, body, endpoint, copy, rng)
        finally:
            sending.left -= 1
        if arrived and sending.state != "delivered":
            sending.state = "delivered"
            event["_waiting"] = [other for other in event["_waiting"] if other != endpoint["id"]]
            event["pending_webhooks"] = len(event["_waiting"])
        elif sending.left == 0 and sending.state == "pending":
            sending.state = "failed"

    async def _until_accepted(self, sending: Sending, body: Obj, endpoint: Obj, copy: int, rng: random.Random) -> bool:
        number = 0
        while True:
            await self._resumed.wait()
            live = self._world.live.delivery
            async with self._slots:
                attempt = await self._attempt(live, body, endpoint, copy, cut=rng.random() < live.cut)
            sending.attempts.append(attempt)
            self._world.changed = True
            number += 1
            if attempt.status is not None and attempt.status // 100 == 2:
                return True
            if number >= live.max_attempts or endpoint["id"] not in self._world.objects["webhook_endpoint"]:
                return False
            await asyncio.sleep(_BACK_OFF_S[min(number, len(_BACK_OFF_S)) - 1] * live.retry_scale)

    async def _attempt(self, live: Delivery, body: Obj, endpoint: Obj, copy: int, *, cut: bool) -> Attempt:
        shown = dict(body)
        version = live.api_version or endpoint["api_version"]
        if version is not None:
            shown["api_version"] = version
        if live.livemode is not None:
            shown["livemode"] = live.livemode
        raw = json.dumps(shown, indent=2).encode()
        secrets = endpoints.secrets_of(self._world, endpoint)
        return await self.send(endpoint["url"], raw, secrets, live, copy, cut=cut)

    async def send(
        self, url: str, raw: bytes, secrets: list[str], live: Delivery, copy: int = 0, *, cut: bool = False
    ) -> Attempt:
        """Send one signed request, signed with the true time: the simulator's clock may be elsewhere."""
        signature = signature_header(secrets, raw, int(time.time()) + live.timestamp_offset_s, live.signature)
        headers = _HEADERS | ({} if signature is None else {"stripe-signature": signature})
        attempt, began = Attempt(at=time.time(), copy=copy), time.perf_counter()
        try:
            async with asyncio.timeout(live.timeout_s):
                if cut:
                    await _send_and_cut(url, raw, headers, live.cut_after_ms / 1000)
                    attempt.error = "cut by the sandbox"
                else:
                    attempt.status = (
                        await self._client.post(url, content=raw, headers=headers, timeout=live.timeout_s)
                    ).status_code
        except (TimeoutError, httpx.HTTPError, OSError) as error:
            attempt.error = f"{type(error).__name__}: {error}"
        attempt.ms = round((time.perf_counter() - began) * 1000, 2)
        return attempt


def _wants(endpoint: Obj, event: Obj, only: str | None) -> bool:
    if only is not None:
        return bool(endpoint["id"] == only)
    names = endpoint["enabled_events"]
    return endpoint["status"] == "enabled" and ("*" in names or event["type"] in names)


async def _send_and_cut(url: str, raw: bytes, headers: dict[str, str], wait_s: float) -> None:
    """Hand the whole request to the receiver, and be gone before its answer."""
    parts = urlsplit(url)
    secure = parts.scheme == "https"
    context: ssl.SSLContext | None = ssl.create_default_context() if secure else None
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port or (443 if secure else 80), ssl=context)
    del reader
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    lines = [f"POST {target} HTTP/1.1", f"host: {parts.netloc}", f"content-length: {len(raw)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    writer.write("\r\n".join([*lines, "", ""]).encode() + raw)
    with contextlib.suppress(ConnectionError):
        await writer.drain()
        await asyncio.sleep(wait_s)
    writer.close()
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        await writer.wait_closed()

"""FakeStripe over HTTP, for Stripe's real library: just the calls that billing/payments/stripe/gateway.py makes.

Where the simulator of sandbox/stripe is richer, this is small enough to read and fast enough for a storm.
"""

import asyncio
import contextlib
import re
import socket
import threading
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qsl

import msgspec
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from billing.money.errors import StripeRefused
from billing.payments.stripe.gateway import Declined, Order
from billing.payments.stripe.objects import OWN_ID, Intent
from tests.support.fake_stripe import FakeStripe


def parse_form(raw: str) -> dict[str, Any]:
    """a[b][0][c]=1 → {"a": {"b": {"0": {"c": "1"}}}}; lists stay dicts by index."""
    found: dict[str, Any] = {}
    for name, value in parse_qsl(raw, keep_blank_values=True):
        keys = re.findall(r"[^\[\]]+", name)
        place = found
        for key in keys[:-1]:
            place = place.setdefault(key, {})
        place[keys[-1]] = value
    return found


def as_json(value: Any, kind: str) -> Any:
    return {"object": kind, **msgspec.to_builtins(value)} if isinstance(value, msgspec.Struct) else value


class FakeServer:
    """Routes of api.stripe.com over a FakeStripe. `requests` remembers (method, path, form, headers)."""

    def __init__(self, stripe: FakeStripe) -> None:
        self.stripe = stripe
        self.requests: list[tuple[str, str, dict[str, Any], dict[str, str]]] = []
        self.break_next = 0
        self.slow_seconds = 0.0

    def app(self) -> Starlette:
        return Starlette(routes=[Route("/v1/{path:path}", self.answer, methods=["GET", "POST", "DELETE"])])

    async def answer(self, request: Request) -> Response:
        form = parse_form((await request.body()).decode() if request.method == "POST" else request.url.query)
        path = request.path_params["path"]
        self.requests.append((request.method, path, form, dict(request.headers)))
        await asyncio.sleep(self.slow_seconds)
        if self.break_next:
            self.break_next -= 1
            return self.reply({"error": {"type": "api_error", "message": "broken"}}, 500)
        if request.headers.get("authorization") != "Bearer sk_test_1":
            return self.reply(
                {"error": {"type": "invalid_request_error", "message": "Invalid API Key provided: sk_****"}}, 401
            )
        try:
            return await (self.post(path, form, request) if request.method == "POST" else self.get(path, form))
        except StripeRefused as refused:
            return self.reply(
                {"error": {"type": "idempotency_error", "code": refused.code, "message": "other parameters"}},
                refused.status,
            )

    async def post(self, path: str, form: dict[str, Any], request: Request) -> Response:
        key = request.headers.get("idempotency-key", "")
        if path == "customers":
            return self.reply(
                {
                    "object": "customer",
                    "id": await self.stripe.create_customer(form["metadata"]["tollkeeper_account"], "", key),
                }
            )
        if path == "billing_portal/sessions":
            return self.reply(
                {
                    "object": "billing_portal.session",
                    "url": await self.stripe.portal_url(form["customer"], form["return_url"]),
                }
            )
        if path == "checkout/sessions":
            line = form["line_items"]["0"]
            data = line["price_data"]
            order = Order(
                form["client_reference_id"],
                key,
                form["customer"],
                data["currency"],
                int(data["unit_amount"]),
                data["product_data"]["name"],
            )
            save = form["payment_intent_data"].get("setup_future_usage") == "off_session"
            pages = {"success_url": form["success_url"], "cancel_url": form["cancel_url"]}
            return self.reply(
                as_json(
                    await self.stripe.create_session(order, save_method=save, tax="automatic_tax" in form, **pages),
                    "checkout.session",
                )
            )
        if path == "payment_intents":
            order = Order(
                form["metadata"][OWN_ID],
                key,
                form["customer"],
                form["currency"],
                int(form["amount"]),
                form["description"],
            )
            assert (form["off_session"], form["confirm"]) == ("true", "true")
            answer = await self.stripe.charge_saved_method(order, form["payment_method"])
            if isinstance(answer, Declined):
                error = {
                    "type": "card_error",
                    "code": answer.code,
                    "message": answer.message,
                    "payment_intent": {"id": answer.intent_id, "object": "payment_intent"},
                }
                return self.reply({"error": error}, 402)
            return self.reply(as_json(answer, "payment_intent"))
        return self.reply({"error": {"type": "invalid_request_error", "message": "no such path"}}, 404)

    async def get(self, path: str, form: dict[str, Any]) -> Response:
        kinds: dict[str, tuple[str, Any, Any]] = {
            "checkout/sessions": ("checkout.session", self.stripe.session, self.stripe.sessions),
            "payment_intents": ("payment_intent", self.stripe.intent, self.stripe.intents),
            "refunds": ("refund", self.stripe.refund, self.stripe.refunds),
            "disputes": ("dispute", self.stripe.dispute, self.stripe.disputes),
            "charges": ("charge", self.stripe.charge, None),
        }
        if path == "events":
            since, types = int(form["created"]["gte"]), set(form["types"].values())
            rows = [
                {"object": "event", **msgspec.json.decode(payload)}
                async for _, payload in self.stripe.events(since, types)
            ]
            return self.reply(self.page(rows, form, path))
        name, _, object_id = path.rpartition("/")
        if path in kinds:
            kind, _, listing = kinds[path]
            filters: dict[str, Any] = {
                key: value for key, value in form.items() if key not in ("limit", "starting_after", "created")
            }
            if "created" in form:
                filters["created"] = {key: int(value) for key, value in form["created"].items()}
            return self.reply(self.page([as_json(row, kind) async for row in listing(**filters)], form, path))
        kind, one, _ = kinds[name]
        found = await one(object_id)
        if found is None:
            return self.reply(
                {"error": {"type": "invalid_request_error", "code": "resource_missing", "message": f"No such {kind}"}},
                404,
            )
        shown = as_json(found, kind)
        if isinstance(found, Intent) and "expand" not in form:
            shown["latest_charge"] = shown["latest_charge"]["id"]
        return self.reply(shown)

    @staticmethod
    def page(rows: list[Any], form: dict[str, Any], path: str) -> dict[str, Any]:
        rows.reverse()  # newest first, as Stripe lists
        if "starting_after" in form:
            rows = rows[[row["id"] for row in rows].index(form["starting_after"]) + 1 :]
        limit = int(form.get("limit", 10))
        return {"object": "list", "url": f"/v1/{path}", "data": rows[:limit], "has_more": len(rows) > limit}

    @staticmethod
    def reply(value: Any, status: int = 200) -> Response:
        return Response(msgspec.json.encode(value), status, media_type="application/json")


@contextlib.contextmanager
def serve_fake(stripe: FakeStripe) -> Iterator[tuple[FakeServer, str]]:
    """The server on a thread of its own, and its URL."""
    fake = FakeServer(stripe)
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(fake.app(), log_config=None, lifespan="off", access_log=False, ws="none")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        yield fake, f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)
        listener.close()

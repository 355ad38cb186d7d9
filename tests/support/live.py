"""The product as it is launched: two workers on Redis and PostgreSQL, beside OpenAI's and Stripe's simulators."""

import asyncio
import json
import re
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

import asyncpg

from billing.payments.stripe.event_types import API_VERSION, KINDS
from tests.support import web
from tests.support.servers import ROOT, RedisServer, Sandbox, Tollkeeper

SECRET = "whsec_launch"
PACKAGES = json.dumps(
    [
        {"code": "starter", "usd": "9.99"},
        {"code": "plus", "usd": "49.99", "bonus_percent": "5"},
        {"code": "pro", "usd": "99.99", "bonus_percent": "10"},
    ]
)


@dataclass
class Live:
    """The product and the worlds around it."""

    server: Tollkeeper
    sandbox: Sandbox
    redis: RedisServer
    bank: str
    postgres: str

    def control(self, what: str, method: str = "POST", **body: Any) -> Any:
        answer = web.request(method, f"{self.bank}/__stripe/{what}", json=body, timeout=40)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def endpoint(self) -> str:
        """Make the webhook endpoint as docs/stripe.md says: its id."""
        about = {"secret": SECRET, "enabled_events": list(KINDS), "api_version": API_VERSION}
        return str(self.control("endpoints", url=f"{self.server.url}/webhooks/stripe", **about)["id"])

    def sql(self, *statements: str) -> None:
        run_sql(self.postgres, *statements)


def run_sql(url: str, *statements: str) -> None:
    async def run() -> None:
        connection = await asyncpg.connect(url.replace("postgresql+asyncpg://", "postgresql://"))
        try:
            for statement in statements:
                await connection.execute(statement)
        finally:
            await connection.close()

    asyncio.run(run())


def start_bank(*flags: str) -> tuple[str, "subprocess.Popen[bytes]"]:
    """Stripe's simulator as a process: its URL."""
    process = subprocess.Popen([sys.executable, "-m", "sandbox.stripe", *flags], cwd=ROOT, stdout=subprocess.PIPE)
    assert process.stdout is not None
    found = re.search(rb"http://\S+", process.stdout.readline())
    assert found is not None
    return found[0].decode(), process


def stripe_environment(bank: str) -> dict[str, str]:
    return {
        "STRIPE_API_KEY": "sk_test_sandbox",
        "STRIPE_WEBHOOK_SECRET": SECRET,
        "TOLLKEEPER_STRIPE__API_BASE": bank,
        "TOLLKEEPER_STRIPE__SUCCESS_URL": "https://app.test/ok?s={CHECKOUT_SESSION_ID}",
        "TOLLKEEPER_STRIPE__CANCEL_URL": "https://app.test/no",
        "TOLLKEEPER_STRIPE__MAX_CHECKOUTS_PER_HOUR": "0",
        "TOLLKEEPER_PACKAGES": PACKAGES,
    }


def control(bank: str, what: str, method: str = "POST", **body: Any) -> Any:
    answer = web.request(method, f"{bank}/__stripe/{what}", json=body, timeout=40)
    assert answer.status_code == 200, answer.text
    return answer.json()

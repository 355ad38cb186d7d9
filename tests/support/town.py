"""A served product whose Stripe is the fake of fake_stripe_server.py."""

import json
import time
from dataclasses import dataclass
from typing import Any

from billing.payments.stripe.signatures import sign
from tests.support import web
from tests.support.customers import Customer
from tests.support.fake_stripe import FakeStripe
from tests.support.fake_stripe_server import FakeServer
from tests.support.servers import Tollkeeper

SECRET = "whsec_e2e"


PACKAGES = json.dumps([{"code": "starter", "usd": "9.99"}, {"code": "pro", "usd": "99.99", "bonus_percent": "10"}])


NOTICES = "0123456789abcdef"


@dataclass
class Town:
    """A served Tollkeeper and its Stripe."""

    server: Tollkeeper
    stripe: FakeStripe
    fake: FakeServer
    notices: list[tuple[bytes, str]]
    delivered: int = 0

    def deliver(self) -> None:
        for _, payload in self.stripe.events_made[self.delivered :]:
            answer = web.post(
                f"{self.server.url}/webhooks/stripe",
                content=payload,
                headers={"stripe-signature": sign(payload, SECRET, int(time.time()))},
            )
            assert answer.status_code == 200, answer.text
        self.delivered = len(self.stripe.events_made)

    def buy(self, customer: Customer, code: str = "starter", **more: Any) -> dict[str, Any]:
        answer = web.post(
            f"{self.server.url}/api/billing/checkout",
            json={"packageCode": code, **more},
            headers=customer.headers,
            timeout=20,
        )
        assert answer.status_code == 201, answer.text
        found: dict[str, Any] = answer.json()
        return found


def environment(api_base: str, notices_url: str) -> dict[str, str]:
    return {
        "STRIPE_API_KEY": "sk_test_1",
        "STRIPE_WEBHOOK_SECRET": SECRET,
        "NOTICES_SECRET": NOTICES,
        "TOLLKEEPER_STRIPE__API_BASE": api_base,
        "TOLLKEEPER_STRIPE__SUCCESS_URL": "https://app.test/ok?s={CHECKOUT_SESSION_ID}",
        "TOLLKEEPER_STRIPE__CANCEL_URL": "https://app.test/no",
        "TOLLKEEPER_NOTICES__URL": notices_url,
        "TOLLKEEPER_NOTICES__LOW_BALANCE_CREDITS": "100",
        "TOLLKEEPER_BILLING__AUTO_RECHARGE": "true",
        "TOLLKEEPER_PACKAGES": PACKAGES,
    }

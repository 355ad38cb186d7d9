"""Payment pages while Stripe fails, is busy or refuses our key: the way on, the words, and one line in the log."""

import json
from typing import Any

import httpx
import pytest

from tests.support import web
from tests.support.bank import Bank, bought, checkout, purchase_of
from tests.support.customers import new_customer
from tests.support.servers import Tollkeeper


def ask(shop: Tollkeeper, headers: dict[str, str]) -> httpx.Response:
    url = f"{shop.url}/api/billing/checkout"
    return web.post(url, json={"packageCode": "starter"}, headers=headers, timeout=40)


@pytest.mark.parametrize(
    "failure",
    [
        {"kind": "status", "status": 500, "path": "/customers$", "after": True, "saved": True},
        {"kind": "status", "status": 500, "path": "/checkout/sessions$", "after": True, "saved": True},
        {"kind": "status", "status": 429, "path": "/customers$"},
        {"kind": "status", "status": 429, "path": "/checkout/sessions$", "count": 2},
        {"kind": "status", "status": 429, "path": "/payment_intents$"},
    ],
    ids=lambda failure: f"{failure['status']} of {failure['path'].strip('/$')}",
)
def test_one_failure_keeps_nobody_from_buying(bank: Bank, shop: Tollkeeper, failure: dict[str, Any]) -> None:
    """Not for the day that Stripe keeps it: within two clicks a page is there, and paid once."""
    customer = new_customer(shop, 0)
    bank.control("faults", **failure, method="POST")
    if ask(shop, customer.headers).status_code != 201:
        assert ask(shop, customer.headers).status_code == 201
    web.delete(f"{bank.url}/__stripe/faults", timeout=10).raise_for_status()
    bought(bank, customer)
    customer.wait_balance(9_990_000, 10)


def test_a_key_that_stripe_refuses_is_told_in_words_and_logged_once(bank: Bank, shop: Tollkeeper) -> None:
    customer = new_customer(shop, 0)
    page = checkout(customer)
    refusal = {"kind": "status", "status": 401, "path": "/v1/", "count": 50}
    bank.control("faults", **refusal, method="POST")
    answer = ask(shop, customer.headers | {"x-request-id": "the click"})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (503, "checkout_failed")
    assert "payment page cannot be opened right now. Nothing was charged" in error["message"]
    lines = [json.loads(line) for line in shop.log().splitlines() if customer.account_id in line]
    errors = [line for line in lines if line.get("level") == "error"]
    assert len(errors) == 1, lines
    assert "does not accept STRIPE_API_KEY" in json.dumps(errors[0])
    assert purchase_of(customer, page["id"])["state"] == "open"

"""A company buys with its VAT id, gets Stripe's invoice, and its saved card is recharged with the tax on top: the whole
product beside Stripe's simulator, whose own record says what came in."""

from collections.abc import Callable

from tests.support import web
from tests.support.bank import SECRET, Bank, bank_environment, checkout, purchase_of
from tests.support.customers import acting_for, new_customer
from tests.support.openapi import fits
from tests.support.servers import Tollkeeper, wait_until

MORE = {
    "TOLLKEEPER_STRIPE__AUTOMATIC_TAX": "true",
    "TOLLKEEPER_STRIPE__TAX_CODE": "txcd_10103001",
    "TOLLKEEPER_STRIPE__INVOICES": "true",
    "TOLLKEEPER_STRIPE__COLLECT_COMPANY": "true",
    "TOLLKEEPER_STRIPE__COLLECT_ADDRESS": "true",
}
COMPANY = {"business_name": "Acme GmbH", "tax_id": "DE123456789", "country": "DE", "postal_code": "10115"}
INVOICE = "/api/billing/purchases/{purchase_id}/invoice"


def test_tax_and_invoices(bank: Bank, make_tollkeeper: Callable[..., Tollkeeper]) -> None:
    server = make_tollkeeper(**bank_environment(bank), **MORE).start()
    bank.control("endpoints", url=f"{server.url}/webhooks/stripe", secret=SECRET)
    bank.settings(tax_permille=190)
    customer = new_customer(server, 0)
    page = checkout(customer, "starter", savePaymentMethod=True)
    bank.control(f"sessions/{page['sessionId']}/pay", **COMPANY)
    bank.drain()
    wait_until(lambda: purchase_of(customer, page["id"])["state"] == "credited", 10, "it is credited")
    bought = purchase_of(customer, page["id"])
    assert (bought["priceCents"], bought["taxCents"]) == (999, 190)
    customer.wait_balance(9_990_000, 5)
    gone = web.get(f"{server.url}{bought['invoicePath']}", headers=customer.headers, timeout=20)
    assert gone.status_code == 303
    invoice = web.get(gone.headers["location"], timeout=20).text
    for words in ("Acme GmbH DE123456789", "$1.90", "$11.89"):
        assert words in invoice
    no = web.get(f"{server.url}/api/billing/purchases/pur_none/invoice", headers=customer.headers, timeout=20)
    assert (no.status_code, fits(no, INVOICE)["error"]["code"]) == (404, "purchase_not_found")

    path, acting = "/api/billing/auto-recharge", acting_for(customer)
    wish = {"enabled": True, "thresholdMillicredits": "9990000", "packageCode": "starter", "consent": True}
    wish |= {"monthlyCeilingCents": 5_000, "priceCents": 999, "millicredits": "9990000"}
    untold = web.put(server.url + path, json=wish, headers=acting, timeout=20)
    assert (untold.status_code, fits(untold, path)["error"]["code"]) == (409, "price_changed")
    told = web.put(server.url + path, json={**wish, "taxOnTop": True}, headers=acting, timeout=20)
    assert fits(told, path)["taxOnTop"] is True
    assert customer.chat(max_tokens=5).status_code == 200

    def recharged() -> bool:
        bank.drain()
        return len([one for one in bank.record()["records"] if one["kind"] == "paid"]) == 2

    wait_until(recharged, 20, "the card is charged")
    first, second = (one for one in bank.record()["records"] if one["kind"] == "paid")
    assert [(one["amount"], one["tax"]) for one in (first, second)] == [(1_189, 190), (1_189, 190)]
    assert second["session"] is None
    wait_until(lambda: customer.balance() > 9_990_000, 10, "its credits are there")
    purchases = web.get(f"{server.url}/api/billing/purchases", headers=customer.headers, timeout=20).json()["data"]
    auto = next(one for one in purchases if one["origin"] == "auto")
    assert (auto["priceCents"], auto["taxCents"], auto["millicredits"]) == (999, 190, "9990000")
    back = server.cli("purchases", "refund", auto["id"], "--reason", "test")
    assert back["refundedCents"] == 1_189
    bank.drain()
    assert server.cli("reconcile", code=None)["findings"] == []

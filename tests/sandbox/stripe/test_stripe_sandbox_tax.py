"""Tax and invoices: what pages collect, calculations that payments name, what is booked of them, and the record."""

from typing import Any

import pytest
import stripe

from tests.sandbox.stripe.conftest import Box

pytestmark = pytest.mark.asyncio
COMPANY = {"business_name": "Acme GmbH", "tax_id": "DE123456789", "country": "DE", "postal_code": "10115"}
ASKED: dict[str, Any] = {
    "tax_id_collection": {"enabled": True},
    "billing_address_collection": "required",
    "automatic_tax": {"enabled": True},
    "invoice_creation": {"enabled": True},
    "customer_update": {"name": "auto", "address": "auto"},
}


async def company(box: Box) -> Any:
    """A customer that has bought for a company, with the tax that a page computes."""
    await box.settings(tax_permille=190)
    customer = await box.v1.customers.create_async({"name": "somebody"})
    session = await box.session(1000, customer=customer.id, **ASKED)
    await box.pay(session.id, **COMPANY)
    return customer, await box.v1.checkout.sessions.retrieve_async(session.id)


async def off_session(box: Box, customer: str, cents: int, calculation: str) -> Any:
    method = await box.v1.payment_methods.create_async({"type": "card", "card": {"token": "tok_visa"}})
    await box.v1.payment_methods.attach_async(method.id, {"customer": customer})
    params: Any = {"amount": cents, "currency": "usd", "customer": customer, "payment_method": method.id}
    params |= {"off_session": True, "confirm": True, "hooks": {"inputs": {"tax": {"calculation": calculation}}}}
    return await box.v1.payment_intents.create_async(params)


async def calculated(box: Box, customer: str, amount: int = 1000) -> Any:
    line: Any = {"amount": amount, "reference": "pur_1", "tax_behavior": "exclusive"}
    return await box.v1.tax.calculations.create_async({"currency": "usd", "customer": customer, "line_items": [line]})


async def test_a_page_collects_a_company_and_makes_a_numbered_invoice(box: Box) -> None:
    customer, session = await company(box)
    assert (session.amount_subtotal, session.amount_total) == (1000, 1190)
    details = session.customer_details
    assert (details.business_name, details.tax_ids[0].value) == ("Acme GmbH", "DE123456789")
    kept = await box.v1.customers.retrieve_async(customer.id)
    assert (kept.name, kept.address.country) == ("Acme GmbH", "DE")
    invoice = await box.v1.invoices.retrieve_async(session.invoice)
    assert (invoice.status, invoice.total, invoice.total_excluding_tax) == ("paid", 1190, 1000)
    assert invoice.number == f"{kept.invoice_prefix}-0001"
    page = await box.http.get(invoice.hosted_invoice_url)
    assert "Acme GmbH DE123456789" in page.text
    assert "invoice.paid" in await box.types()
    again = await box.session(1000, customer=customer.id, **ASKED)
    await box.pay(again.id, **COMPANY)
    second = await box.v1.checkout.sessions.retrieve_async(again.id, {"expand": ["invoice"]})
    assert second.invoice.number.endswith("-0002")
    plain = await box.paid(500)
    assert plain.invoice is None


async def test_a_page_that_may_not_keep_what_it_asks_for_is_refused(box: Box) -> None:
    customer = await box.v1.customers.create_async({"name": "somebody"})
    for asked in (
        {"customer": customer.id, "tax_id_collection": {"enabled": True}},
        {"customer": customer.id, "automatic_tax": {"enabled": True}},
        {"customer_update": {"name": "auto"}},
    ):
        with pytest.raises(stripe.InvalidRequestError):
            await box.session(1000, **asked)


async def test_a_payment_that_names_a_calculation_has_its_tax_booked_and_booked_back(box: Box) -> None:
    customer, _ = await company(box)
    made = await calculated(box, customer.id)
    assert (made.amount_total, made.tax_amount_exclusive) == (1190, 190)
    intent = await off_session(box, customer.id, made.amount_total, made.id)
    assert (intent.status, intent.hooks.inputs.tax.calculation) == ("succeeded", made.id)
    refund = await box.v1.refunds.create_async({"payment_intent": intent.id, "amount": 595})
    found = await box.v1.tax.associations.find_async({"payment_intent": intent.id})
    assert [(one.source, one.status) for one in found.tax_transaction_attempts] == [
        (intent.id, "committed"),
        (refund.id, "committed"),
    ]
    booked = await box.v1.tax.transactions.retrieve_async(found.tax_transaction_attempts[0].committed.transaction)
    assert (booked.type, booked.reference) == ("transaction", intent.id)
    paid = [entry for entry in (await box.record())["records"] if entry["kind"] == "paid"]
    assert [entry["tax"] for entry in paid] == [190, 190]
    again = await off_session(box, customer.id, made.amount_total, made.id)
    second = await box.v1.tax.associations.find_async({"payment_intent": again.id})
    assert second.tax_transaction_attempts[0].errored.reason == "another_payment_associated_with_calculation"


async def test_a_calculation_needs_to_know_where_the_customer_is(box: Box) -> None:
    customer = await box.v1.customers.create_async({"name": "somebody"})
    with pytest.raises(stripe.InvalidRequestError) as refused:
        await calculated(box, customer.id)
    assert refused.value.code == "customer_tax_location_invalid"
    with pytest.raises(stripe.InvalidRequestError):
        await off_session(box, customer.id, 1000, "taxcalc_none")

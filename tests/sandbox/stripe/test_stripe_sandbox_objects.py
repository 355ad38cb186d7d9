"""Every object through the official client: its shape, its lists, its parameters."""

import base64
import json
from typing import Any

import pytest
import stripe
from stripe import _api_version

from sandbox.stripe.account.settings import API_VERSION
from tests.sandbox.stripe.conftest import KEY, Box
from tests.sandbox.stripe.stripe_sandbox_shapes import faults


def as_json(found: Any) -> dict[str, Any]:
    return json.loads(str(found))


def test_the_shapes_are_those_of_the_version_the_library_pins() -> None:
    assert _api_version._ApiVersion.CURRENT == API_VERSION


async def customer_with_card(box: Box, alias: str = "pm_card_visa") -> tuple[Any, Any]:
    customer = await box.v1.customers.create_async({"email": "a@example.com"})
    method = await box.v1.payment_methods.attach_async(alias, {"customer": customer.id})
    return customer, method


async def every_object(box: Box) -> dict[str, Any]:
    """One or more of each kind, in states that fill many fields."""
    v1 = box.v1
    customer, method = await customer_with_card(box)
    product = await v1.products.create_async(
        {"name": "P", "default_price_data": {"currency": "usd", "unit_amount": 4999}}
    )
    await v1.prices.create_async(
        {"product": product.id, "currency": "usd", "unit_amount": 100, "recurring": {"interval": "month"}}
    )
    await v1.payment_intents.create_async({"amount": 1000, "currency": "usd"})
    await v1.payment_intents.create_async(
        {
            "amount": 1000,
            "currency": "usd",
            "customer": customer.id,
            "payment_method": method.id,
            "off_session": True,
            "confirm": True,
        }
    )
    await v1.setup_intents.create_async({"customer": customer.id})
    await v1.setup_intents.create_async(
        {"payment_method": "pm_card_authenticationRequired", "confirm": True, "return_url": "http://x.example/"}
    )
    for outcome in (
        "succeed",
        "authenticate",
        "dispute",
        "inquiry",
        "refund_fails",
        "refund_pending",
        "delay",
        "delay_fail",
    ):
        await box.paid(2000, outcome)
    await box.pay((await box.session()).id, outcome="decline", status=402)
    await box.pay((await box.session()).id, outcome="authenticate_wait")
    await v1.checkout.sessions.expire_async((await box.session()).id)
    kept: Any = {"address": "auto"}
    taxed = await box.session(
        automatic_tax={"enabled": True}, client_reference_id="ref", customer=customer.id, customer_update=kept
    )
    await box.pay(taxed.id, discount=100, presentment={"presentment_amount": 950, "presentment_currency": "eur"})
    await box.v1.checkout.sessions.create_async(
        {"mode": "setup", "success_url": "http://x.example/", "currency": "usd"}
    )
    await box.control("POST", "settle", {})
    for charge in (await v1.charges.list_async({"limit": 100})).data:
        if charge.status == "succeeded" and not charge.disputed:
            await v1.refunds.create_async({"charge": charge.id, "amount": 500})
    for dispute in (await v1.disputes.list_async({})).data:
        await v1.disputes.update_async(dispute.id, {"evidence": {"uncategorized_text": "winning_evidence"}})
    await v1.billing_portal.sessions.create_async({"customer": customer.id, "return_url": "http://x.example/"})
    return {"customer": customer}


LISTS = {
    "checkout.session": lambda v1: v1.checkout.sessions,
    "customer": lambda v1: v1.customers,
    "payment_intent": lambda v1: v1.payment_intents,
    "charge": lambda v1: v1.charges,
    "refund": lambda v1: v1.refunds,
    "dispute": lambda v1: v1.disputes,
    "balance_transaction": lambda v1: v1.balance_transactions,
    "setup_intent": lambda v1: v1.setup_intents,
    "event": lambda v1: v1.events,
    "webhook_endpoint": lambda v1: v1.webhook_endpoints,
    "product": lambda v1: v1.products,
    "price": lambda v1: v1.prices,
}


async def test_every_object_has_the_fields_and_types_the_library_states(box: Box) -> None:
    await box.settings(tax_permille=80, async_delay_s=None)
    made = await every_object(box)
    shown = []
    for kind, service in LISTS.items():
        listed = await service(box.v1).list_async({"limit": 100})
        shown += [as_json(item) for item in listed.data]
        assert listed.data, kind
        assert listed.url.startswith("/v1/")
        same = await service(box.v1).retrieve_async(listed.data[0].id)
        assert same.id == listed.data[0].id
        assert same.object == kind
    methods = await box.v1.customers.payment_methods.list_async(made["customer"].id)
    shown += [as_json(item) for item in methods.data]
    shown += [as_json(await box.v1.accounts.retrieve_current_async()), as_json(await box.v1.balance.retrieve_async())]
    session = await box.session()
    shown += [as_json(item) for item in (await box.v1.checkout.sessions.line_items.list_async(session.id)).data]
    shown += [event["data"]["object"] for event in shown if event["object"] == "event"]
    complaints = {fault for item in shown for fault in faults(item)}
    assert complaints == set()
    assert {item["object"] for item in shown} >= set(LISTS) | {"payment_method", "item", "account", "balance"}
    assert not any(item.get("livemode") for item in shown)


PREFIXES = {
    "checkout.session": "cs_test_",
    "customer": "cus_",
    "payment_intent": "pi_",
    "charge": ("ch_", "py_"),
    "refund": "re_",
    "dispute": "du_",
    "balance_transaction": "txn_",
    "setup_intent": "seti_",
    "event": "evt_",
    "webhook_endpoint": "we_",
    "product": "prod_",
    "price": "price_",
}


async def test_ids_have_stripes_prefixes_and_events_are_of_known_types(box: Box) -> None:
    await every_object(box)
    for kind, prefix in PREFIXES.items():
        for item in (await LISTS[kind](box.v1).list_async({"limit": 100})).data:
            assert item.id.startswith(prefix)


async def test_lists_are_paged_newest_first_in_both_directions(box: Box) -> None:
    made = [(await box.v1.customers.create_async({"email": f"{number}@example.com"})).id for number in range(7)]
    first = await box.v1.customers.list_async({"limit": 3})
    assert [item.id for item in first.data] == made[:3:-1]
    assert first.has_more
    assert [item.id async for item in first.auto_paging_iter()] == made[::-1]
    before = await box.v1.customers.list_async({"ending_before": made[0], "limit": 2})
    assert [item.id for item in before.data] == [made[2], made[1]]
    assert before.has_more
    last = await box.v1.customers.list_async({"starting_after": made[1], "limit": 1})
    assert [item.id for item in last.data] == [made[0]]
    assert not last.has_more
    assert (await box.v1.customers.list_async({"email": "3@example.com"})).data[0].id == made[3]
    with pytest.raises(stripe.InvalidRequestError, match="No such"):
        await box.v1.customers.list_async({"starting_after": "cus_unknown"})


async def test_events_are_filtered_by_type_time_and_delivery_and_vanish_after_30_days(box: Box) -> None:
    await box.paid()
    await box.drain()
    events = box.v1.events
    assert {e.type for e in (await events.list_async({"type": "charge.*"})).data} == {
        "charge.succeeded",
        "charge.updated",
    }
    both = await events.list_async({"types": ["charge.succeeded", "price.created"]})
    assert {e.type for e in both.data} == {"charge.succeeded", "price.created"}
    assert len((await events.list_async({"delivery_success": True})).data) == len(
        (await events.list_async({"limit": 100})).data
    )
    box.receiver.answers = [500] * 99
    await box.chaos(max_attempts=1)
    await box.v1.customers.create_async({})
    await box.drain()
    failed = await events.list_async({"delivery_success": False})
    assert [e.type for e in failed.data] == ["customer.created"]
    known = failed.data[0]
    assert known.pending_webhooks == 1
    await box.control("PUT", "clock", {"advance_s": 3600})
    later = await box.v1.customers.create_async({})
    assert [e.data.object["id"] for e in (await events.list_async({"created": {"gt": known.created}})).data] == [
        later.id
    ]
    await box.control("PUT", "clock", {"advance_s": 30 * 86_400 + 2})
    assert (await events.list_async({})).data == []
    with pytest.raises(stripe.InvalidRequestError):
        await events.retrieve_async(known.id)


async def test_expand_replaces_ids_by_objects_to_any_useful_depth(box: Box) -> None:
    paid = await box.paid(customer_creation="always")
    paths = [
        "line_items",
        "customer",
        "payment_intent.latest_charge.balance_transaction",
        "payment_intent.payment_method",
    ]
    session = await box.v1.checkout.sessions.retrieve_async(paid.id, {"expand": paths})
    assert session.line_items.data[0].amount_total == 999
    assert session.customer.object == "customer"
    assert session.payment_intent.latest_charge.balance_transaction.fee == 59
    assert session.payment_intent.payment_method.card.last4 == "4242"
    await box.v1.refunds.create_async({"payment_intent": session.payment_intent.id, "amount": 1})
    charges = await box.v1.charges.list_async({"expand": ["data.refunds", "data.payment_intent"]})
    assert charges.data[0].refunds.data[0].amount == 1
    assert charges.data[0].payment_intent.id == session.payment_intent.id
    with pytest.raises(stripe.InvalidRequestError, match="cannot be expanded"):
        await box.v1.charges.list_async({"expand": ["data.currency"]})


async def test_receipts_customers_and_portals(box: Box) -> None:
    paid = await box.paid()
    receipt = await box.http.get(paid.payment_intent.latest_charge.receipt_url)
    assert "9.99 USD" in receipt.text
    customer, method = await customer_with_card(box)
    fields = {"invoice_settings": {"default_payment_method": method.id}, "metadata": {"a": "1", "b": "2"}}
    changed = await box.v1.customers.update_async(customer.id, fields)
    assert changed.invoice_settings.default_payment_method == method.id
    assert (await box.v1.customers.update_async(customer.id, {"metadata": {"a": ""}})).metadata.to_dict() == {"b": "2"}
    portal = await box.v1.billing_portal.sessions.create_async({"customer": customer.id})
    assert "4242" in (await box.http.get(portal.url)).text
    assert (await box.http.post(portal.url, data={"remove": method.id})).status_code == 303
    assert (await box.v1.payment_methods.retrieve_async(method.id)).customer is None
    with pytest.raises(stripe.InvalidRequestError, match="may not be used again"):
        await box.v1.payment_methods.attach_async(method.id, {"customer": customer.id})
    assert (await box.v1.customers.delete_async(customer.id)).deleted
    assert (await box.v1.customers.retrieve_async(customer.id)).deleted
    assert "payment_method.detached" in await box.types()


# -- parameters ------------------------------------------------------------------------------------

PRICE = "line_items[0][price_data][currency]=usd&line_items[0][price_data][product_data][name]=x"
SESSION = f"mode=payment&success_url=http://x.example/&{PRICE}&line_items[0][price_data][unit_amount]=999&line_items[0][quantity]=1"
BAD = [
    ("checkout/sessions", f"{SESSION}&nonsense=1", "parameter_unknown", "nonsense"),
    (
        "checkout/sessions",
        f"{SESSION}&line_items[0][price_data][amount]=1",
        "parameter_unknown",
        "line_items[0][price_data][amount]",
    ),
    ("checkout/sessions", f"{SESSION}&api_key=x", "parameter_unknown", "api_key"),
    ("checkout/sessions", SESSION.replace("unit_amount]=999", "unit_amount]=9.99"), "parameter_invalid_integer", None),
    ("checkout/sessions", SESSION.replace("unit_amount]=999", "unit_amount]=10"), "amount_too_small", None),
    ("checkout/sessions", "mode=payment&success_url=http://x.example/", "parameter_missing", "line_items"),
    ("checkout/sessions", SESSION.replace("success_url", "cancel_url"), "parameter_missing", "success_url"),
    (
        "checkout/sessions",
        SESSION.replace("&line_items[0][quantity]=1", ""),
        "parameter_missing",
        "line_items[0][quantity]",
    ),
    (
        "checkout/sessions",
        SESSION.replace(
            "&line_items[0][price_data][product_data][name]=x",
            "&line_items[0][price_data][product_data][description]=x",
        ),
        "parameter_missing",
        "line_items[0][price_data][product_data][name]",
    ),
    ("checkout/sessions", SESSION.replace("mode=payment", "mode=gift"), None, "mode"),
    ("checkout/sessions", SESSION.replace("http://x.example/", "javascript:x"), "url_invalid", "success_url"),
    ("checkout/sessions", f"{SESSION}&customer=cus_no", "resource_missing", "customer"),
    ("checkout/sessions", f"{SESSION}&expires_at=1000", None, "expires_at"),
    ("checkout/sessions", f"{SESSION}&automatic_tax[enabled]=maybe", None, "automatic_tax[enabled]"),
    ("checkout/sessions", f"{SESSION}&metadata=x", None, "metadata"),
    ("checkout/sessions", f"{SESSION}&metadata[k]={'v' * 501}", None, "metadata[k]"),
    (
        "checkout/sessions",
        f"{SESSION}&payment_method_types[]=card",
        "payment_method_types_no_longer_supported",
        "payment_method_types",
    ),
    ("payment_intents", "currency=usd", "parameter_missing", "amount"),
    ("payment_intents", "amount=12x&currency=usd", "parameter_invalid_integer", "amount"),
    ("payment_intents", "amount=49&currency=usd", "amount_too_small", "amount"),
    ("payment_intents", "amount=100000000&currency=usd", "amount_too_large", "amount"),
    ("payment_intents", "amount=500&currency=usd&confirm=true&payment_method=pm_card_visa", None, "return_url"),
    ("payment_intents", "amount=500&currency=usd&off_session=true", None, "off_session"),
    ("payment_methods/pm_card_visa/attach", "", "parameter_missing", "customer"),
    ("refunds", "amount=1", "parameter_missing", None),
    ("refunds", "charge=ch_no", "resource_missing", "charge"),
    ("customers", "email[]=x", None, "email"),
    ("webhook_endpoints", "url=http://x.example/", "parameter_missing", "enabled_events"),
    ("webhook_endpoints", "url=http://x.example/&enabled_events[]=nonsense", None, "enabled_events[0]"),
]


async def test_bad_parameters_are_refused_in_stripes_words(box: Box) -> None:
    for path, body, code, param in BAD:
        answer = await box.raw("POST", f"/v1/{path}", body)
        assert answer.status_code == 400, answer.text
        error = answer.json()["error"]
        assert error["type"] == "invalid_request_error"
        assert (error.get("code"), error.get("param") if param else None) == (code, param), error
        assert error["request_log_url"].startswith("https://dashboard.stripe.com/")
    assert (await box.v1.checkout.sessions.list_async({})).data == []


async def test_an_older_version_still_takes_payment_method_types(box: Box) -> None:
    answer = await box.raw(
        "POST", "/v1/checkout/sessions", f"{SESSION}&payment_method_types[]=card", stripe_version="2026-08-26.dahlia"
    )
    assert answer.json()["payment_method_types"] == ["card"]
    assert answer.headers["stripe-version"] == "2026-08-26.dahlia"


async def test_allowed_and_excluded_payment_methods(box: Box) -> None:
    assert (await box.session()).payment_method_types == ["card", "us_bank_account"]
    assert (await box.session(excluded_payment_method_types=["us_bank_account"])).payment_method_types == ["card"]
    only_card = await box.session(allowed_payment_method_types=["card", "sepa_debit"])
    assert only_card.payment_method_types == ["card"]
    assert only_card.allowed_payment_method_types == ["card", "sepa_debit"]
    await box.pay(only_card.id, outcome="delay", status=400)


async def test_arrays_with_and_without_indices_and_basic_auth(box: Box) -> None:
    one, two = (f"line_items[][price_data][{rest}" for rest in ("currency]=usd", "unit_amount]=500"))
    item = f"{one}&{two}&line_items[][price_data][product_data][name]=x&line_items[][quantity]=1"
    basic = base64.b64encode(f"{KEY}:".encode()).decode()
    body = f"mode=payment&success_url=http://x.example/&{item}&{item}&expand[]=line_items"
    answer = await box.raw("POST", "/v1/checkout/sessions", body, authorization=f"Basic {basic}")
    assert answer.json()["amount_total"] == 1000
    assert len(answer.json()["line_items"]["data"]) == 2


@pytest.mark.parametrize(
    ("headers", "status", "words"),
    [
        ({"authorization": ""}, 401, "You did not provide an API key"),
        ({"authorization": "Bearer sk_test_wrong_key_0000"}, 401, "Invalid API Key provided: sk_test_"),
        ({"authorization": "Basic !!!"}, 401, "You did not provide an API key"),
        ({"stripe_version": "latest"}, 400, "Invalid Stripe API version"),
    ],
)
async def test_keys_and_versions(box: Box, headers: dict[str, str], status: int, words: str) -> None:
    answer = await box.raw("GET", "/v1/balance", **headers)
    assert answer.status_code == status
    assert words in answer.json()["error"]["message"]
    assert answer.headers["request-id"].startswith("req_")


async def test_unknown_paths_and_ids(box: Box) -> None:
    assert "Unrecognized request URL" in (await box.raw("GET", "/v1/nothing")).json()["error"]["message"]
    for kind, service in LISTS.items():
        with pytest.raises(stripe.InvalidRequestError) as caught:
            await service(box.v1).retrieve_async("nothing_123")
        assert (caught.value.http_status, caught.value.code) == (404, "resource_missing"), kind

"""Money: payments of every outcome, off-session, refunds, disputes; and the record that states it all."""

import json
from pathlib import Path
from typing import Any

import pytest
import stripe

from tests.sandbox.stripe.conftest import Box

pytestmark = pytest.mark.asyncio


async def net_balance(box: Box) -> int:
    shown = await box.v1.balance.retrieve_async()
    return sum(row.amount for row in [*shown.available, *shown.pending])


async def test_the_record_agrees_with_the_balance_after_everything_that_can_happen(box: Box, tmp_path: Path) -> None:
    await box.settings(refund_delay_s=0.0)
    plain = await box.paid(9999)
    for part in (1, 333, 9665):
        await box.v1.refunds.create_async({"payment_intent": plain.payment_intent.id, "amount": part})
    failing = await box.paid(4999, "refund_fails")
    await box.v1.refunds.create_async({"payment_intent": failing.payment_intent.id})
    for verdict in ("won", "lost"):
        disputed = await box.paid(999, "dispute")
        dispute = (await box.v1.disputes.list_async({"payment_intent": disputed.payment_intent.id})).data[0]
        await box.control("POST", f"disputes/{dispute.id}", {"action": verdict})
    await box.paid(999, "delay_fail")
    await box.control("POST", "settle", {})
    shown = await box.record()
    kinds = [entry["kind"] for entry in shown["records"]]
    assert kinds == [
        *("paid", "refunded", "refunded", "refunded", "paid", "refunded", "refund_failed"),
        *("paid", "disputed", "dispute_won", "paid", "disputed", "dispute_lost"),
    ]
    assert shown["totals"]["net"] == await net_balance(box)
    assert shown["totals"]["held"] == 4999 + 999
    transactions = await box.v1.balance_transactions.list_async({"limit": 100})
    assert sum(item.net for item in transactions.data) == shown["totals"]["net"]
    assert sum(item.fee for item in transactions.data) == shown["totals"]["fees"]
    one = await box.record(payment_intent=plain.payment_intent.id)
    assert one["payments"][plain.payment_intent.id] | {"fees": 320} == one["payments"][plain.payment_intent.id]
    assert (one["totals"]["paid"], one["totals"]["refunded"]) == (9999, 9999)
    assert all(entry["session"] == plain.id for entry in one["records"])
    lines = [json.loads(line) for line in (tmp_path / "record.jsonl").read_text().splitlines()]
    assert lines == shown["records"]
    assert (await box.record(since="12"))["records"] == shown["records"][12:]


DECLINES = [
    ("decline", "card_declined", "generic_decline"),
    ("insufficient_funds", "card_declined", "insufficient_funds"),
    ("expired_card", "expired_card", "expired_card"),
    ("authenticate_fail", "payment_intent_authentication_failure", None),
]


@pytest.mark.parametrize(("outcome", "code", "decline_code"), DECLINES)
async def test_a_declined_payment_leaves_the_session_open_for_another_try(
    box: Box, outcome: str, code: str, decline_code: str | None
) -> None:
    session = await box.session()
    refusal = await box.pay(session.id, outcome=outcome, status=402)
    assert (refusal["error"]["code"], refusal["error"].get("decline_code")) == (code, decline_code)
    again = await box.v1.checkout.sessions.retrieve_async(session.id, {"expand": ["payment_intent"]})
    assert (again.status, again.payment_status) == ("open", "unpaid")
    assert again.payment_intent.status == "requires_payment_method"
    assert again.payment_intent.last_payment_error.code == code
    await box.pay(session.id)
    assert [entry["amount"] for entry in (await box.record())["records"]] == [999]
    types = await box.types()
    assert types.count("payment_intent.payment_failed") == 1
    assert types.count("payment_intent.created") == 1
    assert types[-4:] == [
        "charge.succeeded",
        "payment_intent.succeeded",
        "checkout.session.completed",
        "charge.updated",
    ]


async def test_the_charge_gets_its_balance_transaction_after_charge_succeeded(box: Box) -> None:
    await box.settings(balance_delay_s=3600)
    paid = await box.paid()
    assert paid.payment_intent.latest_charge.balance_transaction is None
    await box.control("PUT", "clock", {"advance_s": 3600})
    charge = await box.v1.charges.retrieve_async(paid.payment_intent.latest_charge.id)
    assert charge.balance_transaction.startswith("txn_")
    updated = (await box.v1.events.list_async({"type": "charge.updated"})).data[0]
    assert updated.data.previous_attributes.to_dict() == {"balance_transaction": None}


async def test_a_bank_debit_completes_unpaid_and_arrives_or_fails_later(box: Box) -> None:
    await box.settings(async_delay_s=None)
    for fail, kind, status in (("", "succeeded", "paid"), ("bank_insufficient_funds", "failed", "unpaid")):
        session = await box.session()
        shown = await box.pay(session.id, outcome="delay")
        assert (shown["status"], shown["payment_status"]) == ("complete", "unpaid")
        completed = (await box.v1.events.list_async({"type": "checkout.session.completed"})).data[0]
        assert completed.data.object["payment_status"] == "unpaid"
        before = len((await box.record())["records"])
        assert (await box.control("POST", "settle", {"session": session.id, "fail": fail}))["settled"]
        assert (await box.types())[-1 - (not fail)] == f"checkout.session.async_payment_{kind}"
        assert (await box.v1.checkout.sessions.retrieve_async(session.id)).payment_status == status
        assert len((await box.record())["records"]) == before + (not fail)


async def test_bank_debits_settle_by_themselves_when_the_clock_moves_on(box: Box) -> None:
    await box.settings(async_delay_s=4 * 86_400)
    session = await box.session()
    await box.pay(session.id, outcome="delay")
    await box.control("PUT", "clock", {"advance_s": 4 * 86_400})
    assert (await box.v1.checkout.sessions.retrieve_async(session.id)).payment_status == "paid"


async def test_sessions_expire_by_call_and_by_time(box: Box) -> None:
    early, late, paid = await box.session(), await box.session(), await box.paid()
    await box.pay(early.id, outcome="decline", status=402)
    expired = await box.v1.checkout.sessions.expire_async(early.id)
    assert (expired.status, expired.url) == ("expired", None)
    assert (await box.v1.payment_intents.retrieve_async(expired.payment_intent)).status == "canceled"
    await box.control("PUT", "clock", {"advance_s": 86_400})
    assert (await box.v1.checkout.sessions.retrieve_async(late.id)).status == "expired"
    assert (await box.v1.checkout.sessions.retrieve_async(paid.id)).status == "complete"
    assert (await box.types()).count("checkout.session.expired") == 2
    for gone in (early, late, paid):
        with pytest.raises(stripe.InvalidRequestError, match="can be expired"):
            await box.v1.checkout.sessions.expire_async(gone.id)
        await box.pay(gone.id, status=400)


TAMPERED: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"session_fields": {"amount_total": 1}}, {"amount_total": 1, "amount_subtotal": 999}),
    ({"session_fields": {"currency": "jpy"}}, {"currency": "jpy"}),
    ({"session_fields": {"payment_status": "unpaid"}}, {"payment_status": "unpaid"}),
    ({"session_fields": {"metadata": {"user": "other"}}}, {"metadata": {"user": "other"}}),
    ({"event_fields": {"amount_total": 999_900}}, {"amount_total": 999}),
    ({"discount": 499}, {"amount_total": 500, "payment_status": "paid"}),
    ({"discount": 999}, {"amount_total": 0, "payment_status": "no_payment_required", "payment_intent": None}),
    ({"charge_amount": 50}, {"amount_total": 999, "payment_status": "paid"}),
    (
        {"presentment": {"presentment_amount": 950, "presentment_currency": "eur"}},
        {"currency": "usd", "amount_total": 999},
    ),
]


@pytest.mark.parametrize(("how", "shown"), TAMPERED)
async def test_a_session_may_lie_but_the_record_does_not(box: Box, how: dict[str, Any], shown: dict[str, Any]) -> None:
    session = await box.session()
    await box.pay(session.id, **how)
    found = json.loads(str(await box.v1.checkout.sessions.retrieve_async(session.id)))
    assert {name: found[name] for name in shown} == shown
    told = (await box.v1.events.list_async({"type": "checkout.session.completed"})).data[0].data.object.to_dict()
    assert {name: told[name] for name in shown} == shown | how.get("event_fields", {})
    charged = how.get("charge_amount", 999 - how.get("discount", 0))
    assert [entry["amount"] for entry in (await box.record())["records"]] == ([charged] if charged else [])


# -- off-session -----------------------------------------------------------------------------------


async def saved_card(box: Box, outcome: str = "succeed") -> tuple[str, str]:
    """A customer and the payment method that a checkout with setup_future_usage has saved."""
    data = {"setup_future_usage": "off_session"}
    paid = await box.paid(999, outcome, customer_creation="always", payment_intent_data=data)
    methods = await box.v1.customers.payment_methods.list_async(paid.customer)
    return paid.customer, methods.data[0].id


async def recharge(box: Box, customer: str, method: str, **fields: Any) -> Any:
    params = {
        "amount": 4999,
        "currency": "usd",
        "customer": customer,
        "payment_method": method,
        "off_session": True,
        "confirm": True,
    }
    return await box.v1.payment_intents.create_async({**params, "metadata": {"auto": "1"}} | fields)


@pytest.mark.parametrize("outcome", ["succeed", "authenticate"])
async def test_a_card_saved_at_checkout_is_charged_off_session(box: Box, outcome: str) -> None:
    customer, method = await saved_card(box, outcome)
    intent = await recharge(box, customer, method)
    assert (intent.status, intent.amount_received) == ("succeeded", 4999)
    entry = (await box.record())["records"][-1]
    assert (entry["payment_intent"], entry["session"], entry["metadata"]) == (intent.id, None, {"auto": "1"})


OFF_SESSION = [
    ("decline_later", "card_declined", "generic_decline"),
    ("authenticate_always", "authentication_required", "authentication_required"),
]
ALIASES = {"decline_later": "pm_card_chargeCustomerFail", "authenticate_always": "pm_card_authenticationRequired"}


@pytest.mark.parametrize(("outcome", "code", "decline_code"), OFF_SESSION)
async def test_off_session_refusals_are_card_errors_with_the_intent_in_them(
    box: Box, outcome: str, code: str, decline_code: str
) -> None:
    customer = await box.v1.customers.create_async({})
    method = await box.v1.payment_methods.attach_async(ALIASES[outcome], {"customer": customer.id})
    with pytest.raises(stripe.CardError) as caught:
        await recharge(box, customer.id, method.id)
    assert (caught.value.http_status, caught.value.code) == (402, code)
    error = caught.value.error
    assert (error.decline_code, error.payment_intent.status) == (decline_code, "requires_payment_method")
    kept = await box.v1.payment_intents.retrieve_async(error.payment_intent.id)
    assert kept.last_payment_error.payment_method.id == method.id
    assert (await box.record())["records"] == []


async def test_a_good_card_goes_bad_and_well_again_by_control(box: Box) -> None:
    customer, method = await saved_card(box)
    await box.control("POST", f"payment_methods/{method}", {"decline": "insufficient_funds"})
    with pytest.raises(stripe.CardError, match="insufficient funds"):
        await recharge(box, customer, method)
    await box.control("POST", f"payment_methods/{method}", {"decline": "", "new_card": True})
    assert (await recharge(box, customer, method)).status == "succeeded"
    await box.control("POST", f"payment_methods/{method}", {"detach": True})
    with pytest.raises(stripe.InvalidRequestError, match="may not be used again"):
        await recharge(box, customer, method)
    types = await box.types()
    assert "payment_method.automatically_updated" in types
    assert "payment_method.detached" in types


async def test_intents_that_cannot_be_charged(box: Box) -> None:
    customer, method = await saved_card(box)
    other = await box.v1.customers.create_async({})
    with pytest.raises(stripe.InvalidRequestError, match="must be attached to the customer"):
        await recharge(box, other.id, method)
    with pytest.raises(stripe.CardError, match="declined"):
        await box.v1.payment_methods.attach_async("pm_card_chargeDeclined", {"customer": customer})
    open_intent = await box.v1.payment_intents.create_async({"amount": 500, "currency": "usd", "customer": customer})
    canceled = await box.v1.payment_intents.cancel_async(open_intent.id, {"cancellation_reason": "abandoned"})
    assert (canceled.status, canceled.cancellation_reason) == ("canceled", "abandoned")
    done = await recharge(box, customer, method)
    with pytest.raises(stripe.InvalidRequestError, match="status of succeeded"):
        await box.v1.payment_intents.cancel_async(done.id)
    listed = await box.v1.payment_intents.list_async({"customer": customer})
    assert {intent.status for intent in listed.data} == {"succeeded", "canceled"}


async def test_on_session_authentication_by_the_page_of_next_action(box: Box) -> None:
    params = {"amount": 500, "currency": "usd", "confirm": True, "payment_method": "pm_card_authenticationRequired"}
    intent = await box.v1.payment_intents.create_async({**params, "return_url": "http://shop.example/back"})
    assert intent.status == "requires_action"
    page = await box.http.get(intent.next_action.redirect_to_url.url)
    assert "requires authentication" in page.text
    back = await box.http.post(intent.next_action.redirect_to_url.url, data={"result": "pass"})
    assert back.headers["location"] == "http://shop.example/back"
    assert (await box.v1.payment_intents.retrieve_async(intent.id)).status == "succeeded"


async def test_setup_intents_save_cards_for_later(box: Box) -> None:
    customer = await box.v1.customers.create_async({})
    base = {"customer": customer.id, "confirm": True, "return_url": "http://x.example/"}
    done = await box.v1.setup_intents.create_async({**base, "payment_method": "pm_card_visa"})
    assert done.status == "succeeded"
    waiting = await box.v1.setup_intents.create_async(
        {**base, "payment_method": "pm_card_authenticationRequiredOnSetup"}
    )
    assert waiting.status == "requires_action"
    await box.control("POST", "authenticate", {"intent": waiting.id})
    method = (await box.v1.setup_intents.retrieve_async(waiting.id)).payment_method
    assert (await recharge(box, customer.id, method)).status == "succeeded"
    with pytest.raises(stripe.CardError):
        await box.v1.setup_intents.create_async({**base, "payment_method": "pm_card_chargeDeclined"})
    session = await box.v1.checkout.sessions.create_async(
        {"mode": "setup", "currency": "usd", "success_url": "http://x.example/", "customer": customer.id}
    )
    assert (await box.pay(session.id))["payment_status"] == "no_payment_required"
    assert len((await box.v1.customers.payment_methods.list_async(customer.id)).data) == 3


# -- refunds ---------------------------------------------------------------------------------------


async def test_partial_refunds_add_up_and_never_exceed_the_charge(box: Box) -> None:
    intent = (await box.paid(999)).payment_intent.id
    first = await box.v1.refunds.create_async(
        {"payment_intent": intent, "amount": 400, "reason": "requested_by_customer"}
    )
    assert (first.status, first.reason, first.charge[:3]) == ("succeeded", "requested_by_customer", "ch_")
    with pytest.raises(stripe.InvalidRequestError, match="greater than unrefunded"):
        await box.v1.refunds.create_async({"payment_intent": intent, "amount": 600})
    await box.v1.refunds.create_async({"payment_intent": intent})
    with pytest.raises(stripe.InvalidRequestError) as caught:
        await box.v1.refunds.create_async({"payment_intent": intent})
    assert caught.value.code == "charge_already_refunded"
    charge = await box.v1.charges.retrieve_async(first.charge)
    assert (charge.amount_refunded, charge.refunded) == (999, True)
    shown = (await box.v1.events.list_async({"type": "charge.refunded"})).data
    assert [event.data.object["amount_refunded"] for event in shown] == [999, 400]
    assert [refund.amount for refund in (await box.v1.refunds.list_async({"payment_intent": intent})).data] == [
        599,
        400,
    ]


async def test_a_refund_fails_after_it_had_succeeded(box: Box) -> None:
    paid = await box.paid(999, "refund_fails")
    refund = await box.v1.refunds.create_async({"payment_intent": paid.payment_intent.id})
    assert refund.status == "succeeded"
    await box.control("PUT", "clock", {"advance_s": 2})
    failed = await box.v1.refunds.retrieve_async(refund.id)
    assert (failed.status, failed.failure_reason) == ("failed", "expired_or_canceled_card")
    assert failed.failure_balance_transaction.startswith("txn_")
    charge = await box.v1.charges.retrieve_async(refund.charge)
    assert (charge.amount_refunded, charge.refunded) == (0, False)
    wanted = ["refund.created", "charge.refunded", "refund.updated", "refund.failed", "charge.refund.updated"]
    assert [name for name in await box.types() if "refund" in name] == wanted
    assert (await box.record())["totals"]["held"] == 999


async def test_refunds_by_the_dashboard_pending_succeeded_canceled(box: Box) -> None:
    paid = await box.paid(999)
    waiting = await box.control("POST", "refunds", {"session": paid.id, "amount": 100, "status": "requires_action"})
    assert (await box.v1.refunds.cancel_async(waiting["id"])).status == "canceled"
    pending = await box.control(
        "POST", "refunds", {"payment_intent": paid.payment_intent.id, "amount": 200, "status": "pending"}
    )
    assert pending["pending_reason"] == "processing"
    assert (await box.control("POST", f"refunds/{pending['id']}", {"action": "succeed"}))["status"] == "succeeded"
    assert (await box.control("POST", f"refunds/{pending['id']}", {"action": "fail"}))["status"] == "failed"
    await box.control("POST", f"refunds/{pending['id']}", {"action": "nonsense"}, status=400)
    totals = (await box.record())["totals"]
    assert (totals["refunded"], totals["refund_failed"]) == (300, 300)
    event = (await box.v1.events.list_async({"type": "refund.created"})).data[0]
    assert event.request.id is None


# -- disputes --------------------------------------------------------------------------------------


async def open_dispute(box: Box, **fields: Any) -> tuple[str, Any]:
    paid = await box.paid(999)
    return paid.payment_intent.id, await box.control("POST", "disputes", {"session": paid.id, **fields})


async def test_unknown_actions_are_refused_with_the_known_ones(box: Box) -> None:
    _, dispute = await open_dispute(box)
    for path, action, words in (
        (
            f"disputes/{dispute['id']}",
            {"action": "nonsense"},
            "action is one of won, lost, warning_closed, prevented, withdraw, escalate",
        ),
        (f"disputes/{dispute['id']}", {"action": "win"}, "won"),
        (f"disputes/{dispute['id']}", {}, "won"),
    ):
        assert words in (await box.control("POST", path, action, status=400))["error"]["message"]
    assert (await box.v1.disputes.retrieve_async(dispute["id"])).status == "needs_response"
    refund = await box.control("POST", "refunds", {"session": (await box.paid()).id, "amount": 100})
    refused = await box.control("POST", f"refunds/{refund['id']}", {"action": "nonsense"}, status=400)
    assert refused["error"]["message"] == "action is one of succeed, fail, cancel"


CLOSED = "charge.dispute.closed"
DISPUTES = [
    ({}, ["lost"], ["created", "funds_withdrawn", "closed"], "lost", 1, 0),
    ({}, ["won"], ["created", "funds_withdrawn", "closed", "funds_reinstated"], "won", 2, 999),
    ({"amount": 400}, ["lost"], ["created", "funds_withdrawn", "closed"], "lost", 1, 599),
    (
        {"withdraw": False},
        ["withdraw", "won"],
        ["created", "funds_withdrawn", "closed", "funds_reinstated"],
        "won",
        2,
        999,
    ),
    ({"inquiry": True}, ["warning_closed"], ["created", "closed"], "warning_closed", 0, 999),
    ({"inquiry": True}, ["escalate", "lost"], ["created", "updated", "funds_withdrawn", "closed"], "lost", 1, 0),
    ({"status": "prevented"}, [], ["created"], "prevented", 0, 999),
    (
        {},
        ["under_review", "never_heard_of"],
        ["created", "funds_withdrawn", "updated", "updated"],
        "never_heard_of",
        1,
        0,
    ),
]


@pytest.mark.parametrize(("fields", "actions", "types", "status", "movements", "held"), DISPUTES)
async def test_disputes(
    box: Box, fields: Any, actions: list[str], types: list[str], status: str, movements: int, held: int
) -> None:
    _, dispute = await open_dispute(box, **fields)
    for action in actions:
        known = action != "never_heard_of"
        await box.control("POST", f"disputes/{dispute['id']}", {"action" if known else "status": action})
    found = await box.v1.disputes.retrieve_async(dispute["id"])
    assert (found.status, len(found.balance_transactions)) == (status, movements)
    assert [name for name in await box.types() if ".dispute." in name] == [f"charge.dispute.{name}" for name in types]
    assert (await box.v1.charges.retrieve_async(found.charge)).disputed
    shown = await box.record()
    assert shown["totals"]["held"] == held
    assert shown["totals"]["net"] == await net_balance(box)
    if movements:
        assert (found.balance_transactions[0].fee, found.balance_transactions[0].net) == (1500, -found.amount - 1500)


async def test_a_disputed_charge_cannot_be_refunded_until_it_is_won(box: Box) -> None:
    intent, dispute = await open_dispute(box)
    with pytest.raises(stripe.InvalidRequestError) as caught:
        await box.v1.refunds.create_async({"payment_intent": intent})
    assert caught.value.code == "charge_disputed"
    evidence = {"evidence": {"uncategorized_text": "winning_evidence"}, "submit": True}
    assert (await box.v1.disputes.update_async(dispute["id"], evidence)).status == "won"
    assert (await box.v1.refunds.create_async({"payment_intent": intent})).status == "succeeded"
    _, inquiry = await open_dispute(box, inquiry=True)
    assert (await box.v1.disputes.close_async(inquiry["id"])).status == "warning_closed"

"""The gateway through Stripe's own library, over HTTP: what is asked, what is understood, how failures read."""

import ast
import asyncio
import time
from collections.abc import AsyncIterator, Iterator

import pytest

from billing.money.errors import StoreUnavailable, StripeRefused
from billing.payments.stripe.event_types import API_VERSION
from billing.payments.stripe.gateway import Declined, Order, StripeGateway
from billing.payments.stripe.objects import (
    OWN_ID,
    BalanceTransaction,
    Intent,
    StripeCharge,
)
from tests.support.fake_stripe import FakeStripe
from tests.support.fake_stripe_server import FakeServer, serve_fake
from tests.support.servers import ROOT
from tests.support.stranger import stranger

LISTS = [f"/v1/{name}" for name in ("checkout/sessions", "payment_intents", "charges", "disputes")]
ORDER = Order("pur_1", "pur_1:1", "cus_1", "usd", 999, "9,990 credits")
PAGES = {"success_url": "https://a.test/ok", "cancel_url": "https://a.test/no"}


@pytest.fixture
def fake() -> Iterator[tuple[FakeServer, str]]:
    with serve_fake(FakeStripe()) as served:
        yield served


@pytest.fixture
async def gateway(fake: tuple[FakeServer, str]) -> AsyncIterator[StripeGateway]:
    made = StripeGateway("sk_test_1", api_base=fake[1], timeout_seconds=2)
    yield made
    await made.close()


async def test_a_payment_page_is_asked_for_with_our_key_version_and_price(
    fake: tuple[FakeServer, str], gateway: StripeGateway
) -> None:
    session = await gateway.create_session(ORDER, **PAGES, save_method=True, tax=False)
    again = await gateway.create_session(ORDER, **PAGES, save_method=True, tax=False)
    assert session.id == again.id
    method, path, form, headers = fake[0].requests[0]
    assert (method, path) == ("POST", "checkout/sessions")
    assert headers["idempotency-key"] == "pur_1:1"
    assert headers["stripe-version"] == API_VERSION
    assert form["line_items"]["0"] == {
        "quantity": "1",
        "price_data": {"currency": "usd", "unit_amount": "999", "product_data": {"name": "9,990 credits"}},
    }
    assert form["mode"] == "payment"
    assert (
        form["client_reference_id"]
        == form["metadata"][OWN_ID]
        == form["payment_intent_data"]["metadata"][OWN_ID]
        == "pur_1"
    )
    assert form["payment_intent_data"]["setup_future_usage"] == "off_session"
    assert not {"allow_promotion_codes", "discounts", "adjustable_quantity"} & set(form)
    with pytest.raises(StripeRefused, match="idempotency_error"):
        await gateway.create_session(ORDER._replace(cents=1), **PAGES, save_method=True, tax=False)


async def test_objects_come_back_expanded(fake: tuple[FakeServer, str], gateway: StripeGateway) -> None:
    session = await gateway.create_session(ORDER, **PAGES, save_method=False, tax=True)
    fake[0].stripe.pay(session.id)
    found = await gateway.session(session.id)
    assert found is not None
    assert found.payment_status == "paid"
    assert isinstance(found.payment_intent, Intent)
    charge = found.payment_intent.latest_charge
    assert isinstance(charge, StripeCharge)
    assert isinstance(charge.balance_transaction, BalanceTransaction)
    dispute = fake[0].stripe.open_dispute(found.payment_intent.id)
    refund = fake[0].stripe.give_back(found.payment_intent.id, 5)
    seen = await gateway.dispute(dispute.id)
    assert seen is not None
    assert [row.amount for row in seen.balance_transactions] == [-999]
    assert await gateway.refund(refund.id) == refund
    assert (await gateway.charge(charge.id)) is not None
    assert [row.id async for row in gateway.refunds(charge=charge.id)] == [refund.id]
    for missing in (
        gateway.session("cs_x"),
        gateway.intent("pi_x"),
        gateway.refund("re_x"),
        gateway.dispute("dp_x"),
        gateway.charge("ch_x"),
    ):
        assert await missing is None


async def test_lists_are_paged_to_their_end(fake: tuple[FakeServer, str], gateway: StripeGateway) -> None:
    stripe = fake[0].stripe
    for number in range(250):
        stripe.emit("checkout.session.completed", f"cs_{number}")
    found = [event.id async for event, _ in gateway.events(int(time.time()) - 60, ["checkout.session.completed"])]
    assert sorted(found) == sorted(event.id for event, _ in stripe.events_made)


async def test_a_decline_is_an_answer_and_not_an_error(fake: tuple[FakeServer, str], gateway: StripeGateway) -> None:
    fake[0].stripe.decline = Declined("authentication_required", "Please authenticate.", "")
    answer = await gateway.charge_saved_method(ORDER, "pm_1")
    assert isinstance(answer, Declined)
    assert answer.code == "authentication_required"
    assert answer.intent_id.startswith("pi_")
    fake[0].stripe.decline = None
    paid = await gateway.charge_saved_method(ORDER._replace(key="other"), "pm_1")
    assert isinstance(paid, Intent)
    assert paid.status == "succeeded"


@pytest.mark.slow
async def test_stripe_away_broken_or_not_ours_is_unavailable(fake: tuple[FakeServer, str]) -> None:
    broken = StripeGateway("sk_test_1", api_base=fake[1], timeout_seconds=2)
    fake[0].break_next = 1  # the library tries twice more by itself
    assert await broken.session("cs_1") is None
    fake[0].break_next = 3
    with pytest.raises(StoreUnavailable) as failure:
        await broken.session("cs_1")
    assert (failure.value.store, failure.value.in_doubt) == ("stripe", True)
    await broken.close()
    wrong = StripeGateway("sk_test_secret_key", api_base=fake[1], timeout_seconds=2)
    with pytest.raises(StoreUnavailable) as refused:
        await wrong.session("cs_1")
    assert "secret_key" not in str(refused.value)
    await wrong.close()
    nobody = StripeGateway("sk_test_1", api_base="http://127.0.0.1:1", timeout_seconds=2)
    with pytest.raises(StoreUnavailable):
        await nobody.session("cs_1")
    await nobody.close()


async def test_what_a_restricted_key_may_not_do_is_a_refusal_and_quotes_no_key() -> None:
    """It answers, and will never do it: whoever waits for it to be back would wait for ever."""
    refusal = {
        "error": {"type": "invalid_request_error", "message": "The provided key 'rk_live_secret' does not have access"}
    }
    empty = {"object": "list", "data": [], "has_more": False}
    with stranger(
        {"/v1/refunds": (403, refusal), "/v1/events": (403, refusal), **dict.fromkeys(LISTS, (200, empty))}
    ) as url:
        gateway = StripeGateway("rk_test_1", api_base=url, timeout_seconds=2)
        with pytest.raises(StripeRefused, match="permission_denied") as refused:
            [row async for row in gateway.refunds(charge="ch_1")]
        assert (refused.value.status, "rk_live" in str(refused.value)) == (403, False)
        assert await gateway.unreadable() == ["Refunds", "Events"]
        await gateway.close()


async def test_the_loop_turns_while_stripe_thinks(fake: tuple[FakeServer, str], gateway: StripeGateway) -> None:
    fake[0].slow_seconds = 0.3
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0.01)

    task = asyncio.create_task(count())
    await gateway.session("cs_none")
    task.cancel()
    assert turns > 10


def test_pitfall_28_stripes_own_credit_grants_are_not_used() -> None:
    source = (ROOT / "billing" / "payments" / "stripe" / "gateway.py").read_text()
    assert "credit_grants" not in source
    assert "billing.credit" not in source


def test_pitfall_31_every_call_to_stripe_is_asynchronous() -> None:
    tree = ast.parse((ROOT / "billing" / "payments" / "stripe" / "gateway.py").read_text())
    calls = [ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)]
    spoken = [call for call in calls if call.startswith("self._v1.")]
    assert len(spoken) >= 8
    assert all(call.endswith("_async") for call in spoken)
    assert "stripe.HTTPXClient" in calls

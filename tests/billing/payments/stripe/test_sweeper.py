"""The sweeper finds what no event told: one fault, refusal or unreadable list stops nothing else."""

from typing import Any

import msgspec
import pytest
from sqlalchemy import text

from billing.money.errors import StripeRefused
from tests.support.shop import Shop, paid_page


async def test_pitfall_24_the_sweeper_finds_missed_events_and_objects_whose_event_was_never_made(shop: Shop) -> None:
    account, purchase = await paid_page(shop)
    shop.delivered = len(shop.stripe.events_made)  # lost, all of them
    swept = await shop.sweeper.sweep(30, livemode=False)
    assert swept.missed_events == 2
    await shop.work()
    assert await shop.balance(account) == 109_989_000
    never, _ = await paid_page(shop)
    refunded = shop.stripe.give_back((await shop.get(purchase)).payment_intent_id or "", 9_999)
    shop.stripe.events_made.clear()  # Stripe itself has none
    shop.stripe.age(400)  # and nothing of it is on its way any more
    swept = await shop.sweeper.sweep(30, livemode=False)
    assert any(refunded.id in line for line in swept.fixed)
    assert len(swept.fixed) == 2
    assert await shop.balance(account) == 0
    assert await shop.balance(never) == 109_989_000
    again = await shop.sweeper.sweep(30, livemode=False)
    assert (again.fixed, again.missed_events) == ((), 0)


async def stuck(shop: Shop) -> str:
    """A purchase that died before Stripe answered, of a customer that Stripe may not know."""
    purchase = await shop.buy(await shop.books.account())
    del shop.stripe.sessions_by_id[purchase.session_id or ""]
    async with shop.books.database.write() as connection:
        await connection.execute(
            text("UPDATE purchases SET state = 'created', session_id = NULL WHERE id = :id"), {"id": purchase.id}
        )
    return purchase.id


@pytest.mark.parametrize(("code", "becomes"), [("resource_missing", "failed"), ("permission_denied", "created")])
async def test_a_refusal_ends_no_sweep(shop: Shop, code: str, becomes: str) -> None:
    """Where Stripe knows no such customer it was never asked; where it does not say, nothing is given up."""
    lost = await shop.buy(await shop.books.account())
    purchase_id = await stuck(shop)
    await shop.age(1_000)
    shop.stripe.pay(lost.session_id or "")
    shop.delivered = len(shop.stripe.events_made)  # nobody told us
    shop.stripe.events_made.clear()  # and Stripe made no event
    real = shop.stripe.sessions

    def sessions(**filters: Any) -> Any:
        if "customer" in filters:
            raise StripeRefused(code, "No", 400)
        return real(**filters)

    shop.stripe.sessions = sessions  # type: ignore[method-assign]
    swept = await shop.sweeper.sweep(30, livemode=False)
    assert (await shop.get(lost)).state == "credited"
    assert [row[0] for row in await shop.rows(f"SELECT state FROM purchases WHERE id = '{purchase_id}'")] == [becomes]
    assert len(swept.problems) == (code != "resource_missing")
    assert await shop.rows("SELECT name FROM sweep_marks") == [("events",)]


async def test_a_list_that_cannot_be_read_keeps_no_other_waiting_and_is_read_again(shop: Shop) -> None:
    paid = await shop.paid(await shop.books.account())
    shop.stripe.give_back(paid.payment_intent_id or "", 500)
    shop.delivered = len(shop.stripe.events_made)
    shop.stripe.events_made.clear()
    shop.stripe.age(400)  # no longer on its way

    async def broken(**_filters: Any) -> Any:
        raise StripeRefused("permission_denied", "No", 403)
        yield

    shop.stripe.sessions = broken  # type: ignore[method-assign]
    swept = await shop.sweeper.sweep(30, livemode=False)
    assert [line.partition(":")[0] for line in swept.problems] == ["the list of sessions"]
    assert len(swept.fixed) == 1
    assert await shop.rows("SELECT name FROM sweep_marks") == [], "the next one reads from the same time on"


async def test_one_object_that_cannot_be_read_stops_no_sweep(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    lost = await shop.buy(await shop.books.account())
    shop.stripe.pay(lost.session_id or "")
    shop.delivered = len(shop.stripe.events_made)  # nobody told us
    other = await shop.paid(await shop.books.account())
    shop.stripe.open_dispute(other.payment_intent_id or "")
    await shop.deliver()

    async def broken(_dispute_id: str) -> None:
        raise msgspec.ValidationError("Expected `str`, got `null` - at `$.reason`")

    monkeypatch.setattr(shop.stripe, "dispute", broken)
    swept = await shop.sweeper.sweep(30, livemode=False)
    assert len(swept.problems) == 1
    await shop.work()
    assert (await shop.get(lost)).state == "credited"


async def test_every_unsettled_purchase_gets_its_look(shop: Shop) -> None:
    purchases = [await shop.buy(await shop.books.account()) for _ in range(3)]
    await shop.age(1_000)
    looked: list[str] = []
    real = shop.sync.session

    async def session(session_id: str) -> Any:
        looked.append(session_id)
        return await real(session_id)

    shop.sync.session = session  # type: ignore[method-assign]
    await shop.sweeper.sweep(1, livemode=False)
    await shop.sweeper.sweep(
        1, livemode=False
    )  # the same three are not looked at again at once: others would come first
    assert sorted(looked) == sorted(purchase.session_id or "" for purchase in purchases)

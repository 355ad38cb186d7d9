"""Receipts: asked for anew, of one's own purchases only."""

from sqlalchemy import text

from tests.support.credits_page import visiting
from tests.support.fake_stripe import replace
from tests.support.money_api import open_api
from tests.support.shop import STARTER, Shop


async def test_pitfall_29_receipts_are_fetched_on_demand_for_their_owner(shop: Shop) -> None:
    account, other = await shop.books.account(), await shop.books.account()
    purchase = await shop.paid(account)
    async with open_api(shop) as api:
        path = f"/api/billing/purchases/{purchase.id}/receipt"
        answer = await api.client.get(path, headers=await api.key(account))
        assert (answer.status_code, answer.headers["location"]) == (303, purchase.receipt_url)
        assert (await api.client.get(path, headers=await api.key(other))).status_code == 404
        shop.stripe.down = True  # then the one we kept
        assert (await api.client.get(path, headers=await api.key(account))).headers["location"] == purchase.receipt_url


async def test_receipts_are_asked_for_anew_and_all_of_them_are_reachable(shop: Shop) -> None:
    account = await shop.books.account()
    first = await shop.paid(account, STARTER)
    intent = shop.stripe.intent_of(first.session_id or "")
    charge = replace(intent.latest_charge, receipt_url="https://pay.stripe.test/new")  # type: ignore[type-var]
    shop.stripe.intents_by_id[intent.id] = replace(intent, latest_charge=charge)
    async with shop.books.database.write() as connection:
        await connection.execute(text("UPDATE purchases SET created_at = created_at - 100000"))
    for _ in range(20):
        await shop.paid(account, STARTER)
    async with visiting(shop) as visit:
        await visit.sign_in(account)
        page = await visit.page()
        assert f"/credits/receipts/{first.id}" not in page
        older = page.split('href="/credits?purchases=')[1].split('"')[0].removesuffix("#purchases")
        assert f"/credits/receipts/{first.id}" in await visit.page(f"?purchases={older}")
        found = await visit.client.get(f"/credits/receipts/{first.id}")
    assert found.headers["location"] == "https://pay.stripe.test/new"

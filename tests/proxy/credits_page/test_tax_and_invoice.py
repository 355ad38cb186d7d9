"""The Credits page where tax comes on top: consent says so, and what was seen without it is not consented to; invoices."""

from tests.support.credits_page import visiting
from tests.support.money_api import open_api, settings
from tests.support.recharge import account_with_card
from tests.support.shop import STARTER, Shop

TAXED = settings(billing={"auto_recharge": True}, stripe={"automatic_tax": True})
FORM = {"enabled": "yes", "consent": "yes", "threshold": "5000", "package": "starter", "ceiling": "25"}


async def test_consent_to_automatic_recharge_says_that_tax_comes_on_top(shop: Shop) -> None:
    account = await account_with_card(shop)
    async with visiting(shop, TAXED) as visit:
        await visit.sign_in(account)
        page = await visit.page()
        assert "at this price or less, and the tax that is due on it, without asking again" in page
        assert "9,990 credits for $9.99 plus tax" in page
        assert 'name="shown" value="starter:999:9990000:tax"' in page
        seen_before = await visit.send("recharge", **FORM, shown="starter:999:9990000")
        assert (seen_before.status_code, "plus tax now" in seen_before.text) == (409, True)
        kept = await visit.send("recharge", **FORM, shown="starter:999:9990000:tax")
        assert kept.headers["location"] == "/credits?done=recharge-on"
    row = await shop.recharges.get(account)
    assert row is not None
    assert row.agreed_tax is True
    async with visiting(shop) as visit:
        await visit.sign_in(account)
        assert "tax that is due" not in await visit.page()


async def test_an_invoice_is_linked_and_only_its_owner_gets_there(shop: Shop) -> None:
    account = await shop.books.account()
    purchase = await shop.paid(account, STARTER, invoice="in_7")
    other = await shop.paid(account, STARTER)
    async with visiting(shop) as visit:
        await visit.sign_in(account)
        page = await visit.page()
        assert f"/credits/invoices/{purchase.id}" in page
        assert f"/credits/invoices/{other.id}" not in page
        gone = await visit.client.get(f"/credits/invoices/{purchase.id}")
        assert (gone.status_code, gone.headers["location"]) == (303, "https://invoice.stripe.test/in_7")
        assert (await visit.client.get(f"/credits/invoices/{other.id}")).status_code == 404
        await visit.sign_in(await shop.books.account())
        assert (await visit.client.get(f"/credits/invoices/{purchase.id}")).status_code == 404
    async with open_api(shop) as api:
        rows = (await api.client.get("/api/billing/purchases", headers=await api.key(account))).json()["data"]
        paths = {row["id"]: row["invoicePath"] for row in rows}
        assert paths == {purchase.id: f"/api/billing/purchases/{purchase.id}/invoice", other.id: None}

"""Every answer of money in fits proxy/customer_api/openapi.json."""

from datetime import UTC, datetime

from tests.support.money_api import open_api, settings
from tests.support.openapi import fits
from tests.support.shop import STARTER, Shop


async def test_every_answer_fits_the_document(shop: Shop) -> None:
    account, other = await shop.books.account(), await shop.books.account()
    bought = await shop.checkout.open(account, "t", STARTER, save_method=True)
    shop.stripe.pay(bought.session_id or "")
    await shop.deliver()
    month = datetime.now(UTC).date().isoformat()[:7]
    async with open_api(shop, settings(billing={"auto_recharge": True})) as api:
        client, key, theirs = api.client, await api.key(account), await api.key(other)
        page = fits(
            await client.post("/api/billing/checkout", json={"packageCode": "pro"}, headers=key),
            "/api/billing/checkout",
        )
        assert page["state"] == "open"
        assert page["url"].startswith("https://")
        fits(
            await client.post("/api/billing/checkout", json={"packageCode": "x"}, headers=key), "/api/billing/checkout"
        )
        fits(await client.post("/api/billing/checkout", content=b"{", headers=key), "/api/billing/checkout")
        fits(await client.post("/api/billing/checkout", content=b" " * 20_000, headers=key), "/api/billing/checkout")
        fits(await client.post("/api/billing/checkout", json={"packageCode": "pro"}), "/api/billing/checkout")
        first = fits(await client.get("/api/billing/purchases?limit=1", headers=key), "/api/billing/purchases")
        rest = fits(
            await client.get(f"/api/billing/purchases?limit=1&cursor={first['nextCursor']}", headers=key),
            "/api/billing/purchases",
        )
        assert [row["id"] for row in (*first["data"], *rest["data"])] == [page["id"], bought.id]
        assert rest["nextCursor"] is None
        fits(await client.get("/api/billing/purchases?cursor=!", headers=key), "/api/billing/purchases")
        one = "/api/billing/purchases/{purchase_id}"
        assert fits(await client.get(f"/api/billing/purchases/{bought.id}", headers=key), one)["creditedAt"]
        fits(await client.get(f"/api/billing/purchases/{bought.id}", headers=theirs), one)
        fits(await client.get(f"/api/billing/purchases/{page['id']}/receipt", headers=key), f"{one}/receipt")
        acting, for_others = await api.acting(account), await api.acting(other)
        fits(await client.post("/api/billing/portal", headers=acting), "/api/billing/portal")
        fits(await client.post("/api/billing/portal", headers=for_others), "/api/billing/portal")
        fits(await client.post("/api/billing/portal", headers=key), "/api/billing/portal")
        wish = {
            "enabled": True,
            "thresholdMillicredits": "5",
            "packageCode": "starter",
            "monthlyCeilingCents": 5_000,
            "consent": True,
        }
        fits(await client.get("/api/billing/auto-recharge", headers=theirs), "/api/billing/auto-recharge")
        fits(
            await client.put("/api/billing/auto-recharge", json=wish, headers=for_others), "/api/billing/auto-recharge"
        )
        fits(await client.put("/api/billing/auto-recharge", json=wish, headers=acting), "/api/billing/auto-recharge")
        fits(await client.put("/api/billing/auto-recharge", json=wish, headers=key), "/api/billing/auto-recharge")
        fits(
            await client.put("/api/billing/low-balance", json={"thresholdMillicredits": "9"}, headers=key),
            "/api/billing/low-balance",
        )
        fits(await client.get("/api/billing/low-balance", headers=key), "/api/billing/low-balance")
        statement = await client.get(f"/api/billing/statement?month={month}", headers=key)
        assert statement.status_code == 200
        fits(await client.get("/api/billing/statement?month=1", headers=key), "/api/billing/statement")
        fits(await api.hook(shop.stripe.events_made[0][1]), "/webhooks/stripe")
        fits(await api.hook(b"{}", secret="whsec_other"), "/webhooks/stripe")
    async with open_api(shop, settings(billing={"purchase_enabled": False})) as api:
        refused = fits(
            await api.client.post("/api/billing/checkout", json={"packageCode": "pro"}, headers=key),
            "/api/billing/checkout",
        )
        assert refused["error"]["code"] == "purchases_disabled"


async def test_purchases_off_stops_new_pages_and_never_what_was_paid(shop: Shop) -> None:
    account = await shop.books.account()
    purchase = await shop.buy(account)
    async with open_api(shop, settings(billing={"purchase_enabled": False})) as api:
        answer = await api.client.post(
            "/api/billing/checkout", json={"packageCode": "pro"}, headers=await api.key(account)
        )
        assert answer.status_code == 503
        assert len(shop.stripe.sessions_by_id) == 1
        shop.stripe.pay(purchase.session_id or "")
        for _, payload in shop.stripe.events_made:
            assert (await api.hook(payload)).status_code == 200
        await api.money.work()
    assert await shop.balance(account) == 109_989_000

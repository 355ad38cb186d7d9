"""Settings that customers make for themselves."""

from typing import Any

import pytest

from tests.support.shop import STARTER, Shop, today


async def test_what_customers_set(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.support.money_api import open_api
    from tests.support.money_api import settings as api_settings

    account = await shop.books.account()
    conf = api_settings(billing={"auto_recharge": True})
    wish: dict[str, Any] = {
        "enabled": True,
        "thresholdMillicredits": "5000000",
        "packageCode": "starter",
        "monthlyCeilingCents": 5_000,
        "consent": True,
    }
    async with open_api(shop, conf) as api:
        key = await api.acting(account)

        async def put(**changes: Any) -> tuple[int, Any]:
            answer = await api.client.put("/api/billing/auto-recharge", json={**wish, **changes}, headers=key)
            return answer.status_code, answer.json()

        assert (await put())[0] == 409  # no saved card yet
        purchase = await shop.checkout.open(account, "t", STARTER, save_method=True)
        shop.stripe.pay(purchase.session_id or "")
        await shop.deliver()
        for changes in (
            {"consent": False},
            {"packageCode": "none"},
            {"thresholdMillicredits": "0"},
            {"thresholdMillicredits": "99999999999"},
            {"thresholdMillicredits": 5},
            {"monthlyCeilingCents": 998},
        ):
            assert (await put(**changes))[0] == 400, changes
        status, body = await put()
        assert status == 200
        assert (body["enabled"], body["state"], body["hasSavedPaymentMethod"]) == (True, "ready", True)
        own = await api.key(account)  # what a leaked key could do: nothing that reaches the card, but switch it off
        refused = await api.client.put("/api/billing/auto-recharge", json=wish, headers=own)
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "credits_page_only")
        assert (await api.client.post("/api/billing/portal", headers=own)).status_code == 403
        off = {**wish, "enabled": False, "consent": False, "packageCode": "gone", "monthlyCeilingCents": 1}
        assert (await api.client.put("/api/billing/auto-recharge", json=off, headers=own)).json()["enabled"] is False
        assert (await put())[1]["enabled"] is True
        assert (await put(enabled=False, consent=False))[1]["enabled"] is False
        assert (await put(monthlyCeilingCents=100_001))[0] == 400  # billing.auto_recharge_monthly_usd is 1000
        rows = await shop.rows("SELECT actor, action, subject FROM audit_log WHERE action = 'auto_recharge.set'")
        assert len(rows) == 4
        assert {row[2] for row in rows} == {account}
        assert all(row[0].startswith(f"customer:{account} by ") for row in rows)
        assert (
            await api.client.put("/api/billing/low-balance", json={"thresholdMillicredits": "7"}, headers=key)
        ).json() == {"thresholdMillicredits": "7"}
        assert (
            await api.client.put("/api/billing/low-balance", json={"thresholdMillicredits": None}, headers=key)
        ).json() == {"thresholdMillicredits": None}
        assert (
            await api.client.put("/api/billing/low-balance", json={"thresholdMillicredits": None}, headers=key)
        ).status_code == 200
        rows = await shop.rows(
            "SELECT before, after, actor FROM audit_log WHERE action = 'low_balance.set' ORDER BY id"
        )
        assert [row[:2] for row in rows] == [("null", "7"), ("7", "null")]
        assert all(row[2].startswith(f"customer:{account} by ") for row in rows)
        month = today().isoformat()[:7]
        for kind, media in (("csv", "text/csv; charset=utf-8"), ("pdf", "application/pdf")):
            answer = await api.client.get(f"/api/billing/statement?month={month}&format={kind}", headers=key)
            assert (answer.status_code, answer.headers["content-type"]) == (200, media)
            assert (
                answer.content
                == (await api.client.get(f"/api/billing/statement?month={month}&format={kind}", headers=key)).content
            )
        assert (await api.client.get("/api/billing/statement?month=2026-13", headers=key)).status_code == 400
        assert (
            await api.client.get(f"/api/billing/statement?month={month}&format=xls", headers=key)
        ).status_code == 400
    async with open_api(shop) as api:  # auto_recharge = false
        assert (await api.client.put("/api/billing/auto-recharge", json=wish, headers=key)).status_code == 503

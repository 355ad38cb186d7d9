"""An API key does not reach the card behind an account."""

from billing.ledger.accounts import KeyRules
from billing.money.amounts import millicredits
from tests.support.money_api import open_api, settings
from tests.support.recharge import account_with_card
from tests.support.shop import Shop


async def test_an_api_key_cannot_reach_the_card(shop: Shop) -> None:
    """Also one without any limit: what leaks may cost what is prepaid, and not what is on the card behind it."""
    account = await account_with_card(shop)
    body = {
        "enabled": True,
        "thresholdMillicredits": "9990000",
        "packageCode": "starter",
        "monthlyCeilingCents": 50_000,
        "consent": True,
    }
    async with open_api(shop, settings(billing={"auto_recharge": True})) as api:
        for rules in (KeyRules(), KeyRules(spend_limit=millicredits(1_000), spend_period="day")):
            _, secret = await shop.books.accounts.create_key(account, rules)
            answer = await api.client.put(
                "/api/billing/auto-recharge", json=body, headers={"authorization": f"Bearer {secret}"}
            )
            assert (answer.status_code, answer.json()["error"]["code"]) == (403, "credits_page_only")

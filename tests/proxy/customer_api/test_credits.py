"""Credits with rules as customers meet them: codes, amounts, what expires, and reasons that are not theirs to read."""

import pytest

from billing.accounting.statements import Statements
from billing.ledger.audit_log import Who
from billing.ledger.credits.promos import PromoTerms
from billing.money.amounts import Millicredits
from billing.money.postings import GrantTerms
from config.settings import Purchases
from proxy.customer_api.credits import promos_api
from proxy.customer_api.credits.amounts import amount_bounds, offer_for_usd
from proxy.customer_api.rows import ledger_row, staff_ledger_row
from proxy.customer_api.statement_csv import statement_csv
from proxy.web.rejections import Rejection
from tests.support.credits import give, relayed, used
from tests.support.credits_page import visiting
from tests.support.money_api import open_api, settings
from tests.support.openapi import fits
from tests.support.shop import Shop, today

ADA = Who("ada", "finance")
ANY = {"amount_min_usd": "5", "amount_max_usd": "500", "usd_per_1000_credits": "0.8"}
PROMO = "/api/billing/promo"
SECRET = "they threatened to leave"


async def test_a_customer_redeems_a_code_once_and_a_wrong_one_is_none(shop: Shop) -> None:
    account = await shop.books.account()
    async with open_api(shop) as api:
        await api.money.promos.promos.add("SPRING", PromoTerms(500_000, 1, credit_days=9), ADA)
        headers = await api.key(account)
        first = await api.client.post(PROMO, json={"code": "spring"}, headers=headers)
        again = await api.client.post(PROMO, json={"code": "spring"}, headers=await api.acting(account))
        found = [fits(answer, PROMO) for answer in (first, again)]
        assert [one["again"] for one in found] == [False, True]
        assert (found[0]["millicredits"], found[0]["expiresAt"]) == (found[1]["millicredits"], found[1]["expiresAt"])
        late = await api.client.post(PROMO, json={"code": "spring"}, headers=await api.key(await shop.books.account()))
        assert (late.status_code, fits(late, PROMO)["error"]["code"]) == (409, "promo_used_up")
        wrong = await api.client.post(PROMO, json={"code": "winter"}, headers=headers)
        assert (wrong.status_code, fits(wrong, PROMO)["error"]["code"]) == (404, "promo_not_found")
        assert (await api.client.post(PROMO, json={"code": "spring"})).status_code == 401
    assert await shop.balance(account) == 500_000


async def test_nobody_guesses_a_code(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(promos_api, "MOST_WRONG", 3)
    account, other = await shop.books.account(), await shop.books.account()
    async with open_api(shop) as api:
        await api.money.promos.promos.add("RIGHT", PromoTerms(1), ADA)
        headers = await api.key(account)
        statuses = [
            (await api.client.post(PROMO, json={"code": code}, headers=headers)).status_code
            for code in ("AAA", "BBB", "CCC", "RIGHT")
        ]
        assert statuses == [404, 404, 404, 429]
        assert (await api.client.post(PROMO, json={"code": "RIGHT"}, headers=await api.key(other))).status_code == 200


@pytest.mark.parametrize(
    ("usd", "millicredits"),
    [("5", 6_250_000), ("$499.99", 624_987_500), ("500.00", 625_000_000), ("10.01", 12_512_500)],
)
def test_an_amount_buys_at_the_price_and_what_is_above_a_dollar_is_bonus(usd: str, millicredits: int) -> None:
    made = offer_for_usd(Purchases(**ANY), usd)
    assert made.paid + made.bonus == millicredits
    assert made.paid == made.price_cents * 10_000
    assert (made.code, made.currency) == ("amount", "usd")


@pytest.mark.parametrize("usd", ["4.99", "500.01", "10.001", "-5", "", "1e3", "much", "٥٠"])
def test_other_amounts_are_refused(usd: str) -> None:
    with pytest.raises(Rejection):
        offer_for_usd(Purchases(**ANY), usd)
    with pytest.raises(Rejection):
        offer_for_usd(Purchases(), "10")
    assert amount_bounds(Purchases()) is None


async def test_any_amount_is_bought_at_stripe_and_credited_as_sold(shop: Shop) -> None:
    account, path = await shop.books.account(), "/api/billing/checkout"
    async with open_api(shop, settings(purchases=ANY)) as api:
        headers = await api.key(account)
        opened = await api.client.post(path, json={"usd": "25.50"}, headers=headers)
        assert fits(opened, path)["packageCode"] == "amount"
        again = await api.client.post(path, json={"usd": "25.50"}, headers=headers)
        assert again.json()["id"] == opened.json()["id"]
        for body in ({}, {"usd": "3"}, {"usd": "500.01"}):
            refused = await api.client.post(path, json=body, headers=headers)
            assert (refused.status_code, fits(refused, path)["error"]["type"]) == (400, "invalid_request_error")
        shop.stripe.pay(opened.json()["sessionId"])
        await shop.deliver()
    assert await shop.balance(account) == 31_875_000
    assert [row for row in await shop.rows("SELECT kind, amount_millicredits FROM transfers ORDER BY id")][:2] == [
        ("purchase", 25_500_000),
        ("purchase_bonus", 6_375_000),
    ]
    assert await shop.findings() == []


async def test_the_page_sells_any_amount_redeems_codes_and_says_what_expires(shop: Shop) -> None:
    account = await shop.books.account(2_000)
    await give(shop.books, account, 250_000, "gift", days=12)
    conf = settings(billing={"auto_recharge": True}, purchases=ANY)
    async with visiting(shop, conf) as visit:
        await visit.sign_in(account)
        page = await visit.page()
        assert "<strong>250.000</strong> credits that you were given expire on" in page
        assert "from $5 to $500. 1,000 credits cost $0.8." in page
        away = await visit.send("buy", usd="1,0")
        assert away.status_code == 400
        away = await visit.send("buy", usd="40")
        assert away.headers["location"].startswith("https://checkout.stripe.test/")
        wrong = await visit.send("promo", code="nothing")
        assert (wrong.status_code, "There is no such code" in wrong.text) == (404, True)
    async with open_api(shop) as api:
        await api.money.promos.promos.add("HELLO", PromoTerms(1_000), ADA)
    async with visiting(shop, conf) as visit:
        await visit.sign_in(account)
        done = await visit.send("promo", code="hello")
        assert done.headers["location"] == "/credits?done=promo"
        await relayed(shop.books)
        page = await visit.page("?done=promo")
        assert "The code is redeemed." in page
        assert "Promo code HELLO" in page


async def test_why_credits_were_granted_is_not_for_customers_unless_it_is_marked(shop: Shop) -> None:
    ledger, account = shop.books.ledger, await shop.books.account()
    await ledger.grant(account, Millicredits(5_000), "hidden", "ada", SECRET)
    await ledger.grant(account, Millicredits(-1_000), "back", "ada", SECRET)
    await ledger.grant(account, Millicredits(2_000), "shown", "ada", "our gift", terms=GrantTerms(reason_shown=True))
    rows = await ledger.transfers_of(account, 10)
    assert [ledger_row(row)["reason"] for row in rows] == ["our gift", "", ""]
    assert [staff_ledger_row(row)["reason"] for row in rows] == ["our gift", SECRET, SECRET]
    statement = await Statements(shop.books.database).read(account, f"{today():%Y-%m}")
    assert SECRET not in str(statement)
    csv = statement_csv(statement).decode()
    assert ("Adjustment: our gift" in csv, SECRET in csv) == (True, False)
    async with visiting(shop) as visit:
        await visit.sign_in(account)
        page = await visit.page()
        assert ("our gift" in page, SECRET in page) == (True, False)


async def test_a_statement_names_what_gave_and_took_credits(shop: Shop) -> None:
    account = await shop.books.account()
    async with open_api(shop) as api:
        await api.money.promos.promos.add("HELLO", PromoTerms(1_000), ADA)
        await api.money.promos.promos.redeem(account, "HELLO", ADA)
    await used(shop.books, account, 400, "c1")
    csv = statement_csv(await Statements(shop.books.database).read(account, f"{today():%Y-%m}")).decode()
    assert f"Promo code HELLO,promo:HELLO:{account}" in csv

"""The Credits page for daily work: one list, usage by key and model, prices, the card, the warning, what was refused."""

import re
import time
from typing import Any, cast

import pytest
from sqlalchemy import text

from billing.ledger.accounts import KeyRules
from billing.ledger.audit_log import AuditLog, Who
from billing.ledger.customers.desk import key_desk
from billing.money.catalogue.price_plan import PlanDocument, PlanPrices
from billing.money.holds import Entry
from billing.money.postings import GrantTerms
from billing.money.usage_record import UsageRecord, encode_record
from proxy.credits_page.activity import read_filters
from proxy.web.rejections import Rejection
from tests.support.credits_page import visiting
from tests.support.money_api import settings
from tests.support.plans import PRICES
from tests.support.recharge import account_with_card
from tests.support.shop import Shop, today

DAY_MS = 86_400_000
ONE_DATABASE = pytest.mark.parametrize("sql", ["sqlite"], indirect=True)
"""What is tested is no matter of SQL."""


async def spend(
    shop: Shop,
    account: str,
    request: str,
    key: str = "key_x",
    model: str = "gpt-4.1",
    days_ago: int = 0,
    cost: int = 250,
) -> None:
    """A request that was charged and booked."""
    row = UsageRecord(
        charge_id=request,
        account_id=account,
        key_id=key,
        endpoint="/v1/chat/completions",
        model=model,
        created_at=int(time.time() * 1_000) - days_ago * DAY_MS,
        held_millicredits=cost,
        cost_millicredits=cost,
        input_tokens=1_234,
        output_tokens=56,
        usage_source="upstream",
        outcome="completed",
        rates=cast("Any", b"{}"),
    )
    await shop.books.ledger.post([Entry(request, cost, 0, encode_record(row))])


def section(page: str, name: str) -> str:
    """One section of the page."""
    found = re.search(rf'<section aria-labelledby="{name}">.*?</section>', page, re.DOTALL)
    assert found is not None, name
    return found[0]


async def named_key(shop: Shop, account: str, name: str) -> str:
    _, secret = await shop.books.accounts.create_key(account, KeyRules())
    key = (await shop.books.accounts.keys_of(account))[-1]
    await key_desk(shop.books.database).changes.change(key.id, {"name": name}, Who("ada", "owner"))
    return key.id


async def test_one_list_has_requests_and_money_and_says_each_once(shop: Shop) -> None:
    account, other = await shop.books.account(), await shop.books.account(9_000)
    key = await named_key(shop, account, "the website")
    await shop.books.ledger.grant(
        account, cast("Any", 5_000), "g1", "ops", "for the trouble", terms=GrantTerms(reason_shown=True)
    )
    await spend(shop, account, "req_one", key)
    await spend(shop, other, "req_theirs")
    async with visiting(shop) as visit:
        await visit.sign_in(account)
        page = await visit.page()
        shown = section(page, "activity")
        rows = re.findall(r"<tr><td.*?</tr>", shown)
        assert len(rows) == 2, "the request is no row of a second list"
        for part in ("gpt-4.1", "the website", "1,234 in, 56 out", "req_one", ">−0.25<"):
            assert part in rows[0]
        for part in ("for the trouble", ">+5<"):
            assert part in rows[1]
        assert "req_theirs" not in page
        alone = section(await visit.page("?show=requests"), "activity")
        assert "req_one" in alone
        assert "for the trouble" not in alone


async def test_the_list_pages_through_every_booking_once(shop: Shop) -> None:
    account = await shop.books.account(90_000)
    for number in range(24):
        await spend(shop, account, f"req_{number:02}")
    async with visiting(shop) as visit:
        await visit.sign_in(account)
        for query, expected in (("", 25), ("show=requests", 24), ("model=gpt-4.1", 24)):
            seen: list[str] = []
            following: str | None = f"?{query}"
            while following is not None:
                shown = section(await visit.page(following), "activity")
                seen += re.findall(r'class="ref">(?:<code>|<span>)(.*?)<', shown)
                older = re.search(r'href="/credits(\?[^"]*older=[^"]*)#activity"', shown)
                following = older[1].replace("&amp;", "&") if older is not None else None
            assert (len(seen), len(set(seen))) == (expected, expected), query


async def test_usage_is_summed_by_key_and_model_and_filtered(shop: Shop) -> None:
    account = await shop.books.account(90_000)
    web_key, app_key = await named_key(shop, account, "the website"), await named_key(shop, account, "the app")
    await spend(shop, account, "req_1", web_key, "gpt-4.1", cost=1_000)
    await spend(shop, account, "req_2", web_key, "gpt-4o", cost=2_500)
    await spend(shop, account, "req_3", app_key, "gpt-4.1", cost=4_000)
    await spend(shop, account, "req_old", app_key, "gpt-4o-mini", days_ago=40, cost=7_000)
    async with visiting(shop) as visit:
        await visit.sign_in(account)

        async def look(query: str = "") -> tuple[list[tuple[str, ...]], list[str], str]:
            page = await visit.page(query)
            table = section(page, "usage").partition("By key and model")[2]
            sums = [
                tuple(re.findall(r'data-label="(?:Key|Model|Requests|Credits)">(.*?)</td>', row))
                for row in re.findall(r"<tr><td.*?</tr>", table)
            ]
            return sums, re.findall(r"<code>(req_\w+)</code>", section(page, "activity")), page

        sums, listed, page = await look()
        assert sums == [
            ("the app", "gpt-4.1", "1", "4"),
            ("the website", "gpt-4o", "1", "2.5"),
            ("the website", "gpt-4.1", "1", "1"),
        ]
        assert "<strong>7.5</strong> credits in the last 30 days" in page
        assert set(listed) == {"req_1", "req_2", "req_3", "req_old"}, "the list begins with everything"
        sums, listed, page = await look(f"?key={web_key}")
        assert [row[1] for row in sums] == ["gpt-4o", "gpt-4.1"]
        assert sorted(listed) == ["req_1", "req_2"]
        assert "<strong>3.5</strong>" in page
        sums, listed, _ = await look("?model=gpt-4.1")
        assert sorted(listed) == ["req_1", "req_3"]
        sums, listed, _ = await look(f"?key={web_key}&model=gpt-4.1")
        assert (len(sums), listed) == (1, ["req_1"])
        day = time.strftime("%Y-%m-%d", time.gmtime(time.time() - 40 * 86_400))
        sums, listed, _ = await look(f"?from={day}&to={day}")
        assert (sums, listed) == ([("the app", "gpt-4o-mini", "1", "7")], ["req_old"])
        csv = (await visit.client.get(f"/credits/usage.csv?key={web_key}")).text
        assert csv.count("\r\n") == 3
        assert "req_1" in csv
        assert "req_3" not in csv


@ONE_DATABASE
async def test_filters_that_cannot_be_are_said_at_their_field_and_stay(shop: Shop) -> None:
    account = await shop.books.account(90_000)
    async with visiting(shop) as visit:
        await visit.sign_in(account)
        page = section(await visit.page("?from=yesterday&to=2026-11-01"), "usage")
        field = re.search(r'<input id="filter-from"[^>]*>.*?</p>', page)
        assert field is not None
        assert 'value="yesterday"' in field[0]
        assert 'aria-invalid="true"' in field[0]
        assert "Write a day like 2026-11-23." in field[0]
        for query in (
            "?from=2026-02-03&to=2026-02-01",
            "?from=2025-01-01&to=2026-01-01",
            "?to=0001-01-05",
            "?to=9999-12-31",
        ):
            assert 'aria-invalid="true"' in section(await visit.page(query), "usage")


@pytest.mark.parametrize("days", [1, 30, 92])
def test_the_usual_time_and_the_longest(days: int) -> None:
    last = today()
    chosen = read_filters({"to": str(last), "from": str(last.fromordinal(last.toordinal() - days + 1))}, last)
    filters = chosen.filters()
    assert (filters.until_ms or 0) - (filters.since_ms or 0) == days * DAY_MS
    with pytest.raises(Rejection):
        read_filters({"from": str(last.fromordinal(last.toordinal() - 92))}, last)
    usual = read_filters({}, last)
    assert (usual.is_set, (usual.last - usual.first).days) == (False, 29)


@ONE_DATABASE
async def test_a_refused_form_keeps_what_was_typed_and_says_it_at_the_field(shop: Shop) -> None:
    account = await account_with_card(shop)
    async with visiting(shop, settings(billing={"auto_recharge": True})) as visit:
        await visit.sign_in(account)
        refused = await visit.send("keys", name="my <key>", limit="lots", daily="7", period="week", role="member")
        assert refused.status_code == 400
        keys = section(refused.text, "keys")
        assert 'value="my &lt;key&gt;"' in keys
        assert re.search(r'<input id="limit"[^>]*value="lots"[^>]*aria-invalid="true" autofocus', keys)
        assert "The spend limit is not a number we understand." in keys
        assert '<option value="week" selected>' in keys
        assert '<option value="member" selected>' in keys
        assert 'value="7"' in keys
        assert refused.text.count('aria-invalid="true"') == 1
        typed = {"threshold": "99,999", "package": "pro", "ceiling": "250", "enabled": "yes"}
        refused = await visit.send("recharge", **typed)
        assert "Tick the box" in section(refused.text, "recharge")
        assert 'value="99,999"' in refused.text
        refused = await visit.send("recharge", **{**typed, "threshold": "999,999"}, consent="yes")
        field = re.search(r'<input id="threshold".*?</p>', refused.text)
        assert field is not None
        assert "at most what the package brings" in field[0]
        assert 'value="yes" checked' in refused.text
        (key,) = [await named_key(shop, account, "one")]
        refused = await visit.send("keys/change", key=key, name="x" * 101, limit="3")
        assert re.search(rf'<details class="ask" open><summary>Change.*?id="name-{key}"[^>]*aria-invalid', refused.text)
        assert "csrf" not in re.findall(r'value="([0-9a-f]{64})"', refused.text)[0]
        assert await visit.page() is not None


@ONE_DATABASE
async def test_what_no_field_is_about_is_said_at_the_top(shop: Shop) -> None:
    account = await shop.books.account(5_000)
    async with visiting(shop) as visit:
        await visit.sign_in(account)
        refused = await visit.send(
            "recharge", threshold="100", package="pro", ceiling="250", enabled="yes", consent="yes"
        )
        assert refused.status_code == 409
        assert re.search(r'role="alert"><strong>Not done.</strong> There is no saved card', refused.text)


@ONE_DATABASE
async def test_a_key_of_a_team_member_is_made_and_changed(shop: Shop) -> None:
    account = await shop.books.account()
    async with visiting(shop) as visit:
        await visit.sign_in(account)
        assert (await visit.send("keys", name="intern", role="member")).status_code == 303
        (key,) = await shop.books.accounts.keys_of(account)
        assert key.member
        assert "a member's" in section(await visit.page(), "keys")
        assert (await visit.send("keys/change", key=key.id, name="intern", role="owner")).status_code == 303
        assert not (await shop.books.accounts.keys_of(account))[0].member
        assert (await visit.send("keys", role="boss")).status_code == 400


async def test_the_saved_card_is_named_and_removed(shop: Shop) -> None:
    account = await account_with_card(shop)
    async with visiting(shop) as visit:
        await visit.sign_in(account)
        assert '<p id="card">Visa ending in 4242</p>' in await visit.page()
        before = await shop.rows("SELECT payment_method_id FROM stripe_customers")
        shop.stripe.down = True
        assert (await visit.send("cards/remove")).status_code == 503
        assert await shop.rows("SELECT payment_method_id FROM stripe_customers") == before
        shop.stripe.down = False
        done = await visit.send("cards/remove")
        assert done.headers["location"] == "/credits?done=card-removed#recharge"
        assert [shop.stripe.detached[-1]] == [before[0][0]]
        assert await shop.rows("SELECT payment_method_id, method_brand, method_last4 FROM stripe_customers") == [
            ("", "", "")
        ]
        row = await shop.recharges.get(account)
        assert row is not None
        assert not row.enabled
        page = await visit.page("?done=card-removed")
        assert "4242" not in page
        assert "The card is removed" in page
        assert (await visit.send("cards/remove")).status_code == 404
        actions = [row.action for row in await AuditLog(shop.books.database).newest(5)]
        assert actions[:2] == ["card.remove", "auto_recharge.set"]


@ONE_DATABASE
async def test_a_card_saved_before_its_numbers_were_kept_is_shown_without_them(shop: Shop) -> None:
    account = await account_with_card(shop)
    async with shop.books.database.write() as connection:
        await connection.execute(text("UPDATE stripe_customers SET method_brand = '', method_last4 = ''"))
    async with visiting(shop) as visit:
        await visit.sign_in(account)
        assert '<p id="card">The card you saved</p>' in await visit.page()


async def test_the_warning_is_set_where_somebody_listens(shop: Shop) -> None:
    account = await shop.books.account(5_000)
    async with visiting(shop) as visit:
        await visit.sign_in(account)
        assert "Warning before it runs out" not in await visit.page(), "a setting that nobody would hear of"
    async with visiting(shop, heard=True) as visit:
        await visit.sign_in(account)
        assert "Warning before it runs out" in await visit.page()
        assert (await visit.send("warning", warning="1,500.5")).status_code == 303
        assert await shop.rows("SELECT threshold_millicredits FROM balance_marks") == [(1_500_500,)]
        assert re.search(r'id="warn-below"[^>]*value="1500.5"', await visit.page())
        refused = await visit.send("warning", warning="soon")
        assert refused.status_code == 400
        assert re.search(r'id="warn-below"[^>]*value="soon"[^>]*aria-invalid', refused.text)
        assert (await visit.send("warning", warning="")).status_code == 303
        assert await shop.rows("SELECT threshold_millicredits FROM balance_marks") == [(None,)]


@ONE_DATABASE
async def test_prices_are_ones_own(shop: Shop) -> None:
    account = await shop.books.account()
    async with visiting(shop) as visit:
        await visit.sign_in(account)
        page = (await visit.client.get("/credits/prices?find=gpt-4.1-mini")).text
        # $0.40 and $1.60 for a million tokens, at cost
        assert re.search(r'gpt-4.1-mini</th><td class="number" data-label="Input">400</td>', page)
        assert re.search(r'data-label="Output">1,600</td>', page)
        assert "Prices agreed for your account" not in page
        assert "gpt-4o<" not in page
        whole = (await visit.client.get("/credits/prices")).text
        assert whole.count("<tr><th") > 50
        assert (await visit.client.get("/credits/prices?tier=gold")).status_code == 400
    plan = PlanPrices("gold.1", PlanDocument(markup="3"))
    async with visiting(shop, prices=PRICES.under(plan)) as visit:
        await visit.sign_in(account)
        page = (await visit.client.get("/credits/prices?find=gpt-4.1-mini")).text
        assert 'data-label="Input">1,200</td>' in page
        assert "Prices agreed for your account" in page


@ONE_DATABASE
async def test_amounts_are_written_one_way(shop: Shop) -> None:
    account = await account_with_card(shop)
    await spend(shop, account, "req_1", cost=338)
    await spend(shop, account, "req_2", cost=2_000)
    async with visiting(shop) as visit:
        await visit.sign_in(account)
        text_of_page = re.sub(r"<[^>]*>", " ", await visit.page())
        assert "−0.338" in text_of_page
        assert not re.findall(r"[0-9]\.[0-9]*0(?![0-9]) credits|[0-9,]+\.000", text_of_page)

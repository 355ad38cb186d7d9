"""The Credits page: signing in once, seeing one's own, buying, keys, forms that cannot be forged; in plain words."""

import re
import time
from html.parser import HTMLParser
from typing import Any, cast

import msgspec
import pytest
from sqlalchemy import text

from billing.ledger.accounts import KeyBudget, KeyRules, read_budgets
from billing.ledger.audit_log import AuditLog, Who
from billing.ledger.customers.desk import key_desk
from billing.money.amounts import millicredits
from billing.money.errors import NotYet
from billing.money.postings import GrantTerms
from config.settings import Package
from tests.support.credits_page import HOST, KEY, visiting
from tests.support.money_api import open_api, settings
from tests.support.recharge import WISH, account_with_card
from tests.support.shop import PRO, STARTER, Shop


async def test_a_link_opens_one_session_once(shop: Shop) -> None:
    account = await shop.books.account(5_000)
    async with visiting(shop) as visit:
        made = await visit.link(account)
        assert made.status_code == 201
        url = made.json()["url"]
        assert url.startswith(f"{HOST}/credits/enter?token=")
        for _ in range(2):  # a scanner's look spends nothing
            asking = await visit.client.get(url)
            assert (asking.status_code, "set-cookie" in asking.headers, asking.headers["cache-control"]) == (
                200,
                False,
                "no-store",
            )
            assert account in asking.text
        entered = await visit.enter(asking)
        assert (entered.status_code, entered.headers["location"]) == (303, "/credits")
        cookie = entered.headers["set-cookie"]
        assert "HttpOnly" in cookie
        assert "samesite=lax" in cookie.lower()
        assert "credits available" in await visit.page()
        visit.client.cookies.clear()
        for again in (await visit.client.get(url), await visit.enter(asking)):
            assert (again.status_code, "set-cookie" in again.headers) == (403, False)
        assert (await visit.client.get("/credits")).status_code == 401


@pytest.mark.parametrize("origin", ["https://evil.test", "null", None])
async def test_no_other_site_sends_the_form_that_signs_in(shop: Shop, origin: str | None) -> None:
    """With a link of its own it would have the visitor buy credits for somebody else."""
    account = await shop.books.account(5_000)
    async with visiting(shop) as visit:
        asking = await visit.client.get((await visit.link(account)).json()["url"])
        assert (
            asking.headers["referrer-policy"] == "same-origin"
        )  # with none the browser's own form would come from "null"
        refused = await visit.enter(asking, origin=origin)
        assert (refused.status_code, "set-cookie" in refused.headers) == (403, False)
        assert (await visit.enter(asking)).status_code == 303


async def test_another_accounts_link_asks_before_it_takes_the_place_of_a_session(shop: Shop) -> None:
    mine, theirs = await shop.books.account(5_000), await shop.books.account(7_000)
    async with visiting(shop) as visit:
        first = await visit.client.get((await visit.link(mine)).json()["url"])
        assert "data-at-once" in first.text
        await visit.enter(first)
        again = await visit.client.get((await visit.link(mine)).json()["url"])
        assert "data-at-once" in again.text
        foreign = await visit.client.get((await visit.link(theirs)).json()["url"])
        assert "data-at-once" not in foreign.text
        assert mine in foreign.text
        assert theirs in foreign.text
        assert mine in await visit.page()
        await visit.enter(foreign)
        assert theirs in await visit.page()


@pytest.mark.parametrize("key", ["", "wrong", KEY[:-1], KEY + "x", "ключ"])
async def test_only_the_service_key_makes_links(shop: Shop, key: str) -> None:
    account = await shop.books.account()
    async with visiting(shop) as visit:
        headers = {b"authorization": f"Bearer {key}".encode()}
        answer = await visit.client.post(
            "/api/portal/sessions", json={"accountId": account}, headers=cast("Any", headers)
        )
        assert answer.status_code == 401
        assert (await visit.link("acct_missing")).status_code == 404


async def test_links_and_sessions_end(shop: Shop) -> None:
    account = await shop.books.account()
    async with visiting(shop) as visit:
        url = (await visit.link(account)).json()["url"]
        async with shop.books.database.write() as connection:
            await connection.execute(text("UPDATE portal_tokens SET expires_at = 1 WHERE kind = 'link'"))
        assert (await visit.client.get(url)).status_code == 403
        await visit.sign_in(account)
        await shop.books.accounts.set_status(account, "blocked")
        assert (await visit.client.get("/credits")).status_code == 401
        await shop.books.accounts.set_status(account, "active")
        out = await visit.send("sign-out")
        assert (out.status_code, out.headers["location"]) == (303, "/credits/signed-out")
        assert "You can close this window" in (await visit.client.get("/credits/signed-out")).text
        assert (await visit.client.get("/credits")).status_code == 401
        async with shop.books.database.read() as connection:
            tokens = (
                await connection.execute(text("SELECT count(*) FROM portal_tokens WHERE kind = 'session'"))
            ).scalar_one()
    assert tokens == 0


async def test_a_blocked_accounts_link_says_so_and_is_not_spent(shop: Shop) -> None:
    account = await shop.books.account(5_000)
    async with visiting(shop) as visit:
        url = (await visit.link(account)).json()["url"]
        asking = await visit.client.get(url)
        await shop.books.accounts.set_status(account, "blocked")
        for refused in (await visit.client.get(url), await visit.enter(asking)):
            assert (refused.status_code, "set-cookie" in refused.headers) == (403, False)
            assert "This account is blocked" in refused.text
        await shop.books.accounts.set_status(account, "active")
        assert (await visit.enter(asking)).status_code == 303


async def test_what_a_customer_changes_has_rows_in_the_audit_log(shop: Shop) -> None:
    account, audit = await shop.books.account(), AuditLog(shop.books.database)
    async with visiting(shop) as visit:
        await visit.sign_in(account)
        assert await audit.newest(10) == []  # links of the operator's app have none
        assert (await visit.send("keys", limit="5", period="day")).status_code == 303
        (key,) = await shop.books.accounts.keys_of(account)
        assert (await visit.send("keys/revoke", key=key.id)).status_code == 303
        assert (await visit.send("keys/revoke", key=key.id)).status_code == 303
        rows = await audit.newest(10)
    assert [(row.action, row.subject) for row in rows] == [("key.revoke", key.id), ("key.create", key.id)]
    for row in rows:
        assert (row.actor, row.role, row.ip) == (f"customer:{account}", "customer", "127.0.0.1")
        assert row.request_id.startswith("side_")


async def test_buying_leads_to_the_payment_page_and_the_balance_rises(shop: Shop) -> None:
    account = await shop.books.account(1_000)
    async with visiting(shop) as visit:
        await visit.sign_in(account)
        bought = await visit.send("buy", package="pro", credits="999999999", usd="0.01")
        (purchase,) = await shop.purchases.of_account(account, 5)
        assert (bought.status_code, bought.headers["location"]) == (303, purchase.url)
        assert (purchase.price_cents, purchase.paid_millicredits + purchase.bonus_millicredits) == (9_999, 109_989_000)
        assert purchase.session_id is not None
        shop.stripe.pay(purchase.session_id)
        await shop.deliver()
        for row in await shop.books.ledger.outbox_pending(10):
            await shop.books.store.credit(row.account_id, row.sequence, row.delta)
        page = await visit.page("?session=cs_test_1")
        assert "109,990" in page
        assert "Thank you" in page
        assert "credited" in page
        assert (await visit.send("buy", package="free")).status_code == 400


async def test_the_kill_switch_greys_the_buttons_and_says_so(shop: Shop) -> None:
    account = await shop.books.account()
    async with visiting(shop, settings(billing={"purchase_enabled": False})) as visit:
        await visit.sign_in(account)
        page = await visit.page()
        assert "Buying credits is paused right now." in page
        assert len(re.findall(r"<button name=.package. value=.\w+. disabled>Buy for", page)) == 2
        assert (await visit.send("buy", package="pro")).status_code == 503
    assert await shop.purchases.of_account(account, 5) == []


async def test_a_form_of_another_site_or_session_changes_nothing(shop: Shop) -> None:
    account, other = await shop.books.account(), await shop.books.account()
    async with visiting(shop) as visit, visiting(shop) as theirs:
        await visit.sign_in(account)
        await theirs.sign_in(other)
        token = re.search(r'name="csrf" value="([0-9a-f]+)"', await theirs.page())
        assert token is not None
        for fields, headers in (({}, {}), ({"csrf": token[1]}, {}), ({"csrf": "ü"}, {})):
            answer = await visit.client.post("/credits/keys", data=fields, headers=headers)
            assert answer.status_code == 403, answer.text
        good = re.search(r'name="csrf" value="([0-9a-f]+)"', await visit.page())
        assert good is not None
        evil = await visit.client.post("/credits/keys", data={"csrf": good[1]}, headers={"origin": "https://evil.test"})
        assert evil.status_code == 403
    assert await shop.books.accounts.keys_of(account) == []


async def test_keys_are_made_shown_once_limited_and_revoked_by_their_owner_only(shop: Shop) -> None:
    account, other = await shop.books.account(), await shop.books.account()
    async with visiting(shop) as visit, visiting(shop) as theirs:
        await visit.sign_in(account)
        await theirs.sign_in(other)
        made = await visit.send("keys", limit="12.5", period="week", daily="2", name="CI <b>")
        assert made.status_code == 303
        assert (await theirs.client.get(made.headers["location"])).status_code == 410
        shown = await visit.client.get(made.headers["location"])
        secret = re.search(r"tk-[\w-]{43}", shown.text)
        assert secret is not None
        assert shown.status_code == 200
        assert secret[0] not in await visit.page()
        (row,) = await shop.books.accounts.keys_of(account)
        assert (row.spend_limit_millicredits, row.spend_period, row.name) == (12_500, "week", "CI <b>")
        page = await visit.page()
        assert "CI &lt;b&gt;" in page
        assert "0 of 12.5 a week<br>0 of 2 a day" in page
        assert (await theirs.send("keys/revoke", key=row.id)).status_code == 404
        assert (await shop.books.accounts.keys_of(account))[0].revoked_at is None
        assert (await visit.send("keys/revoke", key=row.id)).status_code == 303
        assert (await visit.send("keys/revoke", key=row.id)).status_code == 303
        assert (await shop.books.accounts.keys_of(account))[0].revoked_at is not None
        assert (await visit.send("keys", limit="-1")).status_code == 400
        assert (await visit.send("keys", limit="lots")).status_code == 400


async def test_reloading_and_sending_again_make_no_second_key(shop: Shop) -> None:
    account = await shop.books.account()
    async with visiting(shop) as visit:
        await visit.sign_in(account)
        reference = re.search(r'name="reference" value="(page_[0-9a-f]{24})"', await visit.page())
        assert reference is not None
        made = await visit.send("keys", reference=reference[1])
        for status in (200, 410, 410):  # what a reload asks for again
            shown = await visit.client.get(made.headers["location"])
            assert (shown.status_code, bool(re.search(r"tk-[\w-]{43}", shown.text))) == (status, status == 200)
        again = await visit.send("keys", reference=reference[1])
        assert again.headers["location"] == "/credits?done=key-there#keys"
        assert "Nothing was made now." in await visit.page("?done=key-there")
        assert len(await shop.books.accounts.keys_of(account)) == 1


async def test_no_form_of_the_page_that_works_answers_with_a_page(shop: Shop) -> None:
    """A browser asks to send a form again when what it answered is reloaded."""
    account = await shop.books.account()
    async with visiting(shop) as visit:
        await visit.sign_in(account)
        await visit.send("keys", name="one")
        (key,) = await shop.books.accounts.keys_of(account)
        forms: list[tuple[str, dict[str, str]]] = [
            ("keys", {}),
            ("keys/change", {"key": key.id, "name": "two", "limit": "5", "period": "day"}),
            ("keys/rotate", {"key": key.id, "grace": "1"}),
            ("keys/revoke", {"key": key.id}),
            ("buy", {"package": "pro"}),
            ("recharge", {"enabled": "no"}),
            ("sign-out", {}),
        ]
        for path, fields in forms:
            assert (await visit.send(path, **fields)).status_code == 303, path


async def test_a_key_is_changed_and_rotated_by_its_owner_only(shop: Shop) -> None:
    account, other = await shop.books.account(), await shop.books.account()
    async with visiting(shop) as visit, visiting(shop) as theirs:
        await visit.sign_in(account)
        await theirs.sign_in(other)
        _, before = await shop.books.accounts.create_key(account, KeyRules())
        (key,) = await shop.books.accounts.keys_of(account)
        models = (KeyBudget(millicredits(7_000), "day", ("gpt-6*",)),)
        await key_desk(shop.books.database).changes.change(key.id, {"budgets": models}, Who("ada", "owner"))
        assert (await theirs.send("keys/change", key=key.id, name="stolen")).status_code == 404
        assert (await theirs.send("keys/rotate", key=key.id, grace="0")).status_code == 404
        fields = {"key": key.id, "name": "mine", "limit": "1,000", "period": "month", "daily": "12.5"}
        assert (await visit.send("keys/change", **fields)).headers["location"] == "/credits?done=key-changed#keys"
        (row,) = await shop.books.accounts.keys_of(account)
        assert (row.name, row.spend_limit_millicredits) == ("mine", 1_000_000)
        limits = [one._replace(since=0) for one in read_budgets(row.budgets)]
        assert limits == [*models, KeyBudget(millicredits(12_500), "day")]
        page = await visit.page()
        assert 'value="1000"' in page
        assert 'value="12.5"' in page
        assert "7 a day (gpt-6*)" in page
        for wrong in (
            {"limit": "0"},
            {"period": "hour"},
            {"limit": "1", "period": "day", "daily": "2"},
            {"name": "x" * 101},
        ):
            assert (await visit.send("keys/change", **{**fields, **wrong})).status_code == 400, wrong
        assert (await visit.send("keys/rotate", key=key.id, grace="9")).status_code == 400
        rotated = await visit.send("keys/rotate", key=key.id, grace="1")
        secret = re.search(r"tk-[\w-]{43}", (await visit.client.get(rotated.headers["location"])).text)
        assert secret is not None
        assert secret[0] != before
        assert "the old key works until" in await visit.page()
        await visit.send("keys/revoke", key=key.id)
        assert (await visit.send("keys/change", **fields)).status_code == 404


async def test_automatic_recharge_needs_a_saved_card_and_consent(shop: Shop) -> None:
    account = await shop.books.account(500_000)
    wish = {"threshold": "100", "package": "pro", "ceiling": "250.00", "enabled": "yes"}
    async with visiting(shop) as visit:
        await visit.sign_in(account)
        assert "Save the card” to switch this on" in await visit.page()
        assert (await visit.send("recharge", **wish, consent="yes")).status_code == 409
        await shop.paid(account, PRO)
        async with shop.books.database.write() as connection:
            await connection.execute(text("UPDATE stripe_customers SET payment_method_id = 'pm_1'"))
        assert (await visit.send("recharge", **wish)).status_code == 400
        assert (await visit.send("recharge", **{**wish, "ceiling": "50"}, consent="yes")).status_code == 400
        assert (await visit.send("recharge", **wish, consent="yes")).status_code == 303
        row = await shop.recharges.get(account)
        assert row is not None
        assert (row.enabled, row.threshold_millicredits, row.monthly_ceiling_cents) == (True, 100_000, 25_000)
        assert (await visit.send("recharge", **{**wish, "enabled": "no"})).status_code == 303
        row = await shop.recharges.get(account)
        assert row is not None
        assert not row.enabled


class Inert(HTMLParser):
    """Fails on anything that could execute."""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        assert tag not in ("iframe", "object", "base"), tag
        assert not [name for name in named if name.startswith("on") or name == "style"], attrs
        if tag == "script":
            assert named == {"src": "/credits/static/credits.js", "defer": None}
        for name in ("href", "action", "src"):
            assert not (named.get(name) or "").lower().startswith("javascript:")


async def test_what_others_wrote_is_text_and_the_policy_is_strict(shop: Shop) -> None:
    account = await shop.books.account()
    await shop.books.ledger.grant(
        account, cast("Any", 5_000), "g1", "ops", "<script>alert(1)</script>", terms=GrantTerms(reason_shown=True)
    )
    async with visiting(shop) as visit:
        entered = await visit.sign_in(account)
        Inert().feed(entered.text)
        assert "&lt;script&gt;alert(1)" in entered.text
        policy = entered.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert (entered.headers["cache-control"], entered.headers["x-frame-options"]) == ("no-store", "DENY")
        for name in ("credits.css", "credits.js"):
            assert (await visit.client.get(f"/credits/static/{name}")).status_code == 200
        assert (await visit.client.get("/credits/static/frame.html")).status_code == 404


async def test_statements_and_receipts_are_ones_own(shop: Shop) -> None:
    account, other = await shop.books.account(), await shop.books.account()
    purchase = await shop.paid(account, PRO)
    month = time.strftime("%Y-%m", time.gmtime())
    async with visiting(shop) as visit, visiting(shop) as theirs:
        await visit.sign_in(account)
        await theirs.sign_in(other)
        pdf = await visit.client.get(f"/credits/statement?month={month}&format=pdf")
        assert pdf.content.startswith(b"%PDF")
        csv = await visit.client.get(f"/credits/statement?month={month}&format=csv")
        assert "pro" in csv.text
        assert (await visit.client.get("/credits/statement?month=never")).status_code == 400
        if purchase.receipt_url:
            assert (await visit.client.get(f"/credits/receipts/{purchase.id}")).headers[
                "location"
            ] == purchase.receipt_url
        assert (await theirs.client.get(f"/credits/receipts/{purchase.id}")).status_code == 404
        assert (await visit.client.get("/credits/receipts/nothing")).status_code == 404


async def test_switching_off_works_whatever_has_become_of_the_package(shop: Shop) -> None:
    account = await account_with_card(shop)
    dearer = msgspec.structs.replace(
        settings(billing={"auto_recharge": True}), packages=(Package(code="starter", usd="29.99"),)
    )
    async with visiting(shop, dearer) as visit:
        await visit.sign_in(account)
        page = await visit.send("recharge", threshold="", package="gone", ceiling="x", enabled="no")
        assert page.status_code == 303
    row = await shop.recharges.get(account)
    assert row is not None
    assert (row.enabled, row.threshold_millicredits) == (False, WISH.threshold)


async def test_a_decimal_comma_is_not_a_thousand_times_as_much(shop: Shop) -> None:
    account = await account_with_card(shop)
    async with visiting(shop, settings(billing={"auto_recharge": True})) as visit:
        await visit.sign_in(account)
        wish = {"threshold": "5,000", "package": "starter", "enabled": "yes", "consent": "yes"}
        for odd in ("20,00", "1e3", "1_000", "٣٠٠", "NaN", "200.001"):
            assert (await visit.send("recharge", **wish, ceiling=odd)).status_code == 400, odd
        assert (await visit.send("recharge", **wish, ceiling="1,000.00")).status_code == 303
    row = await shop.recharges.get(account)
    assert row is not None
    assert (row.threshold_millicredits, row.monthly_ceiling_cents) == (5_000_000, 100_000)


async def test_the_page_says_what_became_of_a_purchase(shop: Shop) -> None:
    account = await shop.books.account()
    for back in (100, 999, None):
        purchase = await shop.paid(account, STARTER)
        if back:
            shop.stripe.give_back(purchase.payment_intent_id or "", back)
        else:
            shop.stripe.open_dispute(purchase.payment_intent_id or "")
        await shop.deliver()
    async with visiting(shop) as visit:
        await visit.sign_in(account)
        page = await visit.page()
    assert "$1.00 refunded" in page
    assert "$9.99 refunded" in page
    assert all(f">{state}<" in page for state in ("partly refunded", "refunded", "disputed"))
    assert "Credits are prepaid. 1,000 Credits = $1.00. You only pay for actual token usage." in page


async def test_no_page_breaks_on_a_nul(shop: Shop) -> None:
    account = await shop.books.account()
    async with visiting(shop) as visit:
        await visit.sign_in(account)
        for path in ("?session=%00", "?older=%00", "?%00=x", "/receipts/%00", "/statement?month=%00"):
            refused = await visit.client.get(f"/credits{path}")
            assert (refused.status_code, "holds a NUL character" in refused.text) == (400, True), path


async def test_a_page_that_is_still_being_settled_is_said(shop: Shop) -> None:
    account = await shop.books.account()
    purchase = await shop.buy(account)
    shop.stripe.expire(purchase.session_id or "")

    async def session(_session_id: str) -> None:
        raise NotYet("others keep changing this purchase")

    shop.sync.session = session  # type: ignore[method-assign, assignment]
    async with open_api(shop) as api:
        answer = await api.client.post(
            "/api/billing/checkout", json={"packageCode": "pro"}, headers=await api.key(account)
        )
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "checkout_settling")
    async with visiting(shop) as visit:
        await visit.sign_in(account)
        assert (await visit.send("buy", package="pro")).status_code == 503

"""Journal, liability, statements: every day sums to zero, every month adds up, every byte is the same twice."""

import csv
import io
from collections import defaultdict
from datetime import UTC, date, datetime
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from billing.accounting.journal import (
    ADJUSTMENTS,
    DEFERRED,
    PROMO_MEMO,
    RECOGNISED,
    REFUNDS,
    Books,
    CustomerMovement,
    _Account,
    _apply,
    _recognise,
)
from billing.accounting.statements import Statement, StatementEntry, Statements, StatementUsage, month_bounds
from billing.money.holds import Entry
from billing.money.postings import CASH, COGS, DISPUTES, FEES, PAYABLE, TAX
from proxy.customer_api.statement_csv import safe_cell, statement_csv
from proxy.customer_api.statement_pdf import statement_pdf
from tests.billing.stores import record
from tests.money.shop import PRO, STARTER, Shop


def today() -> date:
    return datetime.now(UTC).date()


async def use(shop: Shop, account: str, amount: int, number: int, cost: int = 3) -> None:
    await shop.books.ledger.post([Entry(str(number), amount, 0, record(f"c{number}", account, cost=cost))])


async def journal(shop: Shop) -> dict[str, int]:
    lines = await Books(shop.books.database).journal(today(), today())
    assert sum(line.debit for line in lines) == sum(line.credit for line in lines)
    found: defaultdict[str, int] = defaultdict(int)
    for line in lines:
        found[line.account] += line.debit - line.credit
    for name in (CASH, TAX, FEES, DISPUTES, COGS, PAYABLE):  # what is not reworked is what the transfers say
        assert found.get(name, 0) == -await shop.ledger_of(name), name
    return dict(found)


async def test_a_purchase_is_owed_until_it_is_used_and_bonus_credits_dilute_it(shop: Shop) -> None:
    account = await shop.books.account()
    await shop.paid(account, PRO)
    found = await journal(shop)
    assert found[DEFERRED] == -99_990_000
    assert RECOGNISED not in found
    await use(shop, account, 54_994_500, 1)  # half of 109,989,000
    found = await journal(shop)
    assert found[RECOGNISED] == -49_995_000  # half of what was paid, not what was deducted
    assert found[DEFERRED] == -49_995_000
    assert (found["cogs"], found["payable:openai"]) == (3, -3)
    await use(shop, account, 54_994_500, 2)
    found = await journal(shop)
    assert found[RECOGNISED] == -99_990_000
    assert found.get(DEFERRED, 0) == 0
    (day,) = await Books(shop.books.database).days(today(), today())
    assert (day.purchased, day.deducted, day.recognised, day.liability, day.deferred) == (
        109_989_000,
        109_989_000,
        99_990_000,
        0,
        0,
    )
    assert (day.cogs, day.margin) == (6, 109_989_000 - 6)
    assert day.fees == (30 + 9_999 * 29 // 1_000) * 10_000
    assert day.profit == 99_990_000 - 6 - day.fees


async def test_a_refund_takes_what_is_owed_and_what_was_recognised(shop: Shop) -> None:
    account = await shop.books.account()
    purchase = await shop.paid(account, STARTER)
    await use(shop, account, 4_000_000, 1)
    shop.stripe.give_back(purchase.payment_intent_id or "", 999)
    await shop.deliver()
    found = await journal(shop)
    assert found[REFUNDS] == 4_000_000  # consumed and paid back: contra revenue
    assert found[RECOGNISED] == -4_000_000
    assert found.get(DEFERRED, 0) == 0
    assert found["cash"] == -(30 + 999 * 29 // 1_000) * 10_000
    (day,) = await Books(shop.books.database).days(today(), today())
    assert (day.liability, day.overdrawn) == (0, 4_000_000)


async def test_disputes_clear_to_zero_in_the_journal(shop: Shop) -> None:
    account = await shop.books.account()
    for end in ("won", "lost"):
        purchase = await shop.paid(account, PRO, tax=500)
        dispute = shop.stripe.open_dispute(purchase.payment_intent_id or "")
        await shop.deliver()
        shop.stripe.close_dispute(dispute.id, end)
        await shop.deliver()
    found = await journal(shop)
    assert found.get("disputes", 0) == 0
    assert found[DEFERRED] == -99_990_000
    assert found["payable:tax"] == -5_000_000


async def test_grants_are_no_revenue_and_corrections_take_them_first(shop: Shop) -> None:
    account = await shop.books.account(1_000)
    await shop.paid(account, STARTER)
    await use(shop, account, 1_000, 1)
    assert RECOGNISED not in await journal(shop)
    await shop.books.correct(account, 500)
    await shop.books.correct(account, -500)
    found = await journal(shop)
    assert found[DEFERRED] == -9_990_000


async def test_paid_credits_that_a_person_takes_away_are_no_revenue_of_usage(shop: Shop) -> None:
    account = await shop.books.account(1_000_000)
    purchase = await shop.paid(account, STARTER)
    await use(shop, account, 2_000_000, 1)  # the free credits first, then 1,000 paid ones
    await shop.books.correct(account, -4_000_000)
    found = await journal(shop)
    assert (found[RECOGNISED], found[ADJUSTMENTS], found[DEFERRED]) == (-1_000_000, -4_000_000, -4_990_000)
    assert found[PROMO_MEMO] == 1_000_000, "what was granted for nothing was used, and stays so"
    (day,) = await Books(shop.books.database).days(today(), today())
    assert (day.deducted, day.recognised, day.adjusted) == (2_000_000, 1_000_000, 4_000_000)
    shop.stripe.give_back(purchase.payment_intent_id or "", 999)  # and the money goes back after all
    await shop.deliver()
    found = await journal(shop)
    assert ADJUSTMENTS not in found
    assert (found[RECOGNISED], found[REFUNDS], found.get(DEFERRED, 0)) == (-1_000_000, 1_000_000, 0)


async def test_what_is_left_of_free_credits_is_taken_first(shop: Shop) -> None:
    account = await shop.books.account(1_000_000)
    await shop.paid(account, STARTER)
    await use(shop, account, 400_000, 1)
    await shop.books.correct(account, -700_000)
    found = await journal(shop)
    assert (found.get(RECOGNISED, 0), found[ADJUSTMENTS], found[DEFERRED]) == (0, -100_000, -9_890_000)
    assert found[PROMO_MEMO] == 400_000


async def test_credits_taken_below_zero_are_an_adjustment_of_the_next_purchase(shop: Shop) -> None:
    account = await shop.books.account()
    await use(shop, account, 1_000_000, 1)
    await shop.books.correct(account, -10_998_900)
    found = await journal(shop)
    assert (found.get(RECOGNISED, 0), found.get(ADJUSTMENTS, 0)) == (0, 0)
    await shop.paid(account, PRO)
    found = await journal(shop)
    assert (found[RECOGNISED], found[ADJUSTMENTS]) == (-909_091, -9_999_000)
    assert found[DEFERRED] == -99_990_000 + 909_091 + 9_999_000


async def test_a_quiet_day_still_owes_what_the_day_before_owed(shop: Shop) -> None:
    account = await shop.books.account()
    await shop.paid(account, STARTER)
    tomorrow = date.fromordinal(today().toordinal() + 1)
    first, second = await Books(shop.books.database).days(today(), tomorrow)
    assert (first.liability, second.liability, second.purchased) == (9_990_000, 9_990_000, 0)
    assert await Books(shop.books.database).journal(tomorrow, tomorrow) == []


MOVES = st.lists(
    st.tuples(st.sampled_from(["buy", "use", "grant", "take", "refund", "unrefund"]), st.integers(1, 10_000)),
    max_size=25,
)


@given(MOVES)
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_history_balances_and_owes_exactly_what_was_paid_and_not_recognised(moves: list[tuple[str, int]]) -> None:
    account, lines = _Account(), defaultdict(int)
    owners: dict[str, str] = {}
    paid: dict[str, int] = {}
    back: dict[str, int] = {}
    for number, (kind, amount) in enumerate(moves):
        rows: list[CustomerMovement] = []
        if kind == "buy":
            paid[f"p{number}"] = amount
            rows = [
                CustomerMovement(1, "a", "purchase", f"p{number}", amount),
                CustomerMovement(1, "a", "purchase_bonus", f"p{number}", amount // 3 or 1),
            ]
        elif kind == "use":
            rows = [CustomerMovement(1, "a", "usage", "", -amount)]
        elif kind in ("grant", "take"):
            rows = [CustomerMovement(1, "a", "adjustment", f"g{number}", amount if kind == "grant" else -amount)]
        elif kind == "refund" and paid:
            purchase = sorted(paid)[amount % len(paid)]
            part = min(amount, paid[purchase] - back.get(purchase, 0))
            if part:
                back[purchase] = back.get(purchase, 0) + part
                owners[f"re_{number}"] = purchase
                rows = [CustomerMovement(1, "a", "refund", f"re_{number}:1", -part)]
        elif kind == "unrefund" and any(back.values()):
            purchase = next(name for name, part in sorted(back.items()) if part)
            owners[f"re_{number}"] = purchase
            rows = [CustomerMovement(1, "a", "refund", f"re_{number}:2", back.pop(purchase))]
        for row in rows:
            _apply(account, row, owners)
            before = account.move()
            _recognise(lines, row, before, account.at)
            assert kind != "take" or account.at.recognised == before.recognised, "what a person takes is no usage"
    assert sum(lines.values()) == 0
    held = sum(paid.values()) - sum(back.values())
    assert account.at.recognised + account.at.deferred + account.at.adjusted == held
    assert -lines[ADJUSTMENTS] == account.at.adjusted >= 0
    assert account.at.adjusted == 0 or any(kind == "take" for kind, _ in moves)
    assert -lines[DEFERRED] == account.at.deferred
    assert lines["cash"] == held
    assert -lines[RECOGNISED] - lines[REFUNDS] == account.at.recognised
    assert 0 <= account.at.recognised <= held


# -- statements ------------------------------------------------------------------------------------------------------


async def test_a_statement_adds_up_and_is_the_same_bytes_twice(shop: Shop) -> None:
    account, other = await shop.books.account(), await shop.books.account(77)
    purchase = await shop.paid(account, PRO)
    await use(shop, account, 1_234, 1)
    await use(shop, account, 766, 2)
    await use(shop, other, 50, 3)
    shop.stripe.give_back(purchase.payment_intent_id or "", 999)
    await shop.deliver()
    month = today().isoformat()[:7]
    statement = await Statements(shop.books.database).read(account, month)
    assert (statement.opening, statement.closing) == (0, await shop.balance(account))
    ((day, model, requests, _, _, amount),) = statement.usage
    assert (day, model, requests, amount) == (today().isoformat(), "gpt-4o-mini", 2, 2_000)
    assert [row.kind for row in statement.entries] == ["refund", "refund_bonus"]
    assert statement.purchases[0].receipt_url == purchase.receipt_url
    year, number = divmod(int(month[:4]) * 12 + int(month[5:]), 12)
    following = await Statements(shop.books.database).read(account, f"{year}-{number + 1:02d}")
    assert (following.opening, following.closing, following.usage) == (statement.closing, statement.closing, [])
    again = await Statements(shop.books.database).read(account, month)
    assert statement_csv(again) == statement_csv(statement)
    pdf = statement_pdf(statement)
    assert pdf == statement_pdf(again)
    assert pdf.startswith(b"%PDF-")
    rows = list(csv.DictReader(io.StringIO(statement_csv(statement).decode())))
    assert rows[0]["item"] == "opening"
    total = sum(round(float(row["credits"]) * 1_000) for row in rows[:-1])
    assert round(float(rows[-1]["credits"]) * 1_000) == total


@pytest.mark.parametrize(
    "text", ['=HYPERLINK("http://evil")', "+1+1", "-2+3", "@SUM(A1)", "\t=1", "\r=1", "=cmd|' /C calc'!A0"]
)
def test_no_cell_is_a_formula(text: str) -> None:
    statement = Statement(
        "acct_1",
        text,
        "2026-11",
        0,
        -5,
        [],
        [StatementEntry(1, "x", text, text, 5)],
        [StatementUsage("2026-11-01", text, 1, 1, 1, 10)],
    )
    for row in csv.reader(io.StringIO(statement_csv(statement).decode())):
        for cell in row:
            assert not cell.startswith(("=", "+", "@", "\t", "\r")), cell
            assert not cell.startswith("-") or cell.lstrip("-").replace(".", "", 1).isdigit(), cell
    assert safe_cell("-12.500") == "-12.500"
    statement_pdf(statement)  # markup and odd characters do no harm there either


def test_a_pdf_pages_over_and_survives_markup() -> None:
    usage = [StatementUsage("2026-11-01", f"<b>model & {n}", 1, 1, 1, 1) for n in range(300)]
    statement = Statement("acct_1", "A <i>& B", "2026-11", 0, -300, [], [], usage)
    assert statement_pdf(statement) == statement_pdf(statement)


def test_months_are_bounded() -> None:
    assert month_bounds("2026-12") == (1_796_083_200_000, 1_798_761_600_000)
    for wrong in ("2026-13", "2026-1", "26-01", "2026-01-01", "", "../etc"):
        with pytest.raises(ValueError):
            month_bounds(wrong)


async def test_what_customers_set(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.money.api import open_api
    from tests.money.api import settings as api_settings

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

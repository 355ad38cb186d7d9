"""The journal and the liability: every day sums to zero."""

from collections import defaultdict
from datetime import date

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from billing.accounting.journal import (
    ADJUSTMENTS,
    DEFERRED,
    PROMO_MEMO,
    RECOGNISED,
    REFUNDS,
    AccountBooks,
    Books,
    CustomerMovement,
    _apply,
    _recognise,
)
from billing.money.credits.expiring import mark_of
from billing.money.postings import CASH, COGS, DISPUTES, FEES, TAX, payable
from tests.support.shop import PRO, STARTER, Shop, today, use


async def journal(shop: Shop) -> dict[str, int]:
    lines = await Books(shop.books.database).journal(today(), today())
    assert sum(line.debit for line in lines) == sum(line.credit for line in lines)
    found: defaultdict[str, int] = defaultdict(int)
    for line in lines:
        found[line.account] += line.debit - line.credit
    for name in (CASH, TAX, FEES, DISPUTES, COGS, payable("")):  # what is not reworked is what the transfers say
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
    st.tuples(
        st.sampled_from(["buy", "use", "grant", "take", "refund", "unrefund", "gift", "bonus", "lapse"]),
        st.integers(1, 10_000),
    ),
    max_size=25,
)


@given(MOVES)
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_history_balances_and_owes_exactly_what_was_paid_and_not_recognised(moves: list[tuple[str, int]]) -> None:
    account, lines = AccountBooks(), defaultdict(int)
    owners: dict[str, str] = {}
    paid: dict[str, int] = {}
    back: dict[str, int] = {}
    balance, gifts = 0, dict[str, int]()
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
        elif kind == "gift":
            gifts[f"adjustment:g{number}"] = amount
            rows = [CustomerMovement(1, "a", "adjustment", f"g{number}", amount, 1_000 + amount % 7)]
        elif kind == "bonus":
            paid[f"p{number}"] = amount
            gifts[f"purchase_bonus:p{number}"] = amount
            rows = [
                CustomerMovement(1, "a", "purchase", f"p{number}", amount),
                CustomerMovement(1, "a", "purchase_bonus", f"p{number}", amount, 1_000 + amount % 5),
            ]
        elif kind == "lapse" and gifts:
            lot = sorted(gifts)[amount % len(gifts)]
            part = min(amount, next(one.remaining for one in account.expiring if one.lot_id == lot))
            if part:
                rows = [CustomerMovement(1, "a", "expiry", f"{mark_of(lot)}:{number}", -part)]
        elif kind == "refund" and paid:
            purchase = sorted(paid)[amount % len(paid)]
            part = min(amount, paid[purchase] - back.get(purchase, 0))
            if part:
                back[purchase] = back.get(purchase, 0) + part
                owners[f"re_{number}"] = purchase
                rows = [CustomerMovement(1, "a", "refund", f"re_{number}:1", -part)]
                if f"purchase_bonus:{purchase}" in gifts:
                    rows.append(CustomerMovement(1, "a", "refund_bonus", f"re_{number}:1", -(part // 2 or 1)))
        elif kind == "unrefund" and any(back.values()):
            purchase = next(name for name, part in sorted(back.items()) if part)
            owners[f"re_{number}"] = purchase
            rows = [CustomerMovement(1, "a", "refund", f"re_{number}:2", back.pop(purchase))]
        for row in rows:
            _apply(account, row, owners)
            before = account.move()
            _recognise(lines, row, before, account.at)
            balance += row.effect
            assert account.at.outstanding - account.at.overdrawn == balance
            assert not account.at.overdrawn or account.at.outstanding == 0, "a debt is paid with what there is"
            assert kind != "take" or account.at.recognised == before.recognised, "what a person takes is no usage"
            assert kind != "lapse" or account.at[:2] == before[:2], "what was given and goes is no revenue"
    assert sum(lines.values()) == 0
    held = sum(paid.values()) - sum(back.values())
    assert account.at.recognised + account.at.deferred + account.at.adjusted == held
    assert -lines[ADJUSTMENTS] == account.at.adjusted >= 0
    assert account.at.adjusted == 0 or any(kind == "take" for kind, _ in moves)
    assert -lines[DEFERRED] == account.at.deferred
    assert lines["cash"] == held
    assert -lines[RECOGNISED] - lines[REFUNDS] == account.at.recognised
    assert 0 <= account.at.recognised <= held

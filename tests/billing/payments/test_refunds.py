"""Refunds: by Stripe's refund objects or by a person's order, in parts, failed, of spent credits, booked once."""

import asyncio
import logging
from typing import Any

import pytest
from sqlalchemy import text

from billing.ledger.audit_log import Who
from billing.ledger.flush import relay_once
from billing.money.amounts import MoneyError
from billing.money.errors import NotYet, ReferenceTaken, StripeRefused
from billing.payments.claims import Parts, Whole, cents_within, share
from billing.payments.purchase import NotRefundable, RefundInDoubt, refund_cents
from billing.payments.purchase_store import Purchase
from billing.payments.stripe.objects import Dispute
from tests.support.fake_stripe import replace
from tests.support.recharge import spend
from tests.support.shop import PRO, STARTER, Shop

ADA = Who("ada", "finance")


class Seen:
    """An observer that keeps what it is told."""

    def __init__(self) -> None:
        self.moves: list[tuple[str, int]] = []

    def moved(self, kind: str, millicredits: int) -> None:
        self.moves.append((kind, millicredits))


async def test_what_goes_back_in_the_moment_of_crediting_is_counted_as_going_back(shop: Shop) -> None:
    seen = Seen()
    shop.sync._observer = seen
    purchase = await shop.buy(await shop.books.account())
    shop.stripe.pay(purchase.session_id or "", livemode=True)  # which needs a look by a person
    await shop.deliver()
    intent = shop.stripe.intent_of(purchase.session_id or "")
    shop.stripe.give_back(intent.id, 5_000)
    shop.stripe.open_dispute(intent.id, 1_000)
    await shop.deliver()
    assert seen.moves == []
    shop.stripe.sessions_by_id[purchase.session_id or ""] = replace(
        shop.stripe.sessions_by_id[purchase.session_id or ""], livemode=False
    )
    applied = await shop.sync.accept(purchase.id, ADA, "it was paid")
    bought = [amount for kind, amount in seen.moves if kind == "purchase"]
    back = {kind: amount for kind, amount in seen.moves if kind != "purchase"}
    assert sum(bought) - sum(back.values()) == applied.credited == await shop.balance(purchase.account_id)
    assert (len(bought), set(back)) == (1, {"refund", "dispute"})
    assert back["refund"] == 5 * back["dispute"] > 0


async def test_tax_that_an_earlier_version_booked_in_fractions_of_a_cent_is_booked_in_whole_ones(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exact_share(whole: Whole, cents: int) -> Parts:
        tax = (2 * whole.tax * cents + whole.total_cents) // (2 * whole.total_cents)
        return Parts(cents * 10_000 - tax, whole.bonus * cents // whole.total_cents, tax)

    account = await shop.books.account()
    purchase = await shop.paid(account, PRO, tax=1_900)
    with monkeypatch.context() as earlier:
        earlier.setattr("billing.payments.claims.share", exact_share)
        shop.stripe.give_back(purchase.payment_intent_id or "", 3_333)
        await shop.deliver()
    assert await shop.ledger_of("payable:tax") == 19_000_000 - 5_322_044
    assert await shop.claims.round_taxes() == 1
    assert await shop.ledger_of("payable:tax") == 19_000_000 - 5_320_000
    assert await shop.balance(account) == 109_989_000 - 28_010_000 - 9_999_000 * 3_333 // 11_899
    assert (await shop.claims.round_taxes(), await shop.findings()) == (0, [])


async def test_what_takes_a_purchase_back_says_which(shop: Shop) -> None:
    account = await shop.books.account(5_000)
    first, second = await shop.paid(account), await shop.paid(account)
    shop.stripe.give_back(first.payment_intent_id or "", 500)
    shop.stripe.open_dispute(second.payment_intent_id or "")
    await shop.deliver()
    await spend(shop, account, 1_000)
    rows = await shop.books.ledger.transfers_of(account, 50)
    named = {(row.kind.removesuffix("_bonus"), row.purchase_id) for row in rows}
    wanted = {("purchase", first.id), ("purchase", second.id), ("refund", first.id), ("dispute", second.id)}
    assert named == wanted | {("usage", None), ("adjustment", None)}


async def test_a_refund_is_audited_asked_for_and_booked_once(shop: Shop) -> None:
    purchase = await shop.paid(await shop.books.account())
    half = await shop.refunds.refund(purchase.id, 5_000, ADA, "they asked")
    assert (half.cents, half.status) == (5_000, "succeeded")
    assert await shop.balance(purchase.account_id) == 109_989_000 * 4_999 // 9_999
    await shop.deliver()  # and its webhooks change nothing
    assert await shop.balance(purchase.account_id) == 109_989_000 * 4_999 // 9_999
    rest = await shop.refunds.refund(purchase.id, None, ADA, "the rest as well")
    assert (rest.cents, await shop.balance(purchase.account_id)) == (4_999, 0)
    with pytest.raises(NotRefundable, match="refunded or disputed already"):
        await shop.refunds.refund(purchase.id, None, ADA, "again")
    asked = await shop.rows(
        "SELECT actor, role, subject, reason FROM audit_log WHERE action = 'purchase.refund' ORDER BY id"
    )
    assert asked == [("ada", "finance", purchase.id, "they asked"), ("ada", "finance", purchase.id, "the rest as well")]
    assert await shop.findings() == []


def given_back(shop: Shop) -> list[int]:
    """What Stripe gave back, in cents."""
    return [refund.amount for refund in shop.stripe.refunds_by_id.values()]


async def askings(shop: Shop) -> list[tuple[Any, ...]]:
    return await shop.rows("SELECT amount_cents, state, attempt FROM refund_askings ORDER BY created_at, id")


@pytest.mark.parametrize("booked", [False, True])
@pytest.mark.parametrize("cents", [3_000, None])
@pytest.mark.parametrize("reference", ["", "ticket 17"])
async def test_an_answer_that_is_lost_refunds_once(
    shop: Shop, reference: str, cents: int | None, *, booked: bool
) -> None:
    """Whether or not its webhook has told of it meanwhile."""
    purchase = await shop.paid(await shop.books.account())
    shop.stripe.lose_answers = 1
    with pytest.raises(RefundInDoubt, match="may have been made.*Ask again with the reference"):
        await shop.refunds.refund(purchase.id, cents, ADA, "they asked", reference)
    if booked:
        await shop.deliver()
    found = await shop.refunds.refund(purchase.id, cents, ADA, "they asked", reference)
    wanted = cents or purchase.total_cents
    assert (found.cents, found.again, given_back(shop)) == (wanted, True, [wanted])
    assert await askings(shop) == [(wanted, "made", 1)]
    assert await shop.balance(purchase.account_id) == 109_989_000 - 109_989_000 * wanted // 9_999


async def test_a_reference_is_given_back_once_and_for_one_thing(shop: Shop) -> None:
    purchase, other = await shop.paid(await shop.books.account()), await shop.paid(await shop.books.account())
    first = await shop.refunds.refund(purchase.id, 3_000, ADA, "they asked", "ticket 17")
    again = await shop.refunds.refund(purchase.id, 3_000, ADA, "they asked twice", "ticket 17")
    assert (first.refund_id, first.again, again) == (again.refund_id, False, first._replace(again=True))
    for purchase_id, cents in ((purchase.id, 2_000), (purchase.id, None), (other.id, 3_000)):
        with pytest.raises(ReferenceTaken):
            await shop.refunds.refund(purchase_id, cents, ADA, "another one", "ticket 17")
    assert given_back(shop) == [3_000]
    await shop.refunds.refund(purchase.id, 3_000, ADA, "another one, meant so", "ticket 18")
    await shop.refunds.refund(purchase.id, 3_000, ADA, "and without a name")
    assert given_back(shop) == [3_000, 3_000, 3_000]
    reasons = await shop.rows("SELECT reason FROM audit_log WHERE action = 'purchase.refund' ORDER BY id")
    assert reasons == [("they asked",), ("another one, meant so",), ("and without a name",)]


async def test_the_same_asking_at_once_is_one_refund(shop: Shop) -> None:
    purchase = await shop.paid(await shop.books.account())
    made = await asyncio.gather(*(shop.refunds.refund(purchase.id, 1_000, ADA, "x", "ticket 17") for _ in range(8)))
    assert (len({refund.refund_id for refund in made}), given_back(shop)) == (1, [1_000])


async def test_what_a_lost_answer_made_is_known_before_anything_else_is_asked(shop: Shop) -> None:
    """Of another amount it is another asking, and what is left counts the lost one."""
    purchase = await shop.paid(await shop.books.account())
    shop.stripe.lose_answers = 1
    with pytest.raises(RefundInDoubt):
        await shop.refunds.refund(purchase.id, 6_000, ADA, "they asked")
    with pytest.raises(NotRefundable, match=r"\$39.99 can be given back, not \$50.00"):
        await shop.refunds.refund(purchase.id, 5_000, ADA, "they asked")
    rest = await shop.refunds.refund(purchase.id, None, ADA, "the rest as well")
    assert (rest.cents, given_back(shop)) == (3_999, [6_000, 3_999])
    assert await shop.findings() == []


async def test_a_failure_that_stripe_keeps_is_no_answer_to_wait_for(shop: Shop) -> None:
    purchase = await shop.paid(await shop.books.account())
    shop.stripe.keep_failures = 2
    made = await shop.refunds.refund(purchase.id, 3_000, ADA, "they asked")
    assert (made.again, given_back(shop), await askings(shop)) == (False, [3_000], [(3_000, "made", 3)])
    shop.stripe.keep_failures = 4
    with pytest.raises(RefundInDoubt):
        await shop.refunds.refund(purchase.id, 1_000, ADA, "they asked again", "ticket 18")
    assert (await shop.refunds.refund(purchase.id, 1_000, ADA, "they asked again", "ticket 18")).cents == 1_000
    assert given_back(shop) == [3_000, 1_000]
    assert len(set(shop.stripe.refund_keys)) == 3 + 5


async def test_a_refusal_is_asked_anew_when_its_reference_comes_again(shop: Shop) -> None:
    """The Stripe account had no money for it, say, and has it now."""
    purchase = await shop.paid(await shop.books.account())
    real = shop.stripe.refund_payment

    async def refuse(*_given: Any) -> Any:
        raise StripeRefused("insufficient_funds", "no", 400)

    shop.stripe.refund_payment = refuse  # type: ignore[method-assign]
    with pytest.raises(StripeRefused):
        await shop.refunds.refund(purchase.id, 3_000, ADA, "they asked", "ticket 17")
    shop.stripe.refund_payment = real  # type: ignore[method-assign]
    await shop.refunds.refund(purchase.id, 3_000, ADA, "they asked", "ticket 17")
    assert (given_back(shop), await askings(shop)) == ([3_000], [(3_000, "made", 2)])


async def test_a_refund_that_cannot_be_booked_at_once_is_booked_by_its_events(shop: Shop) -> None:
    """Stripe has made it: an error would have it asked for again."""
    purchase = await shop.paid(await shop.books.account())
    real = shop.sync.refund

    async def busy(_refund_id: str) -> Any:
        raise NotYet("others keep changing this purchase")

    shop.sync.refund = busy  # type: ignore[method-assign]
    made = await shop.refunds.refund(purchase.id, 3_000, ADA, "they asked")
    assert (made.cents, await shop.balance(purchase.account_id)) == (3_000, 109_989_000)
    shop.sync.refund = real  # type: ignore[method-assign]
    await shop.deliver()
    assert await shop.balance(purchase.account_id) == 109_989_000 - 109_989_000 * 3_000 // 9_999
    assert len(shop.stripe.refunds_by_id) == 1


async def test_what_cannot_go_back_is_refused_before_stripe_is_asked(shop: Shop) -> None:
    opened, paid = await shop.buy(await shop.books.account()), await shop.paid(await shop.books.account())
    calls = shop.stripe.calls
    for purchase_id, cents, because in (
        ("pur_missing", None, "no purchase"),
        (opened.id, None, "nothing was paid"),
        (paid.id, 10_000, r"\$99.99 can be given back, not \$100.00"),
        (paid.id, 0, r"not \$0.00"),
        (paid.id, -5, r"not \$-0.05"),
    ):
        with pytest.raises(NotRefundable, match=because):
            await shop.refunds.refund(purchase_id, cents, ADA, "test")
    assert shop.stripe.calls == calls
    assert await shop.rows("SELECT action FROM audit_log") == []


@pytest.mark.parametrize("usd", ["0", "-1", "0.001", "1e2", "ten", ""])
def test_only_whole_cents_go_back(usd: str) -> None:
    with pytest.raises(MoneyError):
        refund_cents(usd)
    assert refund_cents("12.34") == 1_234


async def test_pitfall_10_refunds_go_by_the_refund_object_not_by_the_charges_cumulative_figure(shop: Shop) -> None:
    account = await shop.books.account()
    purchase = await shop.paid(account, STARTER)
    for cents in (100, 200):
        shop.stripe.give_back(purchase.payment_intent_id or "", cents)  # refund.created and charge.refunded for each
    await shop.deliver()
    assert await shop.balance(account) == 9_990_000 - 3_000_000
    assert len(await shop.rows("SELECT id FROM claims")) == 2


async def test_pitfall_11_partial_refunds_sum_to_the_whole(shop: Shop) -> None:
    account = await shop.books.account()
    purchase = await shop.paid(account, PRO, tax=777)
    for cents in (1, 3_333, 10_776 - 3_335, 1):
        shop.stripe.give_back(purchase.payment_intent_id or "", cents)
        await shop.deliver()
    assert await shop.balance(account) == 0
    assert await shop.ledger_of("promo") == 0
    assert await shop.ledger_of("payable:tax") == 0


@pytest.mark.parametrize("end", ["failed", "canceled"])
async def test_pitfall_12_a_refund_that_fails_afterwards_gives_the_credits_back_once(shop: Shop, end: str) -> None:
    account = await shop.books.account()
    purchase = await shop.paid(account)
    refund = shop.stripe.give_back(purchase.payment_intent_id or "", 9_999)
    await shop.deliver()
    assert await shop.balance(account) == 0
    for _ in range(3):
        shop.stripe.change_refund(refund.id, end)
        await shop.deliver()
    assert await shop.balance(account) == 109_989_000


async def test_pitfall_13_spent_credits_go_below_zero_and_are_never_clamped(shop: Shop) -> None:
    account = await shop.books.account()
    purchase = await shop.paid(account, STARTER)
    await shop.books.correct(account, -9_990_000)
    shop.stripe.give_back(purchase.payment_intent_id or "", 999)
    await shop.deliver()
    assert await shop.balance(account) == -9_990_000
    assert await shop.findings() == []


async def test_a_refused_currency_waits_for_a_person(shop: Shop, caplog: pytest.LogCaptureFixture) -> None:
    account = await shop.books.account()
    purchase = await shop.paid(account)
    refund = shop.stripe.give_back(purchase.payment_intent_id or "", 100)
    shop.stripe.refunds_by_id[refund.id] = replace(refund, currency="eur")
    with pytest.raises(NotYet):
        await shop.sync.refund(refund.id)
    with caplog.at_level(logging.WARNING):
        await shop.deliver()
    assert "cannot take back" in caplog.text
    assert isinstance(shop.stripe.open_dispute(purchase.payment_intent_id or ""), Dispute)


async def test_partial_refunds_and_one_that_fails(shop: Shop) -> None:
    account = await shop.books.account()
    purchase = await shop.paid(account)
    intent = purchase.payment_intent_id or ""
    refunds = [shop.stripe.give_back(intent, cents) for cents in (3_333, 3_333, 3_333)]
    await shop.deliver()
    assert await shop.balance(account) == 0
    assert await shop.ledger_of("cash") == (30 + 9_999 * 29 // 1_000) * 10_000  # all that is gone is the fee
    shop.stripe.change_refund(refunds[1].id, "failed")
    await shop.deliver()
    assert await shop.balance(account) == 33_330_000 + 9_999_000 - 9_999_000 * 6_666 // 9_999
    shop.stripe.give_back(intent, 3_333)
    await shop.deliver()
    assert await shop.balance(account) == 0
    assert await shop.findings() == []


async def test_a_refund_of_spent_credits_goes_below_zero_until_cured(shop: Shop) -> None:
    account = await shop.books.account()
    purchase = await shop.paid(account, STARTER)
    await shop.books.correct(account, -9_000_000)
    shop.stripe.give_back(purchase.payment_intent_id or "", 999)
    await shop.deliver()
    assert await shop.balance(account) == -9_000_000
    await relay_once(shop.books.store, shop.books.ledger)
    assert (await shop.books.store.read(account)).balance == -9_000_000
    await shop.paid(account, STARTER)
    assert await shop.balance(account) == 990_000


async def test_tax_is_owed_on_and_goes_back_with_the_refund(shop: Shop) -> None:
    account = await shop.books.account()
    purchase = await shop.paid(account, STARTER, tax=190)
    assert (purchase.total_cents, purchase.tax_cents) == (1_189, 190)
    assert await shop.ledger_of("payable:tax") == 1_900_000
    shop.stripe.give_back(purchase.payment_intent_id or "", 1_189)
    await shop.deliver()
    assert await shop.balance(account) == 0
    assert await shop.ledger_of("payable:tax") == 0
    assert await shop.findings() == []


async def test_a_refund_known_before_its_purchase_settles_the_purchase_first(shop: Shop) -> None:
    account = await shop.books.account()
    purchase = await shop.buy(account)
    shop.stripe.pay(purchase.session_id or "")
    shop.delivered = len(shop.stripe.events_made)  # the payment's own events are late
    shop.stripe.give_back(shop.stripe.intent_of(purchase.session_id or "").id, 9_999)
    await shop.deliver()
    assert (await shop.get(purchase)).state == "credited"
    assert await shop.balance(account) == 0
    assert await shop.findings() == []


async def test_a_refund_that_names_a_purchase_we_do_not_know_is_parked(shop: Shop) -> None:
    intent = shop.stripe._new_intent(500, "cus_x", "pur_unknown", "succeeded")
    refund = shop.stripe.give_back(intent.id, 500)
    with pytest.raises(NotYet):
        await shop.sync.refund(refund.id)
    await shop.deliver()
    assert {row[0] for row in await shop.rows("SELECT state FROM stripe_inbox")} == {"parked"}


@pytest.mark.parametrize("disputed", [0, 2_000])
async def test_claims_noted_before_the_purchase_is_credited_count_when_it_is(shop: Shop, disputed: int) -> None:

    account = await shop.books.account()
    purchase = await shop.buy(account)
    session_id = purchase.session_id or ""
    shop.stripe.pay(session_id, amount_subtotal=1, amount_total=1)  # review
    intent = shop.stripe.intent_of(session_id)
    shop.stripe.give_back(intent.id, 1_000)
    if disputed:
        shop.stripe.open_dispute(intent.id, disputed)
    await shop.deliver()
    assert {row[0] for row in await shop.rows("SELECT kind FROM transfers")} == {
        "stripe_fee"
    }  # which Stripe keeps in any case
    shop.stripe.sessions_by_id[session_id] = replace(
        shop.stripe.sessions_by_id[session_id], amount_subtotal=9_999, amount_total=9_999
    )
    await shop.sync.session(session_id)
    back = 1_000 + disputed
    assert await shop.balance(account) == (9_999 - back) * 10_000 + 9_999_000 - 9_999_000 * back // 9_999
    assert await shop.ledger_of("disputes") == 0  # the credits held and the money withdrawn, both
    assert await shop.findings() == []


async def test_what_is_left_goes_back_newest_purchase_first_and_never_more(shop: Shop) -> None:
    account = await shop.books.account()
    first, second = await shop.paid(account, STARTER), await shop.paid(account, PRO)
    await spend(shop, account, 5_000_001)
    left = await shop.balance(account)
    parts = await shop.refunds.refund_rest(account, left, ADA, "closed")
    assert [part.purchase_id for part in parts] == [second.id]
    assert parts[0].problem == ""
    await shop.deliver()
    rest = await shop.balance(account)
    assert 0 <= rest < 12_000  # less than a cent of it is worth with its bonus
    taken = left - rest
    cents = parts[0].made.cents if parts[0].made else 0
    assert taken == cents * 10_000 + shop_bonus(second, cents)
    assert await shop.refunds.refund_rest(account, rest, ADA, "again") == []
    assert await shop.findings() == []
    # a gift is nobody's money: all of the purchase that is left goes back, and the gift stays
    await shop.books.correct(account, 1_000_000)
    parts = await shop.refunds.refund_rest(account, await shop.balance(account), ADA, "again")
    await shop.deliver()
    assert sum(part.made.cents for part in parts if part.made) <= 2 * 9_999 + 999 - cents
    assert await shop.balance(account) >= 0
    assert first.id in {part.purchase_id for part in parts} or len(parts) == 1


async def test_one_purchase_that_cannot_go_back_keeps_none_of_the_others(shop: Shop) -> None:
    account = await shop.books.account()
    good, bad = await shop.paid(account, STARTER), await shop.paid(account, STARTER)
    async with shop.books.database.write() as connection:
        await connection.execute(text("UPDATE purchases SET payment_intent_id = NULL WHERE id = :id"), {"id": bad.id})
    parts = await shop.refunds.refund_rest(account, await shop.balance(account), ADA, "closed")
    assert {part.purchase_id: bool(part.made) for part in parts} == {bad.id: False, good.id: True}
    assert "nothing was paid" in next(part.problem for part in parts if not part.made)


@pytest.mark.parametrize(
    "whole",
    [
        Whole(9_999, 99_990_000, 9_999_000, 0),
        Whole(1_189, 9_990_000, 0, 1_900_000),
        Whole(1, 10_000, 3_000, 0),
    ],
)
def test_the_most_cents_within_some_credits_are_the_most(whole: Whole) -> None:
    for before in (0, 1, whole.total_cents // 3, whole.total_cents):
        for left in (0, 1, 9_999, 10_000, 11_000, 12_999, 999_000, 10**12):
            cents = cents_within(whole, before, left)
            start = share(whole, before)

            def taken(cents: int, before: int = before, start: Parts = start) -> int:
                parts = share(whole, before + cents)
                return parts.paid + parts.bonus - start.paid - start.bonus

            assert 0 <= cents <= whole.total_cents - before
            assert taken(cents) <= left
            assert before + cents == whole.total_cents or taken(cents + 1) > left


def shop_bonus(purchase: Purchase, cents: int) -> int:
    return purchase.bonus_millicredits * cents // purchase.total_cents

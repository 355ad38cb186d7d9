"""Money that came by bank: credited once, deferred as any purchase, and nothing that Stripe is compared with."""

import asyncio

import pytest

from billing.accounting.journal import Books
from billing.accounting.statements import Statements
from billing.money.errors import AccountNotFound, ReferenceTaken
from billing.payments.bank_transfers import BankTransfers
from billing.payments.purchase import NotRefundable, offer
from tests.support.shop import ADA, Shop, today, use

WIRE = offer("transfer", "500", "10")


async def record(shop: Shop, account: str, reference: str = "wire 17") -> tuple[str, bool]:
    transfers = BankTransfers(shop.books.database)
    purchase, is_new = await transfers.record(account, WIRE, reference, ADA, "invoice 3", livemode=False)
    return purchase.id, is_new


async def test_a_transfer_is_credited_once_by_its_reference(shop: Shop) -> None:
    account, other = await shop.books.account(), await shop.books.account()
    found = await asyncio.gather(*(record(shop, account) for _ in range(3)))
    assert (len({purchase for purchase, _ in found}), sorted(is_new for _, is_new in found)) == (
        1,
        [False, False, True],
    )
    assert await shop.balance(account) == 550_000_000
    with pytest.raises(ReferenceTaken):
        await record(shop, other)
    with pytest.raises(AccountNotFound):
        await record(shop, "acct_0", "wire 18")
    rows = await shop.rows("SELECT action, reason FROM audit_log WHERE action = 'purchase.record'")
    assert rows == [("purchase.record", "invoice 3")]


async def test_it_is_deferred_until_it_is_used_and_in_the_statement(shop: Shop) -> None:
    account = await shop.books.account()
    purchase, _ = await record(shop, account)
    (books,) = await Books(shop.books.database).days(today(), today())
    assert (books.paid, books.deferred, books.recognised) == (500_000_000, 500_000_000, 0)
    await use(shop, account, 55_000_000, 1)
    (books,) = await Books(shop.books.database).days(today(), today())
    assert (books.deferred, books.recognised) == (450_000_000, 50_000_000)
    statement = await Statements(shop.books.database).read(account, today().isoformat()[:7])
    assert [(row.purchase_id, row.paid_cents, row.millicredits) for row in statement.purchases] == [
        (purchase, 50_000, 550_000_000)
    ]


async def test_what_is_sent_back_is_written_down_once_and_stripe_is_not_asked(shop: Shop) -> None:
    account = await shop.books.account()
    purchase, _ = await record(shop, account)
    calls = len(shop.stripe.refunds_by_id)
    for again in (False, True):
        made = await shop.refunds.refund(purchase, 10_000, ADA, "too much", "wire back 1")
        assert (made.cents, made.status, made.again) == (10_000, "succeeded", again)
    assert await shop.balance(account) == 440_000_000
    assert -await shop.ledger_of("cash") == 400_000_000
    with pytest.raises(NotRefundable):
        await shop.refunds.refund(purchase, 40_001, ADA, "more than is left")
    assert len(shop.stripe.refunds_by_id) == calls
    (part,) = await shop.refunds.refund_rest(account, 440_000_000, ADA, "closed")
    assert (part.made, "paid by bank" in part.problem) == (None, True)


async def test_stripe_is_not_compared_with_it(shop: Shop) -> None:
    await record(shop, await shop.books.account())
    await shop.age(3_600)
    assert (await shop.findings(), await shop.check_stripe()) == ([], [])
    swept = await shop.sweeper.sweep(1, livemode=False)
    assert (swept.fixed, swept.problems) == ((), ())

"""Another installation on the same Stripe account: its objects are recognised, or dismissed once, for every check."""

from billing.ledger.audit_log import Who
from billing.ledger.dismissals import Dismissals
from billing.money.findings import Finding
from billing.payments.stripe.objects import MARK
from billing.payments.stripe.ownership import Ownership
from tests.support.fake_stripe import replace
from tests.support.shop import Shop

OPS = Who("olga", "ops")
LATER = 400
THEIRS = "pur_of_staging2"


async def foreign_payment(shop: Shop, **metadata: str) -> str:
    """A payment of a staging server on our Stripe account, paid and given back by a dollar; its refund."""
    intent = shop.stripe._new_intent(2_500, "cus_staging", THEIRS, "succeeded")
    shop.stripe.intents_by_id[intent.id] = replace(intent, metadata={**intent.metadata, **metadata})
    refund = shop.stripe.give_back(intent.id, 100)
    await shop.deliver()
    shop.stripe.age(LATER)
    return refund.id


async def seen(shop: Shop) -> tuple[list[str], list[str], set[str]]:
    """What sweeps, reconciliation and the inbox say of it."""
    swept = await shop.sweeper.sweep(2, livemode=False)
    states = {state for (state,) in await shop.rows("SELECT state FROM stripe_inbox")}
    return [*swept.fixed, *swept.problems], await shop.check_stripe(), states


async def test_what_has_another_mark_is_nothing_to_us(shop: Shop) -> None:
    await foreign_payment(shop, **{MARK: "inst_of_staging"})
    assert await seen(shop) == ([], [], {"ignored"})


async def test_what_has_no_mark_waits_until_a_person_dismisses_it(shop: Shop) -> None:
    await foreign_payment(shop)
    lines, findings, states = await seen(shop)
    assert (len(lines), len(findings), states) == (1, 1, {"parked"})
    assert f"tollkeeper findings dismiss {THEIRS}" in lines[0]
    await Dismissals(shop.books.database).dismiss_object(THEIRS, "staging's", OPS)
    async with shop.books.database.write() as connection:
        await connection.exec_driver_sql("UPDATE stripe_inbox SET next_at = 0")
    await shop.work()
    assert await seen(shop) == ([], [], {"ignored"})
    (row,) = await shop.rows("SELECT actor, subject, reason FROM audit_log WHERE action = 'finding.dismiss'")
    assert row == ("olga", THEIRS, "staging's")


async def test_an_event_that_is_ignored_keeps_the_sweeps_quiet(shop: Shop) -> None:
    await foreign_payment(shop)
    for (event_id,) in await shop.rows("SELECT event_id FROM stripe_inbox WHERE state = 'parked'"):
        await shop.inbox.ignore(event_id, "staging's", OPS)
    swept = await shop.sweeper.sweep(2, livemode=False)
    assert (swept.fixed, swept.problems) == ((), ())


async def test_our_own_mark_is_made_once(shop: Shop) -> None:
    database = shop.books.database
    assert await Ownership(database).mark() == await Ownership(database).mark()
    assert not await Ownership(database).is_foreign({MARK: await Ownership(database).mark()}, "pi_1")


async def test_a_finding_is_dismissed_with_its_figures(shop: Shop) -> None:
    dismissals = Dismissals(shop.books.database)
    one = Finding("margin of a day below target", "2026-11-20", 0, -452, 0)
    await dismissals.dismiss_findings([one], "the launch offer", OPS)
    worse = one._replace(found=-453)
    assert await dismissals.standing([one, worse, one._replace(subject="2026-11-21")]) == [
        worse,
        one._replace(subject="2026-11-21"),
    ]


async def test_a_payment_of_a_moment_ago_is_no_finding_of_a_sweep(shop: Shop) -> None:
    """Whether its page was opened now or long ago; one that stays away is."""
    for page_age in (0, LATER):
        purchase = await shop.buy(await shop.books.account())
        await shop.age(page_age)
        shop.stripe.pay(purchase.session_id or "")
        shop.delivered = len(shop.stripe.events_made)  # on their way
        swept = await shop.sweeper.sweep(2, livemode=False)
        assert (swept.fixed, swept.problems) == ((), ())
        assert (await shop.get(purchase)).state == "credited"
    lost = await shop.buy(await shop.books.account())
    shop.stripe.pay(lost.session_id or "")
    shop.stripe.age(LATER)
    swept = await shop.sweeper.sweep(2, livemode=False)
    assert len(swept.fixed) == 1
    assert lost.id in swept.fixed[0]

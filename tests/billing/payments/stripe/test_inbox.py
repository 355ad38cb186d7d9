"""The inbox of Stripe's events: how long they wait, and which of them a person ignores."""

from tests.support.shop import ADA, Shop


async def test_an_event_of_another_installation_is_ignored_by_a_person(shop: Shop) -> None:
    intent = shop.stripe._new_intent(500, "cus_x", "pur_of_the_other", "succeeded")
    refund = shop.stripe.give_back(intent.id, 500)
    await shop.deliver()
    parked = [row[0] for row in await shop.rows("SELECT event_id FROM stripe_inbox WHERE state = 'parked'")]
    assert parked != [], refund
    for event_id in parked:
        await shop.inbox.ignore(event_id, "the other installation's", ADA)
    await shop.age(1_000)
    await shop.work()
    assert (await shop.inbox.depth()).waiting == 0
    assert len(await shop.rows("SELECT 1 FROM audit_log WHERE action = 'webhook.ignore'")) == len(parked)


async def test_an_old_event_that_is_replayed_is_not_late_and_one_that_was_never_handled_is(shop: Shop) -> None:
    waits: list[int] = []
    shop.worker._handled = waits.append
    await shop.paid(await shop.books.account(0))
    first = len(waits)
    await shop.age(86_400)
    (event_id, *_), *_ = await shop.rows("SELECT event_id FROM stripe_inbox ORDER BY event_id")
    await shop.inbox.replay(event_id)
    shop.stripe.down = True
    await shop.work()  # it has to wait, as any other
    assert (await shop.inbox.depth())[0] == 1
    assert 0 <= (await shop.inbox.depth()).oldest_ms < 300_000
    await shop.inbox.replay(event_id)  # again, while it waits: it has waited since the first time
    shop.stripe.down = False
    await shop.work()
    assert ((await shop.inbox.depth()).waiting, len(waits)) == (0, first), "handled again, which counts for nobody"
    purchase = await shop.buy(await shop.books.account(0))
    shop.stripe.pay(purchase.session_id or "")
    shop.stripe.down = True
    await shop.deliver()
    await shop.age(86_400)
    waiting = [row[0] for row in await shop.rows("SELECT event_id FROM stripe_inbox WHERE state = 'parked'")]
    for event_id in waiting:
        await shop.inbox.replay(event_id)
    assert (await shop.inbox.depth()).oldest_ms >= 86_400_000, "somebody paid and waits"
    shop.stripe.down = False
    await shop.work()
    assert [wait >= 86_400_000 for wait in waits[first:]] == [True] * len(waiting)

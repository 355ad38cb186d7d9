"""Webhooks as they come in bad weather: each event 1 to 5 times, shuffled, 16 at once, while the worker is killed again and again.

At the end the credits must equal Stripe's own record, and nothing may have been booked twice. The size is set by
TOLLKEEPER_STORM=deliveries,kills (docs/stripe.md has a run of 10000,200).
"""

import asyncio
import os
import random
import subprocess
import sys
import time
from collections import defaultdict

import pytest

from billing.accounting.reconcile_stripe import check_purchases
from billing.payments.purchase import Offer
from tests.support.fake_stripe import FakeStripe
from tests.support.fake_stripe_server import serve_fake
from tests.support.money_api import Api, open_api
from tests.support.servers import ROOT
from tests.support.shop import PRO, STARTER, Shop, open_shop
from tests.support.stores import Books

pytestmark = pytest.mark.served

DELIVERIES, KILLS = (int(part) for part in os.environ.get("TOLLKEEPER_STORM", "1500,30").split(","))
AT_ONCE = 16
BOUND_MS = 300_000


class Weather:
    """Generated histories, and what each must come to by Stripe's own record."""

    def __init__(self, shop: Shop, dice: random.Random) -> None:
        self.shop, self.stripe, self.dice = shop, shop.stripe, dice
        self.sold: list[tuple[str, str, Offer]] = []
        self.seen = 0

    async def history(self, account: str) -> None:
        """One purchase, from the page to whatever becomes of it."""
        dice, stripe = self.dice, self.stripe
        what = dice.choice([PRO, STARTER])
        purchase = await self.shop.checkout.open(account, "storm", what)
        session_id = purchase.session_id or ""
        if not any(session_id == known for _, known, _ in self.sold):
            self.sold.append((account, session_id, what))
        elif stripe.sessions_by_id[session_id].status != "open":
            return
        await self.pause()
        fate = dice.random()
        if stripe.sessions_by_id[session_id].status != "open":
            return  # two histories met on one page
        if fate < 0.1:
            stripe.expire(session_id)
            return
        delayed = fate < 0.25
        stripe.pay(session_id, delayed=delayed, tax=dice.choice([0, 0, 83]))
        if delayed:
            await self.pause()
            paid = dice.random() < 0.7
            stripe.conclude(session_id, paid=paid)
            if not paid:
                return
        await self.afterwards(stripe.intent_of(session_id).id)

    async def afterwards(self, intent_id: str) -> None:
        dice, stripe = self.dice, self.stripe
        total = stripe.intents_by_id[intent_id].amount
        for _ in range(dice.choice([0, 0, 1, 2, 3])):
            await self.pause()
            refund = stripe.give_back(intent_id, dice.randint(1, total), dice.choice(["succeeded", "pending"]))
            if dice.random() < 0.3:
                await self.pause()
                stripe.change_refund(refund.id, dice.choice(["failed", "canceled", "succeeded"]))
        if dice.random() < 0.3:
            await self.pause()
            dispute = stripe.open_dispute(intent_id, dice.choice([None, dice.randint(1, total)]))
            if dice.random() < 0.7:
                await self.pause()
                stripe.close_dispute(dispute.id, dice.choice(["won", "lost", "warning_closed"]))

    async def pause(self) -> None:
        await asyncio.sleep(self.dice.uniform(0, 0.05))

    def expected(self) -> dict[str, int]:
        """Credits by account, in millicredits, from Stripe's objects alone."""
        found: defaultdict[str, int] = defaultdict(int)
        for account, session_id, what in self.sold:
            session = self.stripe.sessions_by_id[session_id]
            if session.payment_status != "paid":
                continue
            total, intent = session.amount_total or 0, session.payment_intent
            back = sum(
                refund.amount
                for refund in self.stripe.refunds_by_id.values()
                if refund.payment_intent == intent and refund.status in ("pending", "succeeded")
            )
            back += sum(
                dispute.amount
                for dispute in self.stripe.disputes_by_id.values()
                if dispute.payment_intent == intent and dispute.status in ("needs_response", "lost")
            )
            back = min(back, total)
            tax = total - (session.amount_subtotal or 0)
            tax_back = (2 * tax * back + total) // (2 * total) * 10_000  # whole cents
            found[account] += what.paid + what.bonus - (back * 10_000 - tax_back) - what.bonus * back // total
        return dict(found)


async def deliver_all(api: Api, weather: Weather, dice: random.Random, histories: "asyncio.Task[None]") -> int:
    """Each event 1 to 5 times, at any time after it was made, in any order, 16 at once."""
    waiting: list[bytes] = []
    delivered = 0

    async def courier() -> None:
        nonlocal delivered
        while True:
            while weather.seen < len(weather.stripe.events_made):
                _, payload = weather.stripe.events_made[weather.seen]
                weather.seen += 1
                waiting.extend([payload] * dice.randint(1, 5))
            if not waiting:
                if histories.done() and weather.seen == len(weather.stripe.events_made):
                    return
                await asyncio.sleep(0.005)
                continue
            place = dice.randrange(len(waiting))
            waiting[place], waiting[-1] = waiting[-1], waiting[place]
            answer = await api.hook(waiting.pop())
            assert answer.status_code == 200
            delivered += 1

    await asyncio.gather(*(courier() for _ in range(AT_ONCE)))
    return delivered


@pytest.mark.timeout(600)
async def test_a_storm_of_deliveries_and_kills_ends_at_stripes_own_record(sql: Books) -> None:
    seed = int(os.environ.get("TOLLKEEPER_STORM_SEED", "0")) or time.time_ns() % 2**32
    print(f"seed {seed}")
    dice = random.Random(seed)
    shop = open_shop(sql, FakeStripe())
    accounts = [await sql.account() for _ in range(20)]
    weather = Weather(shop, dice)
    with serve_fake(shop.stripe) as (_, api_base):
        command = [
            sys.executable,
            "-m",
            "tests.support.storm_worker",
            sql.database.url.render_as_string(hide_password=False),
            api_base,
        ]
        worker = subprocess.Popen(
            [*command, str(KILLS), str(seed)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        try:
            async with open_api(shop) as api:

                async def make() -> None:
                    for _ in range(
                        max(1, DELIVERIES // 140)
                    ):  # ten histories make about 47 events, each delivered 3 times
                        await asyncio.gather(*(weather.history(dice.choice(accounts)) for _ in range(10)))

                delivered = await deliver_all(api, weather, dice, asyncio.create_task(make()))
            assert worker.stdout is not None
            assert await asyncio.to_thread(worker.stdout.readline) == f"killed {KILLS}\n".encode()
            await nothing_waits(shop)
        finally:
            worker.kill()
            worker.communicate()
    expected = weather.expected()
    found = {account: await shop.balance(account) for account in accounts}
    print(f"{delivered} deliveries of {weather.seen} events, {KILLS} kills, {len(weather.sold)} purchases")
    assert found == {account: expected.get(account, 0) for account in accounts}
    assert [str(finding) for finding in await check_purchases(sql.database)] == []
    assert await shop.findings() == []
    waits = sorted(row[0] - row[1] for row in await shop.rows("SELECT handled_at, received_at FROM stripe_inbox"))
    print(
        f"handled after {waits[len(waits) // 2]} ms (median), {waits[int(len(waits) * 0.999)]} ms (p99.9), {waits[-1]} ms (all)"
    )
    assert waits[-1] < BOUND_MS
    assert len(await shop.rows("SELECT event_id FROM stripe_inbox")) == weather.seen


async def nothing_waits(shop: Shop) -> None:
    deadline = time.monotonic() + 120
    while (await shop.inbox.depth()).waiting:
        assert time.monotonic() < deadline, await shop.rows(
            "SELECT type, object_id, attempts, outcome FROM stripe_inbox WHERE state = 'parked'"
        )
        await asyncio.sleep(0.1)

"""`tollkeeper stripe`: the inbox, sweeps, replays, an account's purchases."""

import argparse
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from prometheus_client import CollectorRegistry

from billing.payments.claim_store import ClaimStore
from billing.payments.purchase_store import PurchaseStore
from billing.payments.stripe.event_types import KINDS
from billing.payments.stripe.inbox import Inbox
from config.errors import ConfigError
from proxy.cli.context import Add, Context, Result, because, short_text, table, who
from proxy.customer_api.money_in import MoneyIn, money_in
from proxy.customer_api.rows import purchase_row
from proxy.observability.metrics import Metrics
from proxy.web.times import iso_time

MOST_DAYS = 30


def register(commands: Any, add: Add) -> None:
    """Add the group to the parser."""
    stripe = commands.add_parser("stripe", help="Stripe's events, sweeps, purchases.").add_subparsers(
        dest="verb", required=True
    )
    sweep = add(stripe, "sweep", _sweep, "Ask Stripe for what never arrived; exit 1 when something cannot be settled.")
    sweep.add_argument("--days", type=_days, default=MOST_DAYS, help="how far back (Stripe keeps events for 30 days)")
    inbox = add(stripe, "inbox", _inbox, "Events by type and state; exit 1 when one has waited for 5 minutes.")
    inbox.add_argument(
        "--state", choices=["pending", "parked", "done", "ignored"], help="list the events in this state"
    )
    inbox.add_argument("--limit", type=_limit, default=50)
    replay = add(stripe, "replay", _replay, "Handle a stored event again. Safe: nothing is booked twice.")
    replay.add_argument("event")
    because(replay)
    ignore = add(
        stripe,
        "ignore",
        _ignore,
        "An event that waits is nothing to us (another installation's, say): stop trying. Audited.",
    )
    ignore.add_argument("event")
    ignore.add_argument("--reason", required=True, type=short_text(2_000))
    purchases = add(stripe, "purchases", _purchases, "An account's purchases, with refunds and disputes.")
    purchases.add_argument("account")
    purchases.add_argument("--limit", type=_limit, default=50)


@contextlib.asynccontextmanager
async def open_money(context: Context) -> AsyncIterator[MoneyIn]:
    """Money in, with or without Stripe."""
    money = money_in(context.settings, context.database, Metrics(CollectorRegistry()))
    try:
        yield money
    finally:
        await money.leave_counts()
        await money.close()


@contextlib.asynccontextmanager
async def open_stripe(context: Context) -> AsyncIterator[MoneyIn]:
    """Money in, where Stripe is configured. Raises ConfigError."""
    async with open_money(context) as money:
        if money.keys is None:
            raise ConfigError(
                "environment",
                "STRIPE_API_KEY",
                "is not set: Stripe is not configured",
                "set it and STRIPE_WEBHOOK_SECRET",
            )
        yield money


async def _sweep(context: Context) -> Result:
    async with open_stripe(context) as money:
        swept = await money.sweep(context.arguments.days)
        handled = 0
        while finished := await money.work():  # what was missed is handled here and now
            handled += finished
    result = {
        "eventsSeen": swept.events,
        "eventsMissed": swept.missed_events,
        "eventsHandled": handled,
        "objectsSynced": swept.objects,
        "fixed": list(swept.fixed),
        "problems": list(swept.problems),
    }
    missed = f"{swept.events} events at Stripe, {swept.missed_events} had not reached us"
    lines = [f"{missed}; {len(swept.fixed)} objects put right."]
    lines += [f"fixed: {line}" for line in swept.fixed] + [f"PROBLEM: {line}" for line in swept.problems]
    return result, "\n".join(lines), 1 if swept.problems else 0


async def _inbox(context: Context) -> Result:
    inbox, given = Inbox(context.database), context.arguments
    depth = await inbox.depth()
    totals = await inbox.counts()
    counts = [
        {"type": kind, "state": state, "count": number, "handled": kind in KINDS} for kind, state, number in totals
    ]
    rows = await inbox.listing(given.state, given.limit) if given.state else []
    data = [
        {
            "eventId": row.event_id,
            "type": row.type,
            "objectId": row.object_id,
            "state": row.state,
            "attempts": row.attempts,
            "apiVersion": row.api_version,
            "source": row.source,
            "receivedAt": iso_time(row.received_at),
            "handledAt": iso_time(row.handled_at) if row.handled_at else None,
            "outcome": row.outcome,
        }
        for row in rows
    ]
    result = {"waiting": depth.waiting, "oldestSeconds": depth.oldest_ms // 1_000, "counts": counts, "data": data}
    lines = [f"{depth.waiting} events wait, the oldest for {depth.oldest_ms // 1_000} s."]
    lines.append(table(">count state type", [(str(number), state, kind) for kind, state, number in totals]))
    shown = [(iso_time(row.received_at), row.event_id, row.type, row.outcome or "") for row in rows]
    lines.append(table("time event type outcome", shown))
    return result, "\n".join(line for line in lines if line), 1 if depth.oldest_ms > 300_000 else 0


async def _replay(context: Context) -> Result:
    async with open_stripe(context) as money:
        await money.inbox.replay(context.arguments.event, who(), context.arguments.reason)
        await money.work()
        row = await money.inbox.get(context.arguments.event)
    result = {"eventId": row.event_id, "state": row.state, "outcome": row.outcome}
    return (
        result,
        f"{row.event_id}: {row.state}: {row.outcome}",
        0 if row.state in ("done", "ignored") else 1,
    )


async def _ignore(context: Context) -> Result:
    given = context.arguments
    await Inbox(context.database).ignore(given.event, given.reason, who())
    return {"eventId": given.event, "state": "ignored"}, f"{given.event} waits no more.", 0


async def _purchases(context: Context) -> Result:
    store, claim_store, given = PurchaseStore(context.database), ClaimStore(context.database), context.arguments
    await context.accounts.get(given.account)
    data: list[dict[str, Any]] = []
    found = await store.of_account(given.account, given.limit)
    totals = await claim_store.totals([purchase.id for purchase in found])
    for purchase in found:
        claims = [
            {"id": claim.id, "kind": claim.kind, "status": claim.status, "amountCents": claim.amount_cents}
            for claim in await claim_store.of_purchase(purchase.id)
        ]
        word = totals[purchase.id].word if purchase.state == "credited" and purchase.id in totals else None
        more = {
            "problem": purchase.problem,
            "paymentIntentId": purchase.payment_intent_id,
            "standing": word,
            "claims": claims,
        }
        data.append({**purchase_row(purchase), **more})
    shown = []
    for row in data:
        sold = (f"{row['priceCents'] / 100:.2f}", row["packageCode"], row["problem"])
        shown.append((row["createdAt"], row["id"], row["standing"] or row["state"], *sold))
        shown += [
            ("", f"  {claim['kind']} {claim['id']}", claim["status"], f"{claim['amountCents'] / 100:.2f}", "", "")
            for claim in row["claims"]
        ]
    return (
        {"data": data},
        table("time purchase state >usd package problem", shown) or "This account has bought nothing.",
        0,
    )


def _days(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= MOST_DAYS:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a number of days from 1 to {MOST_DAYS}")
    return int(text)


def _limit(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 6:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not a whole number")
    return int(text)

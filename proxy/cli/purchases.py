"""`tollkeeper purchases`: payments that a person decides about."""

from typing import Any

from billing.money.amounts import display_credits, written_usd
from billing.payments.bank_transfers import CODE
from billing.payments.crediting import Crediting
from billing.payments.purchase import MILLICREDITS_PER_CENT, offer, refund_cents
from billing.payments.purchase_store import PurchaseStore
from proxy.admin.rows import review_row
from proxy.cli.context import Add, Context, Result, short_text, table, who
from proxy.cli.stripe import open_money, open_stripe
from proxy.customer_api.rows import refund_row

LONGEST_REFERENCE = 200
LONGEST_TRANSFER = 70


def register(commands: Any, add: Add) -> None:
    """Add the group to the parser."""
    decide = commands.add_parser("purchases", help="Payments that a person decides about.").add_subparsers(
        dest="verb", required=True
    )
    add(decide, "review", _review, "Paid and not credited; exit 1 when there are any.")
    accept = add(
        decide,
        "accept",
        _accept,
        "Credit a payment in review: what came in, with its share of the bonus. Audited, booked once.",
    )
    accept.add_argument("purchase")
    accept.add_argument("--reason", required=True, type=short_text(2_000))
    dismiss = add(
        decide, "dismiss", _dismiss, "Nothing is to be credited for a payment in review: it was refunded, say. Audited."
    )
    dismiss.add_argument("purchase")
    dismiss.add_argument("--reason", required=True, type=short_text(2_000))
    record = add(
        decide,
        "record",
        _record,
        "Write down money that came by bank, past Stripe: credited, deferred and recognised as a purchase. Audited.",
    )
    record.add_argument("account")
    record.add_argument("--usd", required=True, help="how much came in")
    record.add_argument("--bonus-percent", default="0", help="credits on top, as of a package (default 0)")
    record.add_argument(
        "--reference",
        required=True,
        type=short_text(LONGEST_TRANSFER),
        help="the bank's name for it: recorded again under it, nothing more is credited",
    )
    record.add_argument("--reason", required=True, type=short_text(2_000))
    refund = add(
        decide,
        "refund",
        _refund,
        "Give a payment back at Stripe, in whole or in part; the credits go with it. Of a bank transfer: write down "
        "what was sent back. Audited.",
    )
    refund.add_argument("purchase")
    refund.add_argument("--usd", help="how much, tax included (default: all that is left)")
    refund.add_argument("--reason", required=True, type=short_text(2_000))
    refund.add_argument(
        "--reference",
        type=short_text(LONGEST_REFERENCE),
        help="your name for this refund, a ticket's say: asked for again under it, nothing more is given back",
    )


async def _review(context: Context) -> Result:
    rows = await PurchaseStore(context.database).in_review()
    data = [review_row(row) for row in rows]
    shown = [
        (row["createdAt"], row["id"], row["accountId"], f"{row['totalCents'] / 100:.2f}", row["problem"])
        for row in data
    ]
    return (
        {"data": data},
        table("time purchase account >usd problem", shown) or "No payment waits for a person.",
        1 if data else 0,
    )


async def _accept(context: Context) -> Result:
    given = context.arguments
    async with open_stripe(context) as money:
        applied = await (await money.parts()).sync.accept(given.purchase, who(), given.reason)
    result = {"id": given.purchase, "state": applied.state, "creditedMillicredits": str(applied.credited)}
    if not applied.changed:
        return result, f"{given.purchase} was credited already; nothing changed.", 0
    return result, f"{given.purchase} is credited: {display_credits(applied.credited)} credits.", 0


async def _dismiss(context: Context) -> Result:
    given = context.arguments
    changed = await Crediting(context.database).dismiss(given.purchase, who(), given.reason)
    result = {"id": given.purchase, "state": "dismissed", "changed": changed}
    return result, f"{given.purchase} is dismissed{'' if changed else ' already'}; nothing was credited.", 0


async def _record(context: Context) -> Result:
    given = context.arguments
    bought = offer(CODE, given.usd, given.bonus_percent)
    async with open_money(context) as money:
        row, is_new = await money.record_transfer(given.account, bought, given.reference, who(), given.reason)
    more = display_credits(row.paid_millicredits + row.bonus_millicredits)
    result = {"id": row.id, "accountId": row.account_id, "usdCents": row.price_cents, "again": not is_new}
    if not is_new:
        return result, f"{given.reference!r} was recorded already as {row.id}; nothing more is credited.", 0
    return result, f"{row.id}: {row.account_id} has {more} credits more.", 0


async def _refund(context: Context) -> Result:
    given = context.arguments
    cents = None if given.usd is None else refund_cents(given.usd)
    async with open_stripe(context) as money:
        refunds = (await money.parts()).refunds
        made = await refunds.refund(given.purchase, cents, who(), given.reason, given.reference or "")
    dollars = written_usd(made.cents * MILLICREDITS_PER_CENT)
    if made.again:
        text = (
            f"${dollars} of {given.purchase} had gone back already for this asking ({made.refund_id}, {made.status}); "
            "nothing more was given back now."
        )
        return refund_row(given.purchase, made), text, 0
    text = f"${dollars} of {given.purchase} go back ({made.refund_id}, {made.status})."
    return refund_row(given.purchase, made), text, 0

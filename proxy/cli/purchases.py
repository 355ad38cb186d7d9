"""`tollkeeper purchases`: payments that a person decides about."""

from typing import Any

from billing.money.amounts import display_credits, written_usd
from billing.payments.crediting import Crediting
from billing.payments.purchase import MILLICREDITS_PER_CENT, refund_cents
from billing.payments.purchase_store import PurchaseStore
from proxy.admin.rows import review_row
from proxy.cli.context import Add, Context, Result, short_text, who
from proxy.cli.stripe import open_stripe
from proxy.customer_api.rows import refund_row


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
    refund = add(
        decide,
        "refund",
        _refund,
        "Give a payment back at Stripe, in whole or in part; the credits go with it. Audited.",
    )
    refund.add_argument("purchase")
    refund.add_argument("--usd", help="how much, tax included (default: all that is left)")
    refund.add_argument("--reason", required=True, type=short_text(2_000))


async def _review(context: Context) -> Result:
    rows = await PurchaseStore(context.database).in_review()
    data = [review_row(row) for row in rows]
    lines = [
        f"{row['createdAt']}  {row['id']}  {row['accountId']}  {row['totalCents'] / 100:.2f} paid: {row['problem']}"
        for row in data
    ]
    return {"data": data}, "\n".join(lines) or "No payment waits for a person.", 1 if data else 0


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


async def _refund(context: Context) -> Result:
    given = context.arguments
    cents = None if given.usd is None else refund_cents(given.usd)
    async with open_stripe(context) as money:
        made = await (await money.parts()).refunds.refund(given.purchase, cents, who(), given.reason)
    dollars = written_usd(made.cents * MILLICREDITS_PER_CENT)
    return (
        refund_row(given.purchase, made),
        f"${dollars} of {given.purchase} go back ({made.refund_id}, {made.status}).",
        0,
    )

"""`tollkeeper promo`: codes that customers redeem for credits."""

from typing import Any

from billing.ledger.credits.promos import BadPromo, PromoNotFound, Promos, PromoTaken, PromoTerms
from billing.ledger.notices import NoticeQueue
from billing.money.amounts import parse_credits
from billing.storage.database import now_ms
from proxy.admin.promos.listing import promo_row
from proxy.cli.context import (
    LONGEST_REASON,
    Add,
    Context,
    Refusal,
    Result,
    expiry,
    in_credits,
    not_negative,
    short_text,
    table,
    who,
)
from proxy.cli.rates import read_start


def register(commands: Any, add: Add) -> None:
    """Add the group to the parser."""
    promo = commands.add_parser("promo", help="Promo codes: make, list, end them.").add_subparsers(
        dest="verb", required=True
    )
    make = add(promo, "add", _add, "Make a code; each account redeems it once.")
    make.add_argument("code", nargs="?", default="", help="letters, digits and dashes (default: one is made up)")
    make.add_argument("--credits", required=True, help="how many each use gives, such as 500")
    make.add_argument("--uses", type=not_negative, help="how often it may be used in all (default: any number)")
    make.add_argument("--from", dest="start", metavar="TIME", help="ISO 8601 (default: now)")
    make.add_argument("--until", metavar="TIME", help="ISO 8601, or 30d (default: until it is ended)")
    make.add_argument("--credit-days", type=not_negative, help="days after which its credits expire (default: never)")
    add(promo, "list", _list, "Every code, newest first.")
    end = add(promo, "end", _end, "Let nobody redeem a code any more; what it gave stays.")
    end.add_argument("code", help="as `tollkeeper promo list` shows it")
    for command in (make, end):
        command.add_argument("--reason", required=True, type=short_text(LONGEST_REASON))


def _promos(context: Context) -> Promos:
    return Promos(context.database, NoticeQueue(context.database, wanted=False))


async def _add(context: Context) -> Result:
    given = context.arguments
    start = None if given.start is None else read_start(given.start)
    terms = PromoTerms(parse_credits(given.credits), given.uses, start, expiry(given.until), given.credit_days)
    try:
        row, new = await _promos(context).add(given.code, terms, who(), given.reason)
    except (BadPromo, PromoTaken) as error:
        raise Refusal(f"not made: {error}") from None
    text = f"The code {row.code} {'gives' if new else 'was made before, and gives'} {in_credits(terms.amount)} credits."
    return {**promo_row(row, now_ms()), "new": new}, text, 0


async def _list(context: Context) -> Result:
    rows = [promo_row(row, now_ms()) for row in await _promos(context).listed()]
    shown = [
        (
            row["code"],
            row["state"],
            in_credits(int(row["millicredits"])),
            str(row["uses"]) if row["mostUses"] is None else f"{row['uses']} of {row['mostUses']}",
            row["startsAt"],
            row["endedAt"] or row["endsAt"] or "",
        )
        for row in rows
    ]
    return {"data": rows}, table("code state >credits >used from until", shown) or "There are no promo codes.", 0


async def _end(context: Context) -> Result:
    try:
        row = await _promos(context).end(context.arguments.code, who(), context.arguments.reason)
    except PromoNotFound as error:
        raise Refusal(f"not ended: {error}") from None
    return promo_row(row, now_ms()), f"The code {row.code} is ended; it was used {row.uses} times.", 0

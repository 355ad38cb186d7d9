"""`tollkeeper plan`: price plans, and who has which."""

from pathlib import Path
from typing import Any

import msgspec

from billing.ledger.plans.price_plans import PricePlans, Validity
from billing.ledger.rate_cards import RateCards
from billing.money.catalogue.price_plan import BadPricePlan
from billing.money.pricing import PriceBook
from billing.storage.database import now_ms
from config.errors import ConfigError
from proxy.admin.plans.listing import list_plans, plan_of, version_row, warning_of
from proxy.cli.context import Add, Context, Refusal, Result, actor, because, expiry, table, who
from proxy.cli.rates import active_card, read_start
from proxy.customer_api.money_in import offers_of

NONE = "none"


def register(commands: Any, add: Add) -> None:
    """Add the group to the parser."""
    plan = commands.add_parser("plan", help="Price plans: make versions, give them to accounts.").add_subparsers(
        dest="verb", required=True
    )
    make = add(plan, "add", _add, "Keep a version of a price plan; it applies to whoever has the plan.")
    make.add_argument("plan", help="the plan's name, in small letters: gold")
    make.add_argument("file", nargs="?", type=Path, help='its prices as JSON: {"markup": "1.1", "models": {...}}')
    make.add_argument("--markup", help="times OpenAI's price, such as 1.15, where there is no file")
    assign = add(plan, "assign", _assign, "Give an account a price plan, or everyone's prices again.")
    assign.add_argument("account")
    assign.add_argument("plan", help=f"the plan's name; {NONE}: everyone's prices")
    for command in (make, assign):
        command.add_argument("--from", dest="start", metavar="TIME", help="ISO 8601 (default: now)")
        command.add_argument("--until", metavar="TIME", help="ISO 8601, or 30d (default: for good)")
        because(command)
    add(plan, "list", _list, "All versions of all plans, newest first.")
    add(plan, "show", _show, "The price plan of an account.").add_argument("account")


async def _add(context: Context) -> Result:
    given = context.arguments
    if (given.file is None) == (given.markup is None):
        raise ConfigError("command line", "plan add", "takes either a file or --markup", "name one of them")
    prices = {"markup": given.markup} if given.file is None else _read(given.file)
    try:
        row, new = await PricePlans(context.database).add(
            given.plan, prices, actor(), who(), _span(context), given.reason
        )
    except BadPricePlan as error:
        raise Refusal(f"not kept: {error}") from None
    warning = warning_of(row, await _book(context), offers_of(context.settings))
    text = f"{row.version_id} {'is kept' if new else 'says this already'}. Running servers follow within 2 s."
    text += f"\nWARNING: {warning}." if warning else ""
    return {**version_row(row, warning), "new": new}, text, 0


async def _assign(context: Context) -> Result:
    given, plans = context.arguments, PricePlans(context.database)
    plan_id = None if given.plan == NONE else given.plan
    try:
        await plans.assign(given.account, plan_id, actor(), who(), _span(context), given.reason)
    except BadPricePlan as error:
        raise Refusal(f"not assigned: {error}") from None
    found = await plan_of(plans, given.account, now_ms())
    return found, f"{_priced(found)}. Running servers follow within 2 s.", 0


async def _show(context: Context) -> Result:
    account_id = context.arguments.account
    await context.accounts.get(account_id)
    found = await plan_of(PricePlans(context.database), account_id, now_ms())
    rows = [
        (row["planId"] or NONE, row["startsAt"], row["endsAt"] or "", row["createdAt"], row["actor"])
        for row in found["assignments"]
    ]
    return found, "\n".join(filter(None, (f"{_priced(found)}.", table("plan from until made by", rows)))), 0


async def _list(context: Context) -> Result:
    plans, offers = PricePlans(context.database), offers_of(context.settings)
    data = await list_plans(plans, await _book(context), offers, now_ms())
    rows = [
        (
            row["versionId"],
            "applies" if row["applies"] else "",
            row["startsAt"],
            row["endsAt"] or "",
            str(row["accounts"]),
            msgspec.json.encode(row["prices"]).decode(),
        )
        for row in data
    ]
    warned = [f"WARNING: {row['warning']}." for row in data if row["warning"]]
    text = table("version state from until >accounts prices", rows) or "There are no price plans."
    return {"data": data}, "\n".join((text, *warned)), 0


def _priced(found: dict[str, Any]) -> str:
    by = found["versionId"]
    return f"{found['accountId']} is priced by {by} now" if by else f"{found['accountId']} pays everyone's prices now"


def _span(context: Context) -> Validity:
    given = context.arguments
    return Validity(None if given.start is None else read_start(given.start), expiry(given.until))


def _read(path: Path) -> Any:
    try:
        return msgspec.json.decode(path.read_bytes())
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(str(path), "plan add", f"cannot be read ({error})", "name a readable JSON file") from None


async def _book(context: Context) -> PriceBook:
    """Return everyone's prices: a plan's costs, and what it does not name."""
    cards, billing = RateCards(context.database), context.settings.billing
    return PriceBook(await cards.get(await active_card(cards)), billing.markup, billing.rounding_mode)

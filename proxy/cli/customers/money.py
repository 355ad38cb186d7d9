"""`tollkeeper grant`, `ledger`, `usage`, `portal`: what customers have, and what became of it.

Amounts for people are credits.
"""

import secrets
from typing import Any

from billing.accounting.usage_summary import UsageSummaries
from billing.ledger.portal_tokens import PortalTokens
from billing.ledger.summaries.usage_days import DAY_MS
from billing.ledger.usage_rows import UsageFilters
from billing.money.amounts import MoneyError, millicredits, parse_credits
from billing.money.postings import GrantTerms
from billing.storage.database import now_ms
from proxy.admin.rows import staff_usage_row
from proxy.cli.context import (
    Add,
    Context,
    Result,
    actor,
    expiry,
    in_credits,
    local_url,
    not_negative,
    short_text,
    table,
    who,
)
from proxy.credits_page.sign_in import link_url
from proxy.customer_api.usage import NAMES, OWN_GROUPS, USUAL_DAYS, sums_row
from proxy.web.times import iso_time

MAX_GRANT_CREDITS = 1_000_000_000


def register(commands: Any, add: Add) -> None:
    """Add the commands to the parser."""
    grant = add(
        commands,
        "grant",
        _grant,
        "Move credits to an account (negative: back; of paid credits, the books have it under `adjustments`).",
    )
    grant.add_argument("account")
    grant.add_argument("credits")
    grant.add_argument(
        "--reason", required=True, type=short_text(2_000), help="why; the customer reads it only with --show-reason"
    )
    grant.add_argument("--show-reason", action="store_true", help="the customer reads the reason, also on statements")
    grant.add_argument("--expires", help="when they expire: ISO 8601, or 30d, 12h, 15m (default: never)")
    grant.add_argument(
        "--reference", type=short_text(80), help="repeat a grant safely: the same reference is booked once"
    )
    ledger = add(commands, "ledger", _ledger, "An account's transfers.")
    listing = add(commands, "usage", _usage, "An account's charged requests, or (--by) their sums.")
    for command in (ledger, listing):
        command.add_argument("account")
        command.add_argument("--limit", type=not_negative, default=100)
    listing.add_argument("--by", nargs="+", choices=OWN_GROUPS, help="sums by these instead of requests")
    listing.add_argument("--days", type=not_negative, default=USUAL_DAYS, help="of sums: the last so many days")
    portal = add(commands, "portal", _portal, "A one-time link to an account's Credits page, good for ten minutes.")
    portal.add_argument("account")


async def _grant(context: Context) -> Result:
    given = context.arguments
    amount = parse_credits(given.credits)
    if not amount or abs(amount) > MAX_GRANT_CREDITS * 1_000:
        raise MoneyError(f"a grant is not zero and at most {MAX_GRANT_CREDITS} credits either way")
    reference = given.reference or "grant_" + secrets.token_hex(12)
    terms = GrantTerms(expiry(given.expires), given.show_reason)
    if amount < 0 and terms.expires_at is not None:
        raise MoneyError("only credits that are given expire: leave --expires out")
    new = await context.ledger.grant(
        given.account, millicredits(amount), reference, actor(), given.reason, who(), terms=terms
    )
    posted = await context.ledger.posted(given.account)
    result = {
        "accountId": given.account,
        "grantedMillicredits": str(amount if new else 0),
        "reference": reference,
        "expiresAt": iso_time(terms.expires_at) if terms.expires_at is not None else None,
        "postedMillicredits": str(posted.balance),
    }
    what = f"Granted {in_credits(amount)} credits" if new else "This reference was booked before; nothing granted"
    text = f"{what} ({reference}). The ledger says {in_credits(posted.balance)} credits."
    if posted.balance < 0:
        text += " The balance is below zero: requests get a 402 until it is made up for."
    return result, text, 0


async def _ledger(context: Context) -> Result:
    await context.accounts.get(context.arguments.account)
    rows = await context.ledger.transfers_of(context.arguments.account, context.arguments.limit)
    data = [
        {
            "id": str(row.id),
            "kind": row.kind,
            "amountMillicredits": str(row.effect),
            "debitAccount": row.debit_account,
            "creditAccount": row.credit_account,
            "referenceType": row.reference_type,
            "referenceId": row.reference_id,
            "purchaseId": row.purchase_id,
            "actor": row.actor,
            "reason": row.reason,
            "reasonShown": bool(row.reason_shown),
            "expiresAt": iso_time(row.expires_at) if row.expires_at is not None else None,
            "createdAt": iso_time(row.created_at),
        }
        for row in rows
    ]
    shown = [
        (
            iso_time(row.created_at),
            in_credits(row.effect),
            row.kind,
            row.reference_id,
            row.actor,
            row.reason,
        )
        for row in rows
    ]
    return (
        {"data": data},
        table("time >credits kind reference actor reason", shown) or "The ledger has no rows for this account.",
        0,
    )


async def _usage(context: Context) -> Result:
    await context.accounts.get(context.arguments.account)
    if context.arguments.by:
        return await _usage_sums(context)
    rows = await context.ledger.usage_of(context.arguments.account, context.arguments.limit, UsageFilters())
    data = [staff_usage_row(row) for row in rows]
    shown = [
        (
            iso_time(row.created_at),
            in_credits(row.charged_millicredits),
            row.model,
            str(row.input_tokens),
            str(row.output_tokens),
            row.usage_source,
            row.outcome,
            row.charge_id,
        )
        for row in rows
    ]
    return (
        {"data": data},
        table("time >credits model >in >out counted-by outcome request", shown)
        or "There is no usage for this account.",
        0,
    )


async def _usage_sums(context: Context) -> Result:
    given, now = context.arguments, now_ms()
    by = [name for name in OWN_GROUPS if name in given.by]
    filters = UsageFilters(since_ms=now - given.days * DAY_MS, until_ms=now)
    rows = await UsageSummaries(context.database).sums(filters, by, given.account)
    data = [sums_row(by, row) for row in rows]
    shown = [
        (
            *(str(shown[NAMES.get(name, name)] or "") for name in by),
            str(row.requests),
            str(row.input_tokens),
            str(row.output_tokens),
            in_credits(row.charged),
        )
        for row, shown in zip(rows, data, strict=True)
    ]
    heads = f"{' '.join(by)} >requests >in >out >credits"
    return {"data": data}, table(heads, shown) or "There is no usage for this account.", 0


async def _portal(context: Context) -> Result:
    settings = context.settings
    token, expires_at = await PortalTokens(context.database).link(context.arguments.account, who())
    url = link_url(settings.portal.public_url or local_url(settings, settings.listen.port), token)
    return {"url": url, "expiresAt": iso_time(expires_at)}, url, 0

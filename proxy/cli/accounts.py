"""`tollkeeper account`, `key`, `grant`, `ledger`, `usage`, `portal`: customers and their money.

Amounts for people are credits.
"""

import secrets
from typing import Any

import msgspec

from billing.ledger.accounts import KeyRow, KeyRules
from billing.ledger.portal_tokens import PortalTokens
from billing.ledger.usage_rows import UsageFilters
from billing.money.amounts import MoneyError, millicredits, parse_credits
from billing.money.spend_periods import PERIODS
from billing.storage.database import now_ms
from proxy.cli.balances import account_figures
from proxy.cli.context import (
    Add,
    Context,
    Result,
    actor,
    because,
    expiry,
    in_credits,
    local_url,
    not_negative,
    short_text,
    table,
    who,
)
from proxy.credits_page.sign_in import link_url
from proxy.customer_api.rows import usage_row
from proxy.web.times import iso_time

MAX_GRANT_CREDITS = 1_000_000_000


def register(commands: Any, add: Add) -> None:
    """Add the commands to the parser."""
    account = commands.add_parser("account", help="Create, show, list, block accounts.").add_subparsers(
        dest="verb", required=True
    )
    add(account, "create", _account_create, "Create an account and its first API key.").add_argument(
        "name", type=short_text(200)
    )
    add(account, "show", _account_show, "Show one account.").add_argument("account")
    add(account, "list", _account_list, "List accounts.")
    block = add(account, "block", _account_block, "Block an account (or --unblock it).")
    block.add_argument("account")
    block.add_argument("--unblock", action="store_true")
    because(block)
    key = commands.add_parser("key", help="Create, list, revoke API keys.").add_subparsers(dest="verb", required=True)
    create = add(key, "create", _key_create, "Create an API key.")
    create.add_argument("account")
    create.add_argument("--models", nargs="+", help="model names or globs")
    create.add_argument("--spend-limit", metavar="CREDITS")
    create.add_argument("--period", choices=PERIODS, default="month", help="when the spend limit starts anew (UTC)")
    for name in ("rpm", "tpm", "concurrency"):
        create.add_argument(f"--{name}", type=not_negative)
    create.add_argument("--expires", help="ISO 8601, or 30d, 12h, 15m")
    add(key, "list", _key_list, "List an account's keys.").add_argument("account")
    revoke = add(key, "revoke", _key_revoke, "Revoke a key, everywhere within 5 s.")
    revoke.add_argument("key")
    because(revoke)
    grant = add(
        commands,
        "grant",
        _grant,
        "Move credits to an account (negative: back; of paid credits, the books have it under `adjustments`).",
    )
    grant.add_argument("account")
    grant.add_argument("credits")
    grant.add_argument("--reason", required=True, type=short_text(2_000))
    grant.add_argument(
        "--reference", type=short_text(80), help="repeat a grant safely: the same reference is booked once"
    )
    for name, run, text in (
        ("ledger", _ledger, "An account's transfers."),
        ("usage", _usage, "An account's charged requests."),
    ):
        listing = add(commands, name, run, text)
        listing.add_argument("account")
        listing.add_argument("--limit", type=not_negative, default=100)
    portal = add(commands, "portal", _portal, "A one-time link to an account's Credits page, good for ten minutes.")
    portal.add_argument("account")


async def _account_create(context: Context) -> Result:
    account_id = await context.accounts.create(context.arguments.name, who())
    key_id, secret = await context.accounts.create_key(account_id, KeyRules(), who())
    result = {"accountId": account_id, "name": context.arguments.name, "keyId": key_id, "apiKey": secret}
    text = f"Account {account_id} ({context.arguments.name})\nAPI key (shown this once): {secret}"
    return result, text, 0


async def _account_show(context: Context) -> Result:
    account_id = context.arguments.account
    account = await context.accounts.get(account_id)
    posted = await context.ledger.posted(account_id)
    figures, held, unflushed = await account_figures(context, account_id)
    balance = figures if figures is not None else posted.balance
    result = {
        "accountId": account_id,
        "name": account.name,
        "status": account.status,
        "balanceMillicredits": str(balance),
        "heldMillicredits": str(held),
        "postedMillicredits": str(posted.balance),
        "unflushedMillicredits": str(unflushed),
        "createdAt": iso_time(account.created_at),
    }
    text = (
        f"{account_id}  {account.name}  {account.status}\n"
        f"balance {in_credits(balance)} credits, held {in_credits(held)}, in the ledger {in_credits(posted.balance)}"
    )
    return result, text, 0


async def _account_list(context: Context) -> Result:
    rows = await context.accounts.everyone()
    data = [
        {
            "accountId": row.id,
            "name": row.name,
            "status": row.status,
            "postedMillicredits": str(row.posted_millicredits),
            "createdAt": iso_time(row.created_at),
        }
        for row in rows
    ]
    shown = [(row.id, row.status, in_credits(row.posted_millicredits), row.name) for row in rows]
    return {"data": data}, table("account status >credits name", shown) or "There are no accounts yet.", 0


async def _account_block(context: Context) -> Result:
    status = "active" if context.arguments.unblock else "blocked"
    await context.accounts.set_status(context.arguments.account, status, who(), context.arguments.reason)
    return {"accountId": context.arguments.account, "status": status}, f"{context.arguments.account} is {status}.", 0


async def _key_create(context: Context) -> Result:
    given = context.arguments
    limit = parse_credits(given.spend_limit) if given.spend_limit is not None else None
    if limit is not None and limit < 0:
        raise MoneyError("a spend limit is not negative")
    rules = KeyRules(
        models=tuple(given.models) if given.models else None,
        spend_limit=limit,
        spend_period=given.period if limit is not None else None,
        requests_per_minute=given.rpm,
        tokens_per_minute=given.tpm,
        concurrency=given.concurrency,
        expires_at=expiry(given.expires),
    )
    key_id, secret = await context.accounts.create_key(given.account, rules, who())
    return (
        {"accountId": given.account, "keyId": key_id, "apiKey": secret},
        f"Key {key_id} (shown this once): {secret}",
        0,
    )


async def _key_list(context: Context) -> Result:
    rows = await context.accounts.keys_of(context.arguments.account)
    data = [
        {
            "keyId": row.id,
            "hint": row.hint,
            "models": msgspec.json.decode(row.models) if row.models else None,
            "spendLimitMillicredits": None
            if row.spend_limit_millicredits is None
            else str(row.spend_limit_millicredits),
            "spendPeriod": row.spend_period,
            "requestsPerMinute": row.requests_per_minute,
            "tokensPerMinute": row.tokens_per_minute,
            "concurrency": row.concurrency,
            "expiresAt": iso_time(row.expires_at) if row.expires_at else None,
            "revokedAt": iso_time(row.revoked_at) if row.revoked_at else None,
            "createdAt": iso_time(row.created_at),
        }
        for row in rows
    ]
    shown = [
        (
            row.id,
            row.hint,
            _state(row),
            _limits(row),
            " ".join(msgspec.json.decode(row.models)) if row.models else "all",
        )
        for row in rows
    ]
    return {"data": data}, table("key begins-with state limits models", shown) or "This account has no keys.", 0


def _state(row: KeyRow) -> str:
    if row.revoked_at:
        return "revoked"
    if not row.expires_at:
        return "active"
    ended = row.expires_at <= now_ms()
    return f"{'expired' if ended else 'active until'} {iso_time(row.expires_at)}"


def _limits(row: KeyRow) -> str:
    parts = []
    if row.spend_limit_millicredits is not None:
        parts.append(f"{in_credits(row.spend_limit_millicredits)} credits a {row.spend_period}")
    for number, unit in (
        (row.requests_per_minute, "requests/min"),
        (row.tokens_per_minute, "tokens/min"),
        (row.concurrency, "at once"),
    ):
        if number is not None:
            parts.append(f"{number} {unit}")
    return ", ".join(parts) or "none"


async def _key_revoke(context: Context) -> Result:
    await context.accounts.revoke_key(context.arguments.key, who(), context.arguments.reason)
    return {"keyId": context.arguments.key, "revoked": True}, f"{context.arguments.key} is revoked.", 0


async def _grant(context: Context) -> Result:
    given = context.arguments
    amount = parse_credits(given.credits)
    if not amount or abs(amount) > MAX_GRANT_CREDITS * 1_000:
        raise MoneyError(f"a grant is not zero and at most {MAX_GRANT_CREDITS} credits either way")
    reference = given.reference or "grant_" + secrets.token_hex(12)
    new = await context.ledger.grant(given.account, millicredits(amount), reference, actor(), given.reason, who())
    posted = await context.ledger.posted(given.account)
    result = {
        "accountId": given.account,
        "grantedMillicredits": str(amount if new else 0),
        "reference": reference,
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
    rows = await context.ledger.usage_of(context.arguments.account, context.arguments.limit, UsageFilters())
    data = [usage_row(row) for row in rows]
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


async def _portal(context: Context) -> Result:
    settings = context.settings
    token, expires_at = await PortalTokens(context.database).link(context.arguments.account, who())
    url = link_url(settings.portal.public_url or local_url(settings, settings.listen.port), token)
    return {"url": url, "expiresAt": iso_time(expires_at)}, url, 0

"""`tollkeeper account`: customers. Amounts for people are credits."""

import argparse
import contextlib
from typing import Any

from billing.ledger.accounts import KeyRules
from billing.ledger.audit_log import AuditLog, Change
from billing.ledger.credits.welcome import Welcome, welcome_rule
from billing.ledger.customers.search import AccountFilters, AccountSearch
from billing.ledger.objects.upstream_objects import UpstreamObjects
from billing.ledger.records.account_details import AccountDetails
from billing.payments.purchase import RefundedPart
from billing.payments.stripe.inbox import Inbox
from billing.storage.database import now_ms
from config.secrets import upstream_keys
from config.upstreams import entries_of
from proxy.admin.accounts.api import STATUSES
from proxy.admin.rows import account_row, opened_row, refunded_row
from proxy.cli.balances import account_figures
from proxy.cli.context import (
    Add,
    Context,
    Refusal,
    Result,
    because,
    in_credits,
    not_negative,
    short_text,
    table,
    who,
)
from proxy.cli.stripe import open_stripe
from proxy.customer_api.credits.expiring import expiring_rows
from proxy.gateway.background.expiry import PATHS, forget_stored
from proxy.gateway.upstream.control import opened_clients
from proxy.web.times import iso_time

SEARCHED = 100
"""Accounts that a search shows without a limit."""


def register(commands: Any, add: Add) -> None:
    """Add the group to the parser."""
    account = commands.add_parser("account", help="Create, show, find, change, close accounts.").add_subparsers(
        dest="verb", required=True
    )
    create = add(account, "create", _account_create, "Create an account and its first API key.")
    create.add_argument("name", type=short_text(200))
    _details(create, "your own id of this customer: the same again is the same account")
    create.add_argument("--no-key", action="store_true", help="no first key")
    add(account, "show", _account_show, "Show one account.").add_argument("account")
    listing = add(account, "list", _account_list, "List accounts, or those that fit, oldest first.")
    listing.add_argument(
        "--search",
        metavar="TEXT",
        type=short_text(200),
        help="a part of a name, e-mail address or metadata, or any id: key, request, purchase ...; newest first",
    )
    _details(listing, "the one with this external id")
    listing.add_argument("--status", choices=STATUSES)
    listing.add_argument("--limit", type=not_negative, help="how many at most (default: all; 100 with --search)")
    change = add(account, "update", _account_update, "Change what is said of an account; empty text takes away.")
    change.add_argument("account")
    change.add_argument("--name", type=short_text(200))
    _details(change, "your own id of this customer")
    because(change)
    rename = add(account, "rename", _account_rename, "Give an account another name, also on its statements.")
    rename.add_argument("account")
    rename.add_argument("name", type=short_text(200))
    because(rename)
    block = add(account, "block", _account_block, "Block an account (or --unblock it).")
    block.add_argument("account")
    block.add_argument("--unblock", action="store_true")
    because(block)
    region = add(account, "region", _account_region, "Bind an account to the upstreams of a region.")
    region.add_argument("account")
    region.add_argument("region", help='such as eu, as upstreams name it; "any" for none')
    because(region)
    close = add(account, "close", _account_close, "Close an account for good: its keys die, its books stay.")
    close.add_argument("account")
    close.add_argument(
        "--refund", action="store_true", help="give back what is left and was paid for (default: it is kept)"
    )
    because(close)
    erase = add(account, "erase", _account_erase, "Replace the personal data of a closed account; its books stay.")
    erase.add_argument("account")
    because(erase)
    forget = add(account, "forget-stored", _account_forget_stored, "Delete what an account stored at OpenAI.")
    forget.add_argument("account")
    because(forget)


def _details(command: argparse.ArgumentParser, external_id: str) -> None:
    """Let a command name what is said of an account beside its name."""
    command.add_argument("--external-id", help=external_id)
    command.add_argument("--email")
    command.add_argument("--metadata", metavar="KEY=VALUE", type=_pair, nargs="+")


def _pair(text: str) -> tuple[str, str]:
    """Read KEY=VALUE for argparse."""
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not KEY=VALUE")
    return key, value


async def _account_create(context: Context) -> Result:
    given = context.arguments
    details = AccountDetails(
        given.name, given.external_id, given.email, dict(given.metadata) if given.metadata else None
    )
    welcome = Welcome(welcome_rule(context.settings), given.external_id, who())
    also = await welcome.prepared(context.database)
    opened = await context.accounts.open(details, None if given.no_key else KeyRules(), who(), also)
    row = opened.account
    text = f"Account {row.id} ({row.name})"
    if not opened.created:
        text += " was there already; nothing was made."
    if welcome.given:
        text += f"\nWelcome credits: {in_credits(welcome.given)}"
    if opened.secret is not None:
        text += f"\nAPI key (shown this once): {opened.secret}"
    return opened_row(opened, welcome.given), text, 0


async def _account_show(context: Context) -> Result:
    account_id = context.arguments.account
    account = await context.accounts.get(account_id)
    posted = await context.ledger.posted(account_id)
    figures, held, unflushed = await account_figures(context, account_id)
    balance = figures if figures is not None else posted.balance
    expiring = await context.ledger.expiring(account_id)
    result = {
        **account_row(account._replace(posted_millicredits=posted.balance)),
        "balanceMillicredits": str(balance),
        "heldMillicredits": str(held),
        "unflushedMillicredits": str(unflushed),
        "expiringCredits": expiring_rows(expiring),
    }
    text = (
        f"{account_id}  {account.name}  {account.status}\n"
        f"balance {in_credits(balance)} credits, held {in_credits(held)}, in the ledger {in_credits(posted.balance)}"
    )
    said = [("external id", account.external_id), ("e-mail", account.email), ("metadata", account.metadata)]
    text += "".join(f"\n{name} {value}" for name, value in said if value)
    for lot in expiring:
        text += f"\n{in_credits(lot.remaining_millicredits)} credits expire {iso_time(lot.expires_at)}"
    return result, text, 0


async def _account_list(context: Context) -> Result:
    given, search = context.arguments, AccountSearch(context.database)
    filters = AccountFilters(
        given.search or "", given.external_id, given.email, given.status, tuple(given.metadata or ())
    )
    most = SEARCHED if given.search and given.limit is None else given.limit
    if given.search:
        rows = await search.find(filters, most)
    else:
        rows = list(reversed(await search.find(filters, 2**31 - 1)))[:most]
    shown = [
        (row.id, row.status, in_credits(row.posted_millicredits), row.external_id or "", row.email or "", row.name)
        for row in rows
    ]
    nothing = "No account fits." if any(filters) else "There are no accounts yet."
    text = table("account status >credits external-id e-mail name", shown) or nothing
    return {"data": [account_row(row) for row in rows]}, text, 0


async def _account_update(context: Context) -> Result:
    given = context.arguments
    said = {"name": given.name, "external_id": given.external_id, "email": given.email}
    changes: dict[str, Any] = {name: value or None for name, value in said.items() if value is not None}
    if given.metadata:
        changes["metadata"] = {key: value or None for key, value in given.metadata}
    if not changes:
        raise Refusal("nothing to change: give --name, --external-id, --email or --metadata")
    row = await context.accounts.update(given.account, changes, who(), given.reason)
    return account_row(row), f"{row.id} is changed.", 0


async def _account_rename(context: Context) -> Result:
    given = context.arguments
    row = await context.accounts.update(given.account, {"name": given.name}, who(), given.reason)
    return {"accountId": row.id, "name": row.name}, f"{row.id} is called {row.name} now.", 0


async def _account_block(context: Context) -> Result:
    status = "active" if context.arguments.unblock else "blocked"
    await context.accounts.set_status(context.arguments.account, status, who(), context.arguments.reason)
    return {"accountId": context.arguments.account, "status": status}, f"{context.arguments.account} is {status}.", 0


async def _account_close(context: Context) -> Result:
    given, parts = context.arguments, list[RefundedPart]()
    async with contextlib.AsyncExitStack() as stack:
        # before the account is closed for good: where Stripe is not configured, nothing is done
        money = await stack.enter_async_context(open_stripe(context)) if given.refund else None
        keys = await context.accounts.close(given.account, who(), given.reason)
        if money is not None:
            _, held, unflushed = await account_figures(context, given.account)
            # by the ledger, which has every refund: the store hears of it later, and a repeated closing would make it
            # again
            left = (await context.ledger.posted(given.account)).balance - held - unflushed
            refunds = (await money.parts()).refunds
            parts = await refunds.refund_rest(given.account, left, who(), given.reason or "account closed")
    posted = await context.ledger.posted(given.account)
    result = {
        "accountId": given.account,
        "status": "closed",
        "keysRevoked": keys,
        "refunds": [refunded_row(part) for part in parts],
        "postedMillicredits": str(posted.balance),
    }
    lines = [f"{given.account} is closed; {keys} keys died. The ledger says {in_credits(posted.balance)} credits."]
    for part in parts:
        done = f"{part.made.cents / 100:.2f} USD go back" if part.made else f"PROBLEM: {part.problem}"
        lines.append(f"{part.purchase_id}: {done}")
    return result, "\n".join(lines), 1 if any(part.problem for part in parts) else 0


async def _account_erase(context: Context) -> Result:
    given = context.arguments
    if await UpstreamObjects(context.database).made_before(now_ms(), tuple(PATHS), 1, given.account):
        raise Refusal(
            f"{given.account} has stored objects at OpenAI: `tollkeeper account forget-stored {given.account}` first"
        )
    await context.accounts.erase(given.account, who(), given.reason)
    emptied = await Inbox(context.database).erase_account(given.account)
    row = await context.accounts.get(given.account)
    text = (
        f"The personal data of {row.id} are replaced, and {emptied} of Stripe's events are emptied; its books stay. At "
        "Stripe the customer is deleted in its dashboard."
    )
    return {**account_row(row), "eventsEmptied": emptied}, text, 0


async def _account_region(context: Context) -> Result:
    given = context.arguments
    region = "" if given.region == "any" else given.region
    if region and not any(entry.region == region for entry in entries_of(context.settings)):
        raise Refusal(f"No upstream has the region {region!r}: see [[upstreams]] in proxy.toml.")
    await context.accounts.set_region(given.account, region, who(), given.reason)
    where = f"bound to the region {region}" if region else "bound to no region"
    return {"accountId": given.account, "region": region}, f"{given.account} is {where}, within 5 s.", 0


async def _account_forget_stored(context: Context) -> Result:
    account_id, objects = context.arguments.account, UpstreamObjects(context.database)
    await context.accounts.get(account_id)
    keys = upstream_keys(context.settings)
    if not any(keys.values()):
        raise Refusal("Deleting at OpenAI needs the upstream key: set OPENAI_API_KEY, as for the server.")
    async with opened_clients(context.settings, keys) as client_of:
        gone, left = await forget_stored(objects, client_of, account_id)
    change = Change("account.forget_stored", account_id, None, f"{gone} deleted", context.arguments.reason)
    await AuditLog(context.database).write(who(), change)
    text = f"{gone} stored objects of {account_id} were deleted at OpenAI."
    if left:
        text += f" {left} or more could not be deleted now: run this again."
    return {"accountId": account_id, "deleted": gone, "complete": not left}, text, 1 if left else 0

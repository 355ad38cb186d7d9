"""`tollkeeper key`: API keys. Amounts for people are credits."""

import argparse
from typing import Any

from billing.ledger.accounts import KeyBudget, KeyDetails, KeyRow, KeyRules
from billing.ledger.customers.desk import KeyDesk, key_desk
from billing.money.amounts import Millicredits, MoneyError, millicredits, parse_credits
from billing.money.spend_periods import PERIODS
from billing.storage.database import now_ms
from proxy.admin.rows import key_row
from proxy.cli.context import (
    Add,
    Context,
    Refusal,
    Result,
    because,
    expiry,
    in_credits,
    not_negative,
    short_text,
    table,
    who,
)
from proxy.web.times import iso_time

KEY_ROLES = ("owner", "member")
NONE = "none"
"""As the value of an option: takes the limit away."""


def register(commands: Any, add: Add) -> None:
    """Add the group to the parser."""
    key = commands.add_parser("key", help="Create, list, change, rotate, revoke API keys.").add_subparsers(
        dest="verb", required=True
    )
    create = add(key, "create", _key_create, "Create an API key.")
    create.add_argument("account")
    create.add_argument("--reference", type=short_text(80), help="the same one again is the same key")
    _rules_of(create, not_negative)
    add(key, "list", _key_list, "List an account's keys.").add_argument("account")
    change = add(key, "update", _key_update, f"Change a key, everywhere within 5 s; `{NONE}` takes a limit away.")
    change.add_argument("key")
    _rules_of(change, _number_or_none)
    because(change)
    rotate = add(key, "rotate", _key_rotate, "Give a key another secret; the old one works on for a time.")
    rotate.add_argument("key")
    rotate.add_argument("--grace-hours", type=not_negative, default=24, help="0: the old one ends now (default: 24)")
    because(rotate)
    revoke = add(key, "revoke", _key_revoke, "Revoke a key, everywhere within 5 s.")
    revoke.add_argument("key")
    because(revoke)


def _rules_of(command: argparse.ArgumentParser, number: Any) -> None:
    """Let a command state what a key is called and may do."""
    command.add_argument("--name", type=short_text(100))
    command.add_argument("--tags", nargs="+")
    command.add_argument("--models", nargs="+", help="model names or globs")
    command.add_argument("--role", choices=KEY_ROLES, help="member: of a team, who spends and sees their own alone")
    command.add_argument("--spend-limit", metavar="CREDITS")
    command.add_argument("--period", choices=PERIODS, help="when the spend limit starts anew, UTC (default: month)")
    command.add_argument(
        "--budget",
        nargs="+",
        metavar="CREDITS/PERIOD[:MODELS]",
        help="further limits, all of them held to: 10/day, 50/month:gpt-6*,o3",
    )
    command.add_argument("--rpm", type=number, help="requests a minute")
    command.add_argument("--tpm", type=number, help="tokens a minute")
    command.add_argument("--concurrency", type=number, help="requests at once")
    command.add_argument("--expires", help="ISO 8601, or 30d, 12h, 15m")


def _number_or_none(text: str) -> int | str:
    return NONE if text == NONE else not_negative(text)


async def _key_create(context: Context) -> Result:
    given = context.arguments
    limit = None if given.spend_limit is None else read_limit(given.spend_limit)
    rules = KeyRules(
        models=tuple(given.models) if given.models else None,
        spend_limit=limit,
        spend_period=given.period or "month" if limit is not None else None,
        requests_per_minute=given.rpm,
        tokens_per_minute=given.tpm,
        concurrency=given.concurrency,
        expires_at=expiry(given.expires),
        budgets=tuple(read_budget(text) for text in given.budget or ()),
        member=given.role == "member",
    )
    details = KeyDetails(given.name, tuple(given.tags or ()), given.reference)
    made = await _desk(context).changes.create(given.account, rules, details, who())
    text = f"Key {made.key_id} (shown this once): {made.secret}"
    if made.secret is None:
        text = f"Key {made.key_id} was made with this reference before; nothing was made."
    return {"accountId": given.account, "keyId": made.key_id, "apiKey": made.secret}, text, 0


async def _key_list(context: Context) -> Result:
    rows = await context.accounts.keys_of(context.arguments.account)
    uses = await _desk(context).uses.of(rows, now_ms())
    data = [key_row(row, uses[row.id]) for row in rows]
    shown = [
        (
            row.id,
            row.hint,
            _state(row),
            _limits(row),
            " ".join(shown["models"]) if shown["models"] else "all",
            row.name or "",
        )
        for row, shown in zip(rows, data, strict=True)
    ]
    return {"data": data}, table("key begins-with state limits models name", shown) or "This account has no keys.", 0


async def _key_update(context: Context) -> Result:
    given, changes = context.arguments, dict[str, Any]()
    for option, field in (("rpm", "requests_per_minute"), ("tpm", "tokens_per_minute"), ("concurrency",) * 2):
        if (value := getattr(given, option)) is not None:
            changes[field] = None if value == NONE else value
    member = None if given.role is None else given.role == "member"
    for option, value in (("name", given.name), ("spend_period", given.period), ("member", member)):
        if value is not None:
            changes[option] = value
    for option, values in (("tags", given.tags), ("models", given.models), ("budgets", given.budget)):
        if values is not None:
            changes[option] = () if values == [NONE] else tuple(values)
    if "budgets" in changes:
        changes["budgets"] = tuple(read_budget(text) for text in changes["budgets"])
    if changes.get("models") == ():
        changes["models"] = None
    if given.spend_limit is not None:
        changes["spend_limit"] = None if given.spend_limit == NONE else read_limit(given.spend_limit)
    if given.expires is not None:
        changes["expires_at"] = None if given.expires == NONE else expiry(given.expires)
    if not changes:
        raise Refusal("nothing to change: name what is to be different")
    desk = _desk(context)
    row = await desk.changes.change(given.key, changes, who(), given.reason)
    shown = key_row(row, (await desk.uses.of([row], now_ms()))[row.id])
    return shown, f"{row.id} is changed. Limits: {_limits(row)}.", 0


async def _key_rotate(context: Context) -> Result:
    given = context.arguments
    secret = await _desk(context).changes.rotate(given.key, given.grace_hours * 3_600_000, who(), given.reason)
    text = f"Key {given.key} has a new secret (shown this once): {secret}\nThe old one works for {given.grace_hours} h."
    return {"keyId": given.key, "apiKey": secret, "graceSeconds": given.grace_hours * 3_600}, text, 0


async def _key_revoke(context: Context) -> Result:
    await context.accounts.revoke_key(context.arguments.key, who(), context.arguments.reason)
    return {"keyId": context.arguments.key, "revoked": True}, f"{context.arguments.key} is revoked.", 0


def _desk(context: Context) -> KeyDesk:
    return key_desk(context.database)


def read_budget(text: str) -> KeyBudget:
    """Read CREDITS/PERIOD[:GLOB,GLOB]. Raises MoneyError."""
    limit, colon, models = text.partition(":")
    amount, slash, period = limit.partition("/")
    if not slash:
        raise MoneyError(f"a budget is CREDITS/PERIOD, such as 10/day: not {text!r}")
    return KeyBudget(read_limit(amount), period, tuple(models.split(",")) if colon else None)


def read_limit(text: str) -> Millicredits:
    """Read a limit. Raises MoneyError."""
    amount = parse_credits(text)
    if amount < 0:
        raise MoneyError("a spend limit is not negative")
    return millicredits(amount)


def _state(row: KeyRow) -> str:
    if row.revoked_at:
        return "revoked"
    if not row.expires_at:
        return "active"
    ended = row.expires_at <= now_ms()
    return f"{'expired' if ended else 'active until'} {iso_time(row.expires_at)}"


def _limits(row: KeyRow) -> str:
    parts = []
    for one in row.all_budgets:
        models = f" of {','.join(one.models)}" if one.models else ""
        parts.append(f"{in_credits(one.limit)} credits a {one.period}{models}")
    for number, unit in (
        (row.requests_per_minute, "requests/min"),
        (row.tokens_per_minute, "tokens/min"),
        (row.concurrency, "at once"),
    ):
        if number is not None:
            parts.append(f"{number} {unit}")
    return ", ".join(parts) or "none"

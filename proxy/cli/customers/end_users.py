"""`tollkeeper end-user`: budgets and wallets of whom an account's requests are for."""

import argparse
from typing import Any

from billing.ledger.customers.desk import KeyDesk, key_desk
from billing.ledger.customers.end_users import EndUser, EndUserChange
from billing.ledger.customers.use import BudgetUse
from billing.money.spend_periods import PERIODS
from billing.storage.database import now_ms
from proxy.admin.rows import end_user_row, end_user_rules_row
from proxy.cli.context import Add, Context, Refusal, Result, because, in_credits, table, who
from proxy.cli.customers.keys import NONE, read_budget

USER_PERIODS = ", ".join(PERIODS[:-1])


def register(commands: Any, add: Add) -> None:
    """Add the group to the parser."""
    user = commands.add_parser("end-user", help="Budgets and wallets of whom an account's requests are for.")
    verbs = user.add_subparsers(dest="verb", required=True)
    rules = add(verbs, "rules", _rules, "Show or change what holds for each of whom nothing else is said.")
    rules.add_argument("account")
    _budgets_of(rules)
    required = rules.add_mutually_exclusive_group()
    required.add_argument("--required", action="store_true", default=None, help="refuse requests that name nobody")
    required.add_argument("--not-required", dest="required", action="store_false", help="serve them too")
    because(rules)
    add(verbs, "list", _list, "List the end users of an account of whom something is said.").add_argument("account")
    put = add(verbs, "set", _set, f"Say something of an end user, everywhere within 5 s; `{NONE}` takes budgets away.")
    put.add_argument("account")
    put.add_argument("end_user")
    _budgets_of(put)
    put.add_argument("--wallet", action="store_true", default=None, help="an account of their own pays for them")
    blocked = put.add_mutually_exclusive_group()
    blocked.add_argument("--block", dest="blocked", action="store_true", default=None, help="refuse their requests")
    blocked.add_argument("--unblock", dest="blocked", action="store_false", help="serve them again")
    because(put)
    remove = add(verbs, "remove", _remove, "Say nothing of an end user any more.")
    remove.add_argument("account")
    remove.add_argument("end_user")
    because(remove)


def _budgets_of(command: argparse.ArgumentParser) -> None:
    metavar = "CREDITS/PERIOD[:MODELS]"
    text = f"all of them held to, each of a {USER_PERIODS}: 1/day, 10/month:gpt-6*"
    command.add_argument("--budget", nargs="+", metavar=metavar, help=text)


async def _rules(context: Context) -> Result:
    given, users = context.arguments, _desk(context).end_users
    if given.budget is None and given.required is None:
        rules = await users.rules(given.account)
    else:
        budgets = None if given.budget is None else _budgets(given.budget)
        rules = await users.set_rules(given.account, who(), budgets, required=given.required, reason=given.reason)
    limits = ", ".join(f"{in_credits(one.limit)} credits a {one.period}" for one in rules.budgets) or "none"
    named = "must" if rules.required else "need not"
    return end_user_rules_row(given.account, rules), f"Limits of each: {limits}. A request {named} name one.", 0


async def _list(context: Context) -> Result:
    account = context.arguments.account
    await context.accounts.get(account)
    desk, users, after = _desk(context), list[EndUser](), ""
    while page := await desk.end_users.listed(account, 500, after):
        users += page
        after = page[-1].name
    uses = await desk.uses.of_end_users(users, now_ms())
    data = [end_user_row(user, used) for user, used in zip(users, uses, strict=True)]
    shown = [
        (user.name, "blocked" if user.blocked else "active", _limits(used), user.wallet_id or "")
        for user, used in zip(users, uses, strict=True)
    ]
    return {"data": data}, table("end-user state used wallet", shown) or "Nothing is said of any end user.", 0


async def _set(context: Context) -> Result:
    given, desk = context.arguments, _desk(context)
    budgets = None if given.budget is None else _budgets(given.budget)
    change = EndUserChange(budgets, given.blocked, given.wallet)
    if change == EndUserChange():
        raise Refusal("nothing to change: name what is to be said")
    user, _ = await desk.end_users.put(given.account, given.end_user, change, who(), given.reason)
    (used,) = await desk.uses.of_end_users([user], now_ms())
    pays = f" Its wallet is {user.wallet_id}." if user.wallet_id else ""
    return end_user_row(user, used), f"{user.name}: {_limits(used)}.{pays}", 0


async def _remove(context: Context) -> Result:
    given = context.arguments
    if not await _desk(context).end_users.remove(given.account, given.end_user, who(), given.reason):
        raise Refusal("nothing is said of this end user")
    said = {"accountId": given.account, "endUser": given.end_user, "removed": True}
    return said, f"Nothing is said of {given.end_user} any more.", 0


def _desk(context: Context) -> KeyDesk:
    return key_desk(context.database)


def _budgets(given: list[str]) -> Any:
    return () if given == [NONE] else tuple(read_budget(text) for text in given)


def _limits(used: tuple[BudgetUse, ...]) -> str:
    parts = (f"{in_credits(one.used)} of {in_credits(one.budget.limit)} credits a {one.budget.period}" for one in used)
    return ", ".join(parts) or "no limit"

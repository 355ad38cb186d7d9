"""`tollkeeper token`: short-lived tokens for browsers and devices."""

from typing import Any

from billing.ledger.accounts import TokenTerms
from billing.ledger.customers.access_tokens import AccessTokens, TokenRequest
from proxy.admin.rows import token_row
from proxy.cli.context import Add, Context, Result, because, not_negative, short_text, table, who
from proxy.cli.customers.keys import read_limit
from proxy.web.times import iso_time


def register(commands: Any, add: Add) -> None:
    """Add the group to the parser."""
    token = commands.add_parser("token", help="Make, list, revoke short-lived tokens for browsers and devices.")
    verbs = token.add_subparsers(dest="verb", required=True)
    create = add(verbs, "create", _create, "Make a token.")
    create.add_argument("account")
    create.add_argument("--end-user", type=short_text(127), help="the one it is for")
    create.add_argument("--minutes", type=not_negative, default=60, help="1 to 1440 (default: 60)")
    create.add_argument("--models", nargs="+", help="model names or globs")
    create.add_argument("--ceiling", metavar="CREDITS", help="all that it may ever spend")
    create.add_argument("--origins", nargs="+", default=(), help="web pages that use it: https://app.example.com")
    create.add_argument("--buy", action="store_true", help="it opens payment pages too")
    add(verbs, "list", _list, "List an account's tokens; each is gone a day after its end.").add_argument("account")
    revoke = add(verbs, "revoke", _revoke, "Revoke a token, everywhere within 5 s.")
    revoke.add_argument("token", help="the token's id (tok_...)")
    because(revoke)


async def _create(context: Context) -> Result:
    given = context.arguments
    terms = TokenTerms(given.end_user or "", tuple(given.origins), given.buy)
    ceiling = None if given.ceiling is None else read_limit(given.ceiling)
    models = tuple(given.models) if given.models else None
    asked = TokenRequest(given.minutes, terms, models, ceiling)
    row, secret = await AccessTokens(context.database).mint(given.account, asked, who())
    text = f"Token {row.id}, good until {iso_time(row.expires_at)} (shown this once): {secret}"
    return {**token_row(row), "token": secret}, text, 0


async def _list(context: Context) -> Result:
    account = context.arguments.account
    await context.accounts.get(account)
    tokens = AccessTokens(context.database)
    data = [token_row(row) for row in await tokens.listed(account, 1_000)]
    shown = [
        (row["tokenId"], row["hint"], row["state"], row["expiresAt"], row["endUser"] or "", " ".join(row["origins"]))
        for row in data
    ]
    text = table("token begins-with state until end-user origins", shown)
    return {"data": data}, text or "This account has no tokens.", 0


async def _revoke(context: Context) -> Result:
    given = context.arguments
    await AccessTokens(context.database).revoke(given.token, who(), given.reason)
    return {"tokenId": given.token, "revoked": True}, f"{given.token} is revoked.", 0

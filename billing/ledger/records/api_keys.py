"""API keys as records: what a key is, its rules and budgets, and how its columns say them.

A key is 256 random bits behind a readable prefix; only its SHA-256 is stored.
"""

import hashlib
import secrets
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import RowMapping

from billing.money.amounts import Millicredits

KEY_PREFIX = "tk-"
HINT_LENGTH = 8


class KeyBudget(NamedTuple):
    """Millicredits that a key may be charged in each day, week or month (UTC), or ever, with some models.

    `models` are globs of the names that are asked for; None: all. `since`: when it was given, if the key was without it
    before (Unix milliseconds; 0: it had it from the start).
    """

    limit: Millicredits
    period: str
    models: tuple[str, ...] | None = None
    since: int = 0

    @property
    def subject(self) -> str:
        """Name of what it counts, whatever its limit."""
        if self.models is None:
            return self.period
        return f"{self.period}:{hashlib.sha256(msgspec.json.encode(sorted(self.models))).hexdigest()[:12]}"

    def scope(self, key_id: str) -> str:
        """Return the name under which a balance store counts it: the same for whatever limit.

        One that was taken away counted nothing meanwhile, so given again it has another name, and is read from SQL.
        """
        return f"{key_id}:{self.subject}:{self.since}" if self.since else f"{key_id}:{self.subject}"


class EndUserRules(NamedTuple):
    """Rules for the end users of an account: budgets of each that is not known, and whether one must be named."""

    budgets: tuple[KeyBudget, ...] = ()
    required: bool = False


class EndUserTerms(NamedTuple):
    """End user that a request is for: their name, whose end user they are, and what they may spend.

    `id` stands for both in scopes and in the audit log. What they spend is the account's, unless they have a wallet.
    """

    name: str
    id: str
    home_id: str
    budgets: tuple[KeyBudget, ...] = ()


class KeyRules(NamedTuple):
    """Permissions and limits of a key; None = the default of [limits], or no limit.

    `budgets` are held to beside the spend limit, every one of them; `spend_since` as `since` of a budget. `member`: of
    a team, one who spends and sees their own, while the account's affairs are those of others.
    """

    models: tuple[str, ...] | None = None
    spend_limit: Millicredits | None = None
    spend_period: str | None = None
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrency: int | None = None
    expires_at: int | None = None
    budgets: tuple[KeyBudget, ...] = ()
    spend_since: int = 0
    member: bool = False

    @property
    def all_budgets(self) -> tuple[KeyBudget, ...]:
        """The spend limit as a budget, and the others."""
        if self.spend_limit is None:
            return self.budgets
        return (KeyBudget(self.spend_limit, self.spend_period or "total", None, self.spend_since), *self.budgets)


class KeyDetails(NamedTuple):
    """Name and tags of a key. `reference`: the same one again for an account is the same key."""

    name: str | None = None
    tags: tuple[str, ...] = ()
    reference: str | None = None


NO_DETAILS = KeyDetails()


class TokenTerms(NamedTuple):
    """Bounds of a short-lived token beside a key's: the one end user it is for ("": the account's own), the origins
    that browsers use it from (none: no browser), and whether it opens payment pages.
    """

    end_user: str = ""
    origins: tuple[str, ...] = ()
    buys: bool = False


class ApiKey(NamedTuple):
    """A key as the data path needs it. Times are Unix milliseconds.

    `account_id` is the account that pays. `users`: what holds for the account's end users, None where nobody asks who a
    request is for; `user`: who this one is for. `token`: it is no key but a token that the app made for a browser or
    device.
    """

    key_id: str
    account_id: str
    account_status: str
    rules: KeyRules
    revoked_at: int | None
    acted_for: bool = False
    """True: the operator's own app acts for the account, and no key of the account's."""
    region: str = ""
    """Region that the account's requests must stay in; "" for any."""
    users: EndUserRules | None = None
    user: EndUserTerms | None = None
    token: TokenTerms | None = None

    @property
    def home_id(self) -> str:
        """Account whose key it is, also where an end user's wallet pays."""
        return self.account_id if self.user is None else self.user.home_id

    @property
    def sees_balance(self) -> bool:
        """Right of its holder to know what the account has, and not only what is left for them."""
        if self.token is not None and self.token.end_user:
            return self.account_id != self.home_id
        return not self.rules.member


class KeyRow(NamedTuple):
    """A key as its owner sees it, without its hash; `models`, `tags` and `budgets` are JSON lists (None: all, none).

    `previous_until`: until when the secret before the last rotation is good. Times in Unix milliseconds.
    """

    id: str
    account_id: str
    hint: str
    models: str | None
    spend_limit_millicredits: int | None
    spend_period: str | None
    requests_per_minute: int | None
    tokens_per_minute: int | None
    concurrency: int | None
    expires_at: int | None
    revoked_at: int | None
    created_at: int
    name: str | None
    tags: str | None
    budgets: str | None
    spend_since: int | None
    previous_until: int | None
    member: bool

    @property
    def all_budgets(self) -> tuple[KeyBudget, ...]:
        """The spend limit as a budget, and the others."""
        return KeyRules(
            spend_limit=None if self.spend_limit_millicredits is None else Millicredits(self.spend_limit_millicredits),
            spend_period=self.spend_period,
            budgets=read_budgets(self.budgets),
            spend_since=self.spend_since or 0,
        ).all_budgets


def api_key(row: RowMapping, key_hash: str) -> ApiKey:
    """Return the key of a row with its account's status, as the secret of this hash has it."""
    rules = KeyRules(
        models=msgspec.json.decode(row["models"], type=tuple[str, ...]) if row["models"] is not None else None,
        spend_limit=row["spend_limit_millicredits"],
        spend_period=row["spend_period"],
        requests_per_minute=row["requests_per_minute"],
        tokens_per_minute=row["tokens_per_minute"],
        concurrency=row["concurrency"],
        expires_at=_ends(row, key_hash),
        budgets=read_budgets(row["budgets"]),
        spend_since=row["spend_since"] or 0,
        member=row["member"],
    )
    whose = (row["id"], row["account_id"], row["status"], rules, row["revoked_at"])
    return ApiKey(*whose, region=row["region"], users=read_end_user_rules(row["end_user_rules"]))


def _ends(row: RowMapping, key_hash: str) -> int | None:
    """Return when a secret of a key ends: the one before the last rotation does so before the key."""
    if row["hash"] == key_hash:
        return None if row["expires_at"] is None else int(row["expires_at"])
    return min(int(row["previous_until"]), int(row["expires_at"] or row["previous_until"]))


def written_budgets(budgets: tuple[KeyBudget, ...]) -> str | None:
    """Return budgets as the column has them."""
    return msgspec.json.encode([budget._asdict() for budget in budgets]).decode() if budgets else None


def read_budgets(written: str | None) -> tuple[KeyBudget, ...]:
    """Return the budgets of the column."""
    if written is None:
        return ()
    return tuple(
        KeyBudget(row["limit"], row["period"], None if row["models"] is None else tuple(row["models"]), row["since"])
        for row in msgspec.json.decode(written)
    )


def written_end_user_rules(rules: EndUserRules) -> str:
    """Return the rules of end users as the column has them."""
    return msgspec.json.encode({"budgets": written_budgets(rules.budgets), "required": rules.required}).decode()


def read_end_user_rules(written: str | None) -> EndUserRules | None:
    """Return the rules of the column."""
    if written is None:
        return None
    found = msgspec.json.decode(written)
    return EndUserRules(read_budgets(found["budgets"]), found["required"])


def audited_rules(account_id: str, rules: KeyRules) -> dict[str, Any]:
    """Return a key's rules as the audit log has them; its name and tags are the customer's, and stay out of it."""
    return {"account": account_id, **rules._asdict(), "budgets": [budget._asdict() for budget in rules.budgets]}


def new_secret() -> tuple[str, dict[str, str]]:
    """Return (a new key's secret, the columns that know it)."""
    secret = KEY_PREFIX + secrets.token_urlsafe(32)
    return secret, {"hash": hash_key(secret), "hint": f"{secret[:HINT_LENGTH]}…{secret[-4:]}"}


def hash_key(secret: str) -> str:
    """SHA-256, hex. Enough for a 256-bit random key: there is nothing to guess."""
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()

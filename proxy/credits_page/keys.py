"""API keys on the Credits page: making, naming, limiting, rotating, revoking. Staff see them and change nothing.

Every form answers with a redirect, so that reloading what it leads to sends nothing again: a new secret waits for the
page that shows it, once. The form for a new key carries a reference, so that sending it twice makes one key.
"""

import contextlib
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from billing.ledger.accounts import KeyBudget, KeyDetails, KeyRow, KeyRules, read_budgets
from billing.ledger.customers.desk import KeyDesk
from billing.ledger.customers.use import KeyUse
from billing.money.amounts import millicredits, parse_credits
from billing.money.errors import AccountClosed, InvalidDetails, KeyNotFound
from billing.money.spend_periods import PERIODS
from billing.storage.database import now_ms
from proxy.credits_page.formatting import moment
from proxy.credits_page.read_amount import read_amount
from proxy.credits_page.responses import PageResponses
from proxy.credits_page.sign_in import Page, Visitor
from proxy.web.display import short_credits
from proxy.web.rejections import forbidden, invalid, not_found

GRACES = {"0": 0, "1": 3_600_000, "24": 86_400_000}
"""Hours that the old secret of a rotated key works, as the form offers them → milliseconds."""
GONE = "A new key is shown once, right after it is made, and this one was. If you did not copy it, make another."
ROLES = ("owner", MEMBER := "member")
"""Holders of a key: who has the account, or a member of their team, who spends and sees their own use alone."""
WORDS = {"day": "a day", "week": "a week", "month": "a month", "total": "in all"}


@dataclass(frozen=True, slots=True)
class PageKeys:
    """The handlers and what they need."""

    desk: KeyDesk
    public_url: str
    responses: PageResponses

    def forms(self) -> list[tuple[str, Page]]:
        """Path of each form, and its handler."""
        return [
            ("/credits/keys", self._create),
            ("/credits/keys/change", self._change),
            ("/credits/keys/rotate", self._rotate),
            ("/credits/keys/revoke", self._revoke),
        ]

    def pages(self) -> list[tuple[str, Page]]:
        """Path of each page, and its handler."""
        return [("/credits/keys/new", self._show)]

    async def view(self, account: str) -> dict[str, Any]:
        """Keys that work first, then those that do not, each newest first; and the reference of the next one."""
        now = now_ms()
        rows = list(reversed(await self.desk.accounts.keys_of(account)))
        uses = await self.desk.uses.of(rows, now)
        found = [_shown(row, uses[row.id], now) for row in rows]
        return {"rows": sorted(found, key=lambda key: not key["active"]), "reference": "page_" + secrets.token_hex(12)}

    async def _create(self, request: Request, visitor: Visitor) -> Response:
        form = await _fields(request)
        with _refusals():
            details = KeyDetails(form("name") or None, (), form("reference") or None)
            rules = KeyRules()._replace(**_rules(form))
            made = await self.desk.changes.create(visitor.account_id, rules, details, visitor.who(request))
        if made.secret is None:
            return self.responses.redirect("/credits?done=key-there#keys")
        return await self._send_on(visitor, made.secret)

    async def _change(self, request: Request, visitor: Visitor) -> Response:
        form = await _fields(request)
        key = await self._own(form("key"), visitor)
        with _refusals():
            changes = {"name": form("name") or None, **_rules(form, key)}
            await self.desk.changes.change(key.id, changes, visitor.who(request))
        return self.responses.redirect("/credits?done=key-changed#keys")

    async def _rotate(self, request: Request, visitor: Visitor) -> Response:
        form = await _fields(request)
        key = await self._own(form("key"), visitor)
        grace = GRACES.get(form("grace"))
        if grace is None:
            raise invalid("Choose for how long the old key works on.", "grace")
        with _refusals():
            secret = await self.desk.changes.rotate(key.id, grace, visitor.who(request))
        return await self._send_on(visitor, secret)

    async def _revoke(self, request: Request, visitor: Visitor) -> Response:
        form = await _fields(request)
        key = await self._own(form("key"), visitor)
        with contextlib.suppress(KeyNotFound):  # revoked already
            await self.desk.accounts.revoke_key(key.id, visitor.who(request))
        return self.responses.redirect("/credits?done=revoked#keys")

    async def _send_on(self, visitor: Visitor, secret: str) -> Response:
        """To the page that shows a new secret, once."""
        token = await self.desk.shown.put(visitor.account_id, secret)
        return self.responses.redirect(f"/credits/keys/new?shown={token}")

    async def _show(self, request: Request, visitor: Visitor) -> Response:
        secret = None
        if visitor.staff is None:
            secret = await self.desk.shown.take(visitor.account_id, request.query_params.get("shown", ""))
        if secret is None:
            return self.responses.message("This key is not shown again", GONE, 410, back=True)
        content = {
            "title": "New API key",
            "text": "This is your new key. It is shown this once: copy it now.",
            "secret": secret,
            "back": True,
            "base_url": f"{self.public_url.rstrip('/')}/v1",
        }
        return self.responses.page("message.html", content)

    async def _own(self, key_id: str, visitor: Visitor) -> KeyRow:
        """Return a key of the visitor's. Raises Rejection."""
        for row in await self.desk.accounts.keys_of(visitor.account_id):
            if row.id == key_id:
                return row
        raise not_found("There is no such key of yours.", "key_not_found")


@contextlib.contextmanager
def _refusals() -> Iterator[None]:
    """Turn what billing refuses into words for people."""
    try:
        yield
    except InvalidDetails as error:
        raise invalid(f"{error}.", error.field) from None
    except KeyNotFound:
        raise not_found("This key is revoked already.", "key_not_found") from None
    except AccountClosed:
        raise forbidden("This account is closed.", "account_closed") from None


async def _fields(request: Request) -> Callable[[str], str]:
    form = await request.form()
    return lambda name: str(form.get(name, "")).strip()


def _rules(form: Callable[[str], str], key: KeyRow | None = None) -> dict[str, Any]:
    """Spend limit, daily limit and role of a form; budgets that it does not show stay. Raises Rejection."""
    limit, daily = _amount(form("limit"), "spend limit", "limit"), _amount(form("daily"), "daily limit", "daily")
    role = form("role") or ROLES[0]
    if role not in ROLES:
        raise invalid("Choose who holds the key.", "role")
    period = form("period") or "month"
    if period not in PERIODS:
        raise invalid("Choose when the limit starts anew.", "period")
    if limit is not None and daily is not None and period == "day":
        raise invalid("Give the limit of a day once.", "daily")
    others = [one for one in read_budgets(key.budgets) if not _is_daily(one)] if key is not None else []
    budgets = [*others, KeyBudget(millicredits(daily), "day")] if daily is not None else others
    return {
        "spend_limit": None if limit is None else millicredits(limit),
        "spend_period": None if limit is None else period,
        "budgets": tuple(budgets),
        "member": role == MEMBER,
    }


def _amount(text: str, name: str, field: str) -> int | None:
    """Read a limit in credits; None: none. Raises Rejection."""
    if not text:
        return None
    amount = read_amount(text, parse_credits, name, field)
    if amount <= 0:
        raise invalid(f"The {name} must be above 0.", field)
    return amount


def _is_daily(budget: KeyBudget) -> bool:
    return budget.period == "day" and budget.models is None


def _shown(row: KeyRow, use: KeyUse, now: int) -> dict[str, Any]:
    """Key as the page shows it."""
    ended = row.revoked_at is not None or (row.expires_at or 2**62) < now
    limit, daily = row.spend_limit_millicredits, [one for one in read_budgets(row.budgets) if _is_daily(one)]
    return {
        "id": row.id,
        "name": row.name or "",
        "hint": row.hint,
        "limits": [
            {
                "limit": f"{short_credits(one.budget.limit)} {WORDS[one.budget.period]}",
                "models": ", ".join(one.budget.models or ()),
                "used": short_credits(one.used),
            }
            for one in use.budgets
        ],
        "limit_field": "" if limit is None else exact_field(limit),
        "period": row.spend_period or "month",
        "role": MEMBER if row.member else ROLES[0],
        "daily_field": exact_field(daily[0].limit) if daily else "",
        "at": moment(row.created_at),
        "last": moment(use.last_used_at) if use.last_used_at else None,
        "old_until": moment(row.previous_until) if row.previous_until and row.previous_until > now else None,
        "state": "revoked" if row.revoked_at else "expired" if ended else "active",
        "active": not ended,
    }


def exact_field(amount: int) -> str:
    """Write millicredits as a field has them: 12.5."""
    whole, part = divmod(amount, 1_000)
    return f"{whole}.{part:03}".rstrip("0").rstrip(".")

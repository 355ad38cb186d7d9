"""The end user that a request names, their budgets, and the wallet that pays for them.

An account of which nobody said anything about end users pays nothing for this. Of others a name is looked up when a
request comes with it, and is known for a few seconds, as keys are (proxy/gateway/authenticate.py).
"""

import time
from collections import OrderedDict
from dataclasses import dataclass

from billing.ledger.accounts import ApiKey
from billing.ledger.customers.end_users import EndUser, EndUsers, end_user_terms
from billing.money.errors import StoreUnavailable
from proxy.gateway.callers.labels import Labels, named_user
from proxy.web.rejections import forbidden, invalid, unavailable

FRESH_SECONDS = 2.0
MOST_KNOWN = 50_000
CANNOT_LOOK = "The end user of this request cannot be looked up right now. Try again shortly."
NOT_NAMED = "Name the end user of this request: by `safety_identifier` or `user`, or in the header `Tollkeeper-User`."


@dataclass(slots=True)
class _Known:
    """An end user as SQL had them at a time (monotonic seconds), and when it was asked since."""

    found: EndUser | None
    read_at: float
    asked_at: float = 0.0


class EndUserTable:
    """End users as they are now. Raises Rejection."""

    def __init__(self, end_users: EndUsers, stale_seconds: int | float) -> None:
        """`stale_seconds`: how long what is known is good while SQL cannot be asked."""
        self._end_users, self._stale = end_users, stale_seconds
        self._known: OrderedDict[tuple[str, str], _Known] = OrderedDict()

    async def by_header(self, key: ApiKey, headers: list[tuple[bytes, bytes]]) -> ApiKey:
        """Return a key as the end user has it whom a header names, or whom a token is for, whatever a header says."""
        name = named_user(headers) if key.token is None else key.token.end_user
        return await self._of(key, name) if name else key

    async def charged(self, key: ApiKey, labels: Labels) -> ApiKey:
        """Return a key as the end user has it for whom something is about to be charged."""
        name = key.user.name if key.user is not None else labels.end_user if key.token is None else ""
        if name:
            return await self._of(key, name)
        if key.users is not None and key.users.required:
            raise invalid(NOT_NAMED, "safety_identifier", "end_user_required")
        return key

    async def _of(self, key: ApiKey, name: str) -> ApiKey:
        if key.users is None:
            return key
        home = key.home_id
        found = await self._find(home, name)
        if found is None:
            return key._replace(user=end_user_terms(home, name, key.users.budgets))
        if found.blocked:
            raise forbidden("This end user may not use this service. Ask whoever runs it.", "end_user_blocked")
        if found.wallet_status and found.wallet_status != "active":
            raise forbidden(f"The wallet of this end user is {found.wallet_status}.", "wallet_not_active")
        return key._replace(account_id=found.wallet_id or home, user=end_user_terms(home, name, found.budgets))

    async def _find(self, account_id: str, name: str) -> EndUser | None:
        who, now = (account_id, name), time.monotonic()
        known = self._known.get(who)
        if known is not None and now - max(known.read_at, known.asked_at) < FRESH_SECONDS:
            return known.found
        if known is not None:
            known.asked_at = now  # one asks anew; whoever comes meanwhile takes what is known
        try:
            found = await self._end_users.find(account_id, name)
        except StoreUnavailable:
            if known is not None and now - known.read_at < self._stale:
                return known.found
            raise unavailable(CANNOT_LOOK, "store_unavailable") from None
        self._known[who] = _Known(found, now)
        self._known.move_to_end(who)
        if len(self._known) > MOST_KNOWN:
            self._known.popitem(last=False)
        return found

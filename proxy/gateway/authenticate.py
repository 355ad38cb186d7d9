"""Bearer key → account. Looked up by hash, cached a few seconds, revoked everywhere within 5 s.

A cached key is refreshed in the background once it is a second old and used, and is not used past
`MAX_AGE_SECONDS` without asking SQL. While SQL is away or hangs (and so nobody can revoke anything through it)
known keys keep working, for at most `stale_seconds`, and their requests hardly wait.

The operator's own app may act for any account: an admin key of the role `service` and the account in
`Tollkeeper-Account`.
"""

import asyncio
import re
import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from billing.ledger.accounts import Accounts, ApiKey, hash_key
from billing.ledger.admins import ADMIN_PREFIX, Admins
from billing.money.errors import StoreUnavailable
from billing.storage.database import now_ms
from proxy.web.auth_failures import AuthFailures
from proxy.web.rejections import forbidden, unauthorized, unavailable

REFRESH_SECONDS = 1.0
MAX_AGE_SECONDS = 3.0
ACCOUNT_ID = re.compile(rb"^[\x21-\x7e]{1,40}$")
CACHE_SIZE = 50_000
KNOWN_KEY_SECONDS = 0.5
"""Seconds that a request with a known key waits for SQL; all of them together, not each."""
CANNOT_CHECK = "API keys cannot be checked right now. Try again shortly."
BEARER = re.compile(rb"^(?i:bearer) +([\x21-\x7e]{1,512})$")
WRONG_KEY = "Incorrect API key provided. Use the key you were given by your provider."


@dataclass(slots=True)
class _Cached:
    key: ApiKey
    read_at: float
    asking: "asyncio.Task[bool] | None" = None
    asked_at: float = 0.0


class Authenticator:
    """Answers who a request is from. Raises Rejection."""

    def __init__(
        self,
        accounts: Accounts,
        stale_seconds: int | float,
        admins: Admins | None = None,
        failures: AuthFailures | None = None,
    ) -> None:
        """`stale_seconds`: how long known keys work while SQL cannot be asked. `admins` None: nobody acts for others.

        `failures`: of keys that are not known, by address.
        """
        self._accounts, self._stale, self._admins = accounts, stale_seconds, admins
        self._failures = failures or AuthFailures()
        self._cache: OrderedDict[str, _Cached] = OrderedDict()
        self._tasks: set[asyncio.Task[bool]] = set()

    async def authenticate(self, headers: list[tuple[bytes, bytes]], peer: Any = None) -> ApiKey:
        """Key of the one Authorization header: known, not revoked, not expired, its account not blocked.

        `peer`: host and port of who is connected, None where that is not known.
        """
        found = [value for name, value in headers if name == b"authorization"]
        if not found:
            raise unauthorized(
                "You didn't provide an API key. Send it as `Authorization: Bearer YOUR_KEY`.", "missing_api_key"
            )
        match = BEARER.match(found[0]) if len(found) == 1 else None
        if match is None:
            raise unauthorized("The Authorization header is not `Bearer YOUR_KEY`.")
        token = match[1].decode("ascii")
        digest = hash_key(token)
        if token.startswith(ADMIN_PREFIX):
            digest = f"{digest} {_acted_for(headers)}"
        cached = self._cache.get(digest)
        key = await (self._known(digest, cached) if cached is not None else self._lookup(digest, headers, peer))
        if key is None or key.revoked_at is not None:
            raise unauthorized(WRONG_KEY)
        if key.rules.expires_at is not None and key.rules.expires_at <= now_ms():
            raise unauthorized("This API key has expired. Ask for a new one.", "key_expired")
        if key.account_status != "active":
            raise forbidden("This account is blocked. Contact your provider.", "account_blocked")
        return key

    async def _lookup(self, digest: str, headers: list[tuple[bytes, bytes]], peer: Any) -> ApiKey | None:
        """Key that this process does not know yet.

        Each that nobody has costs a look into SQL, so of these there is a limit.
        """
        address = self._failures.address_of(peer, headers)
        self._failures.check("key", address)
        try:
            key = await self._find(digest)
        except StoreUnavailable:
            raise unavailable(CANNOT_CHECK, "store_unavailable") from None
        if key is None:
            self._failures.count("key", address)
        self._remember(digest, key)
        return key

    async def _known(self, digest: str, cached: _Cached) -> ApiKey | None:
        """Key that was found before: as SQL has it now, or as it was while SQL says nothing. Raises Rejection."""
        now = time.monotonic()
        age = now - cached.read_at
        if age < REFRESH_SECONDS:
            return cached.key
        asking = cached.asking
        if asking is None:
            asking = cached.asking = asyncio.create_task(self._refresh(digest, cached))
            cached.asked_at = now
            self._tasks.add(asking)
            asking.add_done_callback(self._tasks.discard)
        if age < MAX_AGE_SECONDS:
            return cached.key
        if (patience := cached.asked_at + KNOWN_KEY_SECONDS - now) > 0:
            await asyncio.wait((asking,), timeout=patience)
        if asking.done() and asking.result():
            newest = self._cache.get(digest)
            return newest.key if newest is not None else None
        if time.monotonic() - cached.read_at < self._stale:
            return cached.key
        raise unavailable(CANNOT_CHECK, "store_unavailable")

    async def _refresh(self, digest: str, cached: _Cached) -> bool:
        """Ask SQL for a key again; whether it said something."""
        try:
            self._remember(digest, await self._find(digest))
        except StoreUnavailable:
            return False
        finally:
            cached.asking = None
        return True

    async def _find(self, digest: str) -> ApiKey | None:
        """By a key's hash, or by the hash of a service key, a blank, and an account."""
        key_hash, _, account_id = digest.partition(" ")
        if not account_id:
            return await self._accounts.find_key(key_hash)
        return await self._admins.acting_for(key_hash, account_id) if self._admins is not None else None

    def _remember(self, digest: str, key: ApiKey | None) -> None:
        if key is None:
            self._cache.pop(digest, None)  # unknown keys are not kept: they would push out known ones
            return
        self._cache[digest] = _Cached(key, time.monotonic())
        self._cache.move_to_end(digest)
        if len(self._cache) > CACHE_SIZE:
            self._cache.popitem(last=False)


def _acted_for(headers: list[tuple[bytes, bytes]]) -> str:
    """Account that a service key acts for. Raises Rejection."""
    named = [value for name, value in headers if name == b"tollkeeper-account"]
    if len(named) != 1 or not ACCOUNT_ID.match(named[0]):
        raise unauthorized("Name the account that you act for in the header `Tollkeeper-Account`.", "missing_account")
    return named[0].decode("ascii")

"""Bearer key → account. Looked up by hash, cached a few seconds, revoked everywhere within 5 s.

A cached key is refreshed in the background once it is a second old and used, and is not used past
`MAX_AGE_SECONDS` without asking SQL. While SQL is away or hangs (and so nobody can revoke anything through it)
known keys keep working, for at most `stale_seconds`, and their requests hardly wait.

The operator's own app may act for any account: an admin key of the role `service` and the account in
`Tollkeeper-Account`.
"""

import asyncio
import contextlib
import re
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from billing.ledger.accounts import Accounts, ApiKey, hash_key
from billing.ledger.admins import ADMIN_PREFIX, Admins
from billing.ledger.customers.access_tokens import TOKEN_PREFIX, AccessTokens
from billing.money.errors import StoreUnavailable
from billing.storage.database import now_ms
from proxy.gateway.callers.end_users import EndUserTable
from proxy.gateway.callers.origins import check_origin
from proxy.web.auth_failures import AuthFailures, GatheredLookups
from proxy.web.raw_request import every_header
from proxy.web.rejections import forbidden, unauthorized, unavailable

REFRESH_SECONDS = 1.0
MAX_AGE_SECONDS = 3.0
ACCOUNT_ID = re.compile(rb"^[\x21-\x7e]{1,40}$")
CACHE_SIZE = 50_000
MOST_SERVICE_KEYS = 50
"""Keys of operators' apps and tokens, each a look of its own, in one gathering of look-ups."""
KNOWN_KEY_SECONDS = 0.5
"""Seconds that a request with a known key waits for SQL; all of them together, not each."""
CANNOT_CHECK = "API keys cannot be checked right now. Try again shortly."
BEARER = re.compile(rb"^(?i:bearer) +([\x21-\x7e]{1,512})$")
TOKEN_MARK = "token:"  # noqa: S105 - before a hash
NOT_FOR_TOKENS = (
    "A token of a browser or device is good for requests to models and for its balance, and for nothing else."
)
WRONG_KEY = "Incorrect API key provided. Use the key you were given by your provider."


Found = TypeVar("Found")


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
        end_users: EndUserTable | None = None,
        tokens: AccessTokens | None = None,
    ) -> None:
        """`stale_seconds`: how long known keys work while SQL cannot be asked. `admins` None: nobody acts for others.

        `failures`: of keys that are not known, by address; `end_users` None: nobody asks who a request is for;
        `tokens` None: there are keys alone.
        """
        self._end_users, self._tokens = end_users, tokens
        self._accounts, self._stale, self._admins = accounts, stale_seconds, admins
        self._failures = failures or AuthFailures()
        self._gathered = GatheredLookups(self._find_together)
        self._cache: OrderedDict[str, _Cached] = OrderedDict()
        self._tasks: set[asyncio.Task[bool]] = set()
        self._looking: dict[str, asyncio.Task[ApiKey | None]] = {}

    def address_of(self, peer: Any, headers: list[tuple[bytes, bytes]]) -> str:
        """Address of a request's sender; see AuthFailures."""
        return self._failures.address_of(peer, headers)

    async def authenticate(
        self, headers: list[tuple[bytes, bytes]], peer: Any = None, *, tokens: bool = False
    ) -> ApiKey:
        """Key of the one Authorization header: known, not revoked, not expired, its account not blocked.

        `peer`: host and port of who is connected, None where that is not known; `tokens`: whether this is for tokens of
        browsers and devices too.
        """
        key = await self.check(key_digest(bearer_of(headers), headers), headers, peer)
        if key.token is not None:
            if not tokens:
                raise forbidden(NOT_FOR_TOKENS, "token_not_allowed")
            check_origin(key.token, headers)
        return key

    async def check(self, digest: str, headers: list[tuple[bytes, bytes]], peer: Any = None) -> ApiKey:
        """Key of a digest (see `key_digest`), if it may be used now; `headers` and `peer`: whose request it is.

        Where a header names an end user, it is the key as they have it.
        """
        cached = self._cache.get(digest)
        if cached is None:
            key = await self._lookup(digest, headers, peer)
        elif time.monotonic() - cached.read_at < REFRESH_SECONDS:
            key = cached.key
        else:
            key = await self._known(digest, cached)
        if key is None or key.revoked_at is not None:
            raise unauthorized(WRONG_KEY)
        if key.rules.expires_at is not None and key.rules.expires_at <= now_ms():
            what = "API key" if key.token is None else "token"
            raise unauthorized(f"This {what} has expired. Ask for a new one.", "key_expired")
        if key.account_status == "closed":
            raise forbidden("This account is closed.", "account_closed")
        if key.account_status != "active":
            message = "This account is blocked, and only your provider can open it again. Contact them."
            raise forbidden(message, "account_blocked")
        if key.users is not None and self._end_users is not None:
            return await self._end_users.by_header(key, headers)
        return key

    async def prove(
        self, headers: list[tuple[bytes, bytes]], peer: Any, find: Callable[[], Awaitable[Found | None]], unknown: str
    ) -> Found:
        """Look up who has a secret that is no key; `unknown`: what to tell who has none. Raises Rejection."""
        address = self._failures.address_of(peer, headers)
        doubtful = self._failures.is_over("key", address)
        try:
            async with self._failures.turn("key", address) if doubtful else contextlib.nullcontext():
                found = await find()
        except StoreUnavailable:
            raise unavailable(CANNOT_CHECK, "store_unavailable") from None
        if found is None:
            self._failures.count("key", address)
            raise self._failures.refusal("key", address) if doubtful else unauthorized(unknown)
        return found

    async def _lookup(self, digest: str, headers: list[tuple[bytes, bytes]], peer: Any) -> ApiKey | None:
        """Key that this process does not know yet.

        Each that nobody has costs a look into SQL: from an address of which many came they are looked up together.
        """
        address = self._failures.address_of(peer, headers)
        doubtful = self._failures.is_over("key", address)
        try:
            key = await (self._gathered.find(digest) if doubtful else self._look_once(digest))
        except StoreUnavailable:
            raise unavailable(CANNOT_CHECK, "store_unavailable") from None
        if key is None:
            self._failures.count("key", address)
            if doubtful:
                raise self._failures.refusal("key", address)
        self._remember(digest, key)
        return key

    async def _look_once(self, digest: str) -> ApiKey | None:
        """Find a key that many may ask for at once, as after a start: they wait for one look, not for a turn each."""
        looking = self._looking.get(digest)
        if looking is None:
            looking = self._looking[digest] = asyncio.create_task(self._find(digest))
            looking.add_done_callback(partial(self._looked, digest))
        return await asyncio.shield(looking)

    def _looked(self, digest: str, looking: "asyncio.Task[ApiKey | None]") -> None:
        del self._looking[digest]
        if not looking.cancelled():
            looking.exception()  # all who asked may have left

    async def _known(self, digest: str, cached: _Cached) -> ApiKey | None:
        """Key that was found before: as SQL has it now, or as it was while SQL says nothing. Raises Rejection."""
        now = time.monotonic()
        age = now - cached.read_at
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
        """By a key's hash, by the hash of a service key, a blank, and an account, or by a token's mark and its hash."""
        if digest.startswith(TOKEN_MARK):
            return await self._tokens.find(digest.removeprefix(TOKEN_MARK)) if self._tokens is not None else None
        key_hash, _, account_id = digest.partition(" ")
        if not account_id:
            return await self._accounts.find_key(key_hash)
        return await self._admins.acting_for(key_hash, account_id) if self._admins is not None else None

    async def _find_together(self, digests: Sequence[str]) -> dict[str, ApiKey]:
        """As `_find`, of many: API keys in one look, and as many service keys and tokens as one may do beside it."""
        hashes = [digest for digest in digests if digest.isalnum()]
        found = await self._accounts.find_keys(hashes) if hashes else {}
        for digest in [digest for digest in digests if not digest.isalnum()][:MOST_SERVICE_KEYS]:
            if (key := await self._find(digest)) is not None:
                found[digest] = key
        return found

    def _remember(self, digest: str, key: ApiKey | None) -> None:
        if key is None:
            self._cache.pop(digest, None)  # unknown keys are not kept: they would push out known ones
            return
        self._cache[digest] = _Cached(key, time.monotonic())
        self._cache.move_to_end(digest)
        if len(self._cache) > CACHE_SIZE:
            self._cache.popitem(last=False)


def bearer_of(headers: list[tuple[bytes, bytes]]) -> str:
    """Token of the one Authorization header. Raises Rejection."""
    found = every_header(headers, b"authorization")
    if not found:
        raise unauthorized(
            "You didn't provide an API key. Send it as `Authorization: Bearer YOUR_KEY`.", "missing_api_key"
        )
    match = BEARER.match(found[0]) if len(found) == 1 else None
    if match is None:
        raise unauthorized("The Authorization header is not `Bearer YOUR_KEY`.")
    return match[1].decode("ascii")


def key_digest(token: str, headers: list[tuple[bytes, bytes]]) -> str:
    """Digest that a key is known by: its hash, for a service key with the account that it acts for. Raises Rejection.

    Whoever keeps it can check the key again, and cannot use it.
    """
    digest = hash_key(token)
    if token.startswith(TOKEN_PREFIX):
        return TOKEN_MARK + digest
    return f"{digest} {_acted_for(headers)}" if token.startswith(ADMIN_PREFIX) else digest


def _acted_for(headers: list[tuple[bytes, bytes]]) -> str:
    """Account that a service key acts for. Raises Rejection."""
    named = [value for name, value in headers if name == b"tollkeeper-account"]
    if len(named) != 1 or not ACCOUNT_ID.match(named[0]):
        raise unauthorized("Name the account that you act for in the header `Tollkeeper-Account`.", "missing_account")
    return named[0].decode("ascii")

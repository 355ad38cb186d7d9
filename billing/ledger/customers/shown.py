"""New secrets that a page shows once, after the form that made them.

The form answers with a redirect, so that reloading the page sends no form again; the page finds the secret by a token
in its address, and with that it is gone. At rest the secret is sealed with the token, a pad of its own that nobody else
has: the table alone shows nothing.
"""

import hashlib
import secrets

from sqlalchemy import delete, insert

from billing.storage.database import Database, now_ms
from billing.storage.tables.portal import shown_secrets

WAITS_MS = 600_000
"""How long a secret waits for its page."""
LONGEST_SECRET = 64


class ShownOnce:
    """Secrets between a form and its page. Raises StoreUnavailable when SQL is away."""

    def __init__(self, database: Database) -> None:
        """`database` must be migrated."""
        self._db = database

    async def put(self, owner: str, secret: str) -> str:
        """Keep a secret of at most LONGEST_SECRET bytes for `owner`; return the token that shows it."""
        token, now = secrets.token_urlsafe(48), now_ms()
        row = {"hash": _hash(token), "owner": owner, "sealed": _sealed(secret.encode(), token).hex(), "created_at": now}
        async with self._db.write() as connection:
            await connection.execute(delete(shown_secrets).where(shown_secrets.c.created_at < now - WAITS_MS))
            await connection.execute(insert(shown_secrets).values(**row))
        return token

    async def take(self, owner: str, token: str) -> str | None:
        """Return the secret of a token, the first time that its owner asks within ten minutes; else None."""
        mine = (shown_secrets.c.hash == _hash(token), shown_secrets.c.owner == owner)
        fresh = shown_secrets.c.created_at >= now_ms() - WAITS_MS
        async with self._db.write() as connection:
            statement = delete(shown_secrets).where(*mine, fresh).returning(shown_secrets.c.sealed)
            sealed = (await connection.execute(statement)).scalar_one_or_none()
        return None if sealed is None else _sealed(bytes.fromhex(sealed), token).decode()


def _sealed(text: bytes, token: str) -> bytes:
    """Seal or open `text`: a pad as long as it, from a random token that is used once."""
    if len(text) > LONGEST_SECRET:
        raise ValueError("the secret is longer than its pad")
    pad = hashlib.sha512(b"shown once:" + token.encode("utf-8", "surrogateescape")).digest()
    return bytes(one ^ other for one, other in zip(text, pad[: len(text)], strict=True))


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()

"""Endpoints that events are sent to: registered, changed, their secrets rotated, removed."""

import base64
import hashlib
import hmac
import secrets
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from billing.ledger.audit_log import Change, Who, record_change
from billing.ledger.events.kinds import is_kind
from billing.money.errors import BillingError
from billing.storage.database import Database, now_ms
from billing.storage.installation import event_secret
from billing.storage.rows import columns_of
from billing.storage.tables.events import event_endpoints
from billing.storage.tables.payments import notices

PREFIX_OF_SECRETS = "whsec_"
MOST_ENDPOINTS = 20
MOST_KINDS = 50
REMOVED = "the endpoint was removed"


class EndpointNotFound(BillingError):
    """There is no such endpoint."""


class BadEndpoint(BillingError):
    """An endpoint that cannot be: `field` says of what."""

    def __init__(self, field: str, rule: str) -> None:
        """`rule` completes "must"."""
        super().__init__(f"`{field}` must {rule}")
        self.field = field


class EndpointRow(NamedTuple):
    """An endpoint as it is kept; times in Unix milliseconds."""

    id: str
    url: str
    description: str
    kinds: str
    generation: int
    previous_until: int | None
    disabled_at: int | None
    created_at: int

    @property
    def patterns(self) -> tuple[str, ...]:
        """The kinds that it wants."""
        return msgspec.json.decode(self.kinds, type=tuple[str, ...])


COLUMNS = columns_of(event_endpoints, EndpointRow._fields)


def secret_of(root: bytes, endpoint_id: str, generation: int) -> str:
    """Return the secret that an endpoint's events are signed with."""
    made = hmac.new(root, f"{endpoint_id}:{generation}".encode(), hashlib.sha256).digest()
    return PREFIX_OF_SECRETS + base64.urlsafe_b64encode(made).decode().rstrip("=")


def secrets_of(root: bytes, row: EndpointRow, now: int) -> list[str]:
    """Return the secrets that are signed with now, the newest first."""
    found = [secret_of(root, row.id, row.generation)]
    if row.previous_until is not None and now < row.previous_until:
        found.append(secret_of(root, row.id, row.generation - 1))
    return found


class EventEndpoints:
    """The endpoints of one database. Raises StoreUnavailable when SQL is away."""

    def __init__(self, database: Database) -> None:
        """`database` must be migrated."""
        self._db = database

    async def everyone(self) -> list[EndpointRow]:
        """Return every endpoint that there is, oldest first."""
        async with self._db.read() as connection:
            return await listeners(connection)

    async def get(self, endpoint_id: str) -> EndpointRow:
        """Return an endpoint. Raises EndpointNotFound."""
        async with self._db.read() as connection:
            return await _get(connection, endpoint_id)

    async def add(self, url: str, kinds: tuple[str, ...], description: str, who: Who) -> tuple[EndpointRow, str]:
        """Register an endpoint for what happens from now on; (it, its secret). Raises BadEndpoint."""
        _check_kinds(kinds)
        row = EndpointRow(
            "ep_" + secrets.token_hex(8), url, description, msgspec.json.encode(kinds).decode(), 0, None, None, now_ms()
        )
        root = await event_secret(self._db)
        async with self._db.write() as connection:
            if len(await listeners(connection)) >= MOST_ENDPOINTS:
                raise BadEndpoint("url", f"not be one more: there are {MOST_ENDPOINTS} endpoints, remove one")
            await connection.execute(insert(event_endpoints).values(row._asdict()))
            await record_change(connection, who, Change("endpoint.add", row.id, None, _audited(row)))
        return row, secret_of(root, row.id, 0)

    async def change(self, endpoint_id: str, changes: dict[str, Any], who: Who, reason: str = "") -> EndpointRow:
        """Change url, description, kinds, or whether it is `disabled`: then its events wait.

        Raises EndpointNotFound, BadEndpoint.
        """
        values = dict(changes)
        if "kinds" in values:
            _check_kinds(values["kinds"])
            values["kinds"] = msgspec.json.encode(values["kinds"]).decode()
        if "disabled" in values:
            values["disabled_at"] = now_ms() if values.pop("disabled") else None
        async with self._db.write() as connection:
            before = await _get(connection, endpoint_id)
            after = before._replace(**values)
            if after != before:
                await connection.execute(
                    update(event_endpoints).where(event_endpoints.c.id == endpoint_id).values(**values)
                )
                change = Change("endpoint.update", endpoint_id, _audited(before), _audited(after), reason)
                await record_change(connection, who, change)
        return after

    async def rotate(self, endpoint_id: str, grace_ms: int, who: Who, reason: str = "") -> str:
        """Give an endpoint another secret; the one until now is signed with as well for so long.

        Raises EndpointNotFound.
        """
        root, until = await event_secret(self._db), now_ms() + grace_ms
        async with self._db.write() as connection:
            row = await _get(connection, endpoint_id)
            values = {"generation": row.generation + 1, "previous_until": until}
            await connection.execute(
                update(event_endpoints).where(event_endpoints.c.id == endpoint_id).values(**values)
            )
            change = Change("endpoint.rotate", endpoint_id, None, {"oldUntil": until}, reason)
            await record_change(connection, who, change)
        return secret_of(root, endpoint_id, row.generation + 1)

    async def remove(self, endpoint_id: str, who: Who, reason: str = "") -> None:
        """Send an endpoint nothing more, also not what waits for it. Raises EndpointNotFound."""
        async with self._db.write() as connection:
            row = await _get(connection, endpoint_id)
            await connection.execute(
                update(event_endpoints).where(event_endpoints.c.id == endpoint_id).values(removed_at=now_ms())
            )
            waiting = update(notices).where(notices.c.endpoint_id == endpoint_id, notices.c.state == "pending")
            await connection.execute(waiting.values(state="dead", last_error=REMOVED))
            await record_change(connection, who, Change("endpoint.remove", endpoint_id, _audited(row), None, reason))


async def listeners(connection: AsyncConnection) -> list[EndpointRow]:
    """Return the endpoints that there are, oldest first."""
    query = select(*COLUMNS).where(event_endpoints.c.removed_at.is_(None))
    rows = await connection.execute(query.order_by(event_endpoints.c.created_at, event_endpoints.c.id))
    return [EndpointRow(*row) for row in rows]


async def _get(connection: AsyncConnection, endpoint_id: str) -> EndpointRow:
    query = select(*COLUMNS).where(event_endpoints.c.id == endpoint_id, event_endpoints.c.removed_at.is_(None))
    row = (await connection.execute(query.with_for_update())).first()
    if row is None:
        raise EndpointNotFound(f"there is no endpoint {endpoint_id!r}")
    return EndpointRow(*row)


def _check_kinds(kinds: tuple[str, ...]) -> None:
    unknown = [kind for kind in kinds if not is_kind(kind)]
    if not kinds or len(kinds) > MOST_KINDS or unknown:
        what = (
            f"name kinds that there are, and {unknown[0][:60]!r} is none"
            if unknown
            else f"name 1 to {MOST_KINDS} kinds"
        )
        raise BadEndpoint("kinds", f"{what}: docs/events.md lists them")


def _audited(row: EndpointRow) -> dict[str, Any]:
    """Return an endpoint as the audit log has it. An address may hold a token of the receiver's: its host is enough."""
    host = row.url.split("/")[2].rpartition("@")[2] if row.url.count("/") > 1 else ""
    return {"host": host, "kinds": row.patterns, "disabled": row.disabled_at is not None}

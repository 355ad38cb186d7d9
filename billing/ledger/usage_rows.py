"""Rows of `usage`: how a settled charge becomes one, and which of them a listing shows."""

from collections.abc import Iterable, Mapping
from operator import gt, itemgetter
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import BigInteger, ColumnElement, String, func, literal, literal_column, tuple_

from billing.ledger.events.kinds import BY_CHOICE
from billing.ledger.notices import Notice
from billing.money.holds import Entry
from billing.money.usage_record import UsageRecord
from billing.storage.tables.core import usage

TEXT_LENGTHS: Mapping[str, int] = {
    column.name: column.type.length or 1 << 30 for column in usage.c if isinstance(column.type, String)
}
"""Text column of a usage row → characters it takes."""
COUNTS = tuple(
    column.name
    for column in usage.c
    if isinstance(column.type, BigInteger) and not column.name.endswith("_millicredits")
)
TEXTS_OF, COUNTS_OF = itemgetter(*TEXT_LENGTHS), itemgetter(*COUNTS)
MOST = 2**62
MOST_TOLD = 100
"""Requests in one event."""


HAS_USER: ColumnElement[bool] = literal_column("usage.end_user <> ''")
HAS_TAGS: ColumnElement[bool] = literal_column("usage.tags <> ''")
"""Written out as their partial indexes say it, which are used for nothing else."""


class UsageFilters(NamedTuple):
    """Conditions of a usage listing; `before` is the (created_at, charge_id) of the last row seen."""

    model: str | None = None
    key_id: str | None = None
    endpoint: str | None = None
    since_ms: int | None = None
    until_ms: int | None = None
    request_id: str | None = None
    end_user: str | None = None
    tag: str | None = None
    before: tuple[int, str] | None = None

    def conditions(self) -> list[ColumnElement[bool]]:
        """Return the SQL of the filters that are set."""
        found: list[ColumnElement[bool]] = []
        for column, value in (
            (usage.c.model, self.model),
            (usage.c.key_id, self.key_id),
            (usage.c.endpoint, self.endpoint),
            (usage.c.end_user, self.end_user),
        ):
            if value is not None:
                found.append(column == value)
        if self.end_user:
            found.append(HAS_USER)
        if self.tag is not None:
            found.append(HAS_TAGS)
            lines = literal("\n") + usage.c.tags + "\n"
            found.append(func.replace(lines, f"\n{self.tag}\n", "") != lines)
        if self.request_id is not None:
            found.append(usage.c.charge_id == self.request_id)
        if self.since_ms is not None:
            found.append(usage.c.created_at >= self.since_ms)
        if self.until_ms is not None:
            found.append(usage.c.created_at < self.until_ms)
        if self.before is not None:
            # a comparison of rows, which the index can start at, and one that partitions are chosen by
            found.append(tuple_(usage.c.created_at, usage.c.charge_id) < tuple_(*self.before))
            found.append(usage.c.created_at <= self.before[0])
        return found


def of_account(account_id: str, filters: UsageFilters) -> ColumnElement[bool]:
    """Return the condition that a row is of an account.

    A key has its own index, and far fewer rows: so the account's is not to be chosen, which a database without
    statistics would do.
    """
    column: ColumnElement[str] = usage.c.account_id
    return (column if filters.key_id is None else column + "") == account_id


def usage_values(entry: Entry, record: UsageRecord) -> dict[str, Any]:
    """Return the row, made to fit: whatever a request or an upstream said must not keep a batch out of the ledger."""
    row: dict[str, Any] = msgspec.structs.asdict(record)
    row["rates"] = bytes(record.rates).decode()
    row["billed_model"] = record.billed_model or record.model
    row["charged_millicredits"], row["loss_millicredits"] = entry.charged, entry.loss
    texts = TEXTS_OF(row)
    joined = "".join(texts)
    if not joined.isascii() or "\0" in joined or any(map(gt, map(len, texts), TEXT_LENGTHS.values())):
        for name, length in TEXT_LENGTHS.items():
            # PostgreSQL refuses a NUL, and what is no Unicode
            row[name] = row[name].replace("\0", "").encode(errors="replace").decode()[:length]
    if max(COUNTS_OF(row)) > MOST:
        row.update({name: min(row[name], MOST) for name in COUNTS})
    return row


def charged_notices(rows: Iterable[Mapping[str, Any]]) -> list[Notice]:
    """Return the events of charges that are being booked: of each account, so many requests in one."""
    by_account: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        by_account.setdefault(row["account_id"], []).append(row)
    told = []
    for account_id, charged in by_account.items():
        for start in range(0, len(charged), MOST_TOLD):
            some = charged[start : start + MOST_TOLD]
            data = {"requests": [_told(row) for row in some]}
            told.append(Notice(f"{BY_CHOICE}:{some[0]['charge_id']}", account_id, BY_CHOICE, data))
    return told


def _told(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a charge as events have it."""
    return {
        "requestId": row["charge_id"],
        "keyId": row["key_id"],
        "endpoint": row["endpoint"],
        "model": row["model"],
        "inputTokens": row["input_tokens"],
        "cachedTokens": row["cached_tokens"],
        "outputTokens": row["output_tokens"],
        "chargedMillicredits": str(row["charged_millicredits"]),
        "endUser": row["end_user"] or None,
        "tags": row["tags"].split("\n") if row["tags"] else [],
        "createdAtMs": row["created_at"],
    }

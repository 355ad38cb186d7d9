"""Endpoints and notices as rows: for the admin API, the ops page and the command line."""

from typing import Any

import msgspec

from billing.ledger.events.endpoints import EndpointRow
from billing.ledger.notices import NoticeRow
from proxy.web.times import iso_time


def endpoint_row(row: EndpointRow) -> dict[str, Any]:
    """Return an endpoint as it is shown, without its secret."""
    return {
        "endpointId": row.id,
        "url": row.url,
        "description": row.description,
        "kinds": row.patterns,
        "disabled": row.disabled_at is not None,
        "oldSecretUntil": iso_time(row.previous_until) if row.previous_until is not None else None,
        "createdAt": iso_time(row.created_at),
    }


def notice_row(row: NoticeRow) -> dict[str, Any]:
    """Return a notice as it is shown. `endpointId` null: the URL of the configuration."""
    return {
        "noticeId": row.id,
        "eventId": row.event_id,
        "endpointId": row.endpoint_id or None,
        "accountId": row.account_id,
        "kind": row.kind,
        "state": row.state,
        "attempts": row.attempts,
        "lastError": row.last_error,
        "createdAt": iso_time(row.created_at),
        "sentAt": iso_time(row.sent_at) if row.sent_at else None,
        "event": msgspec.json.decode(row.payload),
    }

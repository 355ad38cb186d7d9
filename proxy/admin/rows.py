"""Rows as admins see them, by API, page and command line."""

from typing import Any

import msgspec

from billing.jobs.runs import RunRow, came_to_its_end
from billing.jobs.schedule import JobStatus
from billing.ledger.accounts import AccountRow, KeyRow
from billing.ledger.admins import AdminRow
from billing.ledger.audit_log import AuditRow
from billing.payments.purchase_store import Purchase
from billing.storage.database import now_ms
from proxy.customer_api.rows import purchase_row
from proxy.web.times import iso_time


def review_row(purchase: Purchase) -> dict[str, Any]:
    """Payment in review."""
    return {
        **purchase_row(purchase),
        "accountId": purchase.account_id,
        "problem": purchase.problem,
        "totalCents": purchase.total_cents,
    }


def run_row(row: RunRow) -> dict[str, Any]:
    """One run of a job."""
    return {
        "id": str(row.id),
        "job": row.job,
        "startedAt": iso_time(row.started_at),
        "finishedAt": iso_time(row.finished_at),
        "ok": bool(row.ok),
        "completed": came_to_its_end(row),
        "findings": row.findings,
        "report": row.report,
    }


def job_row(status: JobStatus) -> dict[str, Any]:
    """State of a job."""
    return {
        "job": status.job,
        "about": status.about,
        "everySeconds": round(status.every_seconds),
        "running": status.running,
        "requested": status.requested,
        "nextDueAt": iso_time(status.next_due) if status.next_due else None,
        "lastRun": run_row(status.last) if status.last is not None else None,
    }


def account_row(row: AccountRow) -> dict[str, Any]:
    """Account in a listing."""
    return {
        "accountId": row.id,
        "name": row.name,
        "status": row.status,
        "postedMillicredits": str(row.posted_millicredits),
        "createdAt": iso_time(row.created_at),
    }


def key_row(row: KeyRow) -> dict[str, Any]:
    """Key of a customer, as admins see it."""
    limit = row.spend_limit_millicredits
    return {
        "keyId": row.id,
        "hint": row.hint,
        "spendLimitMillicredits": None if limit is None else str(limit),
        "spendPeriod": row.spend_period,
        "expiresAt": iso_time(row.expires_at) if row.expires_at else None,
        "revokedAt": iso_time(row.revoked_at) if row.revoked_at else None,
        "createdAt": iso_time(row.created_at),
    }


def admin_row(row: AdminRow) -> dict[str, Any]:
    """Admin key as shown: everything but the key."""
    ended = row.expires_at is not None and row.expires_at <= now_ms()
    return {
        "adminKeyId": row.id,
        "name": row.name,
        "role": row.role,
        "hint": row.hint,
        "state": "revoked" if row.revoked_at is not None else "expired" if ended else "active",
        "createdAt": iso_time(row.created_at),
        "createdBy": row.created_by,
        "expiresAt": iso_time(row.expires_at) if row.expires_at is not None else None,
    }


def audit_row(row: AuditRow) -> dict[str, Any]:
    """One row of the audit log."""
    return {
        "id": str(row.id),
        "createdAt": iso_time(row.created_at),
        "actor": row.actor,
        "role": row.role,
        "action": row.action,
        "subject": row.subject,
        "before": msgspec.json.decode(row.before),
        "after": msgspec.json.decode(row.after),
        "reason": row.reason,
        "requestId": row.request_id,
        "ip": row.ip,
        "hash": row.hash,
    }

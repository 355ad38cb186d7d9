"""Rows as admins see them, by API, page and command line."""

from collections.abc import Sequence
from typing import Any

import msgspec

from billing.jobs.runs import RunRow, came_to_its_end
from billing.jobs.schedule import JobStatus
from billing.ledger.accounts import AccountRow, EndUserRules, KeyRow, OpenedAccount
from billing.ledger.admins import AdminRow
from billing.ledger.audit_log import AuditRow
from billing.ledger.customers.access_tokens import TokenRow
from billing.ledger.customers.end_users import EndUser, end_user_id
from billing.ledger.customers.use import BudgetUse, KeyUse
from billing.money.usage_record import UsageRow
from billing.payments.purchase import RefundedPart
from billing.payments.purchase_store import Purchase
from billing.storage.database import now_ms
from config.upstreams import DEFAULT_NAME
from proxy.customer_api.rows import purchase_row, usage_row
from proxy.web.times import iso_time


def staff_usage_row(row: UsageRow) -> dict[str, Any]:
    """Usage row as staff see it: with who served it, which customers never learn."""
    return {
        **usage_row(row),
        "upstream": row.upstream or DEFAULT_NAME,
        "tries": msgspec.json.decode(row.tries) if row.tries else [],
        "abandonedMillicredits": str(row.abandoned_millicredits),
        "costMillicredits": str(row.cost_millicredits),
    }


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
        "externalId": row.external_id,
        "email": row.email,
        "metadata": msgspec.json.decode(row.metadata) if row.metadata else {},
        "status": row.status,
        "postedMillicredits": str(row.posted_millicredits),
        "createdAt": iso_time(row.created_at),
        "closedAt": iso_time(row.closed_at) if row.closed_at else None,
        "erasedAt": iso_time(row.erased_at) if row.erased_at else None,
    }


def opened_row(opened: OpenedAccount, welcome: int = 0) -> dict[str, Any]:
    """Account that was asked for, with the key that was made with it, and the millicredits it was welcomed with."""
    row = opened.account
    return {
        "accountId": row.id,
        "name": row.name,
        "externalId": row.external_id,
        "status": row.status,
        "created": opened.created,
        "keyId": opened.key_id,
        "apiKey": opened.secret,
        "welcomeMillicredits": str(welcome),
    }


def refunded_row(part: RefundedPart) -> dict[str, Any]:
    """Purchase of a closed account, and what went back of it."""
    made = part.made
    return {
        "purchaseId": part.purchase_id,
        "refundId": made.refund_id if made else None,
        "refundedCents": made.cents if made else 0,
        "problem": part.problem or None,
    }


def key_row(row: KeyRow, use: KeyUse) -> dict[str, Any]:
    """Key of a customer, as admins see it: its rules, and its use as the ledger has it."""
    limit, ends = row.spend_limit_millicredits, iso_or_none
    main, others = (use.budgets[:1], use.budgets[1:]) if limit is not None else ((), use.budgets)
    return {
        "keyId": row.id,
        "accountId": row.account_id,
        "name": row.name,
        "tags": msgspec.json.decode(row.tags) if row.tags else [],
        "hint": row.hint,
        "models": msgspec.json.decode(row.models) if row.models else None,
        "spendLimitMillicredits": None if limit is None else str(limit),
        "spendPeriod": row.spend_period,
        "spendUsedMillicredits": str(main[0].used) if main else None,
        "spendStartsAnewAt": ends(main[0].ends) if main else None,
        "budgets": [_budget_row(one) for one in others],
        "role": "member" if row.member else "owner",
        "requestsPerMinute": row.requests_per_minute,
        "tokensPerMinute": row.tokens_per_minute,
        "concurrency": row.concurrency,
        "lastUsedAt": ends(use.last_used_at),
        "oldSecretUntil": ends(row.previous_until),
        "expiresAt": ends(row.expires_at),
        "revokedAt": ends(row.revoked_at),
        "createdAt": iso_time(row.created_at),
    }


def _budget_row(one: BudgetUse) -> dict[str, Any]:
    return {
        "limitMillicredits": str(one.budget.limit),
        "period": one.budget.period,
        "models": one.budget.models,
        "usedMillicredits": str(one.used),
        "startsAnewAt": iso_or_none(one.ends),
    }


def end_user_row(user: EndUser, used: Sequence[BudgetUse]) -> dict[str, Any]:
    """End user of an account; of one who is not known, what holds for such."""
    return {
        "accountId": user.account_id,
        "endUser": user.name,
        "endUserId": end_user_id(user.account_id, user.name),
        "known": bool(user.created_at),
        "blocked": user.blocked,
        "budgets": [_budget_row(one) for one in used],
        "walletAccountId": user.wallet_id or None,
        "walletStatus": user.wallet_status or None,
        "createdAt": iso_or_none(user.created_at),
    }


def end_user_rules_row(account_id: str, rules: EndUserRules) -> dict[str, Any]:
    """Rules for the end users of an account that are not known."""
    budgets = [
        {"limitMillicredits": str(one.limit), "period": one.period, "models": one.models} for one in rules.budgets
    ]
    return {"accountId": account_id, "required": rules.required, "budgets": budgets}


def token_row(row: TokenRow) -> dict[str, Any]:
    """Token of a browser or device, without its secret."""
    ended = row.revoked_at is not None or row.expires_at <= now_ms()
    return {
        "tokenId": row.id,
        "accountId": row.account_id,
        "endUser": row.end_user or None,
        "hint": row.hint,
        "models": msgspec.json.decode(row.models) if row.models else None,
        "ceilingMillicredits": None if row.ceiling_millicredits is None else str(row.ceiling_millicredits),
        "origins": msgspec.json.decode(row.origins),
        "buy": bool(row.buys),
        "state": "revoked" if row.revoked_at is not None else "expired" if ended else "active",
        "madeBy": row.made_by,
        "createdAt": iso_time(row.created_at),
        "expiresAt": iso_time(row.expires_at),
        "revokedAt": iso_or_none(row.revoked_at),
    }


def iso_or_none(moment: int | None) -> str | None:
    """Write a time, where there is one."""
    return iso_time(moment) if moment else None


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

"""Rows of the ledger as customers see them. Amounts are strings of millicredits; credits are numbers for display."""

from typing import Any

import msgspec

from billing.ledger.transfers import TransferRow
from billing.money.amounts import display_credits
from billing.money.usage_record import UsageRow
from billing.payments.purchase import Refunded
from billing.payments.purchase_store import Purchase
from proxy.web.times import iso_time


def usage_row(row: UsageRow) -> dict[str, Any]:
    """Usage row as customers see it."""
    return {
        "requestId": row.charge_id,
        "keyId": row.key_id,
        "endpoint": row.endpoint,
        "model": row.model,
        "serviceTier": row.service_tier,
        "stream": bool(row.stream),
        "inputTokens": row.input_tokens,
        "outputTokens": row.output_tokens,
        "cachedTokens": row.cached_tokens,
        "cacheWriteTokens": row.cache_write_tokens,
        "reasoningTokens": row.reasoning_tokens,
        "audioInputTokens": row.audio_input_tokens,
        "audioOutputTokens": row.audio_output_tokens,
        "imageInputTokens": row.image_input_tokens,
        "imageOutputTokens": row.image_output_tokens,
        "audioMilliseconds": row.audio_milliseconds,
        "characters": row.characters,
        "chargedMillicredits": str(row.charged_millicredits),
        "chargedCredits": display_credits(row.charged_millicredits),
        "usageSource": row.usage_source,
        "outcome": row.outcome,
        "free": bool(row.free),
        "endUser": row.end_user or None,
        "tags": row.tags.split("\n") if row.tags else [],
        "createdAt": iso_time(row.created_at),
    }


def usage_details(row: UsageRow) -> dict[str, Any]:
    """Rest of a usage row, for the record of one request."""
    return {
        "billedModel": row.billed_model,
        "heldMillicredits": str(row.held_millicredits),
        "webSearches": row.web_searches,
        "toolCalls": msgspec.json.decode(row.tool_calls) if row.tool_calls else {},
        "rates": msgspec.json.decode(row.rates),
        "status": row.status,
        "firstByteMs": row.first_byte_ms,
        "durationMs": row.duration_ms,
        "upstreamId": row.upstream_id,
    }


def ledger_row(row: TransferRow) -> dict[str, Any]:
    """Ledger row as customers see it."""
    return {
        "id": str(row.id),
        "kind": row.kind,
        "amountMillicredits": str(row.effect),
        "amountCredits": display_credits(row.effect),
        "referenceType": row.reference_type,
        "referenceId": row.reference_id,
        "purchaseId": row.purchase_id,
        "reason": row.reason if row.reason_shown else "",
        "expiresAt": iso_time(row.expires_at) if row.expires_at is not None else None,
        "createdAt": iso_time(row.created_at),
    }


def staff_ledger_row(row: TransferRow) -> dict[str, Any]:
    """Ledger row as staff see it: with who booked it and why, whether customers read that or not."""
    return {**ledger_row(row), "reason": row.reason, "reasonShown": bool(row.reason_shown), "actor": row.actor}


def refund_row(purchase_id: str, made: Refunded) -> dict[str, Any]:
    """Refund that was asked for here."""
    return {
        "id": purchase_id,
        "refundId": made.refund_id,
        "refundedCents": made.cents,
        "status": made.status,
        "reference": made.reference,
        "again": made.again,
    }


def purchase_row(purchase: Purchase) -> dict[str, Any]:
    """Purchase as its buyer sees it."""
    total = purchase.paid_millicredits + purchase.bonus_millicredits
    return {
        "id": purchase.id,
        "sessionId": purchase.session_id,
        "origin": purchase.origin,
        "packageCode": purchase.package_code,
        "state": purchase.state,
        "currency": purchase.currency,
        "priceCents": purchase.price_cents,
        "taxCents": purchase.tax_cents,
        "millicredits": str(total),
        "credits": display_credits(total),
        "receiptPath": f"/api/billing/purchases/{purchase.id}/receipt" if purchase.stripe_charge_id else None,
        "invoicePath": f"/api/billing/purchases/{purchase.id}/invoice" if purchase.invoice_id else None,
        "createdAt": iso_time(purchase.created_at),
        "creditedAt": iso_time(purchase.credited_at) if purchase.credited_at else None,
    }

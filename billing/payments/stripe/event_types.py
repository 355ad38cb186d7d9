"""Stripe's API version, which of its events we handle, and what each is about.

The webhook endpoint gets these (docs/stripe.md).
"""

from typing import Literal

API_VERSION = "2026-10-28.endive"
"""The version that stripe 16.1 was made for; also to be set on the webhook endpoint (docs/stripe.md)."""

KINDS = {
    "checkout.session.completed": "session",
    "checkout.session.async_payment_succeeded": "session",
    "checkout.session.async_payment_failed": "session",
    "checkout.session.expired": "session",
    "payment_intent.succeeded": "intent",
    "payment_intent.payment_failed": "intent",
    "payment_intent.processing": "intent",
    "payment_intent.canceled": "intent",
    "refund.created": "refund",
    "refund.updated": "refund",
    "refund.failed": "refund",
    "charge.refund.updated": "refund",
    "charge.refunded": "charge",
    "charge.updated": "payment",
    "charge.dispute.created": "dispute",
    "charge.dispute.updated": "dispute",
    "charge.dispute.closed": "dispute",
    "charge.dispute.funds_withdrawn": "dispute",
    "charge.dispute.funds_reinstated": "dispute",
    "payment_method.detached": "method",
    "radar.early_fraud_warning.created": "risk",
    "review.opened": "risk",
}

Oddity = Literal["paid_late", "unknown_status", "fraud_warning"]
"""Handled, and wants a person's look: a payment after its page had ended, a claim of a status we do not know, a payment
that a bank, or Stripe, reports as possible fraud."""

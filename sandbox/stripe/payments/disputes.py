"""Disputes: opened by the bank, with or without money being withdrawn, answered by us, decided by the bank."""

from typing import Any, Final

from sandbox.stripe.account.errors import invalid
from sandbox.stripe.account.object_fields import blank, evidence
from sandbox.stripe.account.world import Obj, World
from sandbox.stripe.payments import balance

_ANSWER_S: Final = 9 * 86_400
_INQUIRY: Final = ("warning_needs_response", "warning_under_review")
_OPEN: Final = ("needs_response", "under_review", *_INQUIRY)
_CLOSED: Final = ("won", "lost", "warning_closed", "prevented")
ACTIONS: Final = (*_CLOSED, "withdraw", "escalate", *_OPEN)
"""What a bank may do: decide, take the money, make a dispute of an inquiry, or move on to another open status."""
# Words in the evidence that decide a dispute in Stripe's own test mode.
_VERDICTS: Final = {"winning_evidence": "won", "losing_evidence": "lost", "escalate_inquiry_evidence": "escalate"}
_NETWORK_CODES: Final = {
    "fraudulent": "10.4",
    "product_not_received": "13.1",
    "duplicate": "12.6.1",
    "credit_not_processed": "13.6",
}


def open_dispute(
    world: World,
    charge: Obj,
    reason: str = "fraudulent",
    *,
    amount: int | None = None,
    inquiry: bool = False,
    status: str | None = None,
    withdraw: bool = True,
) -> Obj:
    """Dispute a charge for the customer's bank. `withdraw` False leaves the money for a later "withdraw"."""
    begins = status or ("warning_needs_response" if inquiry else "needs_response")
    disputed = charge["amount"] if amount is None else amount
    fields = blank(
        "dispute",
        amount=disputed,
        charge=charge["id"],
        created=world.now(),
        currency=charge["currency"],
        evidence=evidence(),
        evidence_details={
            "due_by": world.now() + _ANSWER_S,
            "enhanced_eligibility": {},
            "has_evidence": False,
            "past_due": False,
            "submission_count": 0,
            "submission_method": "not_submitted",
        },
        is_charge_refundable=inquiry,
        network_reason_code=_NETWORK_CODES.get(reason, "10.4"),
        payment_intent=charge["payment_intent"],
        payment_method_details=_method_details(charge, reason, inquiry=inquiry),
        reason=reason,
        status=begins,
    )
    dispute = world.add("dispute", fields)
    charge["disputed"] = True
    world.emit("charge.dispute.created", dispute)
    if withdraw and not inquiry and begins not in {"prevented", *_INQUIRY}:
        withdraw_funds(world, dispute)
    return dispute


def _method_details(charge: Obj, reason: str, *, inquiry: bool) -> Obj | None:
    details = charge["payment_method_details"]
    if details["type"] != "card":
        return None
    brand = details["card"]["brand"]
    code = _NETWORK_CODES.get(reason, "10.4")
    case = "inquiry" if inquiry else "chargeback"
    return {"type": "card", "card": {"brand": brand, "case_type": case, "network": brand, "network_reason_code": code}}


def withdraw_funds(world: World, dispute: Obj) -> None:
    """Take the amount and the fee; at most once."""
    if dispute["balance_transactions"]:
        return
    charge, fee = world.get("charge", dispute["charge"]), world.live.dispute_fee
    transaction = balance.post(
        world, "adjustment", dispute, -dispute["amount"], fee, category="dispute", description="Chargeback withdrawal"
    )
    balance.record_movement(
        world, "disputed", charge, dispute["amount"], fee, dispute=dispute["id"], balance_transaction=transaction["id"]
    )
    dispute["balance_transactions"] = [transaction]
    world.emit("charge.dispute.funds_withdrawn", dispute)


def _reinstate(world: World, dispute: Obj) -> None:
    charge = world.get("charge", dispute["charge"])
    fee = world.live.dispute_fee if world.live.dispute_fee_returned else 0
    transaction = balance.post(
        world,
        "adjustment",
        dispute,
        dispute["amount"],
        -fee,
        category="dispute_reversal",
        description="Chargeback reversal",
    )
    balance.record_movement(
        world,
        "dispute_won",
        charge,
        dispute["amount"],
        fee,
        dispute=dispute["id"],
        balance_transaction=transaction["id"],
    )
    dispute["balance_transactions"] = [*dispute["balance_transactions"], transaction]
    world.emit("charge.dispute.funds_reinstated", dispute)


def act(world: World, dispute: Obj, action: str) -> Obj:
    """Act as the bank does: one of ACTIONS."""
    if action in _CLOSED:
        return _close(world, dispute, action)
    if action == "withdraw":
        withdraw_funds(world, dispute)
    elif action == "escalate":
        dispute["is_charge_refundable"] = False
        move(world, dispute, "needs_response")
        withdraw_funds(world, dispute)
    else:
        move(world, dispute, action)
    return dispute


def move(world: World, dispute: Obj, status: str) -> Obj:
    """Set another status, and nothing else."""
    world.change(dispute, "charge.dispute.updated", status=status)
    return dispute


def _close(world: World, dispute: Obj, verdict: str) -> Obj:
    taken, returned = len(dispute["balance_transactions"]) > 0, len(dispute["balance_transactions"]) > 1
    if dispute["status"] in _CLOSED and returned == (verdict == "won"):
        raise invalid(f"This dispute is already closed: {dispute['status']}.")
    if verdict == "lost" and taken and not returned:
        charge = world.get("charge", dispute["charge"])
        balance.record_movement(world, "dispute_lost", charge, dispute["amount"], 0, dispute=dispute["id"])
    world.change(dispute, "charge.dispute.closed", status=verdict)
    if verdict == "won" and taken and not returned:
        _reinstate(world, dispute)
    return dispute


def update(world: World, dispute: Obj, params: dict[str, Any]) -> Obj:
    """POST /v1/disputes/:id: evidence, and with submit also its verdict if it carries a test word."""
    given = params.get("evidence") or {}
    if given and dispute["status"] not in _OPEN:
        raise invalid("This dispute is already closed, so its evidence cannot be updated.")
    known = dispute["evidence"] | given
    details = dispute["evidence_details"] | {
        "has_evidence": any(value for name, value in known.items() if name != "enhanced_evidence")
    }
    changes: Obj = {"evidence": known, "metadata": {**dispute["metadata"], **(params.get("metadata") or {})}}
    if given and params.get("submit", True):
        details |= {"submission_count": details["submission_count"] + 1, "submission_method": "manual"}
        changes["status"] = "warning_under_review" if dispute["status"] in _INQUIRY else "under_review"
    world.change(dispute, "charge.dispute.updated", evidence_details=details, **changes)
    verdict = _VERDICTS.get(str(given.get("uncategorized_text")))
    if verdict is not None and params.get("submit", True):
        inquiry = dispute["status"] in _INQUIRY
        act(world, dispute, "warning_closed" if inquiry and verdict != "escalate" else verdict)
    return dispute


def close(world: World, dispute: Obj) -> Obj:
    """POST /v1/disputes/:id/close: we accept it."""
    if dispute["status"] not in _OPEN:
        raise invalid("This dispute is already closed.")
    return _close(world, dispute, "warning_closed" if dispute["status"] in _INQUIRY else "lost")

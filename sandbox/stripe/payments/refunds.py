"""Refunds: partial, repeated, pending, and such that fail after they had succeeded."""

from typing import Any, Final

from sandbox.stripe.account.errors import invalid, missing
from sandbox.stripe.account.object_fields import blank, metadata_after
from sandbox.stripe.account.world import Obj, World, timer_action
from sandbox.stripe.payments import balance, payment_methods, taxes

_OPEN_DISPUTE: Final = ("needs_response", "under_review", "lost")


def create(world: World, params: dict[str, Any], *, status: str | None = None) -> Obj:
    """POST /v1/refunds; the dashboard may choose the status it begins with."""
    charge = _charge_of(world, params)
    left = charge["amount"] - charge["amount_refunded"]
    amount = params.get("amount", left)
    _check(world, charge, amount, left)
    method = world.objects["payment_method"].get(charge["payment_method"])
    manner = payment_methods.behaviour(method).refund if method else "succeed"
    card = charge["payment_method_details"]["type"] == "card"
    begins = status or ("pending" if manner == "pending" or not card else "succeeded")
    fields = blank(
        "refund",
        amount=amount,
        charge=charge["id"],
        created=world.now(),
        currency=charge["currency"],
        customer=charge["customer"],
        metadata=metadata_after({}, params),
        payment_intent=charge["payment_intent"],
        payment_method=charge["payment_method"],
        reason=params.get("reason"),
        status=begins,
    )
    if card:
        destination = {"reference_status": "pending", "reference_type": "acquirer_reference_number", "type": "refund"}
        fields["destination_details"] = {"type": "card", "card": destination}
    if begins == "pending":
        fields["pending_reason"] = "processing"
    refund = world.add("refund", fields)
    transaction = balance.post(world, "refund" if card else "payment_refund", refund, -amount, category="refund")
    refund["balance_transaction"] = transaction["id"]
    balance.record_movement(
        world, "refunded", charge, amount, 0, refund=refund["id"], balance_transaction=transaction["id"]
    )
    taxes.reverse(world, world.objects["payment_intent"].get(charge["payment_intent"]), refund, amount)
    world.emit("refund.created", refund)
    world.change(charge, "charge.refunded", amount_refunded=charge["amount_refunded"] + amount, refunded=amount == left)
    _follow(world, refund, manner)
    return refund


def _charge_of(world: World, params: dict[str, Any]) -> Obj:
    if params.get("charge"):
        return world.get("charge", params["charge"], "charge")
    if not params.get("payment_intent"):
        raise (
            missing("payment_intent")
            if "charge" not in params
            else invalid("You must provide a charge or payment_intent.", None, "charge")
        )
    intent = world.get("payment_intent", params["payment_intent"], "payment_intent")
    if intent["status"] != "succeeded":
        message = f"This PaymentIntent ({intent['id']}) does not have a successful charge to refund."
        raise invalid(message, "payment_intent_unexpected_state")
    return world.get("charge", intent["latest_charge"])


def _check(world: World, charge: Obj, amount: int, left: int) -> None:
    if charge["status"] != "succeeded":
        raise invalid(f"Charge {charge['id']} has not succeeded; it cannot be refunded.", "charge_not_refundable")
    for dispute in world.find("dispute", charge=charge["id"]):
        if dispute["status"] in _OPEN_DISPUTE:
            raise invalid(f"Charge {charge['id']} has been charged back; cannot issue a refund.", "charge_disputed")
    if left == 0:
        raise invalid(f"Charge {charge['id']} has already been refunded.", "charge_already_refunded")
    if amount < 1:
        raise invalid("Invalid positive integer", "parameter_invalid_integer", "amount")
    if amount > left:
        message = f"Refund amount (${amount / 100:.2f}) is greater than unrefunded amount on charge (${left / 100:.2f})"
        raise invalid(message, None, "amount")


def _follow(world: World, refund: Obj, manner: str) -> None:
    """Plan the bank's later treatment of a refund."""
    delay = world.live.refund_delay_s
    if manner == "fail_later":
        world.later(delay, _come_back, refund["id"])
    elif refund["status"] == "pending":
        world.later(delay, _go_through, refund["id"])


@timer_action("refunds._come_back")
def _come_back(world: World, refund_id: str) -> None:
    fail(world, world.get("refund", refund_id), "expired_or_canceled_card")


@timer_action("refunds._go_through")
def _go_through(world: World, refund_id: str) -> None:
    succeed(world, world.get("refund", refund_id))


def succeed(world: World, refund: Obj) -> None:
    """Let a pending refund go through."""
    if refund["status"] in {"pending", "requires_action"}:
        refund.pop("pending_reason", None)
        world.change(refund, "refund.updated", status="succeeded")
        world.emit("charge.refund.updated", refund)


def fail(world: World, refund: Obj, reason: str = "unknown", *, status: str = "failed") -> None:
    """Take the money back: also after the refund had succeeded. `status` may be canceled."""
    if refund["status"] in {"failed", "canceled"}:
        return
    charge = world.get("charge", refund["charge"])
    transaction = balance.post(world, "refund_failure", refund, refund["amount"])
    balance.record_movement(
        world, "refund_failed", charge, refund["amount"], 0, refund=refund["id"], balance_transaction=transaction["id"]
    )
    taxes.reverse(world, world.objects["payment_intent"].get(charge["payment_intent"]), refund, -refund["amount"])
    charge |= {"amount_refunded": charge["amount_refunded"] - refund["amount"], "refunded": False}
    refund.pop("pending_reason", None)
    changes = {"failure_balance_transaction": transaction["id"], "status": status}
    if status == "failed":
        changes["failure_reason"] = reason
    world.change(refund, "refund.updated", **changes)
    if status == "failed":
        world.emit("refund.failed", refund)
    world.emit("charge.refund.updated", refund)


def cancel(world: World, refund: Obj) -> Obj:
    """POST /v1/refunds/:id/cancel."""
    if refund["status"] != "requires_action":
        raise invalid(f"You can only cancel refunds with status requires_action; this one is {refund['status']}.")
    fail(world, refund, status="canceled")
    return refund


def update(world: World, refund: Obj, params: dict[str, Any]) -> Obj:
    """POST /v1/refunds/:id."""
    world.change(refund, "refund.updated", metadata=metadata_after(refund["metadata"], params))
    world.emit("charge.refund.updated", refund)
    return refund

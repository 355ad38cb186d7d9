"""Stripe Tax for payments without a page: calculations, and what is booked of them when a payment names one.

A payment that succeeds commits its calculation's transaction, once a calculation; a refund reverses its share, and one
that fails takes that back. The tax itself is the settings' `tax_permille`, on top of what is sold.
"""

from typing import Any, Final

from sandbox.stripe.account.errors import invalid, missing
from sandbox.stripe.account.object_fields import ADDRESS, page
from sandbox.stripe.account.world import Obj, World
from sandbox.stripe.payments import customers

_GOOD_FOR_S: Final = 90 * 86_400


def tax_on(world: World, amount: int) -> int:
    """Return the tax on top of an amount, in cents, half a cent rounded up."""
    return (amount * world.live.tax_permille + 500) // 1000


def calculate(world: World, params: dict[str, Any]) -> Obj:
    """POST /v1/tax/calculations."""
    details = _customer_details(world, params)
    if not params.get("line_items"):
        raise missing("line_items")
    lines = [_line(world, item, index) for index, item in enumerate(params["line_items"])]
    exclusive = sum(line["amount_tax"] for line in lines if line["tax_behavior"] == "exclusive")
    now = world.now()
    fields: Obj = {
        "amount_total": sum(line["amount"] for line in lines) + exclusive,
        "currency": params["currency"].lower(),
        "customer": params.get("customer"),
        "customer_details": details,
        "expires_at": now + _GOOD_FOR_S,
        "line_items": page(lines, "/v1/tax/calculations/line_items", has_more=False),
        "livemode": False,
        "ship_from_details": None,
        "shipping_cost": None,
        "tax_amount_exclusive": exclusive,
        "tax_amount_inclusive": sum(line["amount_tax"] for line in lines) - exclusive,
        "tax_breakdown": [],
        "tax_date": params.get("tax_date", now),
    }
    return world.add("tax.calculation", fields, transaction=None)


def _customer_details(world: World, params: dict[str, Any]) -> Obj:
    """Return where the customer is, as given or as kept. Raises StripeError when nothing tells."""
    given = params.get("customer_details") or {}
    known = customers.customer(world, params["customer"]) if params.get("customer") else {}
    address = given.get("address") or known.get("address") or {}
    if not address.get("country"):
        message = (
            "We could not determine the customer's tax location based on the provided customer address. Please check "
            "the address and try again."
        )
        raise invalid(message, "customer_tax_location_invalid", "customer_details[address]")
    tax_ids = given.get("tax_ids") or [
        {"type": one["type"], "value": one["value"]} for one in world.find("tax_id", customer=known.get("id"))
    ]
    return {
        "address": ADDRESS | address,
        "address_source": given.get("address_source", "billing"),
        "ip_address": given.get("ip_address"),
        "tax_ids": tax_ids,
        "taxability_override": given.get("taxability_override", "none"),
    }


def _line(world: World, item: dict[str, Any], index: int) -> Obj:
    if "amount" not in item:
        raise missing(f"line_items[{index}][amount]")
    return {
        "id": world.new_id("tax_li_"),
        "object": "tax.calculation_line_item",
        "amount": item["amount"],
        "amount_tax": tax_on(world, item["amount"]),
        "livemode": False,
        "metadata": item.get("metadata"),
        "product": item.get("product"),
        "quantity": item.get("quantity", 1),
        "reference": item.get("reference", f"L{index + 1}"),
        "tax_behavior": item.get("tax_behavior", "exclusive"),
        "tax_breakdown": None,
        "tax_code": item.get("tax_code", "txcd_10000000"),
    }


def linked(world: World, params: dict[str, Any]) -> Obj | None:
    """Return the hooks of a payment that names a calculation, which must be there; None without."""
    wanted = (((params.get("hooks") or {}).get("inputs") or {}).get("tax") or {}).get("calculation")
    if not wanted:
        return None
    world.get("tax.calculation", wanted, "hooks[inputs][tax][calculation]")
    return {"inputs": {"tax": {"calculation": wanted}}}


def calculation_of(world: World, intent: Obj) -> Obj | None:
    """Return the calculation that a payment names."""
    hooks = intent["hooks"]
    return world.get("tax.calculation", hooks["inputs"]["tax"]["calculation"]) if hooks else None


def commit(world: World, intent: Obj) -> None:
    """Book the tax of a payment that has succeeded; of several that name one calculation, of the first alone."""
    calculation = calculation_of(world, intent)
    if calculation is None:
        return
    if calculation["_transaction"] is not None:
        _attempt(intent, intent["id"], errored="another_payment_associated_with_calculation")
        return
    made = _transaction(world, intent, calculation, calculation["tax_amount_exclusive"], intent["id"], "transaction")
    calculation["_transaction"] = made["id"]
    intent["_tax"] = calculation["tax_amount_exclusive"]
    _attempt(intent, intent["id"], transaction=made["id"])


def reverse(world: World, intent: Obj | None, refund: Obj, share: int) -> None:
    """Book the tax of a refund back: its share of the payment, in cents (negative: of a refund that failed)."""
    calculation = calculation_of(world, intent) if intent is not None else None
    if intent is None or calculation is None or not intent.get("_tax"):
        return
    tax = intent["_tax"] * share // intent["amount"]
    suffix = "" if share > 0 else ":failed"
    made = _transaction(world, intent, calculation, -tax, f"{refund['id']}{suffix}", "reversal")
    _attempt(intent, refund["id"], transaction=made["id"])


def _transaction(world: World, intent: Obj, calculation: Obj, tax: int, reference: str, kind: str) -> Obj:
    fields: Obj = {
        "created": world.now(),
        "currency": intent["currency"],
        "customer": calculation["customer"],
        "customer_details": calculation["customer_details"],
        "livemode": False,
        "metadata": {},
        "posted_at": world.now(),
        "reference": reference,
        "reversal": None if kind == "transaction" else {"original_transaction": calculation["_transaction"]},
        "ship_from_details": None,
        "shipping_cost": None,
        "tax_date": calculation["tax_date"],
        "type": kind,
    }
    return world.add("tax.transaction", fields, tax=tax)


def _attempt(intent: Obj, source: str, *, transaction: str = "", errored: str = "") -> None:
    attempt: Obj = {"source": source, "status": "errored" if errored else "committed"}
    attempt |= {"errored": {"reason": errored}} if errored else {"committed": {"transaction": transaction}}
    intent["_tax_attempts"] = [*intent.get("_tax_attempts", []), attempt]


def association(world: World, params: dict[str, Any]) -> Obj:
    """GET /v1/tax/associations/find."""
    intent = world.get("payment_intent", params["payment_intent"], "payment_intent")
    calculation = calculation_of(world, intent)
    if calculation is None:
        raise invalid("No tax association found for this PaymentIntent.", "resource_missing", "payment_intent", 404)
    return {
        "id": f"taxa_{intent['id'].removeprefix('pi_')}",
        "object": "tax.association",
        "calculation": calculation["id"],
        "payment_intent": intent["id"],
        "tax_transaction_attempts": intent.get("_tax_attempts", []),
    }

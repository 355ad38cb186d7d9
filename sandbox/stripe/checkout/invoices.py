"""Invoices of sessions with invoice_creation: numbered in a row for each customer, made once the money is there."""

from typing import Final

from sandbox.stripe.account.object_fields import page
from sandbox.stripe.account.world import Obj, World

_EVENTS: Final = ("invoice.created", "invoice.finalized", "invoice.paid")


def make(world: World, session: Obj) -> None:
    """Make the invoice of a paid session, where it is to have one, once."""
    wanted = session["invoice_creation"]
    if not wanted or not wanted["enabled"] or session["invoice"] is not None:
        return
    known = world.objects["customer"].get(session["customer"] or "")
    number = known["next_invoice_sequence"] if known is not None else 1
    if known is not None:
        known["next_invoice_sequence"] = number + 1
    prefix = known["invoice_prefix"] if known is not None else world.new_id("")[:8].upper()
    data, details, now = wanted.get("invoice_data") or {}, session["customer_details"] or {}, world.now()
    tax = session["total_details"]["amount_tax"]
    fields: Obj = {
        "amount_due": session["amount_total"],
        "amount_paid": session["amount_total"],
        "amount_remaining": 0,
        "billing_reason": "manual",
        "collection_method": "charge_automatically",
        "created": now,
        "currency": session["currency"],
        "customer": session["customer"],
        "customer_address": details.get("address"),
        "customer_email": details.get("email"),
        "customer_name": details.get("business_name") or details.get("name"),
        "customer_tax_ids": details.get("tax_ids", []),
        "description": data.get("description"),
        "footer": data.get("footer"),
        "livemode": False,
        "metadata": data.get("metadata") or {},
        "number": f"{prefix}-{number:04d}",
        "status": "paid",
        "subtotal": session["amount_subtotal"],
        "total": session["amount_total"],
        "total_excluding_tax": session["amount_total"] - tax,
    }
    made = world.add("invoice", fields)
    made["lines"] = page(
        [{"description": item["description"], "amount": item["amount_subtotal"]} for item in session["_items"]],
        f"/v1/invoices/{made['id']}/lines",
        has_more=False,
    )
    made["hosted_invoice_url"] = f"{world.base_url}/invoices/{made['id']}"
    made["invoice_pdf"] = f"{world.base_url}/invoices/{made['id']}/pdf"
    session["invoice"] = made["id"]
    for kind in _EVENTS:
        world.emit(kind, made)

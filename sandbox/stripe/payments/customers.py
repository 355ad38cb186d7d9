"""Customers, and the payment methods that are theirs."""

from typing import Any, Final

from sandbox.stripe.account.errors import StripeError, invalid
from sandbox.stripe.account.object_fields import ADDRESS, blank, metadata_after
from sandbox.stripe.account.world import Obj, World
from sandbox.stripe.payments.payment_methods import behaviour, issuer_refusal, method

_CUSTOMER_FIELDS: Final = (
    "business_name description email individual_name name phone preferred_locales shipping tax_exempt invoice_prefix"
).split()


def customer(world: World, wanted: str, param: str = "customer") -> Obj:
    """Return a customer that has not been deleted."""
    found = world.get("customer", wanted, param)
    if found.get("deleted"):
        raise invalid(f"No such customer: '{wanted}'", "resource_missing", param, 404 if param == "id" else 400)
    return found


def not_attached(found: Obj, param: str) -> StripeError:
    """Return the error of a payment method that is somebody else's, or nobody's."""
    message = (
        f"The customer does not have a payment method with the ID {found['id']}. The payment method must be "
        "attached to the customer."
    )
    return invalid(message, "resource_missing", param)


def create_customer(world: World, params: dict[str, Any]) -> Obj:
    """POST /v1/customers."""
    made = world.add("customer", blank("customer", created=world.now()))
    made["invoice_prefix"] = world.new_id("")[:8].upper()
    _set_customer(world, made, params)
    world.emit("customer.created", made)
    if params.get("payment_method"):
        attach(world, method(world, params["payment_method"], "payment_method"), made["id"])
    return made


def update_customer(world: World, found: Obj, params: dict[str, Any]) -> Obj:
    """POST /v1/customers/:id."""
    before = {name: found[name] for name in (*_CUSTOMER_FIELDS, "address", "metadata", "invoice_settings")}
    _set_customer(world, found, params)
    previous = {name: value for name, value in before.items() if found[name] != value}
    world.emit("customer.updated", found, previous)
    return found


def _set_customer(world: World, found: Obj, params: dict[str, Any]) -> None:
    found |= {name: params[name] or None for name in _CUSTOMER_FIELDS if name in params}
    if "address" in params:
        found["address"] = (ADDRESS | params["address"]) if params["address"] else None
    settings = params.get("invoice_settings") or {}
    if settings.get("default_payment_method"):
        wanted = method(world, settings["default_payment_method"], "invoice_settings[default_payment_method]")
        if wanted["customer"] != found["id"]:
            raise not_attached(wanted, "invoice_settings[default_payment_method]")
    if "default_payment_method" in settings:
        found["invoice_settings"] = found["invoice_settings"] | {
            "default_payment_method": settings["default_payment_method"] or None
        }
    found["metadata"] = metadata_after(found["metadata"], params)


def delete_customer(world: World, found: Obj) -> Obj:
    """DELETE /v1/customers/:id: what is left is a stub."""
    for attached in list(world.find("payment_method", customer=found["id"])):
        detach(world, attached)
    wanted = found["id"]
    world.emit("customer.deleted", found)
    found.clear()
    found |= {"id": wanted, "object": "customer", "deleted": True}
    return found


def attach(world: World, found: Obj, customer_id: str) -> Obj:
    """POST /v1/payment_methods/:id/attach."""
    customer(world, customer_id)
    if found["customer"] not in {None, customer_id}:
        message = "The payment method you provided has already been attached to a customer."
        raise invalid(message, "payment_method_unexpected_state", "payment_method")
    if found["_detached"]:
        raise invalid(
            "This PaymentMethod was previously used without being attached to a Customer or was detached from a "
            "Customer, and may not be used again.",
            "payment_method_unactivated",
        )
    card = behaviour(found)
    if not card.saves:
        raise issuer_refusal(card.decline)
    if found["customer"] is None:
        found["customer"] = customer_id
        world.emit("payment_method.attached", found)
    return found


def detach(world: World, found: Obj) -> Obj:
    """POST /v1/payment_methods/:id/detach."""
    if found["customer"] is None:
        message = "The payment method you provided is not attached to a customer so detachment is impossible."
        raise invalid(message, "payment_method_unexpected_state", "payment_method")
    owner = world.objects["customer"][found["customer"]]
    settings = owner["invoice_settings"]
    if settings["default_payment_method"] == found["id"]:
        owner["invoice_settings"] = settings | {"default_payment_method": None}
    previous = {"customer": found["customer"]}
    found |= {"customer": None, "_detached": True}
    world.emit("payment_method.detached", found, previous)
    return found


def set_up(world: World, found: Obj, customer_id: str | None) -> None:
    """Note the customer's consent to later use; without a customer there is nobody to keep it for."""
    found["_set_up"] = True
    if customer_id is not None and found["customer"] is None:
        found["customer"] = customer_id
        world.emit("payment_method.attached", found)

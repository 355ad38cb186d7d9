"""Checkout sessions: creation, payment on the hosted page, expiry."""

from typing import Any, Final
from urllib.parse import urlsplit

import msgspec

from sandbox.stripe.account.errors import invalid, missing
from sandbox.stripe.account.object_fields import ADDRESS, blank, metadata_after
from sandbox.stripe.account.world import Obj, World, name_of, timer_action
from sandbox.stripe.checkout import catalog, invoices
from sandbox.stripe.payments import customers, payment_intents, payment_methods, setup_intents, taxes

_DAY_S: Final = 86_400
_SHORTEST_S: Final = 30 * 60
# What a session shows as it was given.
_ECHOED: Final = (
    "after_expiration allow_promotion_codes allowed_payment_method_types billing_address_collection "
    "branding_settings cancel_url client_reference_id consent_collection currency customer customer_email "
    "excluded_payment_method_types integration_identifier invoice_creation locale origin_context "
    "payment_method_options phone_number_collection redirect_on_completion return_url saved_payment_method_options "
    "shipping_address_collection submit_type success_url ui_mode wallet_options"
).split()


class Payment(msgspec.Struct, frozen=True, kw_only=True):
    """Entries of a customer, and the lies a session may tell about them."""

    email: str | None = None
    name: str | None = None
    country: str = "US"
    postal_code: str = "94103"
    charge_amount: int | None = None
    """Charged instead of the session's total, which stays as it is."""
    discount: int = 0
    """Cents a promotion code takes off; the whole total makes it no_payment_required."""
    business_name: str | None = None
    tax_id: str | None = None
    tax_id_type: str = "eu_vat"
    """Of a company, where the session asks for them."""
    session_fields: dict[str, Any] = {}
    """Laid over the session for good: amount_total, currency, payment_status, metadata…"""
    event_fields: dict[str, Any] = {}
    """Laid over the session in its event only; retrieving it shows the truth."""
    presentment: dict[str, Any] = {}
    """presentment_amount and presentment_currency, as Adaptive Pricing states them."""


# -- creation ------------------------------------------------------------------------------------


def create(world: World, params: dict[str, Any]) -> Obj:
    """POST /v1/checkout/sessions."""
    mode = params.get("mode")
    if mode is None:
        raise missing("mode")
    if mode == "subscription":
        raise invalid("The sandbox does not support subscriptions.", None, "mode")
    _check(world, params, mode)
    items = _line_items(world, params.get("line_items", [])) if mode == "payment" else []
    if mode == "payment" and not items:
        raise missing("line_items")
    currency = items[0]["currency"] if items else params.get("currency")
    if any(item["currency"] != currency for item in items):
        raise invalid("All prices on a Checkout Session must have the same currency.", None, "line_items")
    created = world.now()
    fields = blank("checkout.session", created=created, mode=mode)
    fields |= {name: params[name] for name in _ECHOED if name in params}
    fields |= {
        "currency": currency,
        "expires_at": _expiry(params, created),
        "metadata": metadata_after({}, params),
        "payment_method_collection": "if_required" if mode == "payment" else "always",
        "payment_method_types": params.get("payment_method_types")
        or payment_methods.offered(world, params | {"currency": currency or "usd"}),
    }
    if mode == "payment":
        fields |= {
            "customer_creation": None if params.get("customer") else params.get("customer_creation", "if_required")
        }
        fields |= {
            "payment_method_options": {"card": {"request_three_d_secure": "automatic"}}
            | fields["payment_method_options"]
        }
    fields["custom_text"] |= params.get("custom_text", {})
    fields["automatic_tax"] |= params.get("automatic_tax", {})
    fields["tax_id_collection"] |= params.get("tax_id_collection", {})
    own = {"data": params.get("payment_intent_data", {}), "kept": params.get("customer_update", {})}
    session = world.add("checkout.session", fields, items=items, payment=None, **own)
    _total(world, session, 0)
    if mode == "payment" and session["amount_total"] and session["amount_total"] < 50:
        del world.objects["checkout.session"][session["id"]]
        raise invalid("The Checkout Session's total amount due must add up to at least $0.50 usd", "amount_too_small")
    _show_page(world, session)
    if mode == "setup":
        _prepare_setup(world, session, params)
    world.later(session["expires_at"] - world.time(), _expire_in_time, session["id"])
    return session


def _check(world: World, params: dict[str, Any], mode: str) -> None:
    hosted = params.get("ui_mode", "hosted_page") == "hosted_page"
    if hosted and not params.get("success_url"):
        raise missing("success_url")
    for name in ("success_url", "cancel_url", "return_url"):
        parts = urlsplit(params.get(name, "https://x"))
        if parts.scheme not in {"http", "https"} or not parts.netloc:
            raise invalid("Not a valid URL", "url_invalid", name)
    if params.get("customer") and params.get("customer_email"):
        raise invalid("You may only specify one of these parameters: customer, customer_email.", None, "customer")
    if params.get("customer") and params.get("customer_creation"):
        raise invalid(
            "You may only specify one of these parameters: customer, customer_creation.", None, "customer_creation"
        )
    if params.get("customer"):
        _check_kept(customers.customer(world, params["customer"]), params)
    elif params.get("customer_update"):
        raise invalid("`customer_update` can only be used with `customer`.", None, "customer_update")
    if len(params.get("client_reference_id", "")) > 200:
        raise invalid("Invalid string: client_reference_id must be at most 200 characters", None, "client_reference_id")
    if mode == "setup" and params.get("line_items"):
        raise invalid("You can not pass `line_items` in `setup` mode.", None, "line_items")


def _check_kept(customer: Obj, params: dict[str, Any]) -> None:
    """Raise StripeError where a customer's own record is needed, and the session may not write it."""
    kept = params.get("customer_update", {})
    if params.get("tax_id_collection", {}).get("enabled") and kept.get("name") != "auto":
        message = (
            "Tax ID collection requires updating business name on the customer. To enable tax ID collection for an "
            "existing customer, please set `customer_update[name]` to `auto`."
        )
        raise invalid(message, None, "tax_id_collection")
    taxed, address = params.get("automatic_tax", {}).get("enabled"), customer["address"] or {}
    if taxed and not address.get("country") and kept.get("address") != "auto":
        message = (
            "Automatic tax calculation in Checkout requires a valid address on the Customer. Add a valid address to "
            "the Customer or set `customer_update[address]` to `auto` to save the address entered in Checkout."
        )
        raise invalid(message, "customer_tax_location_invalid", "automatic_tax")


def _expiry(params: dict[str, Any], created: int) -> int:
    wanted = int(params.get("expires_at", created + _DAY_S))
    if wanted < created + _SHORTEST_S:
        raise invalid(
            "The `expires_at` timestamp must be at least 30 minutes from Checkout Session creation.", None, "expires_at"
        )
    if wanted > created + _DAY_S:
        raise invalid(
            "The `expires_at` timestamp must be less than 24 hours from Checkout Session creation.", None, "expires_at"
        )
    return wanted


def _line_items(world: World, given: list[dict[str, Any]]) -> list[Obj]:
    made = []
    for index, item in enumerate(given):
        where = f"line_items[{index}]"
        if ("price" in item) == ("price_data" in item):
            raise invalid(f"You must specify either `price` or `price_data` for {where}.", None, f"{where}[price]")
        if item.get("quantity") is None:
            raise invalid(
                f"Quantity is required. Add `quantity` to `{where}`", "parameter_missing", f"{where}[quantity]"
            )
        if item["quantity"] < 1:
            raise invalid(
                "This value must be greater than or equal to 1.", "parameter_invalid_integer", f"{where}[quantity]"
            )
        price = world.get("price", item["price"], f"{where}[price]") if "price" in item else None
        if price is None:
            price = catalog.create_price(world, item["price_data"], param=f"{where}[price_data]", inline=True)
        if not price["active"] and "price" in item:
            raise invalid(
                "The price specified is inactive. This field only accepts active prices.", None, f"{where}[price]"
            )
        if price["type"] == "recurring":
            raise invalid(
                "You specified `payment` mode but passed a recurring price. Use only one-time prices.",
                None,
                "line_items",
            )
        amount = price["unit_amount"] * item["quantity"]
        product = world.get("product", price["product"])
        fields = {
            "amount_subtotal": amount,
            "amount_total": amount,
            "currency": price["currency"],
            "description": product["name"],
        }
        fields |= {"price": price, "quantity": item["quantity"], "metadata": item.get("metadata", {})}
        if item.get("adjustable_quantity"):
            fields["adjustable_quantity"] = {"enabled": False, "maximum": None, "minimum": None} | item[
                "adjustable_quantity"
            ]
        made.append(world.add("item", blank("item", **fields)))
    return made


def _total(world: World, session: Obj, discount: int) -> None:
    """Work out the amounts; a setup session has none."""
    if session["mode"] != "payment":
        return
    subtotal = sum(item["amount_subtotal"] for item in session["_items"])
    discount = min(discount, subtotal)
    taxed = session["automatic_tax"]["enabled"]
    tax = taxes.tax_on(world, subtotal - discount) if taxed else 0
    session |= {"amount_subtotal": subtotal, "amount_total": subtotal - discount + tax}
    session["total_details"] = {"amount_discount": discount, "amount_shipping": 0, "amount_tax": tax}
    if taxed:
        session["automatic_tax"] = session["automatic_tax"] | {
            "liability": {"type": "self"},
            "provider": "stripe",
            "status": "complete",
        }


def _show_page(world: World, session: Obj) -> None:
    if session["ui_mode"] == "hosted_page":
        session["url"] = f"{world.base_url}/c/pay/{session['id']}"
    else:
        session["client_secret"] = f"{session['id']}_secret_{world.new_id('')}"


def _prepare_setup(world: World, session: Obj, params: dict[str, Any]) -> None:
    data = params.get("setup_intent_data", {})
    shared = {"customer": params.get("customer"), "payment_method_types": session["payment_method_types"]}
    session["setup_intent"] = setup_intents.create(world, data | shared)["id"]


def update(world: World, session: Obj, params: dict[str, Any]) -> Obj:
    """POST /v1/checkout/sessions/:id."""
    del world
    session["metadata"] = metadata_after(session["metadata"], params)
    return session


# -- the customer's part -------------------------------------------------------------------------


def need_open(session: Obj) -> None:
    """Raise StripeError unless the session can still be paid."""
    if session["status"] != "open":
        raise invalid(f"This Checkout Session has a status of {session['status']} and cannot be paid.")


def pay(world: World, session: Obj, method: Obj, payment: Payment) -> None:
    """Pay, as the customer's button does. Raises StripeError when declined; the session then stays open.

    Afterwards the session is complete, or its intent asks for authentication.
    """
    need_open(session)
    if session["customer"] is None and session["customer_creation"] == "always":
        made = customers.create_customer(
            world, {"email": payment.email or session["customer_email"], "name": payment.name}
        )
        session["customer"] = made["id"]
    session["_payment"] = msgspec.to_builtins(payment)
    if session["mode"] == "setup":
        intent = world.get("setup_intent", session["setup_intent"])
        setup_intents.attempt(world, intent, method)
    else:
        _total(world, session, payment.discount)
        if session["amount_total"] == 0:
            _complete(world, session, "no_payment_required")
            return
        payment_intents.attempt(world, _intent(world, session, payment), method)
    _finish(world, session)


def _intent(world: World, session: Obj, payment: Payment) -> Obj:
    amount = session["amount_total"] if payment.charge_amount is None else payment.charge_amount
    if session["payment_intent"] is None:
        intent = payment_intents.for_session(world, amount, session, session["_data"])
        session["payment_intent"] = intent["id"]
    else:
        intent = world.get("payment_intent", session["payment_intent"])
        intent["amount"] = amount
    intent["_tax"] = session["total_details"]["amount_tax"]
    if payment.presentment:
        intent["presentment_details"] = dict(payment.presentment)
        session["presentment_details"] = dict(payment.presentment)
    return intent


def authenticate(world: World, session: Obj, *, passed: bool) -> None:
    """Answer the bank's question. Raises StripeError when the payment then fails; the session stays open."""
    need_open(session)
    if session["mode"] == "setup":
        setup_intents.authenticate(world, world.get("setup_intent", session["setup_intent"]), passed=passed)
    else:
        payment_intents.authenticate(world, world.get("payment_intent", session["payment_intent"]), passed=passed)
    _finish(world, session)


def waits_for_bank(world: World, session: Obj) -> bool:
    """Tell whether authentication comes next."""
    intent = world.any_object(session["payment_intent"] or session["setup_intent"] or "")
    return session["status"] == "open" and intent is not None and intent["status"] == "requires_action"


def _finish(world: World, session: Obj) -> None:
    intent = world.any_object(session["payment_intent"] or session["setup_intent"]) or {}
    if session["mode"] == "setup" and intent["status"] == "succeeded":
        _complete(world, session, "no_payment_required")
    elif intent["status"] == "succeeded":
        _complete(world, session, "paid")
    elif intent["status"] == "processing":
        intent["_settled"] = name_of(settled)
        _complete(world, session, "unpaid")


def _complete(world: World, session: Obj, payment_status: str) -> None:
    payment = msgspec.convert(session["_payment"], Payment)
    known = world.objects["customer"].get(session["customer"] or "") or {}
    email = payment.email or session["customer_email"] or known.get("email")
    company = (session.get("tax_id_collection") or {}).get("enabled")
    tax_ids = [{"type": payment.tax_id_type, "value": payment.tax_id}] if company and payment.tax_id else []
    details: Obj = {
        "address": ADDRESS | {"country": payment.country, "postal_code": payment.postal_code},
        "business_name": payment.business_name if company else None,
    }
    details |= {"email": email, "individual_name": None, "name": payment.name or known.get("name"), "phone": None}
    session |= {
        "customer_details": details | {"tax_exempt": "none", "tax_ids": tax_ids},
        "payment_status": payment_status,
    }
    _keep(world, session)
    session |= {"status": "complete", "url": None}
    if payment_status == "paid":
        invoices.make(world, session)
    session |= payment.session_fields
    world.emit("checkout.session.completed", session | payment.event_fields)


def _keep(world: World, session: Obj) -> None:
    """Write what the customer entered into the customer, as far as the session may."""
    known, said = world.objects["customer"].get(session["customer"] or ""), session["customer_details"]
    if known is None or known.get("deleted"):
        return
    changes: Obj = {}
    kept = session.get("_kept", {})
    if kept.get("address") == "auto":
        changes["address"] = said["address"]
    if kept.get("name") == "auto" and (said["business_name"] or said["name"]):
        changes["name"] = said["business_name"] or said["name"]
    if changes:
        customers.update_customer(world, known, changes)
    for one in said["tax_ids"]:
        if not world.find("tax_id", customer=known["id"], value=one["value"]):
            world.add("tax_id", {"created": world.now(), "customer": known["id"], "livemode": False, **one})


@timer_action("checkout.settled")
def settled(world: World, session_id: str, arrived: bool) -> None:
    """End a session's bank debit."""
    session = world.get("checkout.session", session_id)
    if arrived:
        session["payment_status"] = "paid"
        invoices.make(world, session)
    payment = msgspec.convert(session["_payment"], Payment)
    session |= {name: value for name, value in payment.session_fields.items() if name != "payment_status"}
    suffix = "succeeded" if arrived else "failed"
    world.emit(f"checkout.session.async_payment_{suffix}", session | payment.event_fields)


def success_url(session: Obj) -> str:
    """Return the URL to which the customer is sent after payment."""
    return str(session["success_url"]).replace("{CHECKOUT_SESSION_ID}", session["id"])


# -- expiry --------------------------------------------------------------------------------------


def expire(world: World, session: Obj) -> Obj:
    """POST /v1/checkout/sessions/:id/expire."""
    if session["status"] != "open":
        message = (
            'Only Checkout Sessions with a status in ["open"] can be expired. This Checkout Session has a status '
            f"of {session['status']}."
        )
        raise invalid(message)
    session |= {"status": "expired", "url": None}
    for kind, close in (("payment_intent", _void), ("setup_intent", setup_intents.close_quietly)):
        intent = world.objects[kind].get(session[kind] or "")
        if intent is not None:
            close(world, intent)
    world.emit("checkout.session.expired", session)
    return session


def _void(world: World, intent: Obj) -> None:
    payment_intents.void(world, intent, "expired")


@timer_action("checkout._expire_in_time")
def _expire_in_time(world: World, session_id: str) -> None:
    session = world.get("checkout.session", session_id)
    if session["status"] == "open":
        expire(world, session)

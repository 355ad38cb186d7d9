"""Payment intents and charges: one attempt to move money, and what each test card makes of it."""

import contextlib
from typing import Any, Final, NoReturn

from sandbox.stripe.account.cards import DECLINES
from sandbox.stripe.account.errors import StripeError, card_error, invalid
from sandbox.stripe.account.object_fields import blank, charged_card, metadata_after
from sandbox.stripe.account.world import ACTIONS, Obj, World, public, timer_action
from sandbox.stripe.payments import balance, customers, disputes, payment_methods, taxes

_MIN_AMOUNT: Final = 50
_MAX_AMOUNT: Final = 99_999_999
_CANCELABLE: Final = ("requires_payment_method", "requires_capture", "requires_confirmation", "requires_action")
_COPIED: Final = (
    "description metadata receipt_email return_url setup_future_usage shipping statement_descriptor "
    "statement_descriptor_suffix transfer_group allowed_payment_method_types excluded_payment_method_types"
).split()


def check_amount(amount: int, currency: str) -> None:
    """Raise StripeError unless the amount is one Stripe takes."""
    if amount < 1:
        raise invalid("Invalid positive integer", "parameter_invalid_integer", "amount")
    if amount < _MIN_AMOUNT:
        raise invalid(f"Amount must be at least ${_MIN_AMOUNT / 100:.2f} {currency}", "amount_too_small", "amount")
    if amount > _MAX_AMOUNT:
        raise invalid(f"Amount must be no more than $999,999.99 {currency}", "amount_too_large", "amount")


def check_currency(currency: str, param: str = "currency") -> str:
    """Return the currency in lower case."""
    if len(currency) != 3 or not currency.isalpha():
        raise invalid(
            f"Invalid currency: {currency}. Stripe currently supports these currencies: usd, eur, gbp, …", None, param
        )
    return currency.lower()


# -- the API -------------------------------------------------------------------------------------


def create(world: World, params: dict[str, Any]) -> Obj:
    """POST /v1/payment_intents."""
    currency = check_currency(params["currency"])
    check_amount(params["amount"], currency)
    if params.get("capture_method") == "manual":
        raise invalid("The sandbox does not support capture_method=manual.", None, "capture_method")
    if params.get("off_session") is not None and not params.get("confirm"):
        raise invalid("`off_session` can only be used when `confirm` is true.", None, "off_session")
    if params.get("customer"):
        customers.customer(world, params["customer"])
    hooks = taxes.linked(world, params)
    intent = _new(world, params["amount"], currency, params)
    intent["hooks"] = hooks
    if params.get("payment_method"):
        intent["payment_method"] = _usable(world, intent, params["payment_method"])["id"]
        intent["status"] = "requires_confirmation"
    world.emit("payment_intent.created", intent)
    return confirm(world, intent, params) if params.get("confirm") else intent


def _new(world: World, amount: int, currency: str, params: dict[str, Any]) -> Obj:
    fields = blank(
        "payment_intent", amount=amount, currency=currency, created=world.now(), customer=params.get("customer")
    )
    fields |= {name: params[name] for name in _COPIED if name in params and name in fields}
    types = params.get("payment_method_types")
    if types:
        fields |= {"payment_method_types": types, "automatic_payment_methods": None}
    else:
        fields["payment_method_types"] = payment_methods.offered(world, params)
    if "automatic_payment_methods" in params:
        fields["automatic_payment_methods"] |= params["automatic_payment_methods"]
    intent = world.add("payment_intent", fields)
    intent["client_secret"] = f"{intent['id']}_secret_{world.new_id('')}"
    return intent


def for_session(world: World, amount: int, session: Obj, data: dict[str, Any]) -> Obj:
    """Make the payment intent of a checkout session."""
    intent = _new(world, amount, session["currency"], data | {"customer": session["customer"]})
    intent |= {"payment_method_types": session["payment_method_types"], "_session": session["id"]}
    world.emit("payment_intent.created", intent)
    return intent


def confirm(world: World, intent: Obj, params: dict[str, Any]) -> Obj:
    """POST /v1/payment_intents/:id/confirm; also the second half of create."""
    if intent["status"] not in {"requires_payment_method", "requires_confirmation", "requires_action"}:
        message = (
            f"You cannot confirm this PaymentIntent because it has already {intent['status']} after being "
            "previously confirmed."
        )
        raise invalid(message, "payment_intent_unexpected_state")
    wanted = params.get("payment_method") or intent["payment_method"]
    if not wanted:
        message = (
            "You cannot confirm this PaymentIntent because it's missing a payment method. You can either update the "
            "PaymentIntent with a payment method and then confirm it again, or confirm it again directly with a "
            "payment method or ConfirmationToken."
        )
        raise invalid(message, "payment_intent_unexpected_state")
    intent["_return_url"] = params.get("return_url")
    off_session = params.get("off_session") not in {None, False}
    automatic = intent["automatic_payment_methods"]
    if automatic and automatic["allow_redirects"] == "always" and not off_session and not params.get("return_url"):
        message = (
            "This PaymentIntent is configured to accept payment methods enabled in your Dashboard. Because some of "
            "these payment methods might redirect your customer off of your page, you must provide a `return_url`."
        )
        raise invalid(message, None, "return_url")
    method = _usable(world, intent, wanted)
    attempt(world, intent, method, off_session=off_session, fail_on_action=bool(params.get("error_on_requires_action")))
    return intent


def _usable(world: World, intent: Obj, wanted: str) -> Obj:
    """Return the payment method, if this intent may be paid with it."""
    method = payment_methods.method(world, wanted, "payment_method")
    if method["_detached"]:
        raise invalid(
            "The provided PaymentMethod was previously used with a PaymentIntent without Customer attachment, shared "
            "with a connected account without Customer attachment, or was detached from a Customer. It may not be "
            "used again. To use a PaymentMethod multiple times, you must attach it to a Customer first.",
            "payment_method_unactivated",
            "payment_method",
        )
    if method["customer"] and method["customer"] != intent["customer"]:
        raise customers.not_attached(method, "payment_method")
    if method["type"] not in intent["payment_method_types"]:
        message = f"The PaymentMethod provided ({method['type']}) is not allowed for this PaymentIntent."
        raise invalid(message, "payment_intent_incompatible_payment_method", "payment_method")
    return method


def update(world: World, intent: Obj, params: dict[str, Any]) -> Obj:
    """POST /v1/payment_intents/:id."""
    fixed = {name for name in ("amount", "currency", "customer", "payment_method") if name in params}
    if fixed and intent["status"] in {"succeeded", "canceled", "processing"}:
        message = (
            f"This PaymentIntent's {', '.join(sorted(fixed))} could not be updated because it has a status of "
            f"{intent['status']}."
        )
        raise invalid(message, "payment_intent_unexpected_state")
    if "amount" in params:
        check_amount(params["amount"], intent["currency"])
    changes = {
        name: params[name]
        for name in (*_COPIED, "amount", "customer")
        if name in params and name in intent and name != "metadata"
    }
    if "payment_method" in params:
        changes |= {
            "payment_method": _usable(world, intent, params["payment_method"])["id"],
            "status": "requires_confirmation",
        }
    intent.update(changes | {"metadata": metadata_after(intent["metadata"], params)})
    return intent


def cancel(world: World, intent: Obj, params: dict[str, Any]) -> Obj:
    """POST /v1/payment_intents/:id/cancel."""
    session = world.objects["checkout.session"].get(intent.get("_session", ""))
    if session is not None and session["status"] == "open":
        raise invalid(
            "You cannot cancel this PaymentIntent because it belongs to a Checkout Session. Expire the session instead."
        )
    if intent["status"] not in _CANCELABLE:
        message = (
            f"You cannot cancel this PaymentIntent because it has a status of {intent['status']}. Only a "
            f"PaymentIntent with one of the following statuses may be canceled: {', '.join(_CANCELABLE)}."
        )
        raise invalid(message, "payment_intent_unexpected_state")
    return void(world, intent, params.get("cancellation_reason"))


def void(world: World, intent: Obj, reason: str | None) -> Obj:
    """Cancel, whatever the API would say."""
    intent |= {"next_action": None}
    world.change(
        intent, "payment_intent.canceled", status="canceled", canceled_at=world.now(), cancellation_reason=reason
    )
    return intent


# -- one attempt ---------------------------------------------------------------------------------


def attempt(
    world: World,
    intent: Obj,
    method: Obj,
    *,
    off_session: bool = False,
    authenticated: bool = False,
    fail_on_action: bool = False,
) -> None:
    """Try to take the money. Raises StripeError when the issuer refuses; then the intent tells why."""
    card = payment_methods.behaviour(method)
    intent |= {"payment_method": method["id"], "next_action": None, "last_payment_error": None}
    if method["_decline"] or card.outcome == "decline":
        decline(world, intent, method, method["_decline"] or card.decline)
    if card.outcome == "authenticate" and not authenticated:
        set_up = off_session and method["_set_up"] and not card.authenticate_off_session
        if not set_up:
            if off_session or fail_on_action:
                decline(world, intent, method, "authentication_required")
            _ask_customer(world, intent)
            return
    if card.outcome == "authenticate" and card.decline:
        decline(world, intent, method, card.decline)
    if card.outcome == "delay":
        _begin_delayed(world, intent, method)
        return
    _succeed(world, intent, _charge(world, intent, method, authenticated=authenticated), method)


def _charge(world: World, intent: Obj, method: Obj, *, authenticated: bool = False) -> Obj:
    """Make a pending charge."""
    kind = method["type"]
    details = (
        charged_card(method["card"], intent["amount"], authenticated=authenticated)
        if kind == "card"
        else _bank_details(method)
    )
    fields = blank(
        "charge",
        amount=intent["amount"],
        billing_details=method["billing_details"],
        created=world.now(),
        currency=intent["currency"],
        customer=intent["customer"],
        description=intent["description"],
        metadata=dict(intent["metadata"]),
        payment_intent=intent["id"],
        payment_method=method["id"],
        payment_method_details={"type": kind, kind: details},
        receipt_email=intent["receipt_email"],
        shipping=intent["shipping"],
        statement_descriptor_suffix=intent["statement_descriptor_suffix"],
        transfer_group=intent["transfer_group"],
    )
    charge = world.add("charge", fields, prefix="ch_3" if kind == "card" else "py_3")
    intent["latest_charge"] = charge["id"]
    return charge


def _bank_details(method: Obj) -> Obj:
    account = method[method["type"]]
    shown = {
        name: value
        for name, value in account.items()
        if name not in {"financial_connections_account", "networks", "status_details"}
    }
    return (
        shown
        | {"mandate": None}
        | ({"payment_reference": None, "expected_debit_date": None} if method["type"] == "us_bank_account" else {})
    )


_APPROVED: Final[Obj] = {
    "advice_code": None,
    "network_advice_code": None,
    "network_decline_code": None,
    "network_status": "approved_by_network",
    "reason": None,
    "risk_level": "normal",
    "risk_score": 20,
    "seller_message": "Payment complete.",
    "type": "authorized",
}


def _succeed(world: World, intent: Obj, charge: Obj, method: Obj) -> None:
    amount, fee = charge["amount"], balance.fee_of(world, charge["amount"])
    charge |= {
        "amount_captured": amount,
        "captured": True,
        "outcome": dict(_APPROVED),
        "paid": True,
        "status": "succeeded",
    }
    charge["receipt_url"] = f"{world.base_url}/receipts/{charge['id']}"
    intent |= {"amount_received": amount, "processing": None, "status": "succeeded"}
    taxes.commit(world, intent)
    transaction = balance.post(
        world,
        "charge" if method["type"] == "card" else "payment",
        charge,
        amount,
        fee,
        description=charge["description"],
    )
    balance.record_movement(world, "paid", charge, amount, fee, balance_transaction=transaction["id"])
    if intent["setup_future_usage"]:
        customers.set_up(world, method, intent["customer"])
    world.emit("charge.succeeded", charge)
    world.emit("payment_intent.succeeded", intent)
    # Captured asynchronously: the transaction is not yet on the charge that charge.succeeded shows.
    world.later(world.live.balance_delay_s, _captured, charge["id"], transaction["id"])
    card = payment_methods.behaviour(method)
    if card.dispute:
        world.later(world.live.dispute_delay_s, _disputed, charge["id"], card.dispute, card.inquiry)


@timer_action("payments._captured")
def _captured(world: World, charge_id: str, transaction_id: str) -> None:
    world.change(world.get("charge", charge_id), "charge.updated", balance_transaction=transaction_id)


@timer_action("payments._disputed")
def _disputed(world: World, charge_id: str, reason: str, inquiry: bool) -> None:
    disputes.open_dispute(world, world.get("charge", charge_id), reason, inquiry=inquiry)


def decline(world: World, intent: Obj, method: Obj, why: str, charge: Obj | None = None) -> NoReturn:
    """Let the attempt fail. Always raises StripeError."""
    reason = DECLINES[why]
    if charge is None:
        charge = _charge(world, intent, method)
    outcome = _APPROVED | {
        "advice_code": reason.advice if method["type"] == "card" else None,
        "network_status": "declined_by_network",
        "reason": reason.decline_code,
        "seller_message": "The bank did not return any further details with this decline.",
        "type": "issuer_declined",
    }
    charge |= {"failure_code": reason.code, "failure_message": reason.message, "outcome": outcome, "status": "failed"}
    error = {
        "advice_code": outcome["advice_code"],
        "charge": charge["id"],
        "code": reason.code,
        "decline_code": reason.decline_code,
        "doc_url": f"https://stripe.com/docs/error-codes/{reason.code.replace('_', '-')}",
        "message": reason.message,
        "payment_method": public(method),
        "type": "card_error",
    }
    intent |= {
        "last_payment_error": error,
        "payment_method": None,
        "next_action": None,
        "processing": None,
        "status": "requires_payment_method",
    }
    world.emit("charge.failed", charge)
    world.emit("payment_intent.payment_failed", intent)
    extra = {"charge": charge["id"], "payment_intent": public(intent), "payment_method": public(method)}
    raise card_error(reason.message, reason.code, reason.decline_code, advice_code=outcome["advice_code"], **extra)


# -- authentication ------------------------------------------------------------------------------


def _ask_customer(world: World, intent: Obj) -> None:
    url = f"{world.base_url}/authenticate/{intent['id']}"
    intent["next_action"] = {
        "type": "redirect_to_url",
        "redirect_to_url": {"return_url": intent.get("_return_url"), "url": url},
    }
    intent["status"] = "requires_action"
    world.emit("payment_intent.requires_action", intent)


def authenticate(world: World, intent: Obj, *, passed: bool) -> None:
    """Answer the bank's question. Raises StripeError when the payment then fails."""
    if intent["status"] != "requires_action":
        raise invalid(f"The PaymentIntent has a status of {intent['status']}.", "payment_intent_unexpected_state")
    method = payment_methods.method(world, intent["payment_method"], "payment_method")
    if not passed:
        decline(world, intent, method, "authentication_failed")
    attempt(world, intent, method, authenticated=True)


# -- bank debits ---------------------------------------------------------------------------------


def _begin_delayed(world: World, intent: Obj, method: Obj) -> None:
    charge = _charge(world, intent, method)
    intent |= {"processing": None, "status": "processing"}
    world.emit("charge.pending", charge)
    world.emit("payment_intent.processing", intent)
    if world.live.async_delay_s is not None:
        world.later(world.live.async_delay_s, _arrive, intent["id"])


@timer_action("payments._arrive")
def _arrive(world: World, intent_id: str) -> None:
    settle(world, world.get("payment_intent", intent_id))


def settle(world: World, intent: Obj, why: str | None = None) -> bool:
    """End a bank debit, which arrives or fails with a key of DECLINES (None: as its account does).

    Return whether one was under way.
    """
    if intent["status"] != "processing":
        return False
    charge = world.get("charge", intent["latest_charge"])
    method = payment_methods.method(world, intent["payment_method"], "payment_method")
    if why is None:
        why = payment_methods.behaviour(method).decline
    if why:
        # Nobody waits for the answer: the events tell.
        with contextlib.suppress(StripeError):
            decline(world, intent, method, why, charge)
    else:
        _succeed(world, intent, charge, method)
    if "_settled" in intent:
        ACTIONS[intent["_settled"]](world, intent["_session"], not why)
    return True

"""Setup intents: keeping a card for later without charging it."""

import contextlib
from typing import Any, Final, NoReturn

from sandbox.stripe.account.cards import DECLINES
from sandbox.stripe.account.errors import StripeError, card_error, invalid
from sandbox.stripe.account.object_fields import blank, metadata_after
from sandbox.stripe.account.world import Obj, World, public
from sandbox.stripe.payments import customers, payment_methods

_DONE: Final = ("succeeded", "canceled")


def create(world: World, params: dict[str, Any]) -> Obj:
    """POST /v1/setup_intents."""
    if params.get("customer"):
        customers.customer(world, params["customer"])
    types = params.get("payment_method_types")
    fields = blank(
        "setup_intent",
        created=world.now(),
        customer=params.get("customer"),
        description=params.get("description"),
        metadata=metadata_after({}, params),
        payment_method_types=types or payment_methods.offered(world, params),
        usage=params.get("usage", "off_session"),
    )
    if types:
        fields["automatic_payment_methods"] = None
    elif "automatic_payment_methods" in params:
        fields["automatic_payment_methods"] |= params["automatic_payment_methods"]
    intent = world.add("setup_intent", fields)
    intent["client_secret"] = f"{intent['id']}_secret_{world.new_id('')}"
    if params.get("payment_method"):
        found = payment_methods.method(world, params["payment_method"], "payment_method")
        intent |= {"payment_method": found["id"], "status": "requires_confirmation"}
    world.emit("setup_intent.created", intent)
    return confirm(world, intent, params) if params.get("confirm") else intent


def confirm(world: World, intent: Obj, params: dict[str, Any]) -> Obj:
    """POST /v1/setup_intents/:id/confirm."""
    if intent["status"] in _DONE:
        message = f"You cannot confirm this SetupIntent because it has a status of {intent['status']}."
        raise invalid(message, "setup_intent_unexpected_state")
    wanted = params.get("payment_method") or intent["payment_method"]
    if not wanted:
        message = "You cannot confirm this SetupIntent because it's missing a payment method."
        raise invalid(message, "setup_intent_unexpected_state")
    automatic = intent["automatic_payment_methods"]
    if automatic and automatic["allow_redirects"] == "always" and not params.get("return_url"):
        message = (
            "This SetupIntent is configured to accept payment methods enabled in your Dashboard; you must provide "
            "a `return_url`."
        )
        raise invalid(message, None, "return_url")
    attempt(world, intent, payment_methods.method(world, wanted, "payment_method"))
    return intent


def attempt(world: World, intent: Obj, found: Obj, *, authenticated: bool = False) -> None:
    """Try to set the method up. Raises StripeError when the issuer refuses."""
    card = payment_methods.behaviour(found)
    intent |= {"payment_method": found["id"], "next_action": None, "last_setup_error": None}
    if card.outcome == "decline" and not card.saves:
        _fail(world, intent, found, card.decline)
    if card.outcome == "authenticate" and not authenticated:
        url = f"{world.base_url}/authenticate/{intent['id']}"
        intent |= {
            "next_action": {"type": "redirect_to_url", "redirect_to_url": {"return_url": None, "url": url}},
            "status": "requires_action",
        }
        world.emit("setup_intent.requires_action", intent)
        return
    intent["status"] = "succeeded"
    customers.set_up(world, found, intent["customer"])
    world.emit("setup_intent.succeeded", intent)


def authenticate(world: World, intent: Obj, *, passed: bool) -> None:
    """Answer the bank's question. Raises StripeError when the setup then fails."""
    if intent["status"] != "requires_action":
        raise invalid(f"The SetupIntent has a status of {intent['status']}.", "setup_intent_unexpected_state")
    found = payment_methods.method(world, intent["payment_method"], "payment_method")
    if not passed:
        _fail(world, intent, found, "authentication_failed")
    attempt(world, intent, found, authenticated=True)


def _fail(world: World, intent: Obj, found: Obj, why: str) -> NoReturn:
    reason = DECLINES[why]
    code = reason.code.replace("payment_intent", "setup_intent")
    error = card_error(reason.message, code, reason.decline_code, payment_method=public(found))
    intent |= {
        "last_setup_error": dict(error.error),
        "payment_method": None,
        "next_action": None,
        "status": "requires_payment_method",
    }
    error.error["setup_intent"] = public(intent)
    world.emit("setup_intent.setup_failed", intent)
    raise error


def cancel(world: World, intent: Obj, params: dict[str, Any]) -> Obj:
    """POST /v1/setup_intents/:id/cancel."""
    if intent["status"] in _DONE:
        raise invalid(
            f"You cannot cancel this SetupIntent because it has a status of {intent['status']}.",
            "setup_intent_unexpected_state",
        )
    world.change(
        intent, "setup_intent.canceled", status="canceled", cancellation_reason=params.get("cancellation_reason")
    )
    return intent


def close_quietly(world: World, intent: Obj) -> None:
    """Cancel it if that is still possible."""
    with contextlib.suppress(StripeError):
        cancel(world, intent, {})

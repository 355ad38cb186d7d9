"""Payment methods: cards and bank accounts, and what Stripe checks before it asks an issuer."""

import time
import zlib
from typing import Any, Final

from sandbox.stripe.account.cards import (
    ACCOUNT_NUMBERS,
    ACCOUNTS,
    BANK_TYPES,
    CARDS,
    DECLINES,
    DEFAULT_ACCOUNT,
    DEFAULT_NUMBER,
    NUMBERS,
    TestCard,
    digits,
    luhn,
)
from sandbox.stripe.account.errors import StripeError, card_error, invalid, missing
from sandbox.stripe.account.object_fields import ADDRESS, BILLING, blank, card_fields, metadata_after
from sandbox.stripe.account.world import Obj, World

_CURRENCY_OF: Final = {"us_bank_account": "usd", "sepa_debit": "eur"}
_EXCLUSIVE: Final = (
    "payment_method_types",
    "excluded_payment_method_types",
    "automatic_payment_methods",
    "payment_method_configuration",
)


def offered(world: World, params: dict[str, Any]) -> list[str]:
    """Return the types a session or intent takes: the account's, narrowed by allowed_ or excluded_ ones."""
    allowed, excluded = params.get("allowed_payment_method_types"), params.get("excluded_payment_method_types") or []
    if allowed:
        for other in _EXCLUSIVE:
            if params.get(other):
                raise invalid(
                    f"You may only specify one of these parameters: allowed_payment_method_types, {other}.", None, other
                )
    currency = params.get("currency", "usd").lower()
    names = allowed or [name for name in world.live.dynamic_payment_methods if name not in excluded]
    found = [name for name in names if _CURRENCY_OF.get(name, currency) == currency]
    if not found:
        raise invalid(
            "No payment method types are available with the given parameters.", None, "allowed_payment_method_types"
        )
    return found


def method(world: World, wanted: str, param: str | None = "id") -> Obj:
    """Return the payment method; names such as pm_card_visa make a new one."""
    if wanted in NUMBERS:
        return create_method(world, {"type": "card", "card": {"token": wanted}})
    if wanted in ACCOUNT_NUMBERS:
        return create_method(
            world, {"type": "us_bank_account", "us_bank_account": {"account_number": ACCOUNT_NUMBERS[wanted]}}
        )
    return world.get("payment_method", wanted, param)


def behaviour(found: Obj) -> TestCard:
    """Return the behaviour of its test number."""
    return CARDS[found["_number"]] if found["type"] == "card" else ACCOUNTS[found["_number"]]


def create_method(world: World, params: dict[str, Any]) -> Obj:
    """POST /v1/payment_methods."""
    kind = params.get("type")
    if kind is None:
        raise missing("type")
    if kind != "card" and kind not in BANK_TYPES:
        raise invalid(f"The sandbox has no payment methods of type {kind}.", None, "type")
    given = params.get(kind)
    if given is None:
        raise missing(kind)
    details, number = _card(world, given) if kind == "card" else _account(world, kind, given)
    billing = BILLING | (params.get("billing_details") or {})
    billing["address"] = ADDRESS | (billing["address"] or {})
    fields = blank(
        "payment_method", type=kind, created=world.now(), billing_details=billing, metadata=metadata_after({}, params)
    )
    if params.get("allow_redisplay"):
        fields["allow_redisplay"] = params["allow_redisplay"]
    return world.add(
        "payment_method", fields | {kind: details}, number=number, decline="", set_up=False, detached=False
    )


def _card(world: World, given: dict[str, Any]) -> tuple[Obj, str]:
    if given.get("token"):
        number = NUMBERS.get(given["token"], "")
        if not number:
            raise invalid(f"No such token: '{given['token']}'", "resource_missing", "card[token]")
    else:
        number = digits(given.get("number", DEFAULT_NUMBER))
    exp_month, exp_year = int(given.get("exp_month") or 12), int(given.get("exp_year") or 2034)
    exp_year += 2000 if exp_year < 100 else 0
    check_card(world, number, exp_month, exp_year, given.get("cvc"))
    card = CARDS[number]
    fingerprint = f"fp{number[-4:]}{hash_of(number):010d}"[:16]
    return card_fields(card.brand, card.funding, card.country, number[-4:], exp_month, exp_year, fingerprint), number


def hash_of(text: str) -> int:
    """Return the same small number for the same text in every run."""
    return zlib.crc32(text.encode())


def check_card(world: World, number: str, exp_month: int, exp_year: int, cvc: str | None) -> None:
    """Raise StripeError unless Stripe would take the card to the issuer."""
    if not luhn(number):
        raise issuer_refusal("incorrect_number")
    if number not in CARDS:
        raise card_error(
            "Your card was declined. Your request was in test mode, but used a non test card.",
            "card_declined",
            "live_mode_test_card",
        )
    if not 1 <= exp_month <= 12:
        raise card_error("Your card's expiration month is invalid.", "invalid_expiry_month", None)
    if (exp_year, exp_month) < _month(world.now()):
        raise card_error("Your card's expiration year is invalid.", "invalid_expiry_year", None)
    if cvc is not None and not (cvc.isdecimal() and len(cvc) in {3, 4}):
        raise card_error("Your card's security code is invalid.", "invalid_cvc", None)


def _month(now: int) -> tuple[int, int]:
    moment = time.gmtime(now)
    return moment.tm_year, moment.tm_mon


def issuer_refusal(why: str) -> StripeError:
    """Return the error of a key of DECLINES."""
    reason = DECLINES[why]
    return card_error(reason.message, reason.code, reason.decline_code)


def _account(world: World, kind: str, given: dict[str, Any]) -> tuple[Obj, str]:
    number = digits(given.get("iban" if kind == "sepa_debit" else "account_number") or DEFAULT_ACCOUNT)
    if number not in ACCOUNTS:
        raise invalid("You must use a test bank account number in test mode.", "account_number_invalid", kind)
    shared: Obj = {"fingerprint": f"fp{world.account_id[-4:]}{number[-4:]}", "last4": number[-4:]}
    if kind == "sepa_debit":
        return shared | {"bank_code": "19043", "branch_code": "", "country": "AT", "generated_from": None}, number
    return shared | {
        "account_holder_type": given.get("account_holder_type") or "individual",
        "account_type": given.get("account_type") or "checking",
        "bank_name": "STRIPE TEST BANK",
        "financial_connections_account": None,
        "networks": {"preferred": "ach", "supported": ["ach"]},
        "routing_number": given.get("routing_number") or "110000000",
        "status_details": {},
    }, number


def replace_card(world: World, found: Obj, *, last4: str, exp_year: int) -> None:
    """Renew a card as the network's updater does: same payment method, other numbers."""
    previous = {"card": {"last4": found["card"]["last4"], "exp_year": found["card"]["exp_year"]}}
    found["card"] = found["card"] | {"last4": last4, "exp_year": exp_year}
    world.emit("payment_method.automatically_updated", found, previous)

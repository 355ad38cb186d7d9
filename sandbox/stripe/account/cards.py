"""Stripe's test cards and test bank accounts, and what happens to a payment with each."""

from typing import Final, Literal

import msgspec

Outcome = Literal["succeed", "decline", "authenticate", "delay"]


class Decline(msgspec.Struct, frozen=True):
    """Refusal of an issuer."""

    code: str
    decline_code: str | None
    message: str
    advice: str = "try_again_later"


class TestCard(msgspec.Struct, frozen=True):
    """Behaviour of one card or account number."""

    outcome: Outcome = "succeed"
    decline: str = ""
    """Key in DECLINES, of a decline or of what follows a passed authentication."""
    brand: str = "visa"
    funding: str = "credit"
    country: str = "US"
    aliases: tuple[str, ...] = ()
    """pm_card_… names that stand for the card."""
    authenticate_off_session: bool = False
    """Needs authentication even when it was set up for off-session use."""
    saves: bool = True
    """It can be attached to a customer."""
    dispute: str = ""
    """Reason of the dispute that follows a successful payment."""
    inquiry: bool = False
    refund: Literal["succeed", "fail_later", "pending"] = "succeed"


DECLINES: Final[dict[str, Decline]] = {
    "generic": Decline("card_declined", "generic_decline", "Your card was declined."),
    "insufficient_funds": Decline("card_declined", "insufficient_funds", "Your card has insufficient funds."),
    "lost_card": Decline("card_declined", "lost_card", "Your card was declined.", "do_not_try_again"),
    "stolen_card": Decline("card_declined", "stolen_card", "Your card was declined.", "do_not_try_again"),
    "expired_card": Decline("expired_card", "expired_card", "Your card has expired.", "do_not_try_again"),
    "incorrect_cvc": Decline(
        "incorrect_cvc", "incorrect_cvc", "Your card's security code is incorrect.", "confirm_card_data"
    ),
    "processing_error": Decline(
        "processing_error",
        "processing_error",
        "An error occurred while processing your card. Try again in a little bit.",
    ),
    "incorrect_number": Decline(
        "incorrect_number", "incorrect_number", "Your card number is incorrect.", "confirm_card_data"
    ),
    "velocity": Decline(
        "card_declined",
        "card_velocity_exceeded",
        "Your card was declined for making repeated attempts too frequently or exceeding its amount limit.",
    ),
    "fraudulent": Decline("card_declined", "fraudulent", "Your card was declined.", "do_not_try_again"),
    "authentication_required": Decline(
        "authentication_required",
        "authentication_required",
        "Your card was declined. This transaction requires authentication.",
    ),
    "authentication_failed": Decline(
        "payment_intent_authentication_failure",
        None,
        "We are unable to authenticate your payment method. Please choose a different payment method and try again.",
    ),
    "account_closed": Decline("account_closed", None, "The customer's bank account has been closed."),
    "bank_insufficient_funds": Decline(
        "insufficient_funds", None, "The customer's account has insufficient funds to cover this payment."
    ),
}

DEFAULT_NUMBER: Final = "4242424242424242"
CARDS: Final[dict[str, TestCard]] = {
    "4242424242424242": TestCard(aliases=("pm_card_visa", "tok_visa")),
    "4000056655665556": TestCard(funding="debit", aliases=("pm_card_visa_debit", "tok_visa_debit")),
    "5555555555554444": TestCard(brand="mastercard", aliases=("pm_card_mastercard", "tok_mastercard")),
    "378282246310005": TestCard(brand="amex", aliases=("pm_card_amex", "tok_amex")),
    "4000000000000077": TestCard(aliases=("pm_card_bypassPending", "tok_bypassPending")),
    "4000000000000002": TestCard(
        "decline",
        "generic",
        saves=False,
        aliases=("pm_card_visa_chargeDeclined", "pm_card_chargeDeclined", "tok_chargeDeclined"),
    ),
    "4000000000009995": TestCard(
        "decline",
        "insufficient_funds",
        saves=False,
        aliases=("pm_card_visa_chargeDeclinedInsufficientFunds", "pm_card_chargeDeclinedInsufficientFunds"),
    ),
    "4000000000009987": TestCard("decline", "lost_card", saves=False, aliases=("pm_card_visa_chargeDeclinedLostCard",)),
    "4000000000009979": TestCard(
        "decline", "stolen_card", saves=False, aliases=("pm_card_visa_chargeDeclinedStolenCard",)
    ),
    "4000000000000069": TestCard(
        "decline", "expired_card", saves=False, aliases=("pm_card_chargeDeclinedExpiredCard",)
    ),
    "4000000000000127": TestCard(
        "decline", "incorrect_cvc", saves=False, aliases=("pm_card_chargeDeclinedIncorrectCvc",)
    ),
    "4000000000000119": TestCard(
        "decline", "processing_error", saves=False, aliases=("pm_card_chargeDeclinedProcessingError",)
    ),
    "4000000000006975": TestCard(
        "decline", "velocity", saves=False, aliases=("pm_card_visa_chargeDeclinedVelocityLimitExceeded",)
    ),
    "4100000000000019": TestCard("decline", "fraudulent", saves=False, aliases=("pm_card_radarBlock",)),
    "4000000000000341": TestCard("decline", "generic", aliases=("pm_card_chargeCustomerFail",)),
    "4000002500003155": TestCard("authenticate", aliases=("pm_card_authenticationRequiredOnSetup",)),
    "4000002760003184": TestCard(
        "authenticate", authenticate_off_session=True, aliases=("pm_card_authenticationRequired",)
    ),
    "4000000000003220": TestCard(
        "authenticate", authenticate_off_session=True, aliases=("pm_card_threeDSecure2Required",)
    ),
    "4000003800000446": TestCard("succeed", aliases=("pm_card_authenticationRequiredSetupForOffSession",)),
    "4000008260003178": TestCard(
        "authenticate",
        "insufficient_funds",
        authenticate_off_session=True,
        aliases=("pm_card_authenticationRequiredChargeDeclinedInsufficientFunds",),
    ),
    "4000000000000259": TestCard(dispute="fraudulent", aliases=("pm_card_createDispute", "tok_createDispute")),
    "4000000000002685": TestCard(dispute="product_not_received", aliases=("pm_card_createDisputeProductNotReceived",)),
    "4000000000001976": TestCard(dispute="fraudulent", inquiry=True, aliases=("pm_card_createDisputeInquiry",)),
    "4000000000005126": TestCard(refund="fail_later", aliases=("pm_card_refundFail",)),
    "4000000000007726": TestCard(refund="pending", aliases=("pm_card_pendingRefund",)),
}
NUMBERS: Final = {alias: number for number, card in CARDS.items() for alias in card.aliases}

DEFAULT_ACCOUNT: Final = "000123456789"
ACCOUNTS: Final[dict[str, TestCard]] = {
    DEFAULT_ACCOUNT: TestCard("delay", aliases=("pm_usBankAccount_success",)),
    "000111111116": TestCard("delay", "account_closed", aliases=("pm_usBankAccount_accountClosed",)),
    "000222222227": TestCard("delay", "bank_insufficient_funds", aliases=("pm_usBankAccount_insufficientFunds",)),
    "000555555559": TestCard("delay", dispute="debit_not_authorized", aliases=("pm_usBankAccount_debitNotAuthorized",)),
    "AT611904300234573201": TestCard("delay"),
    # The one with which the Stripe CLI triggers a failed debit.
    "IT60X0542811101000000123456": TestCard("delay", "bank_insufficient_funds"),
    "AT861904300235473202": TestCard("delay", "bank_insufficient_funds"),
}
ACCOUNT_NUMBERS: Final = {alias: number for number, account in ACCOUNTS.items() for alias in account.aliases}
BANK_TYPES: Final = ("us_bank_account", "sepa_debit")
"""Types whose money arrives days after the customer has agreed."""


def digits(number: str) -> str:
    """Strip a number, as people type it, of its spaces."""
    return "".join(number.split()).replace("-", "")


def luhn(number: str) -> bool:
    """Check the check digit."""
    if not number.isdecimal() or not 12 <= len(number) <= 19:
        return False
    doubled = (int(digit) * (1 + place % 2) for place, digit in enumerate(reversed(number)))
    return sum(value - 9 if value > 9 else value for value in doubled) % 10 == 0

"""Errors of money, as a small tree. The domain gives the reason; the HTTP edge picks the status.

BillingError
├── UnpricedModel        no price for this model, endpoint or tier: refused, never $0 (I7)
├── StoreUnavailable     a balance cannot be read or written now: fail closed, say when to try again (I9)
├── NotBooked            SQL answered and will not take a charge: trying again the same way will not help
├── ReferenceTaken       another amount, or another account's, was booked under this reference
├── AccountNotFound      no such account
├── KeyNotFound          no such key
├── TooManyCheckouts     an account opens payment pages faster than a person buys
├── NotYet               what this belongs to is not known yet, or others are at it: later
├── StripeRefused        Stripe understood a call and will not carry it out
└── InvariantBroken      a money rule would be broken by going on: stop
"""


class BillingError(Exception):
    """Base of the tree; never raised itself."""


class UnpricedModel(BillingError):
    """There is no price for `model` (on this endpoint, in this tier), so it cannot be sold."""

    def __init__(self, model: str, detail: str) -> None:
        """`detail` completes the sentence "the model X ..."."""
        super().__init__(f"The model {model!r} {detail}")
        self.model = model


class StoreUnavailable(BillingError):
    """The store named does not answer. `in_doubt` = the command may still have been carried out."""

    def __init__(self, store: str, reason: str, *, in_doubt: bool = False) -> None:
        """`store` is redis, embedded or sql."""
        super().__init__(f"{store}: {reason}")
        self.store, self.in_doubt = store, in_doubt


class NotBooked(BillingError):
    """SQL will not take a batch of charges; none of it was booked."""


class ReferenceTaken(BillingError):
    """A repeat that is none: something else was booked under the reference."""

    def __init__(self, reference_id: str) -> None:
        """`reference_id` as it was given."""
        super().__init__(
            f"the reference {reference_id!r} was booked before for another account or amount; nothing was booked now"
        )


class AccountNotFound(BillingError):
    """There is no account of that id."""


class KeyNotFound(BillingError):
    """There is no API key of that id."""


class TooManyCheckouts(BillingError):
    """The account's hourly limit of new payment pages is reached (card testing looks like that)."""


class NotYet(BillingError):
    """It cannot be done now and may be later: what it belongs to is not known yet, or others are at it."""


class StripeRefused(BillingError):
    """Stripe will not do this; asking again the same way will not help."""

    def __init__(self, code: str, message: str, status: int) -> None:
        """`code` and `message` are Stripe's own; `status` is the HTTP status."""
        super().__init__(f"Stripe refused ({code}): {message}")
        self.code, self.status = code, status


class InvariantBroken(BillingError):
    """A rule about money does not hold; going on would lose or invent some."""

"""Errors of money, as a small tree. The domain gives the reason; the HTTP edge picks the status.

BillingError
├── UnpricedModel        no price for this model, endpoint or tier: refused, never $0 (I7)
├── StoreUnavailable     a balance cannot be read or written now: fail closed, say when to try again (I9)
├── NotBooked            SQL answered and will not take a charge: trying again the same way will not help
├── ReferenceTaken       another amount, or another account's, was booked under this reference
├── AccountNotFound      no such account
├── AccountClosed        the account is closed for good
├── NotClosed            the account must be closed first
├── InvalidDetails       a name, an external id, an e-mail address, metadata that cannot be kept
├── ExternalIdTaken      another account has this external id
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

    def __init__(self, store: str, reason: str, *, in_doubt: bool = False, kept: bool = False) -> None:
        """`store` is redis, embedded, sql or stripe; `kept`: Stripe keeps this failure under the idempotency key."""
        super().__init__(f"{store}: {reason}")
        self.store, self.in_doubt, self.kept = store, in_doubt, kept


class NotBooked(BillingError):
    """SQL will not take a batch of charges; none of it was booked."""


class ReferenceTaken(BillingError):
    """A repeat that is none: something else was booked under the reference."""

    def __init__(self, reference_id: str) -> None:
        """`reference_id` as it was given."""
        super().__init__(
            f"the reference {reference_id!r} was used before for another account, purchase or amount; "
            "nothing was booked now"
        )


class AccountNotFound(BillingError):
    """There is no account of that id."""


class AccountClosed(BillingError):
    """The account is closed for good: it gets no keys and is not opened again."""

    def __init__(self, account_id: str) -> None:
        """`account_id` of the account."""
        super().__init__(f"the account {account_id} is closed for good")


class NotClosed(BillingError):
    """The account is open: it must be closed first."""

    def __init__(self, account_id: str) -> None:
        """`account_id` of the account."""
        super().__init__(f"the account {account_id} is open: close it first")


class InvalidDetails(BillingError):
    """Something that was said of an account cannot be kept; `field` is its name."""

    def __init__(self, field: str, rule: str) -> None:
        """`rule` completes the sentence "the field must ..."."""
        super().__init__(f"{field} must {rule}")
        self.field, self.rule = field, rule


class ExternalIdTaken(BillingError):
    """Another account has this external id."""

    def __init__(self, external_id: str) -> None:
        """`external_id` as it was given."""
        super().__init__(f"another account has the external id {external_id!r}")


class KeyNotFound(BillingError):
    """There is no API key of that id."""


class TooManyCheckouts(BillingError):
    """The account's hourly limit of new payment pages is reached (card testing looks like that)."""


class NotYet(BillingError):
    """It cannot be done now and may be later: what it belongs to is not known yet, or others are at it."""


class StripeRefused(BillingError):
    """Stripe will not do this; asking again the same way will not help."""

    def __init__(self, code: str, message: str, status: int, *, kept: bool = False) -> None:
        """`code` and `message` are Stripe's own; `status` is the HTTP status.

        `kept`: the refusal is that of the idempotency key, not of now: another key is answered anew.
        """
        super().__init__(f"Stripe refused ({code}): {message}")
        self.code, self.status, self.kept = code, status, kept


class InvariantBroken(BillingError):
    """A rule about money does not hold; going on would lose or invent some."""

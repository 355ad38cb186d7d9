"""The tree of errors: one base, and sentences that name what they are about."""

import pytest

from billing.money import errors
from billing.money.errors import (
    AccountClosed,
    BillingError,
    ExternalIdTaken,
    InvalidDetails,
    NotClosed,
    ReferenceTaken,
    StoreUnavailable,
    StripeRefused,
    UnpricedModel,
)

TREE = [found for found in vars(errors).values() if isinstance(found, type)]


def test_the_tree_is_the_one_that_is_drawn_and_catching_its_base_catches_all() -> None:
    drawn = {line.split()[1] for line in (errors.__doc__ or "").splitlines() if line[:1] in ("├", "└")}
    assert drawn | {"BillingError"} == {found.__name__ for found in TREE}
    assert all(issubclass(found, BillingError) for found in TREE)


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (UnpricedModel("gpt-x", "has no price."), "The model 'gpt-x' has no price."),
        (StoreUnavailable("redis", "it is away"), "redis: it is away"),
        (
            ReferenceTaken("inv-7"),
            "the reference 'inv-7' was used before for another account, purchase or amount; nothing was booked now",
        ),
        (AccountClosed("acc_1"), "the account acc_1 is closed for good"),
        (NotClosed("acc_1"), "the account acc_1 is open: close it first"),
        (InvalidDetails("email", "be an address"), "email must be an address"),
        (ExternalIdTaken("crm-1"), "another account has the external id 'crm-1'"),
        (StripeRefused("card_declined", "No.", 402), "Stripe refused (card_declined): No."),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_error_names_what_it_is_about(error: BillingError, sentence: str) -> None:
    assert str(error) == sentence


def test_what_the_edge_decides_by_is_in_fields() -> None:
    assert UnpricedModel("gpt-x", "has no price").model == "gpt-x"
    away = StoreUnavailable("sql", "timeout")
    assert (away.store, away.in_doubt, away.kept) == ("sql", False, False)
    doubt = StoreUnavailable("stripe", "no answer", in_doubt=True, kept=True)
    assert (doubt.store, doubt.in_doubt, doubt.kept) == ("stripe", True, True)
    details = InvalidDetails("email", "be an address")
    assert (details.field, details.rule) == ("email", "be an address")
    refused = StripeRefused("card_declined", "No.", 402)
    assert (refused.code, refused.status, refused.kept) == ("card_declined", 402, False)
    assert StripeRefused("rate_limit", "Slow.", 429, kept=True).kept is True

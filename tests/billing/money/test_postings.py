"""Postings: parts sum to the whole."""

import pytest

from billing.money.errors import InvariantBroken
from billing.money.postings import purchase_postings
from billing.payments.claims import (
    Whole,
    share,
)


def test_parts_that_do_not_sum_are_refused() -> None:
    with pytest.raises(InvariantBroken):
        share(Whole(100, 5, 0, 0), 1)
    with pytest.raises(InvariantBroken):
        purchase_postings("p", "a", -1, 0, 0, 1)

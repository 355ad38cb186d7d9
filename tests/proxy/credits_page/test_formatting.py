"""Amounts as the Credits page writes them."""

import pytest

from proxy.credits_page.formatting import dollars


@pytest.mark.parametrize(
    ("millicredits", "text"),
    [(7_489_255, "$7.49"), (7_484_999, "$7.48"), (5_000, "$0.01"), (4_999, "$0.00"), (-9_995_000, "−$10.00")],
)
def test_dollars_are_the_nearest_cents(millicredits: int, text: str) -> None:
    assert dollars(millicredits) == text

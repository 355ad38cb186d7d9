"""Cells of every CSV: no spreadsheet takes one for a formula, in any locale, and numbers stay numbers."""

import pytest

from proxy.customer_api.statement_csv import safe_cell


@pytest.mark.parametrize("sign", ["=", "+", "-", "@", "\t", "\r", "＝", "＋", "－", "＠"])  # noqa: RUF001 - as a Japanese keyboard writes them
def test_no_cell_begins_like_a_formula(sign: str) -> None:
    assert safe_cell(f'{sign}HYPERLINK("https://evil.test")') == f'\'{sign}HYPERLINK("https://evil.test")'


@pytest.mark.parametrize("number", ["-1", "+1", "-12.005", "0", "12.5"])
def test_numbers_stay_numbers(number: str) -> None:
    assert safe_cell(number) == number

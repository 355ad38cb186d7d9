"""Money is integers of millicredits, made in one place, rounded once, up."""

import pytest

from billing.money.amounts import (
    LIMIT,
    MoneyError,
    display_credits,
    display_usd,
    millicredits,
    package_credits,
    parse_credits,
    parse_usd,
    round_up,
    written_credits,
    written_usd,
)


@pytest.mark.parametrize("value", [0, 1, -1, LIMIT - 1, 1 - LIMIT])
def test_integers_below_two_to_the_53_are_amounts(value: int) -> None:
    assert millicredits(value) == value


@pytest.mark.parametrize("value", [1.0, True, "1", None, LIMIT, -LIMIT])
def test_nothing_else_is(value: object) -> None:
    with pytest.raises(MoneyError):
        millicredits(value)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("numerator", "denominator", "exact", "ceil"),
    [
        (0, 7, 0, 0),
        (1, 10**12, 1, 1_000),
        (999, 1, 999, 1_000),
        (1_000, 1, 1_000, 1_000),
        (2_000_001, 1_000, 2_001, 3_000),
        (10**15, 10**12, 1_000, 1_000),
    ],
)
def test_charges_round_up_to_the_millicredit_or_the_credit(
    numerator: int, denominator: int, exact: int, ceil: int
) -> None:
    assert round_up(numerator, denominator) == exact
    assert round_up(numerator, denominator, "ceil") == ceil


def test_a_negative_charge_is_an_error() -> None:
    for numerator, denominator in ((-1, 1), (1, 0), (1, -1), (-1, -1)):
        with pytest.raises(MoneyError):
            round_up(numerator, denominator)


def test_a_charge_is_an_integer_below_two_to_the_53() -> None:
    assert round_up(LIMIT - 1, 1) == LIMIT - 1
    for beyond in (LIMIT, 10**40):
        with pytest.raises(MoneyError):
            round_up(beyond, 1)
    with pytest.raises(MoneyError):
        round_up(LIMIT - 1, 1, "ceil")
    with pytest.raises(MoneyError):
        round_up(1.5, 1)  # type: ignore[arg-type]
    assert round_up(True, 1) == 1  # what Python calls an integer is one, once it is divided


@pytest.mark.parametrize(
    ("text", "amount"), [("1", 1_000), ("0.001", 1), ("-12.5", -12_500), ("+5", 5_000), (" .5 ", 500), ("1.", 1_000)]
)
def test_credits_are_read_exactly(text: str, amount: int) -> None:
    assert parse_credits(text) == amount


@pytest.mark.parametrize(
    "text",
    ["", "abc", "NaN", "Infinity", "0.0001", "9007199254741", "1e3", "1_0", "٣", "1,000", "--1", ".", "9" * 5_000],
)
def test_what_is_no_exact_amount_is_refused(text: str) -> None:
    with pytest.raises(MoneyError):
        parse_credits(text)


def test_the_packages_of_the_mission() -> None:
    assert package_credits("9.99", "0") == (9_990_000, 0)
    assert sum(package_credits("49.99", "5")) == 52_489_500
    assert sum(package_credits("99.99", "10")) == 109_989_000
    with pytest.raises(MoneyError):
        package_credits("0.000001", "50")


def test_display_is_a_number_that_reads_well() -> None:
    assert (display_credits(12_000), display_credits(12_500), display_usd(9_990_000)) == (12, 12.5, 9.99)
    assert parse_usd("9.99") == 9_990_000


def test_what_is_displayed_is_whole_where_it_can_be() -> None:
    """JSON writes 12 and 12.0 differently."""
    shown = [display_credits(12_000), display_credits(12_500), display_usd(3_000_000), display_usd(3_500_000)]
    assert [repr(one) for one in shown] == ["12", "12.5", "3", "3.5"]


def test_the_words_of_a_refusal_name_the_unit() -> None:
    for read, unit in ((parse_credits, "credits"), (parse_usd, "USD")):
        with pytest.raises(MoneyError, match=f"'twelve' is not a number of {unit}$"):
            read("twelve")
        with pytest.raises(MoneyError, match=f"^0.0000001 {unit} is finer"):
            read("0.0000001")
    with pytest.raises(MoneyError, match=f"^'{'x' * 40}' is"):
        parse_usd("x" * 50)


def test_credits_are_written_exactly_and_without_needless_places() -> None:
    written = [written_credits(amount) for amount in (52_489_500, 109_989_000, 1, -1_234_050, 0)]
    assert written == ["52,489.5", "109,989", "0.001", "-1,234.05", "0"]


def test_dollars_are_written_exactly_and_with_cents() -> None:
    written = [written_usd(amount) for amount in (1_234_500_000, 9_990_000, 3, -52_489_500, 0, 999_999)]
    assert written == ["1,234.50", "9.99", "0.000003", "-52.4895", "0.00", "0.999999"]

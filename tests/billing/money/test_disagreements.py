"""Disagreements that checks find: what is in dispute, in millicredits, and as people read it."""

from billing.money.findings import Finding, mismatch


def test_a_finding_reads_as_a_sentence() -> None:
    short = Finding("balance", "acc_1", 1_000, 990)
    assert str(short) == "balance: acc_1: expected 1000, found 990 (difference -10)"
    assert str(Finding("rows", "usage", 3, 5, 0)) == "rows: usage: expected 3, found 5 (difference 2)"


def test_what_is_in_dispute_is_summed_whichever_way_it_is_off() -> None:
    found = [Finding("balance", "a", 1_000, 990), Finding("balance", "b", 5, 8), Finding("stripe", "c", 1, 3, 10_000)]
    assert mismatch(found) == 10 + 3 + 20_000
    assert mismatch([*found, Finding("rows", "usage", 1, 9, 0)]) == 20_013, "what is no money is none"
    assert mismatch([]) == 0

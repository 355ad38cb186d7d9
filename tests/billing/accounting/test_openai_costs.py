"""OpenAI's costs against ours, by model and with a tolerance."""

from datetime import date
from decimal import Decimal

from billing.accounting.openai_costs import CHECK, WITH_TOOLS, OwnCost, compare_costs
from billing.money.findings import Finding


def test_costs_are_compared_by_model_and_with_a_tolerance() -> None:
    day = date(2026, 11, 20)
    ours = {"gpt-4o": OwnCost(1_000_000, 10, False), "gpt-5.4": OwnCost(500_000, 5, True)}
    billed = {
        "gpt-4o-2024-08-06, input": Decimal("0.6"),
        "gpt-4o, output": Decimal("0.399999"),
        "gpt-5.4-2026-03-05, input": Decimal("0.45"),
        "web search": Decimal("0.05"),
    }
    assert compare_costs(day, ours, billed, 0) == []
    billed["gpt-4o, output"] = Decimal("0.42")
    assert compare_costs(day, ours, billed, 2) == []
    assert compare_costs(day, ours, billed, 1) == [Finding(CHECK, "2026-11-20 gpt-4o", 1_020_000, 1_000_000, 0)]
    billed["web search"] = Decimal("0.10")
    assert [one.subject for one in compare_costs(day, ours, billed, 2)] == [f"2026-11-20 {WITH_TOOLS}"]
    only = {"gpt-4o": OwnCost(1_000, 1, False)}
    assert [one.subject for one in compare_costs(day, only, {"o3, input": Decimal("0.001")}, 50)] == [
        "2026-11-20 gpt-4o",
        "2026-11-20 o3",
    ]

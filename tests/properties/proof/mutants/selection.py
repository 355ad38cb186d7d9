"""Which files are mutated, and the tests that each is run against: first its own, then all of the money core for what is of it."""

from posixpath import normpath

MONEY = "tests/billing/money"
PAYMENTS, GATEWAY = "../payments", "../../proxy/gateway"
ALL = (MONEY, "tests/properties/test_pricing_properties.py", "tests/properties/test_price_plan_properties.py")

OWN = {
    "billing/money/amounts.py": ("test_amounts.py",),
    "billing/money/pricing.py": ("test_card_models.py", "test_pricing.py", "test_running_charge.py", "test_rates.py"),
    "billing/money/model_rates.py": ("test_rates.py", "test_card_models.py"),
    "billing/money/usage.py": ("test_usage.py",),
    "billing/money/rate_card.py": ("test_rate_card.py",),
    "billing/money/holds.py": ("test_holds.py",),
    "billing/money/buckets.py": ("test_holds.py",),
    "billing/money/spend_periods.py": ("test_spend_periods.py",),
    "billing/money/usage_record.py": ("test_usage_record.py",),
    "billing/money/errors.py": ("test_errors.py",),
    "billing/money/findings.py": ("test_disagreements.py",),
    "billing/money/postings.py": ("test_postings.py",),
    "billing/money/repricing.py": ("test_repricing.py",),
    "billing/money/revenue_recognition.py": ("test_revenue_recognition.py",),
    "billing/money/catalogue/from_card.py": ("test_card_models.py",),
    "billing/money/catalogue/models.py": ("test_card_models.py",),
    "billing/money/catalogue/price_plan.py": ("test_price_plan.py",),
    "billing/money/credits/expiring.py": ("test_expiring.py",),
    "billing/payments/claims.py": (f"{PAYMENTS}/test_claims.py",),
    "billing/payments/purchase.py": (f"{PAYMENTS}/test_packages.py",),
    "proxy/gateway/settlement.py": (
        f"{GATEWAY}/test_settlement_parts.py",
        f"{GATEWAY}/test_settlement.py",
        f"{GATEWAY}/test_every_endpoint_is_metered.py",
        f"{GATEWAY}/test_plan.py",
        f"{GATEWAY}/bodies/test_context.py",
        f"{GATEWAY}/bodies/test_media.py",
        f"{GATEWAY}/bodies/test_twins_and_what_is_no_text.py",
        f"{GATEWAY}/answers/test_meter.py",
    ),
    "proxy/gateway/usage_rows.py": (f"{GATEWAY}/test_usage_rows.py",),
}
"""File → its own tests, in tests/billing/money or from there."""


def other_tests_of(file: str) -> tuple[str, ...]:
    """Tests that a mutant is run against which outlives its own."""
    return ALL if file.startswith("billing/money/") else ()


def own_tests_of(file: str) -> tuple[str, ...]:
    """Tests of a file: most mutants do not outlive them."""
    return tuple(normpath(f"{MONEY}/{name}") for name in OWN[file])

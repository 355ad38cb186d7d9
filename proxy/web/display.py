"""Credits as pages show them."""

from billing.money.amounts import display_credits


def short_credits(millicredits: int) -> str:
    """Millicredits as credits, with the places they need: 1,234.5."""
    return f"{display_credits(millicredits):,}"


def exact_credits(millicredits: int) -> str:
    """Millicredits as credits with all three places, so that a column of them lines up: 1,234.500."""
    whole, rest = divmod(abs(millicredits), 1_000)
    return f"{'−' if millicredits < 0 else ''}{whole:,}.{rest:03}"

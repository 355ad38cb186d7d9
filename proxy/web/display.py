"""Credits as pages show them."""


def short_credits(millicredits: int) -> str:
    """Millicredits as credits, with the places they need: 1,234.5."""
    whole, rest = divmod(abs(millicredits), 1_000)
    places = f".{rest:03}".rstrip("0") if rest else ""
    return f"{'−' if millicredits < 0 else ''}{whole:,}{places}"


def signed_credits(millicredits: int) -> str:
    """Millicredits as credits, with the sign of what they do to a balance: +1,234.5."""
    return ("+" if millicredits > 0 else "") + short_credits(millicredits)


def exact_credits(millicredits: int) -> str:
    """Millicredits as credits with all three places, so that a column of them lines up: 1,234.500."""
    whole, rest = divmod(abs(millicredits), 1_000)
    return f"{'−' if millicredits < 0 else ''}{whole:,}.{rest:03}"

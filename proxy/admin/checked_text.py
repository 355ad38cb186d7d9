"""Text that admins send: names, references and reasons. No HTTP in here."""

from billing.ledger.records.plain_text import is_plain_text
from proxy.web.rejections import invalid

LONGEST_REASON = 2_000


def check_text(text: str, name: str, longest: int) -> str:
    """Return printable text of at most so many characters. Raises Rejection."""
    text = text.strip()
    if not is_plain_text(text, longest):
        raise invalid(f"`{name}` must be 1 to {longest} printable characters.", name)
    return text


def check_reason(reason: str) -> str:
    """Return a change's reason. Raises Rejection."""
    return check_text(reason, "reason", LONGEST_REASON)


def optional_reason(reason: str) -> str:
    """Check a reason where one is given. Raises Rejection."""
    return check_reason(reason) if reason else ""

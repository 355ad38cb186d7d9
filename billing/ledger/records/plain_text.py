"""Text as people write it in one line: what may stand in a name, a reason, an address. Pure."""

import unicodedata

JOINERS = "\u200c\u200d"
"""Zero-width non-joiner and joiner: Persian is spelt with the one, a family of emoji made with the other."""


def is_plain_text(text: str, longest: int) -> bool:
    """Tell whether text is 1 to so many characters that are seen, or join what is seen; no control character."""
    letters = text.translate(dict.fromkeys(map(ord, JOINERS)))
    joined = all(
        unicodedata.category(before)[0] in "LMS"
        for before, sign in zip(" " + text, text, strict=False)
        if sign in JOINERS
    )
    return 0 < len(text) <= longest and bool(letters.strip()) and letters.isprintable() and joined

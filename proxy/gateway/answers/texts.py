"""Texts that an answer passed towards the client, whatever their fields are called. Pure.

Knowing fields by name counted only what was known: the input of a custom tool passed for nothing. So every string
counts but those that no model writes: identities, kinds, the results of tools, what is encoded.
"""

from typing import Any

WRITTEN_BY_NO_MODEL = frozenset(
    "id type role status object index call_id item_id container_id data result results output outputs sources tools "
    "annotations logprobs encrypted_content file_id filename url expires_at server_label execution format".split()
)
SAID_TWICE = {"reasoning_details": "reasoning", "query": "queries"}
"""Members that repeat another one beside them."""
DEEPEST = 12
"""Levels of a message or item that are looked at: the deepest that OpenAI's have are five."""


def written_texts(value: Any, depth: int = 0) -> list[str]:
    """Every text that a model wrote in a message, a delta or an output item, in order."""
    if isinstance(value, str):
        return [value] if value else []
    if depth > DEEPEST:
        return []
    if isinstance(value, list):
        return [text for part in value for text in written_texts(part, depth + 1)]
    if isinstance(value, dict):
        twice = {again for again, once in SAID_TWICE.items() if again in value and once in value}
        members = (part for name, part in value.items() if name not in WRITTEN_BY_NO_MODEL and name not in twice)
        return [text for part in members for text in written_texts(part, depth + 1)]
    return []

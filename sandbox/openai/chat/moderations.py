"""POST /v1/moderations: judgements of texts and pictures, which nothing charges."""

from typing import Any, Final

from sandbox.openai.exchange.answer import Answer, json_answer
from sandbox.openai.exchange.call import Call
from sandbox.openai.requests.errors import invalid
from sandbox.openai.requests.fields import ANY, TEXT, Fields, check_fields, missing

DEFAULT_MODEL: Final = "omni-moderation-latest"
_CATEGORIES: Final = tuple(
    (
        "harassment harassment/threatening hate hate/threatening illicit illicit/violent self-harm "
        "self-harm/instructions self-harm/intent sexual sexual/minors violence violence/graphic"
    ).split()
)
_PICTURED: Final = frozenset(
    {"self-harm", "self-harm/instructions", "self-harm/intent", "sexual", "violence", "violence/graphic"}
)
"""Categories that look at images, too."""
_MODERATION: Final[Fields] = {"input": ANY, "model": TEXT}


def moderate(call: Call) -> Answer:
    """Judge each input; nothing is charged, and there is no usage."""
    body = call.body
    check_fields(body, _MODERATION)
    given = body.get("input")
    if given is None:
        raise missing("input")
    if given in ("", []) or not isinstance(given, str | list):
        raise invalid("Invalid value for 'input'.", "input", "invalid_value")
    parts: list[Any] = given if isinstance(given, list) else [given]
    if all(isinstance(part, str) for part in parts):
        results = [_result({"text"})] * len(parts)
    elif all(isinstance(part, dict) for part in parts):
        results = [_result({"image" if part.get("type") == "image_url" else "text" for part in parts})]
    else:
        raise invalid("Invalid value for 'input'.", "input", "invalid_value")
    model = call.directives.model or call.model
    answer = json_answer({"id": call.new_id("modr").replace("_", "-"), "model": model, "results": results})
    answer.model = model
    return answer


def _result(kinds: set[str]) -> dict[str, Any]:
    applied = {name: [kind for kind in sorted(kinds) if kind == "text" or name in _PICTURED] for name in _CATEGORIES}
    return {
        "flagged": False,
        "categories": dict.fromkeys(_CATEGORIES, False),
        "category_scores": dict.fromkeys(_CATEGORIES, 1e-05),
        "category_applied_input_types": applied,
    }

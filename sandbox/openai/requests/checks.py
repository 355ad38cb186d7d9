"""Checks of request bodies, complaining in OpenAI's words."""

import re
from typing import Any, Final

from sandbox.openai.requests.errors import ApiError, error_object, invalid, named_error, status_error
from sandbox.openai.requests.json_text import as_integer

_REASONING_PREFIXES: Final = ("o1", "o3", "o4", "gpt-5", "gpt-6")
_CACHE_WRITERS: Final = re.compile(r"gpt-(5\.([6-9]|\d\d)|[6-9])")
_MAX_CHAT_CHOICES: Final = 128
_MAX_BEST_OF: Final = 20
_MAX_INPUTS: Final = 2048


def is_reasoning(model: str) -> bool:
    """Tell models that think before they speak (o1, o3, o4, gpt-5, gpt-6, not *chat*)."""
    base = model.removeprefix("ft:")
    return base.startswith(_REASONING_PREFIXES) and "chat" not in base


def has_cache_writes(model: str) -> bool:
    """Tell models that bill what they write to the prompt cache (from gpt-5.6 on)."""
    return _CACHE_WRITERS.match(model.removeprefix("ft:")) is not None


def check_model(body: Any) -> str:
    """Return the model's name. Raises ApiError."""
    if not isinstance(body, dict):
        raise invalid("We could not parse the JSON body of your request.", None, None)
    model = body.get("model")
    if not isinstance(model, str) or not model:
        raise invalid("you must provide a model parameter", None, None)
    return model


def check_chat(model: str, body: dict[str, Any], *, reject_max_tokens: bool) -> None:
    """Raise ApiError unless the body is a chat request that OpenAI would accept."""
    _check_messages(body)
    check_integer(body, "n", 1, _MAX_CHAT_CHOICES)
    check_integer(body, "max_tokens", 1)
    check_integer(body, "max_completion_tokens", 1)
    check_stream(body)
    old, new = body.get("max_tokens"), body.get("max_completion_tokens")
    if old is not None and new is not None:
        raise invalid(
            "Setting 'max_tokens' and 'max_completion_tokens' at the same time is not supported.",
            "max_tokens",
            "invalid_parameter_combination",
        )
    if old is not None and reject_max_tokens and is_reasoning(model):
        raise invalid(
            "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' "
            "instead.",
            "max_tokens",
            "unsupported_parameter",
        )


def _check_messages(body: dict[str, Any]) -> None:
    messages = body.get("messages")
    if messages is None:
        raise invalid("Missing required parameter: 'messages'.", "messages", "missing_required_parameter")
    if not isinstance(messages, list):
        raise invalid("Invalid type for 'messages': expected an array.", "messages", "invalid_type")
    if not messages:
        raise invalid(
            "Invalid 'messages': empty array. Expected an array with minimum length 1, but got an empty array instead.",
            "messages",
            "empty_array",
        )
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise invalid(
                f"Missing required parameter: '{where}.role'.",
                f"{where}.role",
                "missing_required_parameter",
            )
        content = message.get("content")
        parts = content if isinstance(content, list) else []
        if not (content is None or isinstance(content, str | list)) or not all(
            isinstance(part, dict) for part in parts
        ):
            raise invalid(f"Invalid type for '{where}.content'.", f"{where}.content", "invalid_type")


def check_integer(body: dict[str, Any], name: str, lowest: int, highest: int | None = None) -> None:
    """Raise ApiError unless the field is absent or an integer within the bounds."""
    value = as_integer(body.get(name))
    if value is None:
        return
    body[name] = value
    if isinstance(value, bool) or not isinstance(value, int):
        raise invalid(f"Invalid type for '{name}': expected an integer.", name, "invalid_type")
    if value < lowest:
        raise invalid(
            f"Invalid '{name}': integer below minimum value. Expected a value >= {lowest}, but got {value} instead.",
            name,
            "integer_below_min_value",
        )
    if highest is not None and value > highest:
        raise invalid(
            f"Invalid '{name}': integer above maximum value. Expected a value <= {highest}, but got {value} instead.",
            name,
            "integer_above_max_value",
        )


def check_stream(body: dict[str, Any]) -> None:
    """Raise ApiError unless `stream` and `stream_options` go together."""
    if not isinstance(body.get("stream"), bool | None):
        raise invalid("Invalid type for 'stream': expected a boolean.", "stream", "invalid_type")
    options = body.get("stream_options")
    if options is None:
        return
    if not isinstance(options, dict):
        raise invalid(
            "Invalid type for 'stream_options': expected an object.",
            "stream_options",
            "invalid_type",
        )
    if not body.get("stream"):
        raise invalid(
            "The 'stream_options' parameter is only allowed when 'stream' is enabled.",
            "stream_options",
            None,
        )


def check_legacy(body: dict[str, Any]) -> list[str | list[int]]:
    """Return the prompts of a legacy completion. Raises ApiError."""
    check_integer(body, "n", 1, _MAX_CHAT_CHOICES)
    check_integer(body, "best_of", 0, _MAX_BEST_OF)
    check_integer(body, "max_tokens", 0)
    check_stream(body)
    best_of, choices = body.get("best_of") or 1, body.get("n") or 1
    if body.get("stream") and best_of > 1:
        raise invalid("Results cannot be streamed when 'best_of' > 1.", "best_of", None)
    if body.get("best_of") and best_of < choices:
        raise invalid("'best_of' must be greater than or equal to 'n'.", "best_of", None)
    # The API reads an absent prompt as the end-of-text token.
    return text_inputs(body.get("prompt", "<|endoftext|>"), "prompt")


def text_inputs(value: Any, name: str) -> list[str | list[int]]:
    """List the inputs of a string, strings, token ids or lists of token ids. Raises ApiError."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, list):
        value = [[as_integer(one) for one in item] if isinstance(item, list) else as_integer(item) for item in value]
    if _is_ids(value):
        return [value]
    if (
        isinstance(value, list)
        and 1 <= len(value) <= _MAX_INPUTS
        and all(isinstance(item, str) or _is_ids(item) for item in value)
    ):
        return value
    raise ApiError(400, error_object("Invalid value.", "invalid_request_error", name, "invalid_value"))


def _is_ids(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(item, int) and not isinstance(item, bool) for item in value)
    )


def check_context(tokens: int, limit: int) -> None:
    """Raise ApiError when a prompt is longer than the context."""
    if tokens > limit:
        raise ApiError(400, named_error("400_context") or status_error(400))

"""Request fields of the newer endpoints as tables, and the complaints about them in OpenAI's words."""

from typing import Any, Final, Literal

import msgspec

from sandbox.openai.requests.errors import ApiError, invalid
from sandbox.openai.requests.forms import nested
from sandbox.openai.requests.json_text import as_integer

FieldKind = Literal["string", "integer", "number", "boolean", "object", "array", "any"]
_TYPES: Final[dict[str, tuple[tuple[type, ...], str]]] = {
    "string": ((str,), "a string"),
    "integer": ((int,), "an integer"),
    "number": ((int, float), "a decimal"),
    "boolean": ((bool,), "a boolean"),
    "object": ((dict,), "an object"),
    "array": ((list,), "an array"),
    "any": ((object,), "a value"),
}
_TRUTH: Final = {"true": True, "false": False, "1": True, "0": False}


class Field(msgspec.Struct, frozen=True):
    """Permitted values of one field; null is the same as absent."""

    kind: FieldKind
    low: int | None = None
    high: int | None = None
    choices: tuple[str, ...] = ()
    required: bool = False
    longest: int | None = None
    """Characters of a string, or items of an array or object."""


Fields = dict[str, Field]
ANY: Final = Field("any")
TEXT: Final = Field("string")
FLAG: Final = Field("boolean")
NUMBER: Final = Field("number")
OBJECT: Final = Field("object")
ARRAY: Final = Field("array")


def one_of(*names: str) -> Field:
    """Return a field that holds one string out of a list."""
    return Field("string", choices=names)


def missing(name: str) -> ApiError:
    """Return the complaint about an absent field."""
    return invalid(f"Missing required parameter: '{name}'.", name, "missing_required_parameter")


def wrong_type(name: str, expected: str, value: Any) -> ApiError:
    """Return the complaint about a value of another type."""
    return invalid(
        f"Invalid type for '{name}': expected {expected}, but got {_name(value)} instead.", name, "invalid_type"
    )


def _name(value: Any) -> str:
    if isinstance(value, bool):
        return "a boolean"
    for types, shown in _TYPES.values():
        if isinstance(value, types):
            return shown
    return "a value"


def check_fields(body: dict[str, Any], table: Fields, *, inside: str = "") -> None:
    """Raise ApiError unless every field is known and holds what it may hold."""
    for name in body:
        if name not in table:
            raise invalid(f"Unknown parameter: '{inside}{name}'.", f"{inside}{name}", "unknown_parameter")
    for name, field in table.items():
        value = body.get(name)
        if field.kind == "integer" and isinstance(value, float):
            body[name] = value = as_integer(value)
        if value is not None:
            _check_value(f"{inside}{name}", field, value)
        elif field.required:
            raise missing(f"{inside}{name}")


def _check_value(name: str, field: Field, value: Any) -> None:
    types, expected = _TYPES[field.kind]
    # To Python a bool is an int.
    counted = field.kind in {"integer", "number"}
    fits = isinstance(value, types) and not (isinstance(value, bool) and counted)
    if not fits:
        raise wrong_type(name, expected, value)
    if field.choices and value not in field.choices:
        listed = ", ".join(f"'{choice}'" for choice in field.choices)
        raise invalid(f"Invalid value: '{value}'. Supported values are: {listed}.", name, "invalid_value")
    if field.longest is not None:
        _check_length(name, field, value)
    if counted:
        _check_range(name, field, value)


def _check_length(name: str, field: Field, value: Any) -> None:
    longest = field.longest or 0
    if len(value) > longest:
        noun = "string" if field.kind == "string" else "array"
        message = (
            f"Invalid '{name}': {noun} too long. Expected a maximum length of {longest}, but got {len(value)} instead."
        )
        raise invalid(message, name, f"{noun}_above_max_length")


def _check_range(name: str, field: Field, value: float) -> None:
    noun = "integer" if field.kind == "integer" else "decimal"
    if field.low is not None and value < field.low:
        message = (
            f"Invalid '{name}': {noun} below minimum value. Expected a value >= {field.low}, but got {value} instead."
        )
        raise invalid(message, name, f"{noun}_below_min_value")
    if field.high is not None and value > field.high:
        message = (
            f"Invalid '{name}': {noun} above maximum value. Expected a value <= {field.high}, but got {value} instead."
        )
        raise invalid(message, name, f"{noun}_above_max_value")


def from_form(form: dict[str, Any], table: Fields) -> dict[str, Any]:
    """Turn the texts of a form into the types of the table; `x[]` becomes a list, `x[y]` an object."""
    body: dict[str, Any] = {}
    for name, value in nested(form).items():
        field = table.get(name, TEXT)
        if field.kind == "array" and not isinstance(value, list):
            body[name] = [value]
        else:
            body[name] = _typed(field, value) if isinstance(value, str) else value
    return body


def _typed(field: Field, value: str) -> Any:
    if field.kind == "boolean":
        return _TRUTH.get(value.lower(), value)
    if field.kind in {"integer", "number", "object"}:
        # What cannot be read stays a string, about whose type the check complains.
        try:
            return msgspec.json.decode(value)
        except msgspec.DecodeError:
            return value
    return value

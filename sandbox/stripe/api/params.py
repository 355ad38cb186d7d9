"""Checks parameters against the TypedDicts of the installed `stripe` library, and gives them their types.

The library's parameter classes are generated from Stripe's own API description, so they are the best
offline statement of what an endpoint takes at the pinned version.
"""

import functools
import re
import types
from decimal import Decimal, InvalidOperation
from importlib import import_module
from typing import Any, Final, Literal, NotRequired, Required, Union, get_args, get_origin, get_type_hints

from typing_extensions import is_typeddict

from sandbox.stripe.account.errors import invalid, missing, unknown_parameter
from sandbox.stripe.api.forms import Tree, array

_INTEGER: Final = re.compile(r"-?\d{1,15}")
_TRUTH: Final = {"true": True, "false": False}
_LEGACY_TYPES: Final = "payment_method_types"
_LAST_LEGACY: Final = "2026-09-30"
"""From this version on `payment_method_types` can no longer be given."""


def read(params_class: str, tree: Tree, version: str) -> dict[str, Any]:
    """Type the parameters. `params_class` is `module.Class` inside stripe.params; empty takes none but `expand`."""
    legacy = _take_legacy(params_class, tree, version)
    hints, required = ({"expand": list[str]}, frozenset[str]()) if not params_class else load(params_class)
    try:
        values = _object(hints, required, tree, "")
    except StripeParamError as error:
        raise error.error from None
    if legacy is not None:
        values[_LEGACY_TYPES] = legacy
    return values


class StripeParamError(Exception):
    """Refusal on its way out of the walk through a union, where another alternative may still fit."""

    def __init__(self, error: Exception) -> None:
        """Take `error`, which the client gets."""
        super().__init__(str(error))
        self.error = error


def _take_legacy(params_class: str, tree: Tree, version: str) -> list[str] | None:
    """Pull `payment_method_types` out where older versions had it; the Stripe CLI still sends it."""
    if _LEGACY_TYPES not in tree or not params_class.endswith(
        ("IntentCreateParams", "IntentConfirmParams", "SessionCreateParams")
    ):
        return None
    if version >= _LAST_LEGACY:
        # One value of documented wording; the code is what the changelog of 2026-09-30 names.
        message = (
            "`payment_method_types` is no longer supported. Use `allowed_payment_method_types` or dynamic payment "
            "methods."
        )
        raise invalid(message, "payment_method_types_no_longer_supported", _LEGACY_TYPES).not_started()
    given = array(tree.pop(_LEGACY_TYPES))
    if not given:
        raise invalid("Invalid array", param=_LEGACY_TYPES).not_started()
    return given


@functools.cache
def load(params_class: str) -> tuple[dict[str, Any], frozenset[str]]:
    """Types and required names of a class."""
    module, _, name = params_class.rpartition(".")
    return _hints(getattr(import_module(f"stripe.params.{module}"), name))


@functools.cache
def _hints(found: Any) -> tuple[dict[str, Any], frozenset[str]]:
    """Types and required names of a TypedDict, without the request options that some of them inherit."""
    options = import_module("stripe._request_options").RequestOptions.__annotations__
    inherits = "stripe_version" in found.__annotations__
    own = {name: hint for name, hint in found.__annotations__.items() if not (inherits and name in options)}
    holder = types.SimpleNamespace(__annotations__=own)
    return get_type_hints(holder, vars(import_module(found.__module__)), include_extras=True), frozenset(
        found.__required_keys__
    )


def _refuse(message: str, param: str, code: str | None = None) -> StripeParamError:
    return StripeParamError(invalid(message, code, param).not_started())


def _object(hints: dict[str, Any], required: frozenset[str], tree: Tree, inside: str) -> dict[str, Any]:
    values = {}
    for name, value in tree.items():
        param = f"{inside}[{name}]" if inside else name
        if name not in hints:
            raise StripeParamError(unknown_parameter(param).not_started())
        values[name] = _value(hints[name], value, param)
    for name in hints:
        if name in required and name not in values:
            raise StripeParamError(missing(f"{inside}[{name}]" if inside else name).not_started())
    return values


def _value(hint: Any, value: Any, param: str) -> Any:
    origin = get_origin(hint)
    if origin in {NotRequired, Required}:
        return _value(get_args(hint)[0], value, param)
    if origin in {Union, types.UnionType}:
        return _union(get_args(hint), value, param)
    if origin is Literal:
        return _literal(get_args(hint), value, param)
    if origin is list:
        return _list(get_args(hint)[0], value, param)
    if origin is dict:
        return _mapping(get_args(hint)[1], value, param)
    if is_typeddict(hint):
        if not isinstance(value, dict):
            raise _refuse("Invalid object", param)
        return _object(*_hints(hint), value, param)
    return _scalar(hint, value, param)


def _union(alternatives: tuple[Any, ...], value: Any, param: str) -> Any:
    """Take the first alternative that fits; the refusal of the last one when none does."""
    names = [name for hint in alternatives if get_origin(hint) is Literal for name in get_args(hint)]
    # The library writes open enums as `Literal[...] | str`, but the API refuses other words; only the
    # empty string stands beside a free text, to clear it.
    closed = any(names) and str in alternatives
    error = _refuse("Invalid value", param)
    for hint in alternatives:
        plain = hint is str and closed
        if (
            plain
            or getattr(hint, "__name__", "") == "UntypedStripeObject"
            or getattr(get_origin(hint), "__name__", "") == "UntypedStripeObject"
        ):
            continue
        try:
            return _value(hint, value, param)
        except StripeParamError as refusal:
            error = refusal
    raise error


def _literal(names: tuple[Any, ...], value: Any, param: str) -> Any:
    if value in names:
        return value
    listed = ", ".join(str(name) for name in names[:10] if name != "") + (", and more" if len(names) > 10 else "")
    raise _refuse(f"Invalid {param}: must be one of {listed}", param)


def _list(inner: Any, value: Any, param: str) -> list[Any]:
    found = [] if value == "" else array(value)
    if found is None:
        raise _refuse("Invalid array", param)
    return [_value(inner, element, f"{param}[{index}]") for index, element in enumerate(found)]


def _mapping(inner: Any, value: Any, param: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _refuse("Invalid hash", param)
    read_values = {name: _value(inner, element, f"{param}[{name}]") for name, element in value.items()}
    if param.endswith("metadata"):
        _check_metadata(read_values, param)
    return read_values


def _check_metadata(values: dict[str, Any], param: str) -> None:
    if len(values) > 50:
        raise _refuse("You cannot have more than 50 metadata keys.", param)
    for name, value in values.items():
        if len(name) > 40:
            raise _refuse(f"Metadata keys can be up to 40 characters: {name}", param)
        if len(value) > 500:
            raise _refuse(f"Metadata values can be up to 500 characters: {name}", f"{param}[{name}]")


def _scalar(hint: Any, value: Any, param: str) -> Any:
    if not isinstance(value, str):
        raise _refuse("Invalid string", param)
    if hint is bool:
        if value not in _TRUTH:
            raise _refuse(f"Invalid boolean: {value}", param)
        return _TRUTH[value]
    if hint is int:
        if not _INTEGER.fullmatch(value):
            raise _refuse(f"Invalid integer: {value}", param, "parameter_invalid_integer")
        return int(value)
    if hint in {float, Decimal}:
        try:
            return str(Decimal(value))
        except InvalidOperation:
            raise _refuse(f"Invalid decimal: {value}", param) from None
    return value

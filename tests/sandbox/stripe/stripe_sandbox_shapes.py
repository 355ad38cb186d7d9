"""Compares JSON with the resource classes of the `stripe` library, whose annotations state the pinned version's shapes."""

import typing
from decimal import Decimal
from typing import Any

import stripe
from stripe._object_classes import get_object_class

# Fields of the library that the simulator leaves out, where Stripe shows them only for other products
# and payment methods, or only when something has happened.
ABSENT = {
    "account": {
        "company",
        "deleted",
        "external_accounts",
        "future_requirements",
        "groups",
        "individual",
        "requirements",
        "tos_acceptance",
    },
    "balance": {"connect_reserved", "instant_available", "issuing"},
    "billing_portal.session": set(),
    "charge": {"authorization_code", "level3", "presentment_details", "refunds", "transfer"},
    "checkout.session": {
        "customer_account",
        "line_items",
        "name_collection",
        "optional_items",
        "redirect_on_completion",
        "tax_id_collection",
    },
    "customer": {"cash_balance", "deleted", "invoice_credit_balance", "sources", "subscriptions", "tax", "tax_ids"},
    "event": {"account", "context"},
    "item": {"discounts", "taxes"},
    "payment_intent": {"presentment_details"},
    "price": {"currency_options", "deleted", "tiers"},
    "product": {"deleted", "tax_details"},
    "refund": {"instructions_email", "next_action", "pending_reason", "presentment_details"},
    "webhook_endpoint": {"deleted", "secret"},
}


def faults(value: dict[str, Any]) -> list[str]:
    """What is wrong with an object of the API, as `path: complaint`."""
    kind = value["object"]
    cls = get_object_class("V1", kind)
    found = list(_object(cls, value, kind))
    annotated = {name for name, hint in cls.__annotations__.items() if not str(hint).startswith("typing.ClassVar")}
    absent = annotated - set(value) - ABSENT.get(kind, set())
    if kind == "payment_method":
        absent -= {name for name in absent if name.replace("_", "") in {method.lower() for method in vars(cls)}}
    return found + [f"{kind}.{name}: absent" for name in sorted(absent)]


def _object(cls: Any, value: dict[str, Any], path: str) -> typing.Iterator[str]:
    hints = cls.__annotations__
    for name, inner in value.items():
        if name not in hints:
            yield f"{path}.{name}: unknown to the library"
        else:
            yield from _value(hints[name], inner, f"{path}.{name}")
    for name, hint in hints.items():
        if name not in value and not _optional(hint) and not str(hint).startswith("typing.ClassVar"):
            yield f"{path}.{name}: required but absent"


def _optional(hint: Any) -> bool:
    return type(None) in typing.get_args(hint)


def _value(hint: Any, value: Any, path: str) -> typing.Iterator[str]:
    if hint is Any:
        return
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Union:
        yield from _union(args, value, path)
    elif origin is typing.Literal:
        if value not in args:
            yield f"{path}: {value!r} is none of the known values"
    elif origin in {list, list}:
        if not isinstance(value, list):
            yield f"{path}: no list"
        else:
            for index, element in enumerate(value):
                yield from _value(args[0], element, f"{path}[{index}]")
    elif isinstance(hint, typing.ForwardRef | str):
        yield from _resource(value, path)
    elif origin is stripe.ListObject or getattr(origin, "__name__", "") == "UntypedStripeObject":
        if not isinstance(value, dict):
            yield f"{path}: no object"
    elif isinstance(hint, type) and issubclass(hint, stripe.StripeObject):
        if not isinstance(value, dict):
            yield f"{path}: no object"
        else:
            yield from _object(hint, value, path)
    else:
        wanted = {int: int, bool: bool, str: str, float: (int, float), Decimal: str}[hint]
        if not isinstance(value, wanted) or (hint is int and isinstance(value, bool)):
            yield f"{path}: {value!r} is no {hint.__name__}"


def _resource(value: Any, path: str) -> typing.Iterator[str]:
    if not isinstance(value, dict) or "object" not in value:
        yield f"{path}: no resource"
    else:
        yield from _object(get_object_class("V1", value["object"]), value, path)


def _union(args: tuple[Any, ...], value: Any, path: str) -> typing.Iterator[str]:
    """Fits when one alternative does; a text beside literals has to be one of them."""
    literals = [hint for hint in args if typing.get_origin(hint) is typing.Literal]
    tried = [hint for hint in args if not (hint is str and literals)]
    if value is None and type(None) in args:
        return
    complaints: list[str] = []
    for hint in tried:
        if hint is type(None):
            continue
        found = list(_value(hint, value, path))
        if not found:
            return
        complaints = found
    yield from complaints

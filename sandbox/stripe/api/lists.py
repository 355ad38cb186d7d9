"""List objects with cursors and filters, and `expand`."""

from collections.abc import Callable, Iterable
from typing import Any, Final

from sandbox.stripe.account.errors import StripeError, invalid
from sandbox.stripe.account.object_fields import page
from sandbox.stripe.account.world import Obj, World, public

_MAX_DEPTH: Final = 4
_COMPARE: Final[dict[str, Callable[[int, int], bool]]] = {
    "gt": lambda value, bound: value > bound,
    "gte": lambda value, bound: value >= bound,
    "lt": lambda value, bound: value < bound,
    "lte": lambda value, bound: value <= bound,
}
_EMPTY: Final = {("customer", "sources"), ("customer", "subscriptions"), ("customer", "tax_ids")}


def show(objects: Iterable[Obj], params: dict[str, Any], url: str) -> Obj:
    """One page, newest first; `objects` come oldest first."""
    limit = params.get("limit", 10)
    if not 1 <= limit <= 100:
        raise invalid("This value must be between 1 and 100.", "parameter_invalid_integer", "limit")
    found = [item for item in reversed(list(objects)) if created_fits(item, params.get("created"))]
    after, before = params.get("starting_after"), params.get("ending_before")
    if after and before:
        raise invalid(
            "You may only specify one of these parameters: starting_after, ending_before.", None, "ending_before"
        )
    if before:
        newer = found[: _place(found, before, "ending_before")]
        return page([public(item) for item in newer[-limit:]], url, has_more=len(newer) > limit)
    older = found[_place(found, after, "starting_after") + 1 :] if after else found
    return page([public(item) for item in older[:limit]], url, has_more=len(older) > limit)


def _place(found: list[Obj], wanted: str, param: str) -> int:
    for index, item in enumerate(found):
        if item["id"] == wanted:
            return index
    raise invalid(f"No such object: '{wanted}'", "resource_missing", param)


def created_fits(item: Obj, wanted: Any) -> bool:
    """Tell whether `created` is the number or lies within the bounds."""
    if wanted is None:
        return True
    if isinstance(wanted, int):
        return bool(item["created"] == wanted)
    return all(_COMPARE[name](item["created"], bound) for name, bound in wanted.items())


def expand(world: World, shown: Obj, paths: list[str]) -> Obj:
    """Replace the ids at these paths by the objects."""
    for path in paths:
        parts = path.split(".")
        if len(parts) > _MAX_DEPTH + (parts[0] == "data"):
            raise invalid(
                f"You cannot expand more than {_MAX_DEPTH} levels of a property. Property: {path}", None, "expand"
            )
        _expand(world, shown, parts, path)
    return shown


def _cannot(path: str) -> StripeError:
    return invalid(f"This property cannot be expanded ({path}).", None, "expand")


def _expand(world: World, place: Any, parts: list[str], path: str) -> None:
    if isinstance(place, list):
        for element in place:
            _expand(world, element, parts, path)
        return
    name = parts[0]
    _include(world, place, name)
    if name not in place:
        raise _cannot(path)
    value = place[name]
    if isinstance(value, str):
        found = world.any_object(value)
        if found is None:
            raise _cannot(path)
        place[name] = value = public(found)
    elif value is not None and not isinstance(value, dict | list):
        raise _cannot(path)
    if value is not None and len(parts) > 1:
        _expand(world, value, parts[1:], path)


def _include(world: World, place: Obj, name: str) -> None:
    """Add a list that an object shows only when asked to."""
    kind = place.get("object")
    if (kind, name) == ("checkout.session", "line_items"):
        items = world.objects["checkout.session"][place["id"]]["_items"]
        place[name] = page(
            [public(item) for item in items], f"/v1/checkout/sessions/{place['id']}/line_items", has_more=False
        )
    elif (kind, name) == ("charge", "refunds"):
        refunds = [public(refund) for refund in reversed(list(world.find("refund", charge=place["id"])))]
        place[name] = page(refunds[:10], f"/v1/charges/{place['id']}/refunds", has_more=len(refunds) > 10)
    elif (kind, name) in _EMPTY:
        place[name] = page([], f"/v1/customers/{place['id']}/{name}", has_more=False)

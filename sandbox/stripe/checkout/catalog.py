"""Products and prices."""

from decimal import Decimal
from typing import Any, Final

from sandbox.stripe.account.errors import invalid, missing
from sandbox.stripe.account.object_fields import blank, metadata_after
from sandbox.stripe.account.world import Obj, World
from sandbox.stripe.payments import payment_intents

_PRODUCT_FIELDS: Final[tuple[str, ...]] = (
    "active",
    "description",
    "images",
    "name",
    "shippable",
    "statement_descriptor",
    "tax_code",
    "unit_label",
    "url",
)
_PRICE_FIELDS: Final[tuple[str, ...]] = ("active", "lookup_key", "nickname", "tax_behavior")


def create_product(world: World, params: dict[str, Any]) -> Obj:
    """POST /v1/products."""
    now = world.now()
    fields = blank("product", created=now, updated=now, metadata=metadata_after({}, params))
    fields |= {name: params[name] for name in _PRODUCT_FIELDS if name in params}
    made = world.add("product", fields)
    if params.get("id"):
        del world.objects["product"][made["id"]]
        if params["id"] in world.objects["product"]:
            raise invalid("Product already exists.", "resource_already_exists", "id")
        made["id"] = params["id"]
        world.objects["product"][made["id"]] = made
    world.emit("product.created", made)
    if params.get("default_price_data"):
        price = create_price(world, params["default_price_data"] | {"product": made["id"]}, param="default_price_data")
        made["default_price"] = price["id"]
    return made


def update_product(world: World, found: Obj, params: dict[str, Any]) -> Obj:
    """POST /v1/products/:id."""
    changes = {name: params[name] for name in (*_PRODUCT_FIELDS, "default_price") if name in params}
    world.change(
        found, "product.updated", **changes, metadata=metadata_after(found["metadata"], params), updated=world.now()
    )
    return found


def create_price(world: World, params: dict[str, Any], *, param: str = "", inline: bool = False) -> Obj:
    """POST /v1/prices, or `price_data` of a line item."""

    def at(name: str) -> str:
        return f"{param}[{name}]" if param else name

    currency = payment_intents.check_currency(params["currency"], at("currency"))
    if ("product" in params) == ("product_data" in params):
        raise invalid(
            "You must specify exactly one of `product` and `product_data`.", "parameter_missing", at("product")
        )
    product_id = world.get("product", params["product"], at("product"))["id"] if "product" in params else None
    if product_id is None:
        product_id = create_product(world, params["product_data"] | ({"active": False} if inline else {}))["id"]
    amount = _amount(params, at)
    recurring = params.get("recurring")
    fields = blank(
        "price",
        created=world.now(),
        currency=currency,
        metadata=metadata_after({}, params),
        product=product_id,
        type="recurring" if recurring else "one_time",
        unit_amount=amount,
        unit_amount_decimal=str(amount),
    )
    fields |= {name: params[name] for name in _PRICE_FIELDS if name in params}
    if inline:
        fields["active"] = False
    if recurring:
        fields["recurring"] = {
            "interval_count": 1,
            "meter": None,
            "trial_period_days": None,
            "usage_type": "licensed",
        } | recurring
    made = world.add("price", fields)
    world.emit("price.created", made)
    return made


def _amount(params: dict[str, Any], at: Any) -> int:
    if "unit_amount" in params:
        amount = int(params["unit_amount"])
    elif "unit_amount_decimal" in params:
        exact = Decimal(params["unit_amount_decimal"])
        if exact != int(exact):
            raise invalid("The sandbox takes whole cents only.", None, at("unit_amount_decimal"))
        amount = int(exact)
    else:
        raise missing(at("unit_amount"))
    if amount < 0:
        raise invalid("This value must be greater than or equal to 0.", "parameter_invalid_integer", at("unit_amount"))
    return amount


def update_price(world: World, found: Obj, params: dict[str, Any]) -> Obj:
    """POST /v1/prices/:id."""
    changes = {name: params[name] for name in _PRICE_FIELDS if name in params}
    world.change(found, "price.updated", **changes, metadata=metadata_after(found["metadata"], params))
    return found

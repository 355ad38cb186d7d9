"""Products, prices, webhook endpoints, the account, and the portal session: objects that only stand there."""

from decimal import Decimal
from typing import Any, Final

from sandbox.stripe.account.errors import invalid, missing
from sandbox.stripe.account.object_fields import blank
from sandbox.stripe.account.world import Obj, World, public
from sandbox.stripe.payments import payment_intents as payments
from sandbox.stripe.payments import payment_methods as methods

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
    fields = blank("product", created=now, updated=now, metadata=methods.laid_over({}, params))
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
    world.change(found, "product.updated", **changes, metadata=methods.laid_over(found["metadata"], params), updated=world.now())
    return found


def create_price(world: World, params: dict[str, Any], *, param: str = "", inline: bool = False) -> Obj:
    """POST /v1/prices, or `price_data` of a line item."""

    def at(name: str) -> str:
        return f"{param}[{name}]" if param else name

    currency = payments.check_currency(params["currency"], at("currency"))
    if ("product" in params) == ("product_data" in params):
        raise invalid("You must specify exactly one of `product` and `product_data`.", "parameter_missing", at("product"))
    product_id = world.get("product", params["product"], at("product"))["id"] if "product" in params else None
    if product_id is None:
        product_id = create_product(world, params["product_data"] | ({"active": False} if inline else {}))["id"]
    amount = _amount(params, at)
    recurring = params.get("recurring")
    fields = blank(
        "price",
        created=world.now(),
        currency=currency,
        metadata=methods.laid_over({}, params),
        product=product_id,
        type="recurring" if recurring else "one_time",
        unit_amount=amount,
        unit_amount_decimal=str(amount),
    )
    fields |= {name: params[name] for name in _PRICE_FIELDS if name in params}
    if inline:
        fields["active"] = False
    if recurring:
        fields["recurring"] = {"interval_count": 1, "meter": None, "trial_period_days": None, "usage_type": "licensed"} | recurring
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
    world.change(found, "price.updated", **changes, metadata=methods.laid_over(found["metadata"], params))
    return found


# -- webhook endpoints ---------------------------------------------------------------------------


def create_endpoint(world: World, params: dict[str, Any]) -> Obj:
    """POST /v1/webhook_endpoints: the only answer that shows the secret."""
    if not params["url"].startswith(("http://", "https://")):
        raise invalid("Not a valid URL", "url_invalid", "url")
    if not params["enabled_events"]:
        raise missing("enabled_events")
    fields = blank(
        "webhook_endpoint",
        api_version=params.get("api_version"),
        created=world.now(),
        description=params.get("description") or None,
        enabled_events=params["enabled_events"],
        metadata=methods.laid_over({}, params),
        url=params["url"],
    )
    secret = params.get("secret") or world.new_id("whsec_")
    made = world.add("webhook_endpoint", fields, secrets=[(secret, None)])
    return made | {"secret": secret}


def give_endpoints(world: World, given: list[dict[str, Any]]) -> None:
    """Those of the command line. A world that was kept has them already: they follow when address or secret are other ones now."""
    known = list(world.find("webhook_endpoint", _given=True))
    for number, params in enumerate(given):
        if number < len(known):
            known[number] |= {name: params[name] for name in ("url", "enabled_events", "api_version")}
            known[number]["_secrets"] = [(params["secret"], None)] if params["secret"] else known[number]["_secrets"]
        else:
            world.get("webhook_endpoint", create_endpoint(world, params)["id"])["_given"] = True
    for gone in known[len(given) :]:
        delete_endpoint(world, gone)


def update_endpoint(world: World, found: Obj, params: dict[str, Any]) -> Obj:
    """POST /v1/webhook_endpoints/:id."""
    del world
    found |= {name: params[name] for name in ("description", "enabled_events", "url") if name in params}
    if "disabled" in params:
        found["status"] = "disabled" if params["disabled"] else "enabled"
    found["metadata"] = methods.laid_over(found["metadata"], params)
    return found


def delete_endpoint(world: World, found: Obj) -> Obj:
    """DELETE /v1/webhook_endpoints/:id."""
    del world.objects["webhook_endpoint"][found["id"]]
    return {"id": found["id"], "object": "webhook_endpoint", "deleted": True}


def roll_secret(world: World, found: Obj, secret: str | None, overlap_s: float) -> str:
    """A new secret; for `overlap_s` events are signed with the old one as well, as after "Roll secret"."""
    fresh = secret or world.new_id("whsec_")
    until = world.time() + overlap_s
    found["_secrets"] = [(fresh, None), *((old, until) for old, end in found["_secrets"] if end is None)]
    return fresh


def secrets_of(world: World, found: Obj) -> list[str]:
    """The secrets events are signed with, the newest first."""
    return [secret for secret, until in found["_secrets"] if until is None or until > world.time()]


# -- the rest ------------------------------------------------------------------------------------


def account(world: World) -> Obj:
    """GET /v1/account."""
    return {
        "id": world.account_id,
        "object": "account",
        "business_profile": {"mcc": "5734", "name": "Tollkeeper sandbox", "support_email": None, "url": None},
        "business_type": "company",
        "capabilities": {"card_payments": "active", "transfers": "active", "us_bank_account_ach_payments": "active"},
        "charges_enabled": True,
        "controller": {"type": "account"},
        "country": "US",
        "created": world.now(),
        "default_currency": "usd",
        "details_submitted": True,
        "email": "owner@example.com",
        "metadata": {},
        "payouts_enabled": True,
        "settings": {
            "branding": {"icon": None, "logo": None, "primary_color": None, "secondary_color": None},
            "card_payments": {"decline_on": None, "statement_descriptor_prefix": None},
            "dashboard": {"display_name": "Tollkeeper sandbox", "timezone": "Etc/UTC"},
            "payments": {"statement_descriptor": "TOLLKEEPER SANDBOX"},
        },
        "type": "standard",
    }


def create_portal(world: World, params: dict[str, Any]) -> Obj:
    """POST /v1/billing_portal/sessions."""
    if not params.get("customer"):
        raise missing("customer")
    methods.customer(world, params["customer"])
    fields = {
        "after_expiration": None,
        "configuration": "bpc_sandbox",
        "created": world.now(),
        "customer": params["customer"],
        "customer_account": None,
        "flow": None,
        "livemode": False,
        "locale": None,
        "on_behalf_of": None,
        "return_url": params.get("return_url"),
    }
    made = world.add("billing_portal.session", fields)
    made["url"] = f"{world.base_url}/p/session/{made['id']}"
    world.emit("billing_portal.session.created", public(made))
    return made

"""The billing portal, where a customer removes saved cards."""

from typing import Any

from sandbox.stripe.account.errors import missing
from sandbox.stripe.account.world import Obj, World, public
from sandbox.stripe.payments import customers


def create_portal(world: World, params: dict[str, Any]) -> Obj:
    """POST /v1/billing_portal/sessions."""
    if not params.get("customer"):
        raise missing("customer")
    customers.customer(world, params["customer"])
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

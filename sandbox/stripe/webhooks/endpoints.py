"""Webhook endpoints: where events are sent, and the secrets that sign them."""

from typing import Any

from sandbox.stripe.account.errors import invalid, missing
from sandbox.stripe.account.object_fields import blank, metadata_after
from sandbox.stripe.account.world import Obj, World


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
        metadata=metadata_after({}, params),
        url=params["url"],
    )
    secret = params.get("secret") or world.new_id("whsec_")
    made = world.add("webhook_endpoint", fields, secrets=[(secret, None)])
    return made | {"secret": secret}


def register_endpoints(world: World, given: list[dict[str, Any]]) -> None:
    """Add those of the command line. A kept world has them already: they follow a new address or secret."""
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
    found["metadata"] = metadata_after(found["metadata"], params)
    return found


def delete_endpoint(world: World, found: Obj) -> Obj:
    """DELETE /v1/webhook_endpoints/:id."""
    del world.objects["webhook_endpoint"][found["id"]]
    return {"id": found["id"], "object": "webhook_endpoint", "deleted": True}


def roll_secret(world: World, found: Obj, secret: str | None, overlap_s: float) -> str:
    """Make a new secret; for `overlap_s` the old one signs events as well, as after "Roll secret"."""
    fresh = secret or world.new_id("whsec_")
    until = world.time() + overlap_s
    found["_secrets"] = [(fresh, None), *((old, until) for old, end in found["_secrets"] if end is None)]
    return fresh


def secrets_of(world: World, found: Obj) -> list[str]:
    """Return the secrets events are signed with, the newest first."""
    return [secret for secret, until in found["_secrets"] if until is None or until > world.time()]

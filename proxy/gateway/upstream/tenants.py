"""Keeping tenants apart in one upstream account: who made which object, and names that cannot collide or be guessed."""

import contextlib
import hashlib
import hmac

from billing.ledger.upstream_objects import MadeObject, OwnedObject, UpstreamObjects
from billing.money.errors import StoreUnavailable
from billing.money.usage import Usage
from config.secrets import Secret
from proxy.gateway.answers.report import Report
from proxy.gateway.bodies.image_tokens import UNBOUNDED, image_rule
from proxy.gateway.bodies.parsed import Parsed, Reference
from proxy.web.rejections import Rejection, unavailable

PURPOSE = b"tollkeeper tenant identifiers 1"
CANNOT_LOOK_UP = "What this request refers to cannot be looked up right now. Try again shortly."


class Tenants:
    """Owner checks and per-tenant identifiers."""

    def __init__(self, objects: UpstreamObjects, upstream_key: Secret) -> None:
        """Key the identifiers by the upstream key: they stay the same while it does, and tell nothing without it."""
        self.objects = objects
        self._key = hmac.digest(upstream_key.reveal().encode(), PURPOSE, hashlib.sha256)

    def identifier(self, account_id: str, value: bytes) -> str:
        """Name that upstream sees instead of a `user`, `safety_identifier` or `prompt_cache_key` of a client's."""
        return "tk_" + hmac.new(self._key, account_id.encode() + b"\0" + value, hashlib.sha256).hexdigest()[:40]

    async def context(self, account_id: str, references: tuple[Reference, ...], model: str = "") -> int | None:
        """Tokens that the objects a request refers to add to its input, all of them the account's own (I8).

        `model` reads them: their pictures count by its rule. None when one of them has no known size. Raises Rejection:
        404 as for an id that never was, 503.
        """
        tokens, unknown = 0, False
        for reference in references:
            found = await self.find_owned(account_id, reference)
            if found is None:
                raise no_such_object(reference)
            if reference.kind == "response":
                unknown = unknown or found.context_tokens is None
                tokens += (found.context_tokens or 0) + extra_for(model, found.model, found.picture_extra)
        return None if unknown else tokens

    async def record_begun(self, account_id: str, charge_id: str, response_id: str) -> None:
        """Record that a stored response began: from its first byte on it has an owner. Raises StoreUnavailable."""
        await self.objects.record_owner(account_id, charge_id, [MadeObject(response_id, "response")])

    async def record_made(
        self, account_id: str, charge_id: str, report: Report, usage: Usage, parsed: Parsed | None = None
    ) -> None:
        """Record what a whole stored response made, and how much a request that builds on it re-reads.

        `parsed`: its request, whose pictures another model may count for more. Where that cannot be written now, its
        size stays unknown and the next request is held by the whole window.
        """
        if not report.upstream_id:
            return
        tokens = usage.input_tokens + usage.output_tokens
        with contextlib.suppress(StoreUnavailable):
            model, extra = ("", 0) if parsed is None else (parsed.model, await self._picture_extra(parsed))
            made = [
                MadeObject(report.upstream_id, "response", tokens, model, extra),
                *(MadeObject(item, "item") for item in report.items),
            ]
            await self.objects.record_owner(account_id, charge_id, made)

    async def _picture_extra(self, parsed: Parsed) -> int:
        """Count what its pictures, and those it built on, may take more with another model. Raises StoreUnavailable."""
        extra = parsed.picture_extra
        for reference in parsed.references:
            found = await self.objects.find(reference.id) if reference.kind == "response" else None
            extra += found.picture_extra if found is not None else 0
        return extra

    async def sessions(self, account_id: str, charge_id: str, containers: tuple[str, ...]) -> int:
        """Count the container sessions that began with this request; every one when that cannot be looked up."""
        if not containers:
            return 0
        try:
            return await self.objects.new_sessions(account_id, charge_id, containers)
        except StoreUnavailable:
            return len(containers)

    async def find_owned(self, account_id: str, reference: Reference) -> OwnedObject | None:
        """Find the object, if this account made it and has not deleted it. Raises Rejection (503)."""
        # no id has a NUL character, and PostgreSQL would not look for one
        if "\0" in reference.id:
            return None
        try:
            found = await self.objects.find(reference.id[:120])
        except StoreUnavailable:
            raise unavailable(CANNOT_LOOK_UP, "store_unavailable") from None
        if found is None or found.account_id != account_id or found.kind != reference.kind or found.deleted:
            return None
        return found

    async def is_running(self, response_id: str) -> bool:
        """Tell whether a background response has not ended. Raises Rejection (503)."""
        try:
            return await self.objects.is_running(response_id)
        except StoreUnavailable:
            raise unavailable(CANNOT_LOOK_UP, "store_unavailable") from None


def extra_for(model: str, made_by: str, picture_extra: int) -> int:
    """Tokens to add to what was made by one model when another reads it: none where both count pictures alike."""
    rule = image_rule(model)
    if not picture_extra or rule is image_rule(made_by):
        return 0
    unknown, known = divmod(picture_extra, UNBOUNDED)
    limit = rule.tokens(None, "auto") if rule is not None and unknown else None
    return known + unknown * (UNBOUNDED if limit is None else limit)


def no_such_object(reference: Reference) -> Rejection:
    """Refuse an object in the same words whether it never was, is someone else's, or is deleted."""
    name = reference.id[:120]
    if reference.param == "previous_response_id":
        return Rejection(
            404,
            "previous_response_not_found",
            f"Previous response with id '{name}' not found. Responses are kept only where the operator allows `store`.",
            param=reference.param,
        )
    return Rejection(
        404,
        f"{reference.kind}_not_found",
        f"{reference.kind.capitalize()} with id '{name}' not found.",
        param=reference.param,
    )

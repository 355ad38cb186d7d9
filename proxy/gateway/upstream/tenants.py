"""Keeping tenants apart in one upstream account: who made which object, and names that cannot collide or be guessed."""

import contextlib
import hashlib
import hmac
from typing import NamedTuple

import msgspec

from billing.ledger.upstream_objects import Made, Objects, Owned
from billing.money.errors import StoreUnavailable
from billing.money.usage import Usage
from config.secrets import Secret
from proxy.gateway.answers.meter import Report
from proxy.gateway.bodies.chat import Reference
from proxy.web.rejections import Rejection

PURPOSE = b"tollkeeper tenant identifiers 1"


class Context(NamedTuple):
    """What the objects that a request refers to add to its input, in tokens; None when one of them has no known size."""

    tokens: int | None


class Tenants:
    """Owner checks and per-tenant identifiers."""

    def __init__(self, objects: Objects, upstream_key: Secret) -> None:
        """The identifiers are keyed by the upstream key: they stay the same while it does, and tell nothing without it."""
        self.objects = objects
        self._key = hmac.digest(upstream_key.reveal().encode(), PURPOSE, hashlib.sha256)

    def identifier(self, account_id: str, value: bytes) -> str:
        """What upstream sees instead of a `user`, `safety_identifier` or `prompt_cache_key` of a client's."""
        return "tk_" + hmac.new(self._key, account_id.encode() + b"\0" + value, hashlib.sha256).hexdigest()[:40]

    async def context(self, account_id: str, references: tuple[Reference, ...]) -> Context:
        """Check that every object is the account's own.

        Raises Rejection (404, as for an id that never was), StoreUnavailable.
        """
        tokens = 0
        for reference in references:
            found = await self.owned(account_id, reference.kind, reference.id)
            if found is None:
                raise no_such_object(reference)
            if reference.kind == "response":
                if found.context_tokens is None:
                    return Context(None)
                tokens += found.context_tokens
        return Context(tokens)

    async def note_begun(self, account_id: str, charge_id: str, response_id: str) -> None:
        """A stored response began: from its first byte on it has an owner. Raises StoreUnavailable."""
        await self.objects.note(account_id, charge_id, [Made(response_id, "response")])

    async def note_made(self, account_id: str, charge_id: str, report: Report, usage: Usage) -> None:
        """A stored response is whole: note what it made, and how much a request that builds on it re-reads.

        Where that cannot be written now, its size stays unknown and the next request is held by the whole window.
        """
        if not report.upstream_id:
            return
        tokens = usage.input_tokens + usage.output_tokens
        made = [Made(report.upstream_id, "response", tokens), *(Made(item, "item") for item in report.items)]
        with contextlib.suppress(StoreUnavailable):
            await self.objects.note(account_id, charge_id, made)

    async def sessions(self, account_id: str, charge_id: str, containers: tuple[str, ...]) -> int:
        """How many container sessions began with this request; every one when that cannot be looked up."""
        if not containers:
            return 0
        try:
            return await self.objects.new_sessions(account_id, charge_id, containers)
        except StoreUnavailable:
            return len(containers)

    async def owned(self, account_id: str, kind: str, object_id: str) -> Owned | None:
        """The object, if this account made it and has not deleted it."""
        # no id has a NUL character, and PostgreSQL would not look for one
        found = await self.objects.find(object_id[:120]) if "\0" not in object_id else None
        if found is None or found.account_id != account_id or found.kind != kind or found.deleted:
            return None
        return found


def no_such_object(reference: Reference) -> Rejection:
    """The same words whether it never was, is someone else's, or is deleted."""
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


def as_json(text: str) -> bytes:
    """A string as it stands in a JSON body."""
    return msgspec.json.encode(text)

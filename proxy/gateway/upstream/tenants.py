"""Keeping tenants apart in one upstream account: who made which object, and names that cannot collide or be guessed."""

import contextlib
import hashlib
import hmac
from collections.abc import Sequence
from typing import NamedTuple

from billing.ledger.objects.upstream_objects import MadeObject, OwnedObject, UpstreamObjects
from billing.money.errors import StoreUnavailable
from billing.money.usage import Usage
from config.secrets import Secret
from proxy.gateway.answers.report import Report
from proxy.gateway.bodies.image_tokens import UNBOUNDED, drawn_tokens, image_rule
from proxy.gateway.bodies.parsed import Parsed, Reference, StoredContext
from proxy.web.rejections import Rejection, unavailable

PURPOSE = b"tollkeeper tenant identifiers 1"
NOTHING_IS_STORED = (
    " Nothing is stored here, because the operator has switched `billing.allow_store` off: send `store: false`, so "
    "that your client sends earlier items whole (Vercel AI SDK: `providerOptions.openai.store = false`)."
)
SOUND = "audio"
"""Kind of speech in an answer of chat: kept for an hour whatever is stored, and heard by who refers to it."""
CONTEXTS = ("response", "conversation")
"""Kinds that a model reads when a request refers to them."""
CANNOT_LOOK_UP = "What this request refers to cannot be looked up right now. Try again shortly."
CANNOT_KEEP = "What this would store cannot be kept track of right now. Try again shortly."


AS_REPORTED = -1
ALL_RESERVED = 2**53
"""More than any conversation has."""


def former_secret(upstream_key: Secret) -> bytes:
    """Secret that the versions before had: derived from the upstream's key, so that rotating it renamed every tenant.

    An installation that has none of its own yet keeps this one.
    """
    return hmac.digest(upstream_key.reveal().encode(), PURPOSE, hashlib.sha256)


class ConversationShare(NamedTuple):
    """Tokens that a request reserved in its conversation, and those that it saw there: -1 where others were running."""

    conversation: str
    reserved: int
    seen: int


class Tenants:
    """Owner checks and per-tenant identifiers."""

    def __init__(self, objects: UpstreamObjects, secret: bytes) -> None:
        """Key the identifiers by the installation's secret: they never change, and tell nothing without it."""
        self.objects = objects
        self._key = secret

    def identifier(self, account_id: str, value: bytes) -> str:
        """Name that upstream sees instead of a `user`, `safety_identifier` or `prompt_cache_key` of a client's."""
        return "tk_" + hmac.new(self._key, account_id.encode() + b"\0" + value, hashlib.sha256).hexdigest()[:40]

    async def context(
        self, account_id: str, references: tuple[Reference, ...], model: str = "", *, storing: bool = True
    ) -> StoredContext:
        """Find what the objects a request refers to bring into it, all of them the account's own (I8).

        `model` reads them: their pictures count by its rule. `storing`: what is made is kept. Raises Rejection: 404 as
        for an id that never was, 503.
        """
        tokens, sound, chunk, conversation = 0, 0, 0, None
        read: list[OwnedObject] = []
        items: dict[str, OwnedObject] = {}
        upstreams: set[str] = set()
        for reference in references:
            found = await self.find_owned(account_id, reference)
            if found is None:
                raise no_such_object(reference, storing=storing)
            upstreams.add(found.upstream)
            if reference.kind in CONTEXTS:
                read.append(found)
            elif reference.kind == "item":
                items[found.charge_id] = found  # all that one answer made are together no more than it
            if reference.kind == "conversation":
                conversation = found
            if reference.kind == "vector_store":
                chunk = max(chunk, found.context_tokens or 0)
            if reference.kind == SOUND:
                sound += found.most_tokens or 0
        read += items.values()
        for one in read:
            tokens += (one.most_tokens or 0) + extra_for(model, one.model, one.picture_extra)
        tools = frozenset(tool for one in read for tool in one.tools.split())
        unknown = any(one.most_tokens is None for one in read)
        return StoredContext(None if unknown else tokens, tools, conversation, sound, chunk, frozenset(upstreams))

    async def record_begun(
        self, account_id: str, charge_id: str, made: str, parsed: Parsed, kind: str = "response", upstream: str = ""
    ) -> None:
        """Record that what is stored began: from its first byte on it has an owner. Raises StoreUnavailable.

        `parsed`: its request, whose tools and pictures are read again even where its end is never heard of.
        """
        tools, pictures = " ".join(sorted(parsed.carried)), await self._picture_extra(parsed)
        begun = MadeObject(made, kind, None, parsed.model, pictures, tools)
        await self.objects.record_owner(account_id, charge_id, [begun], upstream)

    async def record_sounds(
        self, account_id: str, charge_id: str, sounds: tuple[tuple[str, int], ...], tokens: int, upstream: str = ""
    ) -> tuple[str, ...]:
        """Record whose speech this is, as (id, Unix second at which it is gone; 0 = not said), and its tokens at most.

        Returns the ids that nobody owns: all of them where that cannot be written now.
        """
        if not sounds:
            return ()
        try:
            made = [MadeObject(name, SOUND, tokens, gone_at=1_000 * gone) for name, gone in sounds]
            await self.objects.record_owner(account_id, charge_id, made, upstream)
        except StoreUnavailable:
            return tuple(name for name, _ in sounds)
        return ()

    async def record_made(
        self,
        account_id: str,
        charge_id: str,
        report: Report,
        usage: Usage,
        parsed: Parsed | None = None,
        kind: str = "response",
        upstream: str = "",
        *,
        kept: int | None = AS_REPORTED,
    ) -> tuple[str, ...]:
        """Record what a whole stored answer made, of this kind, and how much a request that builds on it re-reads.

        Who builds on its items reads what it wrote, and what it read where tools at OpenAI may have put that into them.

        `parsed`: its request, whose pictures another model may count for more; `kept`: see Plan.kept_tokens. What the
        image tool drew is in no usage of the model's, and read by whoever builds on it. Returns the ids that nobody
        owns: all of them where that cannot be written now. What has an owner since it began stays of unknown size then,
        and the next request is held by the whole window.
        """
        if not report.upstream_id:
            return ()
        tokens = usage.total_tokens
        try:
            model, extra = ("", 0) if parsed is None else (parsed.model, await self._picture_extra(parsed))
            tools = "" if parsed is None else " ".join(sorted(parsed.carried))
            drawn, dearest = drawn_tokens(model, report.drawn), drawn_tokens("", report.drawn)
            hosted = report.calls or report.containers or report.drawn or report.more
            written = (tokens if hosted else usage.output_tokens) + drawn
            kept = tokens if kept == AS_REPORTED else kept
            whole = None if kept is None else kept + drawn
            made = [
                MadeObject(report.upstream_id, kind, whole, model, extra + dearest, tools),
                *(MadeObject(item, "item", written, model, dearest) for item in report.items),
            ]
            await self.objects.record_owner(account_id, charge_id, made, upstream)
        except StoreUnavailable:
            return (report.upstream_id, *report.items)
        return ()

    async def _picture_extra(self, parsed: Parsed) -> int:
        """Count what its pictures, and those it built on, may take more with another model. Raises StoreUnavailable."""
        extra = parsed.picture_extra
        for reference in parsed.references:
            found = await self.objects.find(reference.id) if reference.kind in CONTEXTS else None
            extra += found.picture_extra if found is not None else 0
        return extra

    async def reserve(self, parsed: Parsed, seen: OwnedObject | None, most: int) -> ConversationShare:
        """Count the most that a request can add to its conversation, before it goes upstream: whoever reads the
        conversation meanwhile is held for that, and for the hosted tools in its items.

        `seen`: the conversation as it was held for. One of unknown size needs no counting. Raises Rejection: 409 when
        another request has come between, 503.
        """
        if seen is None:
            return ConversationShare(parsed.conversation, 0, -1)
        tools = " ".join(sorted(parsed.carried))
        try:
            if seen.context_tokens is None:
                if tools:
                    await self.objects.grow(parsed.conversation, None, tools=tools)
                return ConversationShare(parsed.conversation, 0, -1)
            reserved = await self.objects.reserve(parsed.conversation, seen, most, parsed.picture_extra, tools)
        except StoreUnavailable:
            raise unavailable(CANNOT_LOOK_UP, "store_unavailable") from None
        if not reserved:
            message = "Another request is adding to this conversation. Try again in a moment."
            raise Rejection(409, "conversation_locked", message, param="conversation")
        return ConversationShare(parsed.conversation, most, (seen.most_tokens or 0) if seen.is_quiet else -1)

    async def end_share(self, share: ConversationShare, actual: int, model: str = "", drawn: int = 0) -> None:
        """End what was reserved: `actual` is what the answer read and wrote by its report, 0 = nothing came of it,
        ALL_RESERVED = nobody says; `drawn`: pictures beside it, which this model would read so.

        Where that cannot be written it stays reserved, which holds more and costs nothing.
        """
        if not share.reserved:
            return
        more = drawn_tokens(model, drawn)
        added = min(actual, share.reserved) + more
        alone = None if not actual or share.seen < 0 else (share.seen, min(actual, share.seen + share.reserved) + more)
        with contextlib.suppress(StoreUnavailable):
            if drawn:
                await self.objects.grow(share.conversation, 0, pictures=drawn_tokens("", drawn))
            await self.objects.add_reserved(share.conversation, share.reserved, added, alone)

    async def sessions(
        self, account_id: str, charge_id: str, containers: tuple[str, ...]
    ) -> tuple[int, tuple[str, ...]]:
        """(container sessions that began with this request, the containers that nobody owns).

        Where that cannot be looked up and written, every one of them.
        """
        if not containers:
            return 0, ()
        try:
            return await self.objects.new_sessions(account_id, charge_id, containers), ()
        except StoreUnavailable:
            return len(containers), containers

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

    async def first_foreign(self, account_id: str, references: Sequence[Reference]) -> Reference | None:
        """Find the first of many objects that is not one of this account's. Raises Rejection (503)."""
        owned: dict[str, set[str]] = {}
        try:
            for kind in sorted({reference.kind for reference in references}):
                ids = {one.id for one in references if one.kind == kind and "\0" not in one.id}
                owned[kind] = await self.objects.owned_among(account_id, kind, sorted(ids))
        except StoreUnavailable:
            raise unavailable(CANNOT_LOOK_UP, "store_unavailable") from None
        return next((one for one in references if one.id not in owned[one.kind]), None)

    async def is_running(self, response_id: str) -> bool:
        """Tell whether a background response has not ended. Raises Rejection (503)."""
        try:
            return await self.objects.is_running(response_id)
        except StoreUnavailable:
            raise unavailable(CANNOT_LOOK_UP, "store_unavailable") from None


def extra_for(model: str, made_by: str, picture_extra: int) -> int:
    """Tokens to add to what was made by one model when another reads it: none where both count pictures alike."""
    rule = image_rule(model)
    if not picture_extra or (made_by and rule is image_rule(made_by)):
        return 0
    unknown, known = divmod(picture_extra, UNBOUNDED)
    limit = rule.tokens(None, "auto") if rule is not None and unknown else None
    return known + unknown * (UNBOUNDED if limit is None else limit)


def no_such_object(reference: Reference, *, storing: bool = True) -> Rejection:
    """Refuse an object in the same words whether it never was, is someone else's, or is deleted."""
    previous = reference.param == "previous_response_id"
    code = f"{'previous_response' if previous else reference.kind}_not_found"
    what = "Previous response" if previous else reference.kind.capitalize().replace("_", " ")
    message = f"{what} with id '{reference.id[:120]}' not found."
    if not storing and reference.kind != SOUND:
        message += NOTHING_IS_STORED
    return Rejection(404, code, message, param=reference.param)

"""POST /v1/batches: every line of a file held for at once, then handed to upstream.

The line of one request:

    authenticate → admit → count → read body → owner of the file → read the file → plan every line → hold
      → send our file → row in SQL → make the batch → its id in SQL → answer

Nothing is held or made for a batch of which one line would be refused. The row is there before the batch is: whatever
dies in between, the poller (poller.py) finds out from upstream whether it was made, so nothing runs there unseen (I3).
From the row on the hold is the poller's: it is detached, and an orphan owes nothing.
"""

import asyncio
import contextlib
import os
from typing import Any

import msgspec

from billing.ledger.objects.upstream_objects import MadeObject
from billing.money.amounts import Millicredits, display_credits
from billing.money.errors import StoreUnavailable
from billing.money.pricing import Charge
from proxy.gateway.access_log import report_account
from proxy.gateway.admission import admit
from proxy.gateway.answers.decode import decode_object
from proxy.gateway.answers.upstream_errors import read_failure
from proxy.gateway.batches.lines import BatchTerms, PlannedBatch, endpoint_of, plan_lines
from proxy.gateway.batches.record import batch_record, making_seconds, whole_plan
from proxy.gateway.batches.shown import shown_bytes
from proxy.gateway.bodies.inventory import BATCH_FIELDS
from proxy.gateway.bodies.parsed import Parsed, Reference, StoredContext
from proxy.gateway.bodies.responses import read_members, whole
from proxy.gateway.callers.labels import labels_of
from proxy.gateway.forwarding import pinned_member
from proxy.gateway.limits.free_calls import count_free_call
from proxy.gateway.limits.standing import check_standing, unhurried
from proxy.gateway.plan import BATCH, Plan
from proxy.gateway.request import GatewayRequest
from proxy.gateway.request_hold import RequestHold
from proxy.gateway.upstream.interruption import UpstreamError
from proxy.gateway.upstream.member import Member
from proxy.gateway.upstream.route import Served
from proxy.gateway.upstream.tenants import no_such_object
from proxy.web.rejections import Rejection, bad_gateway, forbidden, invalid, unavailable

BATCHES_PATH = b"/v1/batches"
WINDOW = "24h"
SENT_KIND = "batch_input"
"""Kind of a file that we made of a client's: no path leads to it."""
SENT_FILE_SECONDS = 2_592_000
"""Upstream deletes a sent file by itself after this, should we never come to it."""
LONGEST_ANSWER = 1_048_576
OK = 200
ACCEPT = b"Accept: application/json\r\nX-Client-Request-Id: %s\r\n"
UNKNOWN = "Whether upstream took this batch is not known yet. If so, it appears in GET /v1/batches: look there first."


class BatchExchange:
    """One request for a batch. `run()` is the line; everything else is a step of it."""

    def __init__(self, request: GatewayRequest) -> None:
        """Nothing is held yet."""
        self.request, self.services, self.settings = request, request.services, request.settings
        self._objects = request.services.tenants.objects
        self.hold = RequestHold(
            self.services, self.services.terms, request.request_id, request.started_ms, request.started, request
        )
        self._member = request.services.upstreams.default

    async def run(self) -> None:
        """Answer the request. Never raises but for cancellation."""
        self.request.endpoint = BATCHES_PATH.decode()
        await self.request.answer_by(self._run(), self.hold)  # of what was detached nothing is open

    async def _run(self) -> None:
        request, services, settings = self.request, self.services, self.settings
        key = request.key = await services.authenticator.authenticate(request.headers, request.peer)
        free = admit(settings, key.home_id, services.overloaded)
        await count_free_call(services, key, request.request_id + "_asked", request.started_ms)
        await check_standing(services, unhurried(key), request.request_id, request.started_ms, free=free)
        body = await request.client.read_body()
        if not settings.billing.allow_store:
            message = "A batch is made of files, and the operator has switched `billing.allow_store` off."
            raise forbidden(message, "storing_is_off")
        asked = await services.bodies.read(body, b"", _asked)
        endpoint = endpoint_of(asked.get("endpoint"))
        metadata = msgspec.json.encode(asked["metadata"]) if asked.get("metadata") else None
        self.hold.labels = labels_of(request.headers, None, metadata)
        if key.users is not None:
            key = request.key = await services.end_users.charged(key, self.hold.labels)
        file = Reference("file", asked["input_file_id"], "input_file_id")
        found = await services.tenants.find_owned(key.account_id, file)
        if found is None:
            raise no_such_object(file)
        self._run_at(pinned_member(services.upstreams, frozenset((found.upstream,)), region=key.region), key.home_id)
        terms = BatchTerms(
            key.account_id,
            key,
            settings,
            self.hold.terms.prices,
            endpoint,
            services.today(),
            self._check_place,
            None if self._member.plain else self._member.entry,
        )
        data = await self._read_file(file)
        planned = await self._hold(data, terms, free=free)
        await self.hold.wait_persisted()
        request.interruption.muted = True  # from here on a client that leaves is only noted
        sent = await self._send_file(planned.data)
        await self._begin(asked, sent, planned)
        await self._make(key.account_id, asked, sent)

    def _run_at(self, member: Member, account_id: str) -> None:
        """Run it where its file is kept, at the prices there."""
        hold, self._member = self.hold, member
        hold.terms = self.services.sold_to(account_id, self.services.terms_by[member.name], self.request.started_ms)
        hold.served = hold.told = Served(member.recorded)

    def _check_place(self, parsed: Parsed, context: StoredContext) -> None:
        """Refuse a line of which something is kept, or whose model is served, only elsewhere. Raises Rejection."""
        pinned_member(self.services.upstreams, context.upstreams | {self._member.recorded}, parsed.model)

    async def _hold(self, data: bytes, terms: BatchTerms, *, free: bool) -> PlannedBatch:
        """Plan all lines and hold for them: bounded by bytes, and counted where money is short. Raises Rejection."""
        services, key = self.services, unhurried(terms.key)
        planned = await plan_lines(data, terms, services.tenants)
        try:
            await self.hold.hold(_whole(planned), key, free=free, wait=False)
        except Rejection as rejection:
            if rejection.status != 402:
                raise
        else:
            return planned
        planned = await plan_lines(data, terms, services.tenants, services.tokenizer)
        await self.hold.hold(_whole(planned), key, free=free)
        return planned

    async def _read_file(self, file: Reference) -> bytes:
        """Read the client's file from upstream. Raises Rejection, UpstreamError."""
        limit = self.settings.listen.max_upload_bytes
        try:
            status, data = await self._ask("GET", f"/files/{file.id}/content", ACCEPT % self._id, b"", limit)
        except UpstreamError as error:
            if error.reason != "too_large":
                raise
            raise invalid(f"The file is larger than {limit} bytes.", "input_file_id", "file_too_large") from None
        if status == 404:
            await self._objects.forget(file.id)
            raise no_such_object(file)
        if status != OK:
            raise UpstreamError(f"status_{status // 100}xx", sent=True)
        return data

    async def _send_file(self, data: bytes) -> str:
        """Upload what upstream will run; return its id. Raises Rejection, UpstreamError."""
        boundary = os.urandom(16).hex().encode()
        fields = {b"purpose": b"batch", b"expires_after[anchor]": b"created_at"}
        fields[b"expires_after[seconds]"] = b"%d" % SENT_FILE_SECONDS
        parts = [
            b'--%b\r\nContent-Disposition: form-data; name="%b"\r\n\r\n%b\r\n' % (boundary, name, value)
            for name, value in fields.items()
        ]
        parts.append(
            b'--%b\r\nContent-Disposition: form-data; name="file"; filename="batch.jsonl"\r\n'
            b"Content-Type: application/jsonl\r\n\r\n" % boundary
        )
        body = b"".join((*parts, data, b"\r\n--%b--\r\n" % boundary))
        headers = ACCEPT % self._id + b"Content-Type: multipart/form-data; boundary=%b\r\n" % boundary
        status, answer = await self._ask("POST", "/files", headers, body, LONGEST_ANSWER)
        said: dict[str, Any] = decode_object(answer) or {}
        if status != OK or not isinstance(said.get("id"), str):
            raise self._refused(status, answer)
        return str(said["id"])

    async def _begin(self, asked: dict[str, Any], sent: str, planned: PlannedBatch) -> None:
        """Keep in SQL what is about to be made, and let go of the hold. Raises Rejection."""
        hold, objects, charge_id = self.hold, self._objects, self.request.request_id
        account_id = hold.key.account_id
        record = batch_record(hold, str(asked["endpoint"]), planned.lines)
        try:
            made = MadeObject(sent, SENT_KIND, size_bytes=len(planned.data))
            where = self._member.recorded
            await objects.record_owner(account_id, charge_id, [made], where)
            await objects.batches.begin(charge_id, account_id, asked["input_file_id"], sent, record, where)
        except StoreUnavailable:
            message = "Batches cannot be kept track of right now. Nothing was charged; try again shortly."
            raise unavailable(message, "store_unavailable") from None
        hold.detach()

    async def _make(self, account_id: str, asked: dict[str, Any], sent: str) -> None:
        """Ask upstream for the batch, and answer. Raises Rejection."""
        request, charge_id = self.request, self.request.request_id
        body = msgspec.json.encode({**asked, "input_file_id": sent})
        headers = ACCEPT % self._id + b"Content-Type: application/json\r\n"
        try:
            async with asyncio.timeout(making_seconds(self.settings)):
                status, answer = await self._ask("POST", "/batches", headers, body, LONGEST_ANSWER)
        except TimeoutError:
            raise bad_gateway(UNKNOWN, "upstream_first_byte_timeout", 504, worked_on=True) from None
        except UpstreamError as error:
            if error.sent:
                raise bad_gateway(UNKNOWN, f"upstream_{error.reason}", worked_on=True) from None
            await self._call_off()
            raise
        said: dict[str, Any] = decode_object(answer) or {}
        if status != OK or not isinstance(said.get("id"), str):
            if status < 500:
                await self._call_off()
                raise self._refused(status, answer)
            raise bad_gateway(UNKNOWN, "upstream_error", worked_on=True)  # it may run all the same
        try:
            batch = MadeObject(said["id"], "batch")
            await self._objects.record_owner(account_id, charge_id, [batch], self._member.recorded)
            await self._objects.batches.made(charge_id, said["id"])
            shown = await shown_bytes(self._objects.batches, answer)
        except StoreUnavailable:
            raise unavailable(UNKNOWN, "store_unavailable") from None
        request.status, request.outcome = OK, "background"
        held = str(display_credits(self.hold.amount)).encode()
        head = [(b"content-type", b"application/json"), (b"x-request-id", self._id), (b"x-credits-held", held)]
        await request.client.respond(OK, head, self.services.redactor.redact_key(shown))

    async def _call_off(self) -> None:
        """Give the money back: upstream did not take the batch. Where a store is away the poller finds that out."""
        hold = self.hold
        with contextlib.suppress(StoreUnavailable):
            await hold.resume(hold.plan, hold.key, hold.amount, free=hold.free)
            try:
                ends_here = await self._objects.batches.end(self.request.request_id)
            except StoreUnavailable:
                hold.detach()
                raise
            if ends_here:
                await hold.release()
            else:
                hold.forget()

    @property
    def _id(self) -> bytes:
        return self.request.request_id.encode()

    async def _ask(self, method: str, path: str, headers: bytes, body: bytes, limit: int) -> tuple[int, bytes]:
        """(status, whole body of at most `limit` bytes) of one request of ours. Raises UpstreamError, Interrupted."""
        trace = self.request.trace.lines
        interruption = self.request.interruption
        answer = await self._member.pool.send(method, path, headers + trace, body, interruption, lambda: None)
        try:
            return answer.head.status, await answer.collect(limit)
        finally:
            answer.close()

    def _refused(self, status: int, body: bytes) -> Rejection:
        """Upstream's refusal of a batch, in its own words where they are about the request."""
        services, metrics = self.services, self.services.metrics
        metrics.count(metrics.upstream_errors, f"status_{status // 100}xx")
        own, account = read_failure(status, body, services.redactor.redact_identity)
        report_account(services, account, status, self.request.request_id)
        if own is not None:
            return own
        found: dict[str, Any] = decode_object(services.redactor.redact_identity(body)) or {}
        error: dict[str, Any] = found["error"] if isinstance(found.get("error"), dict) else {}
        if not 400 <= status < 600 or not error:
            return bad_gateway("The upstream did not make the batch. Nothing was charged; try again.", "upstream_error")
        message, code, param = (str(error.get(name) or "") for name in ("message", "code", "param"))
        return Rejection(status, code or "upstream_error", message, param=param or None)


def _asked(body: bytes, _content_type: bytes) -> dict[str, Any]:
    """Body of a request for a batch. Raises Rejection."""
    read_members(body, BATCH_FIELDS)
    asked = whole(body)
    for name in ("input_file_id", "endpoint", "completion_window"):
        if name not in asked:
            raise invalid(f"Missing required parameter: {name!r}.", name, "missing_required_parameter")
        if not isinstance(asked[name], str):
            raise invalid(f"`{name}` must be a string.", name, "invalid_type")
    if asked["completion_window"] != WINDOW:
        raise invalid(f"`completion_window` must be {WINDOW}.", "completion_window")
    return asked


def _whole(planned: PlannedBatch) -> Plan:
    """Return the plan of all lines as one request."""
    return whole_plan(planned.name, planned.model, _ceiling(planned), planned.also)


def _ceiling(planned: PlannedBatch) -> Charge:
    return Charge(Millicredits(planned.amount), Millicredits(planned.cost), BATCH, msgspec.Raw(b"{}"))

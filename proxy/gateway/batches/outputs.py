"""Cost of a batch: each line of its output file by the same settlement as a live answer's, at batch prices.

The output is read as a stream, a line at a time; what was sent is kept in memory beside it, for what only a request
says (how long its cache writes live) and for counting where an answer has no usage.
"""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Iterator
from typing import Any, NamedTuple

import httpx
import msgspec

from billing.ledger.accounts import ApiKey, KeyRules
from billing.money.pricing import Bounds, Charge, ModelUsage
from billing.money.usage import Usage
from billing.money.usage_record import UsageSource
from proxy.gateway.answers.decode import decode_object
from proxy.gateway.answers.report import NO_REPORT, Report
from proxy.gateway.answers.reports import added
from proxy.gateway.answers.usage import count_of, details, read_tokens
from proxy.gateway.batches.lines import BATCH_TOOLS, BatchTerms, plan_line
from proxy.gateway.batches.record import BatchRecord
from proxy.gateway.bodies.json_body import mended
from proxy.gateway.bodies.parsed import NO_CONTEXT, Parsed, StoredContext
from proxy.gateway.endpoints import METERED
from proxy.gateway.plan import BATCH, NO_TOOLS, Plan
from proxy.gateway.services import PricingTerms, Services
from proxy.gateway.settlement import ObservedOutput, SettlementDecision, decide_settlement, echoed_model
from proxy.web.rejections import Rejection

log = logging.getLogger("tollkeeper.batches")

NEWLINE = b"\n"
YIELD_EVERY = 25
UPSTREAM: UsageSource = "upstream"
WEIGHT: dict[UsageSource, int] = {"upstream": 0, "counted": 1, "bounded": 2}


class _AnsweredLine(msgspec.Struct):
    status_code: int = 0
    body: msgspec.Raw = msgspec.Raw(b"")


class _Output(msgspec.Struct):
    custom_id: str = ""
    response: _AnsweredLine | None = None


class _Sent(msgspec.Struct):
    custom_id: str
    body: msgspec.Raw


class BatchCost(NamedTuple):
    """Usage and cost of a batch; `charge` None: nothing of it is billed."""

    usage: Usage
    source: UsageSource
    charge: Charge | None
    report: Report


_output = msgspec.json.Decoder(_Output)
_sent = msgspec.json.Decoder(_Sent)


class FileGone(Exception):
    """Upstream has no such file any more."""


class SentFile:
    """The file that upstream read, by custom_id."""

    def __init__(self, data: bytes) -> None:
        """Find the bodies of the lines in it."""
        self._bodies: dict[str, msgspec.Raw] = {}
        for line in data.split(NEWLINE):
            if line:
                read = _sent.decode(mended(line))
                self._bodies[read.custom_id] = read.body

    def take(self, custom_id: str) -> bytes:
        """Return a line's body, once; empty for one that is not there, or was taken."""
        return bytes(self._bodies.pop(custom_id, b""))


def _read_line(line: bytes) -> _Output | None:
    """Line of an output file, also where only strict parsers refuse it; None for what is no object."""
    try:
        return _output.decode(mended(line))
    except (msgspec.DecodeError, UnicodeDecodeError):
        raw = decode_object(line)
    if raw is None:
        return None
    answer = details(raw, "response")
    body = msgspec.Raw(json.dumps(answer.get("body")).encode())
    return _Output(str(raw.get("custom_id")), _AnsweredLine(count_of(answer, "status_code") or 0, body))


async def read_file(client: httpx.AsyncClient, file_id: str) -> AsyncIterator[bytes]:
    """Read a file in pieces. Raises FileGone, httpx.HTTPError."""
    async with client.stream("GET", f"/files/{file_id}/content") as answer:
        if answer.status_code == httpx.codes.NOT_FOUND:
            raise FileGone
        answer.raise_for_status()
        async for piece in answer.aiter_bytes():
            yield piece


async def lines_of(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Lines of a file, each whole; no more of it is kept than one line and a piece."""
    begun: list[bytes] = []
    async for piece in pieces:
        *ended, rest = piece.split(NEWLINE)
        for part in ended:
            yield b"".join((*begun, part))
            begun.clear()
        begun.append(rest)
    if last := b"".join(begun):
        yield last


class BatchSettlement:
    """The lines of one batch, added up."""

    def __init__(self, services: Services, terms: PricingTerms, record: BatchRecord, account_id: str) -> None:
        """Nothing is added yet."""
        self._services, self._terms, self._record = services, terms, record
        key = ApiKey(record.key_id, account_id, "active", KeyRules(), None)
        self._endpoint = METERED["POST", record.endpoint.encode()]
        # what was allowed when it was held for is paid for, whatever the settings say by now
        settings = services.settings
        billing = msgspec.structs.replace(
            settings.billing, model_allowlist=("*",), allow_store=True, allowed_tools=tuple(BATCH_TOOLS)
        )
        settings = msgspec.structs.replace(settings, billing=billing)
        self._line_terms = BatchTerms(account_id, key, settings, terms.prices, self._endpoint)
        self._running = terms.prices.running()
        self._usage, self._source, self._model = Usage(), UPSTREAM, ""

    async def read(self, client: httpx.AsyncClient, sent_id: str, output_id: str) -> None:
        """Add every line of an output file. Raises FileGone, httpx.HTTPError."""
        try:
            data = b"".join([piece async for piece in read_file(client, sent_id)])
        except FileGone:
            log.error("sent file %s is gone: its batch is charged by its answers alone", sent_id)  # noqa: TRY400 - said whole
            data = b""
        sent = await asyncio.to_thread(SentFile, data)
        number = 0
        async for line in lines_of(read_file(client, output_id)):
            await self._add(line, sent if data else None)
            number += 1
            if number % YIELD_EVERY == 0:
                await asyncio.sleep(0)

    async def _add(self, line: bytes, sent: SentFile | None) -> None:
        """Add one line. A line that failed costs nothing; one that is told twice is charged once."""
        read = _read_line(line)
        if read is None:
            if line.strip():
                log.error("a line of a batch's output cannot be read and is not charged")
            return
        answer = read.response
        if answer is None or answer.status_code // 100 != 2:
            return
        body = sent.take(read.custom_id) if sent is not None else b""
        if sent is not None and not body:
            return
        reading = self._endpoint.read(bytes(answer.body))
        if reading.refusal:
            return
        report = reading.report._replace(service_tier=None)  # an answer does not say that it was of a batch
        plan = self._plan(body, report)
        observed = ObservedOutput(reading.texts, errored=not reading.produced)
        held = plan.ceiling.amount
        decision = await decide_settlement(self._services, self._terms, plan, report, observed, held=held)
        if decision.outcome != "insured":
            self._add_decision(plan, decision)

    def _plan(self, body: bytes, report: Report) -> Plan:
        """Plan of a line again, out of what was sent."""
        if body:
            try:
                parsed = self._endpoint.parse(body, b"application/json")
                # how much that is may have been forgotten by now; the model's window bounds it
                context = StoredContext(None) if parsed.references else NO_CONTEXT
                return plan_line(parsed, self._line_terms, context)
            except Rejection as rejection:
                log.error("a line that was held for is refused now (%s)", rejection.code)  # noqa: TRY400 - said whole
        prices, name = self._terms.prices, report.model
        model = prices.find(name) or prices.find(self._record.model)
        if model is None or BATCH not in model.tiers:
            model = prices.find(self._record.model)
        if model is None:
            raise RuntimeError("the batch's model has a price, or it was not taken on")
        window = Bounds(model.context_window or 0, model.max_output_tokens or 0)
        parsed = Parsed(model=name or self._record.model, source=b"", estimated_input=0)
        ceiling = prices.ceiling(model, BATCH, window)
        return Plan(self._endpoint, parsed, model, BATCH, 0, False, 0, window, ceiling, NO_TOOLS)

    def _add_decision(self, plan: Plan, decision: SettlementDecision) -> None:
        usage, prices = decision.usage, self._terms.prices
        if decision.source == "bounded":  # nobody can believe it: never more than was held for
            most = plan.bounds
            usage = msgspec.structs.replace(
                usage,
                input_tokens=min(usage.input_tokens, most.input_tokens),
                output_tokens=min(usage.output_tokens, most.output_tokens),
            ).normalised()
        echoed = echoed_model(decision.report, plan, prices)
        model = echoed if BATCH in echoed.tiers else plan.model
        self._running.add(ModelUsage(model, BATCH, usage))
        self._usage = added(self._usage, usage)
        self._source = max(self._source, decision.source, key=WEIGHT.__getitem__)
        self._model = self._model or decision.report.model

    def add_total(self, batch: dict[str, Any]) -> None:
        """Add what the batch itself says that it used: for when its output file is gone.

        As of lines that are alike, since a long one costs more a token, and all of them together are no long one.
        """
        usage, model = read_tokens(batch.get("usage")), self._terms.prices.find(str(batch.get("model") or ""))
        if model is None or BATCH not in model.tiers:
            model = self._terms.prices.find(self._record.model)
        if usage is not None and model is not None and (usage.input_tokens or usage.output_tokens):
            counts = batch.get("request_counts")
            done = counts.get("completed") if isinstance(counts, dict) else None
            lines = min(done, self._record.lines) if type(done) is int and done > 0 else self._record.lines
            for part in _shares(usage, lines):
                self._running.add(ModelUsage(model, BATCH, part))
            self._usage = usage

    def cost(self, batch_id: str) -> BatchCost:
        """Return what was added, rounded once."""
        report = NO_REPORT._replace(model=self._model, upstream_id=batch_id)
        return BatchCost(self._usage, self._source, self._running.charge(self._usage), report)


def _shares(usage: Usage, lines: int) -> Iterator[Usage]:
    """Usage in so many shares, as even as whole tokens allow."""
    counts = {name: getattr(usage, name) for name in usage.__struct_fields__ if name != "calls"}
    for number in range(lines):
        yield Usage(**{name: count // lines + (number < count % lines) for name, count in counts.items()})

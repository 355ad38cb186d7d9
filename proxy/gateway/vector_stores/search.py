"""POST /v1/vector_stores/{id}/search: each query is held for and charged as one call of `file_search`.

    authenticate → read body → admit → owner of the store → hold → forward → settle → answer

What OpenAI takes for a search that no model made is not published (docs/openai.md#hosted-tools): at the price of those
that models make nobody searches at the operator's cost.
"""

import re
from typing import NoReturn

from billing.money.amounts import display_credits
from billing.money.catalogue.models import SEARCH
from billing.money.pricing import Bounds
from billing.money.usage import Usage
from billing.money.usage_record import Outcome
from proxy.gateway.access_log import report_account
from proxy.gateway.admission import admit
from proxy.gateway.answers.report import NO_REPORT
from proxy.gateway.answers.reports import free_report, reads
from proxy.gateway.answers.upstream_errors import error_in_answer, masked_body
from proxy.gateway.bodies.inventory import SEARCH_FIELDS
from proxy.gateway.bodies.parsed import Parsed, Reference
from proxy.gateway.bodies.responses import read_members, whole
from proxy.gateway.callers.labels import labels_of
from proxy.gateway.endpoints import SEARCHES
from proxy.gateway.plan import CALL_PRICES, NO_TOOLS, Plan
from proxy.gateway.request import GatewayRequest
from proxy.gateway.request_hold import RequestHold
from proxy.gateway.settlement import SettlementDecision
from proxy.gateway.upstream.answer import Answer
from proxy.gateway.upstream.route import Served
from proxy.gateway.upstream.tenants import no_such_object
from proxy.web.rejections import forbidden, invalid

SEARCH_PATH = re.compile(rb"/v1/vector_stores/([A-Za-z0-9_-]{1,110})/search")
MOST_QUERIES = 100
OK = 200
HEADERS = b"Content-Type: application/json\r\nAccept: application/json\r\nX-Client-Request-Id: %s\r\n"
TIER = "default"
FEE = CALL_PRICES["file_search"]
read_answer = reads(free_report)


def is_search(method: str, raw_path: bytes) -> bool:
    """Tell whether a request searches a vector store."""
    return method == "POST" and SEARCH_PATH.fullmatch(raw_path) is not None


class VectorSearch:
    """One search. `run()` is the line; everything else is a step of it."""

    def __init__(self, request: GatewayRequest) -> None:
        """Nothing is held yet."""
        self.request, self.services = request, request.services
        self.hold = RequestHold(
            self.services, self.services.terms, request.request_id, request.started_ms, request.started, request
        )
        self._member = request.services.upstreams.default

    async def run(self) -> None:
        """Answer the request. Never raises but for cancellation."""
        self.request.endpoint = SEARCHES.name
        await self.request.answer_by(self._run(), self.hold)

    async def _run(self) -> None:
        request, services = self.request, self.services
        key = request.key = await services.authenticator.authenticate(request.headers, request.peer)
        body = await request.client.read_body()
        free = admit(request.settings, key.home_id, services.overloaded)
        self.hold.labels = labels_of(request.headers, None, None)
        if key.users is not None:
            key = request.key = await services.end_users.charged(key, self.hold.labels)
        queries = count_queries(body)
        store = request.path.split(b"/")[3].decode()
        reference = Reference("vector_store", store, "vector_store_id")
        found = await services.tenants.find_owned(key.account_id, reference)
        if found is None:
            raise no_such_object(reference, storing=request.settings.billing.allow_store)
        member = self._member = services.upstreams.kept_at(found.upstream)
        self.hold.terms = services.sold_to(key.home_id, services.terms_by[member.name], request.started_ms)
        self.hold.served = self.hold.told = Served(member.recorded)
        await self.hold.hold(self._plan(body, queries), key, free=free)
        await self._forward(body, queries)

    def _plan(self, body: bytes, queries: int) -> Plan:
        """Plan of so many calls. Raises Rejection where a call has no price."""
        prices = self.hold.terms.prices
        if not prices.prices_call(FEE):
            raise forbidden(
                "Searches are not offered here: the rate card has no price for them.", "search_has_no_price"
            )
        model, bounds = prices.service(SEARCH), Bounds(0, 0, calls=((FEE, queries),))
        parsed = Parsed(model=SEARCH, source=body, choices=0)
        ceiling = prices.ceiling(model, TIER, bounds)
        return Plan(SEARCHES, parsed, model, TIER, 0, False, 0, bounds, ceiling, NO_TOOLS)

    async def _forward(self, body: bytes, queries: int) -> None:
        """Send, read, settle, answer. What upstream does not answer is released by the caller."""
        request, services = self.request, self.services
        request.interruption.muted = True  # what was sent is searched, whether or not its client is still there
        headers = HEADERS % request.request_id.encode() + request.trace.lines
        path = request.path.decode().removeprefix("/v1")
        answer = await self._member.pool.send(
            "POST", path, headers, body, request.interruption, self.hold.checkpoint_sent
        )
        try:
            if answer.head.status != OK:
                await self.hold.release(refused=True)
                await request.pass_error(answer)
                return
            found = await answer.collect()
        finally:
            answer.close()
        if read_answer(found).refusal:
            await self._refuse(found)
        await self._settle(answer, queries)
        account, found = masked_body(services.redactor.redact_key(found))
        report_account(services, account, OK, request.request_id)
        shown = services.redactor.headers(answer.head.headers, request.request_id) + request.own_headers()
        shown.append((b"x-credits-charged", str(display_credits(self.hold.charged)).encode()))
        if (settled := self.hold.settled) is not None and self.hold.key.sees_balance:
            left = display_credits(settled.balance - settled.held)
            shown.append((b"x-credits-remaining", str(left).encode()))
        request.status = OK
        request.count_first_byte()
        await request.client.respond(OK, shown, found)

    async def _settle(self, answer: Answer, queries: int) -> None:
        hold, request = self.hold, self.request
        await hold.wait_persisted()
        usage = Usage(calls=((FEE, queries),))
        charge = hold.terms.prices.price(hold.plan.model, TIER, usage)
        outcome: Outcome = "client_gone" if request.interruption.reason else "completed"
        request.outcome = request.outcome or outcome
        decision = SettlementDecision(usage, "upstream", outcome, charge, NO_REPORT)
        await hold.charge(decision, answer.head.headers, request.first_byte_ms)

    async def _refuse(self, found: bytes) -> NoReturn:
        """Tell a 200 that is no answer as the error that it is. Raises Rejection."""
        await self.hold.release()
        account, rejection = error_in_answer(self.services.redactor.redact_identity(found))
        report_account(self.services, account, OK, self.request.request_id)
        raise rejection


def count_queries(body: bytes) -> int:
    """Count the queries of a search. Raises Rejection."""
    query = whole(read_members(body, SEARCH_FIELDS).text).get("query")
    queries = query if isinstance(query, list) else [query]
    if query in (None, "", []):
        raise invalid("Missing required parameter: 'query'.", "query", "missing_required_parameter")
    if len(queries) > MOST_QUERIES or not all(isinstance(one, str) for one in queries):
        raise invalid(f"`query` must be a string, or a list of at most {MOST_QUERIES}.", "query", "invalid_type")
    return len(queries)

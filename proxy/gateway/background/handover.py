"""A background response on its way from its request to the poller: written down, then let go of."""

import asyncio
import contextlib

from billing.money.errors import StoreUnavailable
from proxy.gateway.background.pending import pending_record
from proxy.gateway.request_hold import RequestHold
from proxy.gateway.services import Services
from proxy.gateway.settlement import count_input
from proxy.gateway.upstream.interruption import Interruption, UpstreamError
from proxy.web.rejections import Rejection, unavailable

CANCEL_SECONDS = 5.0


async def hand_over(services: Services, hold: RequestHold, response_id: str) -> None:
    """Write down whose it is and what settling it needs, before anyone sees its id; from here on the poller holds.

    Raises Rejection when that cannot be written: then it is cancelled upstream, and nothing is held.
    """
    tenants, account_id = services.tenants, hold.key.account_id
    counted = await count_input(services.tokenizer, hold.plan)
    record = pending_record(hold.facts(hold.plan), hold.terms, counted, hold.share)
    try:
        where = hold.served.upstream
        parsed = hold.plan.parsed
        await tenants.record_begun(account_id, hold.request_id, response_id, parsed, upstream=where)
        await tenants.objects.begin_background(response_id, hold.request_id, account_id, record, where)
    except StoreUnavailable:
        await _cancel(services, hold.served.upstream, response_id)
        await hold.release()
        message = "Background responses cannot be kept track of right now. Try again shortly."
        raise unavailable(message, "store_unavailable") from None
    hold.detach()
    with contextlib.suppress(Rejection):  # killed before that is on disk, it would be charged its input instead
        await hold.wait_persisted()


async def _cancel(services: Services, upstream: str, response_id: str) -> None:
    """Stop what nobody would ask about: it would cost us all of its answer."""
    headers = b"Content-Type: application/json\r\nAccept: application/json\r\n"
    with contextlib.suppress(UpstreamError, TimeoutError):
        async with asyncio.timeout(CANCEL_SECONDS):
            path = f"/responses/{response_id}/cancel"
            pool = services.upstreams.kept_at(upstream).pool
            answer = await pool.send("POST", path, headers, b"", Interruption(), lambda: None)
            try:
                await answer.collect()
            finally:
                answer.close()

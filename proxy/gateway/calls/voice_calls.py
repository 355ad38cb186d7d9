"""The calls of this process: opened, their leases renewed, ended with it; and those that nobody meters any more."""

import asyncio
import contextlib

from billing.ledger.accounts import ApiKey
from billing.ledger.objects.realtime_calls import RealtimeCalls
from billing.money.errors import StoreUnavailable
from proxy.gateway.calls.call import Call
from proxy.gateway.calls.session_config import CallConfig
from proxy.gateway.calls.upstream_calls import CallNotTaken, hang_up
from proxy.gateway.request import GatewayRequest
from proxy.gateway.services import Services
from proxy.gateway.upstream.route import Needs, Route
from proxy.web.rejections import Rejection

TEND_SECONDS = 1.0
SWEEP_SECONDS = 1.0
RENEWALS = 3
"""Renewals within a lease."""
NOT_ANY_MORE = (401, 403)


class VoiceCalls:
    """Opens calls, and looks after them."""

    def __init__(self, services: Services, store: RealtimeCalls) -> None:
        """No call runs yet."""
        self.store = store
        self._services = services
        self._lease_ms = services.settings.advanced.hold_lease_seconds * 1_000
        self._running: dict[str, Call] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._renewed = 0.0
        self._closing = False

    async def open(
        self, request: GatewayRequest, key: ApiKey, digest: str, config: CallConfig, sdp: bytes
    ) -> tuple[str, bytes]:
        """Open a call; return (its id, the SDP answer). From then on it is metered. Raises as Call.open."""
        needs = Needs(config.model, key.region, socket=True, home=key.account_id)
        call, answer = await self._open_first(request, self._services.upstreams.route(needs), key, digest, config, sdp)
        self._running[call.call_id] = call
        task = self._tasks[call.call_id] = asyncio.create_task(call.run())
        task.add_done_callback(lambda _: self._forget(call.call_id))
        if self._closing:
            call.interruption.fire("shutdown")
        return call.call_id, answer

    async def _open_first(
        self, request: GatewayRequest, route: Route, key: ApiKey, digest: str, config: CallConfig, sdp: bytes
    ) -> tuple[Call, bytes]:
        """Open it at the first upstream that takes it; it is held for anew at each."""
        members = route.members[: request.settings.failover.tries]
        while True:
            member = members.pop(0)
            call = Call(request, self.store, key, digest, member)
            try:
                return call, await call.open(config, sdp, self._lease_ms)
            except CallNotTaken as refused:
                if not members or request.interruption.reason:
                    raise refused.error from None

    def _forget(self, call_id: str) -> None:
        self._running.pop(call_id, None)
        self._tasks.pop(call_id, None)

    async def hang_up(self, call_id: str) -> bool:
        """End a call, wherever it is metered: who meters it hears that it has ended. False: OpenAI did not."""
        call, task = self._running.get(call_id), self._tasks.get(call_id)
        if call is None or task is None:
            return await self._hang_up_there(call_id)
        call.stop()
        await asyncio.wait((task,))
        return True

    async def _hang_up_there(self, call_id: str) -> bool:
        """End a call that is not metered here, at the upstream that it runs at. Raises StoreUnavailable.

        Where that is not configured any more, who meters the call hangs it up: it finds it ended (see `tend`).
        """
        member = self._services.upstreams.find(await self.store.upstream_of(call_id))
        return member is None or await hang_up(member, call_id)

    async def tend(self) -> int:
        """Renew the leases, and end the calls whose keys may not be used any more, or that somebody has ended in the
        records. Raises StoreUnavailable.
        """
        for call in list(self._running.values()):
            try:
                await self._services.authenticator.check(call.digest, [])
            except Rejection as rejection:
                if rejection.status in NOT_ANY_MORE:
                    call.stop()
        now = asyncio.get_running_loop().time()
        if self._running and now - self._renewed >= self._lease_ms / 1_000 / RENEWALS:
            await self.store.renew(list(self._running), self._lease_ms)
            self._renewed = now
        for call_id in await self.store.ended(list(self._running)) if self._running else ():
            if (ended := self._running.get(call_id)) is not None:
                ended.stop()
        return 0

    async def sweep(self) -> int:
        """Hang up the calls that nobody meters; return how many. Raises StoreUnavailable."""
        ended = 0
        for call_id in await self.store.abandoned():
            if call_id not in self._running and await self._hang_up_there(call_id):
                await self.store.end(call_id)
                ended += 1
        return ended

    async def close(self) -> None:
        """End every call: this process stops."""
        self._closing = True
        tasks = list(self._tasks.values())
        for call in list(self._running.values()):
            call.interruption.fire("shutdown")
        if tasks:
            with contextlib.suppress(StoreUnavailable):
                await asyncio.wait(tasks)

"""Calls of this process, as others end them: in the records, which all processes share."""

from types import SimpleNamespace
from typing import Any, cast

from billing.ledger.accounts import Accounts
from billing.ledger.objects.realtime_calls import RealtimeCalls
from config.load import parse_settings
from proxy.gateway.calls.voice_calls import VoiceCalls
from tests.support.stores import Books


class _Call:
    digest = "digest"
    stopped = False

    def stop(self) -> None:
        self.stopped = True


async def test_a_call_that_another_process_ended_is_stopped_by_the_one_that_meters_it(sql: Books) -> None:
    """Its upstream was removed: who was asked to hang up cannot reach it, and says in the records that it has ended."""

    async def check(_digest: str, _headers: list[Any]) -> None:
        return None

    services = SimpleNamespace(
        settings=parse_settings(b"", "none", {}),
        authenticator=SimpleNamespace(check=check),
        upstreams=SimpleNamespace(find=lambda _recorded: None),
    )
    store, account = RealtimeCalls(sql.database), await Accounts(sql.database).create("test")
    mine, theirs = (VoiceCalls(cast("Any", services), store) for _ in range(2))
    running = {name: _Call() for name in ("rtc_1", "rtc_2")}
    for name in running:
        await store.begin(name, account, 60_000, "removed")
    mine._running = cast("Any", dict(running))
    assert await theirs.hang_up("rtc_1")
    await store.end("rtc_1")  # as the route does
    await mine.tend()
    assert [call.stopped for call in running.values()] == [True, False]

"""What is old is deleted upstream, whatever cannot be deleted now."""

from types import SimpleNamespace
from typing import Any, cast

import httpx
import pytest

from billing.ledger.objects.upstream_objects import MadeObject, UpstreamObjects
from config.settings import Settings, Storage
from proxy.gateway.background import expiry
from proxy.gateway.background.expiry import ObjectExpiry
from proxy.gateway.services import Services
from tests.support.stores import Books


def services_of(books: Books, refused: frozenset[str]) -> tuple[Services, list[str]]:
    """Services of two upstreams: one is away, one does not delete what is `refused`."""
    deleted: list[str] = []

    def handle(request: httpx.Request) -> httpx.Response:
        name = request.url.path.rpartition("/")[2]
        if name in refused:
            return httpx.Response(409)
        deleted.append(name)
        return httpx.Response(200)

    def client_of(name: str) -> Any:
        if name == "away":
            raise httpx.ConnectError("it is gone")
        return httpx.AsyncClient(transport=httpx.MockTransport(handle), base_url="http://upstream/v1")

    found = SimpleNamespace(
        settings=Settings(storage=Storage(keep_days=1)),
        tenants=SimpleNamespace(objects=UpstreamObjects(books.database)),
        upstreams=SimpleNamespace(client=client_of),
    )
    return cast("Services", found), deleted


async def test_what_cannot_be_deleted_keeps_nothing_behind_it(books: Books, monkeypatch: pytest.MonkeyPatch) -> None:
    """An upstream that was taken out of the configuration, say, or objects that the upstream keeps."""
    monkeypatch.setattr(expiry, "AT_ONCE", 2)
    monkeypatch.setattr(expiry, "DAY_MS", -1_000)  # everything is older than that
    account = await books.account()
    objects = UpstreamObjects(books.database)
    for number, where in enumerate(("away", "away", "", "", "", "")):
        await objects.record_owner(account, "req_1", [MadeObject(f"file_{number}", "file")], where)
    services, deleted = services_of(books, frozenset(("file_2",)))
    step = ObjectExpiry(services).step
    for _ in range(4):
        await step()
    assert sorted(deleted) == ["file_3", "file_4", "file_5"]
    assert (await objects.find("file_0")) is not None
    deleted.clear()
    for _ in range(3):
        await step()
    assert deleted == [], "what is gone is forgotten; what could not be deleted is tried again"

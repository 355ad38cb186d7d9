"""Endpoints: their secrets are kept nowhere, rotate with a grace, and who is removed is sent nothing more."""

import pytest
from sqlalchemy import text

from billing.ledger.audit_log import AuditLog
from billing.ledger.events.endpoints import BadEndpoint, EndpointNotFound, EventEndpoints, secrets_of
from billing.ledger.events.kinds import KINDS, is_kind, wants
from billing.ledger.notices import Notice, NoticeQueue
from billing.storage.database import now_ms
from billing.storage.installation import event_secret
from tests.support.events import ANN
from tests.support.stores import Books

URL = "https://app.example.com/events?token=secret-of-theirs"


async def test_a_secret_is_kept_nowhere_and_two_sign_while_a_rotations_grace_lasts(sql: Books) -> None:
    endpoints, root = EventEndpoints(sql.database), await event_secret(sql.database)
    row, first = await endpoints.add(URL, ("*",), "our app", ANN)
    assert secrets_of(root, row, now_ms()) == [first]
    second = await endpoints.rotate(row.id, 60_000, ANN)
    now, row = now_ms(), await endpoints.get(row.id)
    assert secrets_of(root, row, now) == [second, first]
    assert secrets_of(root, row, now + 61_000) == [second]
    third = await endpoints.rotate(row.id, 0, ANN)
    assert secrets_of(root, await endpoints.get(row.id), now_ms() + 1) == [third]
    assert len({first, second, third}) == 3
    async with sql.database.read() as connection:
        kept = str((await connection.execute(text("SELECT * FROM event_endpoints"))).all())
    log = str([row async for row in AuditLog(sql.database).rows()])
    assert not any(secret in kept + log for secret in (first, second, third))
    assert "secret-of-theirs" not in log
    assert [row.action async for row in AuditLog(sql.database).rows()] == ["endpoint.add", *["endpoint.rotate"] * 2]


async def test_who_is_removed_is_sent_nothing_more_also_not_what_waits(sql: Books) -> None:
    endpoints, queue, account = (
        EventEndpoints(sql.database),
        NoticeQueue(sql.database, wanted=False),
        await sql.account(),
    )
    row, _ = await endpoints.add(URL, ("key.*",), "", ANN)
    async with sql.database.write() as connection:
        await queue.write(connection, [Notice("k1", account, "key.created", {})])
    await endpoints.remove(row.id, ANN, "a test")
    assert [(one.state, one.event_id) for one in await queue.listing(None, 9)] == [("dead", "k1")]
    fresh = NoticeQueue(sql.database, wanted=False)
    assert not await fresh.is_heard("key.created")
    for change in (endpoints.get(row.id), endpoints.rotate(row.id, 0, ANN), endpoints.remove(row.id, ANN)):
        with pytest.raises(EndpointNotFound):
            await change


async def test_an_endpoint_changes_by_what_is_named(sql: Books) -> None:
    endpoints = EventEndpoints(sql.database)
    row, _ = await endpoints.add(URL, ("*",), "ours", ANN)
    changed = await endpoints.change(row.id, {"kinds": ("balance.low",), "disabled": True}, ANN)
    assert (changed.patterns, changed.url, changed.description) == (("balance.low",), URL, "ours")
    assert changed.disabled_at is not None
    assert (await endpoints.change(row.id, {"disabled": False}, ANN)).disabled_at is None


@pytest.mark.parametrize("kinds", [(), ("nothing",), ("key.*", "balance.high"), ("key.created",) * 51])
async def test_kinds_that_there_are_not_are_refused(kinds: tuple[str, ...], sql: Books) -> None:
    with pytest.raises(BadEndpoint):
        await EventEndpoints(sql.database).add(URL, kinds, "", ANN)


def test_a_pattern_names_kinds_but_never_the_one_by_choice() -> None:
    assert {kind for kind in KINDS if wants(("*",), kind)} == KINDS.keys() - {"usage.charged"}
    assert not wants(("usage.*",), "usage.charged")
    assert wants(("usage.charged",), "usage.charged")
    assert wants(("key.*", "balance.low"), "balance.low")
    assert is_kind("usage.charged")
    assert not is_kind("balance.")

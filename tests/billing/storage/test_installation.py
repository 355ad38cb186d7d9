"""Secrets of the installation, in both databases."""

import asyncio

from billing.storage.installation import tenant_secret
from tests.support.stores import Books


async def test_the_first_secret_is_kept_whoever_asks_with_what(sql: Books) -> None:
    first = set(await asyncio.gather(*(tenant_secret(sql.database, bytes([number]) * 32) for number in range(4))))
    assert len(first) == 1
    assert first <= {bytes([number]) * 32 for number in range(4)}
    assert {await tenant_secret(sql.database), await tenant_secret(sql.database, b"another" * 4)} == first


async def test_a_new_installation_has_a_random_one(sql: Books) -> None:
    found = await tenant_secret(sql.database)
    assert len(found) == 32
    assert len(set(found)) > 8

"""A machine that nobody reaches and that reaches nobody, without a word: others go on with what it held."""

from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import make_url, text

from billing.ledger.accounts import Accounts
from billing.money.errors import StoreUnavailable
from billing.storage.database import Database
from tests.properties.proof import cut_off
from tests.support.fault_proxy import FaultProxy

SEED = 20_261_201


@pytest.mark.timeout(300)
def test_what_a_machine_held_that_was_cut_off_is_charged_once_and_whole(new_folder: Callable[[str], Path]) -> None:
    figures = cut_off.cut_off(new_folder("cut"), 1, SEED)
    assert figures["of them settled late, for the rest"], "none was served further than the others knew"


async def test_a_transaction_of_a_machine_that_was_cut_off_keeps_no_rows_from_others(
    fresh_postgres: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("billing.storage.database.LET_GO_SECONDS", 1)
    place = make_url(fresh_postgres)
    others = Database(fresh_postgres, 1, 10)
    account = await Accounts(others).create("before")
    rename = text("UPDATE accounts SET name = :name WHERE id = :id")
    with FaultProxy(f"{place.query['host']}/.s.PGSQL.5432", 2**30, 0) as way:
        cut = Database(f"postgresql+asyncpg://postgres:@127.0.0.1:{way.port}/{place.database}", 1, 2)
        with pytest.raises(StoreUnavailable):
            async with cut.write() as connection:
                await connection.execute(rename, {"name": "cut off", "id": account})
                way.cut()
                async with others.write() as another:
                    await another.execute(rename, {"name": "another", "id": account})
                way.mend()
        async with others.read() as connection:
            found = (await connection.execute(text("SELECT name FROM accounts"))).scalar_one()
        await cut.close()
    await others.close()
    assert found == "another", "what came too late is not written over it"

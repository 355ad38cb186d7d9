"""Usage summed up: whatever the groups, the sums are the ledger's, also of days whose rows were dropped. On both databases."""

from itertools import chain, combinations

import pytest

from billing.accounting.usage_summary import GROUPS, TooManyGroups, UsageSummaries
from billing.jobs.retention import drop_detail
from billing.ledger.usage_rows import UsageFilters
from tests.support.charges import MODELS, NOW
from tests.support.stores import Books

DAY = 86_400_000
ALL = [list(some) for some in chain.from_iterable(combinations(GROUPS, size) for size in range(len(GROUPS) + 1))]
"""Every choice of groups; the rows have no tags, so no request is in two groups."""


@pytest.mark.parametrize("dropped", [False, True])
async def test_sums_by_any_groups_are_the_charges_also_of_dropped_rows(
    busy: tuple[Books, str], *, dropped: bool
) -> None:
    books, account = busy
    rows = await books.ledger.usage_of(account, 100)
    if dropped:
        assert (await drop_detail(books.database, 3, NOW)).rows == 3
    summaries = UsageSummaries(books.database)
    for groups in ALL:
        found = await summaries.sums(UsageFilters(), groups, account)
        assert sum(one.charged for one in found) == sum(row.charged_millicredits for row in rows), groups
        assert sum(one.requests for one in found) == len(rows) == 7
        assert sum(one.input_tokens for one in found) == sum(row.input_tokens for row in rows)
        assert sum(one.cost for one in found) == sum(row.cost_millicredits for row in rows)
        assert [one.group for one in found] == sorted({one.group for one in found})
    days = await summaries.sums(UsageFilters(), ["day"], account)
    assert [one.group[0] for one in days] == sorted({row.created_at // DAY for row in rows})
    by_model = {one.group[0]: one.charged for one in await summaries.sums(UsageFilters(), ["model"], account)}
    assert by_model == {
        model: sum(row.charged_millicredits for row in rows if row.model == model)
        for model in {row.model for row in rows}
    }
    endpoints = {one.group[0] for one in await summaries.sums(UsageFilters(), ["endpoint"], account)}
    assert endpoints == {rows[0].endpoint}


async def test_filters_and_accounts_keep_apart(busy: tuple[Books, str]) -> None:
    books, account = busy
    summaries, rows = UsageSummaries(books.database), await books.ledger.usage_of(account, 100)
    assert await summaries.sums(UsageFilters(), ["day"], "acct_other") == []
    (everyone,) = await summaries.sums(UsageFilters(), ["account"], None)
    assert (everyone.group, everyone.requests) == ((account,), 7)
    middle = rows[3].created_at
    (some,) = await summaries.sums(UsageFilters(since_ms=middle, until_ms=middle + 1), [], account)
    assert some.requests == 1
    (mine,) = await summaries.sums(UsageFilters(model=MODELS[0]), ["model"], account)
    assert mine.group == (MODELS[0],)
    assert await summaries.sums(UsageFilters(endpoint="/v1/none"), ["model"], account) == []


async def test_too_many_groups_are_refused_and_pages_go_through_every_row(
    busy: tuple[Books, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    books, account = busy
    summaries = UsageSummaries(books.database)
    monkeypatch.setattr("billing.accounting.usage_summary.PAGE", 3)
    pages = [page async for page in summaries.requests(UsageFilters(), account)]
    assert [len(page) for page in pages] == [3, 3, 1]
    assert [row for page in pages for row in page] == await books.ledger.usage_of(account, 100)
    # of everybody an hour at a time, so that no page sorts more than that
    hours = await summaries._hours(UsageFilters())
    assert max((one.until_ms or 0) - (one.since_ms or 0) for one in hours) <= 3_600_000
    everybody = [page async for page in summaries.requests(UsageFilters(), None)]
    assert [row for page in everybody for row in page] == await books.ledger.usage_of(account, 100)
    assert [page async for page in summaries.requests(UsageFilters(model="none"), None)] == []
    monkeypatch.setattr("billing.accounting.usage_summary.MOST_GROUPS", 6)
    with pytest.raises(TooManyGroups):
        await summaries.sums(UsageFilters(), ["day"], account)
    assert len(await summaries.sums(UsageFilters(), ["model"], account)) == len(MODELS)

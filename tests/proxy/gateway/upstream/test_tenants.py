"""Objects of one account are never another's (I8), in whatever order a request names them."""

from typing import cast

import pytest

from billing.ledger.upstream_objects import MadeObject, OwnedObject, UpstreamObjects
from billing.money.usage import Usage
from config.secrets import Secret
from proxy.gateway.answers.report import NO_REPORT
from proxy.gateway.bodies.parsed import Parsed, Reference
from proxy.gateway.upstream.tenants import Tenants
from proxy.web.rejections import Rejection

MINE, THEIRS = "acct_mine", "acct_theirs"


class Kept:
    """Objects by id, as SQL would find them."""

    def __init__(self, **owned: OwnedObject) -> None:
        self.owned = owned
        self.recorded: list[MadeObject] = []

    async def record_owner(self, _account_id: str, _charge_id: str, made: list[MadeObject]) -> None:
        self.recorded += made

    async def find(self, object_id: str) -> OwnedObject | None:
        return self.owned.get(object_id)


def tenants(**owned: OwnedObject) -> Tenants:
    return Tenants(cast("UpstreamObjects", Kept(**owned)), Secret("sk-upstream"))


def response(account: str, tokens: int | None) -> OwnedObject:
    return OwnedObject("response", account, "req_1", tokens, deleted=False)


def named(*ids: str) -> tuple[Reference, ...]:
    return tuple(Reference("response", one, "input") for one in ids)


async def test_the_tokens_of_responses_that_a_request_builds_on_are_summed() -> None:
    kept = tenants(resp_a=response(MINE, 100), resp_b=response(MINE, 20))
    assert await kept.context(MINE, named("resp_a", "resp_b")) == 120


@pytest.mark.parametrize("foreign", ["resp_theirs", "resp_never"])
async def test_an_object_of_unknown_size_hides_no_foreign_one_behind_it(foreign: str) -> None:
    kept = tenants(resp_unsized=response(MINE, None), resp_theirs=response(THEIRS, 5))
    assert await kept.context(MINE, named("resp_unsized")) is None
    for order in (("resp_unsized", foreign), (foreign, "resp_unsized")):
        with pytest.raises(Rejection) as refused:
            await kept.context(MINE, named(*order))
        assert (refused.value.status, refused.value.code) == (404, "response_not_found")


async def test_pictures_count_by_the_rule_of_the_model_that_reads_them() -> None:
    made = response(MINE, 3_000)._replace(model="gpt-4.1", picture_extra=100_000)
    kept = tenants(resp_a=made)
    assert await kept.context(MINE, named("resp_a"), "gpt-4.1-2025-04-14") == 3_000
    assert await kept.context(MINE, named("resp_a"), "gpt-4o-mini") == 103_000


async def test_a_response_that_builds_on_pictures_hands_them_on() -> None:
    made = response(MINE, 3_000)._replace(model="gpt-4.1", picture_extra=100_000)
    kept = tenants(resp_a=made)
    parsed = Parsed(model="gpt-4.1", source=b"", picture_extra=5, references=named("resp_a"))
    report = NO_REPORT._replace(upstream_id="resp_b")
    await kept.record_made(MINE, "req_2", report, Usage(input_tokens=3_010, output_tokens=10), parsed)
    (recorded,) = kept.objects.recorded  # type: ignore[attr-defined]
    assert (recorded.context_tokens, recorded.model, recorded.picture_extra) == (3_020, "gpt-4.1", 100_005)

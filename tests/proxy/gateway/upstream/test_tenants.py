"""Objects of one account are never another's (I8), in whatever order a request names them."""

from typing import cast

import pytest

from billing.ledger.upstream_objects import OwnedObject, UpstreamObjects
from config.secrets import Secret
from proxy.gateway.bodies.parsed import Reference
from proxy.gateway.upstream.tenants import Tenants
from proxy.web.rejections import Rejection

MINE, THEIRS = "acct_mine", "acct_theirs"


class Kept:
    """Objects by id, as SQL would find them."""

    def __init__(self, **owned: OwnedObject) -> None:
        self.owned = owned

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

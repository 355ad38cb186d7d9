"""Objects of one account are never another's (I8), in whatever order a request names them."""

from typing import cast

import pytest

from billing.ledger.objects.upstream_objects import MadeObject, OwnedObject, UpstreamObjects
from billing.money.usage import Usage
from proxy.gateway.answers.report import NO_REPORT
from proxy.gateway.bodies.parsed import Parsed, Reference, StoredContext
from proxy.gateway.upstream.tenants import Tenants
from proxy.web.rejections import Rejection

MINE, THEIRS = "acct_mine", "acct_theirs"
HERE = frozenset(("",))


class Kept:
    """Objects by id, as SQL would find them."""

    def __init__(self, **owned: OwnedObject) -> None:
        self.owned = owned
        self.recorded: list[MadeObject] = []

    async def record_owner(
        self, _account_id: str, _charge_id: str, made: list[MadeObject], _upstream: str = ""
    ) -> None:
        self.recorded += made

    async def find(self, object_id: str) -> OwnedObject | None:
        return self.owned.get(object_id)


def tenants(**owned: OwnedObject) -> Tenants:
    return Tenants(cast("UpstreamObjects", Kept(**owned)), b"a secret")


def response(account: str, tokens: int | None) -> OwnedObject:
    return OwnedObject("response", account, "req_1", tokens, deleted=False)


def named(*ids: str) -> tuple[Reference, ...]:
    return tuple(Reference("response", one, "input") for one in ids)


async def test_the_tokens_of_responses_that_a_request_builds_on_are_summed() -> None:
    kept = tenants(resp_a=response(MINE, 100), resp_b=response(MINE, 20))
    assert await kept.context(MINE, named("resp_a", "resp_b")) == StoredContext(120, upstreams=HERE)


async def test_earlier_speech_is_heard_again_and_gone_when_it_is() -> None:
    said = OwnedObject("audio", MINE, "req_1", 300, deleted=False)
    kept = tenants(audio_a=said, audio_b=said._replace(deleted=True))
    both = (Reference("audio", "audio_a", "messages"), Reference("audio", "audio_a", "messages"))
    assert await kept.context(MINE, both) == StoredContext(0, sound=600, upstreams=HERE)
    for name in ("audio_b", "audio_never"):
        with pytest.raises(Rejection) as refused:
            await kept.context(MINE, (Reference("audio", name, "messages"),), storing=False)
        assert (refused.value.status, refused.value.code) == (404, "audio_not_found")
        assert "allow_store" not in refused.value.message, "speech is kept whatever is stored"


@pytest.mark.parametrize("foreign", ["resp_theirs", "resp_never"])
async def test_an_object_of_unknown_size_hides_no_foreign_one_behind_it(foreign: str) -> None:
    kept = tenants(resp_unsized=response(MINE, None), resp_theirs=response(THEIRS, 5))
    assert (await kept.context(MINE, named("resp_unsized"))).tokens is None
    for order in (("resp_unsized", foreign), (foreign, "resp_unsized")):
        with pytest.raises(Rejection) as refused:
            await kept.context(MINE, named(*order))
        assert (refused.value.status, refused.value.code) == (404, "response_not_found")


async def test_pictures_count_by_the_rule_of_the_model_that_reads_them() -> None:
    made = response(MINE, 3_000)._replace(model="gpt-4.1", picture_extra=100_000)
    kept = tenants(resp_a=made)
    assert await kept.context(MINE, named("resp_a"), "gpt-4.1-2025-04-14") == StoredContext(3_000, upstreams=HERE)
    assert await kept.context(MINE, named("resp_a"), "gpt-4o-mini") == StoredContext(103_000, upstreams=HERE)


async def test_a_response_that_builds_on_pictures_hands_them_on() -> None:
    made = response(MINE, 3_000)._replace(model="gpt-4.1", picture_extra=100_000)
    kept = tenants(resp_a=made)
    parsed = Parsed(model="gpt-4.1", source=b"", picture_extra=5, references=named("resp_a"))
    report = NO_REPORT._replace(upstream_id="resp_b")
    await kept.record_made(MINE, "req_2", report, Usage(input_tokens=3_010, output_tokens=10), parsed)
    (recorded,) = kept.objects.recorded  # type: ignore[attr-defined]
    assert (recorded.context_tokens, recorded.model, recorded.picture_extra) == (3_020, "gpt-4.1", 100_005)


async def test_what_a_request_brings_is_known_from_its_beginning_on() -> None:
    """Its end may never be heard of, and the tools in its items can be called by whoever builds on it all the same."""
    kept = tenants(resp_a=response(MINE, 3_000)._replace(model="gpt-4.1", picture_extra=100_000))
    carried = frozenset(("web_search", "file_search"))
    parsed = Parsed(model="gpt-4.1", source=b"", picture_extra=5, references=named("resp_a"), carried=carried)
    await kept.record_begun(MINE, "req_2", "resp_b", parsed)
    (recorded,) = kept.objects.recorded  # type: ignore[attr-defined]
    assert recorded == MadeObject("resp_b", "response", None, "gpt-4.1", 100_005, "file_search web_search")


async def test_pictures_that_the_image_tool_drew_are_read_by_what_builds_on_them() -> None:
    """They are in no usage of the model that called it. At most 3840 x 2160: 8,160 patches, of which gpt-5.4 takes 2,500."""
    kept = tenants()
    report = NO_REPORT._replace(upstream_id="resp_b", items=("ig_1", "msg_1"), drawn=2)
    await kept.record_made(MINE, "req_2", report, Usage(input_tokens=90, output_tokens=10), Parsed("gpt-5.4", b""))
    made = kept.objects.recorded  # type: ignore[attr-defined]
    assert {(one.object_id, one.context_tokens) for one in made} == {
        (name, 100 + 2 * 3_000) for name in ("resp_b", "ig_1", "msg_1")
    }
    dearest = 2 * (2_833 + 8 * 5_667)  # eight tiles of gpt-4o-mini's
    assert {(one.model, one.picture_extra) for one in made} == {("gpt-5.4", dearest)}

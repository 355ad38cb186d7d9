"""The endpoint table: every row can be priced, every other path of OpenAI's API is refused by name with a reason."""

import json

import pytest

from proxy.gateway.endpoints import METERED, OBJECT_PATH, find_endpoint
from proxy.web.rejections import Rejection
from scripts import build_docs
from tests.support.servers import ROOT

REFUSED = json.loads((ROOT / "proxy" / "gateway" / "refused.json").read_text())


def test_a_row_without_a_price_fails_the_build(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["build_docs", "--check"])
    assert build_docs.main() == 0
    row = METERED["POST", b"/v1/decisions"]._replace(name="/v1/oracles")
    monkeypatch.setitem(METERED, ("POST", b"/v1/oracles"), row)
    assert build_docs.main() == 1
    assert "no model is priced for /v1/oracles" in capsys.readouterr().err


@pytest.mark.parametrize("family", sorted({row["path"].split("/")[2] for row in REFUSED}))
def test_what_openai_has_and_we_refuse_is_refused_with_the_reason(family: str) -> None:
    rows = [row for row in REFUSED if row["path"].split("/")[2] == family]
    for row in rows:
        path = "/".join(part if not part.startswith("{") else "abc_123" for part in row["path"].split("/")).encode()
        if any(known == path for _, known in METERED):
            continue  # another method of a path that is offered
        with pytest.raises(Rejection) as refused:
            find_endpoint(row["method"], path)
        assert refused.value.status in (403, 405), row
        if refused.value.status == 403:
            assert (
                row["reason"].split(":")[0][:30] in refused.value.message or "not offered here" in refused.value.message
            )


@pytest.mark.parametrize("path", [b"/v1/nothing", b"/v1/files/a/b/c/d", b"/v1/responses/x/y", b"/v2/chat/completions"])
def test_what_openai_does_not_have_is_not_found(path: bytes) -> None:
    with pytest.raises(Rejection) as refused:
        find_endpoint("POST", path)
    assert refused.value.status == 404


@pytest.mark.parametrize(
    ("path", "matches"),
    [
        (b"/v1/responses/resp_1", True),
        (b"/v1/responses/resp_1/cancel", True),
        (b"/v1/responses/../files", False),
        (b"/v1/responses/a%2fb", False),
    ],
)
def test_ids_in_paths_are_plain(path: bytes, matches: bool) -> None:
    assert bool(OBJECT_PATH.match(path)) is matches

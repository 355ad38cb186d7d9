"""The endpoint table: every row can be priced, every other path of OpenAI's API is refused by name with a reason."""

import json

import pytest

from proxy.gateway.endpoints import METERED, find_endpoint
from proxy.gateway.unmetered.objects import is_object_path
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
        with pytest.raises(Rejection) as refused:
            find_endpoint(row["method"], path)
        assert (refused.value.status, refused.value.code) == (403, "endpoint_not_offered"), row
        assert row["reason"] in refused.value.message


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("HEAD", b"/v1/chat/completions", 405),
        ("OPTIONS", b"/v1/chat/completions", 405),
        ("DELETE", b"/v1/chat/completions", 405),
        ("DELETE", b"/v1/models/gpt-4.1", 403),
        ("POST", b"/v1/models/gpt-4.1", 405),
        ("GET", b"/v1/embeddings", 405),
        ("GET", b"/v1/realtime", 426),
        ("POST", b"/v1/realtime", 404),
    ],
)
def test_another_method_of_an_offered_path_is_refused_by_name_only_where_openai_has_it(
    method: str, path: bytes, status: int
) -> None:
    with pytest.raises(Rejection) as refused:
        find_endpoint(method, path)
    assert refused.value.status == status


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
        (b"/v1/conversations/conv_1/items/msg_1", True),
        (b"/v1/files", True),
        (b"/v1/responses/../files", False),
        (b"/v1/responses/a%2fb", False),
    ],
)
def test_ids_in_paths_are_plain(path: bytes, matches: bool) -> None:
    assert is_object_path(path) is matches

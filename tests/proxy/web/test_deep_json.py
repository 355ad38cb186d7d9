"""JSON that is nested without end, wherever it comes in beside /v1: it is refused, and no fault of ours."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from config.errors import ConfigError
from config.flags import read_flag
from config.load import load_settings
from tests.support import web
from tests.support.admins import bearer, enter
from tests.support.customers import new_customer
from tests.support.servers import Sandbox, Tollkeeper

DEEP = {"lists": "[" * 1_100 + "]" * 1_100, "objects": '{"a":' * 1_100 + "1" + "}" * 1_100}
SERVICE_KEY = "service-" + "k" * 32


@pytest.fixture(scope="module")
def server(new_folder: Callable[[str], Path], session_sandbox: Sandbox) -> Iterator[Tollkeeper]:
    environment = {"TOLLKEEPER_UPSTREAM__BASE_URL": session_sandbox.url, "PORTAL_SERVICE_KEY": SERVICE_KEY}
    server = Tollkeeper(new_folder("deep"), environment).start()
    yield server
    server.kill()
    assert "RecursionError" not in server.log()


@pytest.mark.parametrize("deep", DEEP)
def test_bodies_of_the_side_apis(deep: str, server: Tollkeeper) -> None:
    customer = new_customer(server, 0).headers
    owner = bearer(server.cli("admin", "create", "o", "--role", "owner")["adminKey"])
    for method, path, headers in (
        ("POST", "/api/billing/checkout", customer),
        ("POST", "/api/billing/promo", customer),
        ("PUT", "/api/billing/auto-recharge", customer),
        ("PUT", "/api/billing/low-balance", customer),
        ("POST", "/api/portal/sessions", bearer(SERVICE_KEY)),
        ("PUT", "/api/admin/flags/model_allowlist", owner),
        ("POST", "/api/admin/plans", owner),
    ):
        for body in (DEEP[deep], *(f'{{"{name}":{DEEP[deep]}}}' for name in ("more", "value", "prices"))):
            answer = web.request(method, f"{server.url}{path}", content=body.encode(), headers=headers, timeout=20)
            assert answer.status_code == 400, (path, body[:20], answer.text)


@pytest.mark.parametrize("deep", DEEP)
def test_forms_of_the_operators_page(deep: str, server: Tollkeeper) -> None:
    key = server.cli("admin", "create", "o", "--role", "owner")["adminKey"]
    with web.client(base_url=server.url, follow_redirects=True, timeout=20) as browser:
        found = re.search(r'name="csrf" value="([0-9a-f]+)"', enter(browser, key).text)
        assert found is not None
        form = {"csrf": found[1], "reason": "test"}
        for path, fields in (
            ("/admin/plans", {"plan": "deep", "models": DEEP[deep]}),
            ("/admin/flags/set", {"flag": "model_allowlist", "value": DEEP[deep]}),
        ):
            assert browser.post(path, data={**form, **fields}).status_code == 400, path


@pytest.mark.parametrize("deep", DEEP)
def test_switches_files_and_variables(deep: str, tmp_path: Path, server: Tollkeeper) -> None:
    with pytest.raises(ConfigError):
        read_flag("model_allowlist", DEEP[deep])
    with pytest.raises(ConfigError):
        load_settings(None, {"TOLLKEEPER_BILLING__MODEL_ALLOWLIST": DEEP[deep]})
    file = tmp_path / "plan.json"
    file.write_text(DEEP[deep])
    assert "cannot be read" in server.cli("plan", "add", "deep", str(file), code=2)["error"]

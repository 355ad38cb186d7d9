"""Upstreams that are added, drained, removed and given other keys while serving; what stays where it was made; who is owed what."""

import re
import sqlite3
import time
from collections.abc import Callable, Iterator
from decimal import Decimal
from math import ceil
from pathlib import Path
from typing import Any

import pytest

from tests.support import web
from tests.support.servers import Account, Tollkeeper, start_sandbox, wait_until
from tests.support.upstreams import Load, Place, ask, check_charges, places, price, served_by, write

pytestmark = pytest.mark.served
RICH = "10000000"
PATIENT = {"TOLLKEEPER_ADVANCED__EMBEDDED_TIMEOUT_SECONDS": "10"}


@pytest.fixture(scope="module")
def two() -> Iterator[list[Place]]:
    with places("openai", "eu") as made:
        made[1].more |= {"region": "eu"}
        yield made


@pytest.fixture(scope="module")
def server(new_folder: Callable[[str], Path], two: list[Place]) -> Iterator[Tollkeeper]:
    made = Tollkeeper(new_folder("pool"), dict(PATIENT))
    write(made, two)
    yield made.start()
    made.kill()


@pytest.fixture
def account(server: Tollkeeper, two: list[Place]) -> Account:
    """On a server that reads what a test before this one may have left in its file no more."""
    for place in two:
        place.sandbox.clear()
    write(server, two)
    written = time.time()
    wait_until(lambda: _checked_at(server) > written, 10, "the server has read its file")
    return server.account(RICH)


def _checked_at(server: Tollkeeper) -> float:
    found = re.search(
        r"^tollkeeper_config_checked_timestamp_seconds (\S+)$", web.get(f"{server.url}/metrics").text, re.MULTILINE
    )
    return float(found[1]) if found else 0


def post(account: Account, path: str, body: dict[str, Any]) -> dict[str, Any]:
    answer = web.post(f"{account.server.v1}{path}", json=body, headers=account.headers, timeout=60)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def where(account: Account, request: Callable[[], Any], used: list[Place], path: str) -> str:
    """Name of the upstream that served a request."""
    before = {place.name: len(place.sandbox.record()) for place in used}
    request()
    (name,) = [
        place.name
        for place in used
        if [row for row in place.sandbox.record()[before[place.name] :] if row["path"].startswith(path)]
    ]
    return name


def test_an_upstream_is_added_drained_and_removed_within_two_seconds(
    server: Tollkeeper, account: Account, two: list[Place]
) -> None:
    first, second = two
    write(server, [first])
    wait_until(
        lambda: "eu" not in {row["upstream"] for row in server.cli("upstreams")["data"] if row["state"] == "well"},
        5,
        "it is gone",
    )
    wait_until(lambda: not _serves(account, second), 5, "it serves no more")
    write(server, two)
    wait_until(lambda: _serves(account, second), 2, "it serves")
    second.more["draining"] = True
    write(server, two)
    del second.more["draining"]
    wait_until(lambda: not _serves(account, second), 2, "it gets nothing new")


def _serves(account: Account, place: Place) -> bool:
    before = len(place.sandbox.record())
    assert all(ask(account, stream=False).whole for _ in range(6))
    return len(place.sandbox.record()) > before


def test_a_bad_edit_changes_nothing_and_says_every_reason(
    server: Tollkeeper, account: Account, two: list[Place]
) -> None:
    (server.folder / "proxy.toml").write_text(
        '[[upstreams]]\nname = "tax"\nbase_url = "ftp://x"\n[[upstreams]]\nname = "tax"\nbase_url = "http://x/v1"\ndialect = "azure"\n'
    )

    def told() -> str:
        notes: dict[str, str] = web.get(f"{server.url}/readyz", timeout=5).json()["notes"]
        return notes.get("config", "")

    wait_until(told, 5, "the edit is refused")
    for reason in (
        "two are named 'tax'",
        "has an account of that name",
        "not a plain http(s) URL",
        "needs a rate_card",
        "has no key",
    ):
        assert reason in told(), told()
    assert ask(account, stream=False).whole
    write(server, two)
    wait_until(lambda: not told(), 5, "the good one is taken")


def test_a_key_is_rotated_under_load_and_nothing_is_lost_or_renamed(
    server: Tollkeeper, account: Account, two: list[Place]
) -> None:
    first, second = two
    made = post(account, "/responses", {"model": "gpt-4o-mini", "input": "remember me", "user": "alice"})
    owner = next(place for place in two if [row for row in place.sandbox.record() if row["responseId"] == made["id"]])
    (sent,) = [row["requestBody"]["user"] for row in owner.sandbox.record() if row["responseId"] == made["id"]]
    load = Load(account, user="alice")
    load.wait_for(20)
    other = start_sandbox("--api-key", "sk-canary-rotated-77")
    try:
        # the account behind the upstream is the same: only a sandbox that takes the new key stands for it
        rotated = Place(second.name, "sk-canary-rotated-77", other, dict(second.more))
        write(server, [first, rotated])
        wait_until(lambda: len(other.record()) > 3, 10, "it serves by its new key")
        (server.folder / "eu.key").write_text(rotated.key + "\n")  # read again, and still the same
        load.wait_for(20)
        replies = load.stop()
        assert [reply for reply in replies if not reply.whole] == []
        names = {row["requestBody"]["user"] for place in (*two, rotated) for row in place.sandbox.record()}
        assert names == {sent}
        assert "sk-canary-rotated-77" not in server.log()
    finally:
        write(server, two)
        other.stop()


def test_what_is_stored_stays_where_it_was_made(server: Tollkeeper, account: Account, two: list[Place]) -> None:
    made = post(account, "/responses", {"model": "gpt-4o-mini", "input": "remember me"})
    (home,) = [place for place in two if any(row["responseId"] == made["id"] for row in place.sandbox.record())]
    for _ in range(4):
        made = post(account, "/responses", {"model": "gpt-4o-mini", "input": "and", "previous_response_id": made["id"]})
    conversation = post(account, "/conversations", {})["id"]
    post(account, "/responses", {"model": "gpt-4o-mini", "input": "hi", "conversation": conversation})
    others = [row for place in two if place is not home for row in place.sandbox.record()]
    assert others == []
    url = f"{server.v1}/responses/{made['id']}"
    assert web.get(url, headers=account.headers, timeout=10).status_code == 200
    home.more["draining"] = True
    write(server, two)
    del home.more["draining"]
    wait_until(lambda: not _serves(account, home), 5, "it drains")
    assert web.get(url, headers=account.headers, timeout=10).status_code == 200
    post(account, "/responses", {"model": "gpt-4o-mini", "input": "and", "previous_response_id": made["id"]})
    background = post(account, "/responses", {"model": "gpt-4o-mini", "input": "hi", "background": True})
    assert background["status"] in ("queued", "in_progress")
    wait_until(lambda: account.held() == 0, 15, "it is settled where it runs")


def test_a_region_costs_what_openai_takes_there_and_keeps_its_accounts(
    server: Tollkeeper, account: Account, two: list[Place]
) -> None:
    server.cli("account", "region", account.account_id, "eu", "--reason", "residency")
    wait_until(lambda: _only(account, two[1]), 10, "it is served in its region only")
    answer = web.post(
        f"{server.v1}/chat/completions",
        json={"model": "gpt-5.4-mini", "messages": [{"role": "user", "content": "hi"}], "max_completion_tokens": 50},
        headers=account.headers,
        timeout=30,
    )
    assert answer.status_code == 200, answer.text
    (row,) = [row for row in account.usage() if row["requestId"] == answer.headers["x-request-id"]]
    (_, record), *_ = served_by(two)[row["requestId"]]
    usage = record["usage"]
    exact = (usage["prompt_tokens"] * Decimal("0.75") + usage["completion_tokens"] * Decimal("4.5")) * Decimal("1.1")
    assert int(row["chargedMillicredits"]) == ceil(exact)
    assert server.run("account", "region", account.account_id, "mars", "--reason", "x").returncode == 1


def _only(account: Account, place: Place) -> bool:
    """Five answers in a row are its own; one that rests from a test before refuses some."""
    before = len(place.sandbox.record())
    whole = [ask(account, stream=False).whole for _ in range(5)]
    return all(whole) and len(place.sandbox.record()) == before + 5


def test_each_upstream_is_owed_its_own_cost(server: Tollkeeper, account: Account, two: list[Place]) -> None:
    two[1].more["price_adjustment"] = "1.25"
    write(server, two)
    try:
        wait_until(lambda: _dearer(account), 10, "the adjustment is in force")
        for place in two:
            place.sandbox.clear()
        fresh = server.account(RICH)
        replies = [ask(fresh, stream=bool(number % 2)) for number in range(12)]
        rows = check_charges(fresh, replies, two)
        assert {row["upstream"] for row in rows} == {"openai", "eu"}
    finally:
        del two[1].more["price_adjustment"]
        write(server, two)
    server.cli("drain", code=None)
    with sqlite3.connect(server.folder / "var" / "tollkeeper.db") as database:
        owed = dict(
            database.execute(
                "SELECT credit_account, sum(amount_millicredits) FROM transfers WHERE kind = 'usage_cost' GROUP BY 1"
            )
        )
        spent = dict(database.execute("SELECT upstream, sum(cost_millicredits) FROM usage GROUP BY 1"))
    assert owed == {"payable:openai": spent[""], "payable:eu": spent["eu"]}
    shown = {row["upstream"]: row for row in server.cli("upstreams")["data"]}
    assert int(shown["eu"]["costMillicreditsOfADay"]) == spent["eu"]
    assert shown["eu"]["state"] == shown["openai"]["state"] == "well"
    assert shown["openai"]["served"] > 0


def _dearer(account: Account) -> bool:
    assert all(ask(account, stream=False).whole for _ in range(4))
    rows = [row for row in account.usage()[:4] if row["upstream"] == "eu"]
    usage = {"prompt_tokens": 8, "completion_tokens": 40}
    return any(int(row["chargedMillicredits"]) == price(usage, Decimal("1.25")) for row in rows)


def test_who_served_is_shown_only_if_that_is_switched_on(
    server: Tollkeeper, account: Account, two: list[Place]
) -> None:
    answer = account.chat()
    assert not {"x-upstream", "openai-processing-ms", "openai-version"} & answer.headers.keys()
    write(server, two, failover={"show_upstream": True})
    wait_until(lambda: account.chat().headers.get("x-upstream") in ("openai", "eu"), 5, "it is shown")
    write(server, two)


def test_the_admin_api_lists_upstreams_and_drains_one_until_it_is_undrained(
    server: Tollkeeper, account: Account, two: list[Place]
) -> None:
    base, why = f"{server.url}/api/admin/upstreams", {"reason": "its invoice is wrong"}
    ops = {"Authorization": f"Bearer {server.cli('admin', 'create', 'olga', '--role', 'ops')['adminKey']}"}
    viewer = {"Authorization": f"Bearer {server.cli('admin', 'create', 'vic', '--role', 'viewer')['adminKey']}"}

    def post_as(who: dict[str, str], path: str, body: dict[str, str] = why) -> tuple[int, dict[str, Any]]:
        answer = web.post(f"{base}/{path}", json=body, headers=who, timeout=10)
        return answer.status_code, answer.json()

    def states() -> dict[str, str]:
        rows = web.get(base, headers=viewer, timeout=10).json()["data"]
        return {row["upstream"]: row["state"] for row in rows}

    # the server is shared: what the test before drained is over within 2 s of the file's edit
    wait_until(lambda: states() == {"openai": "well", "eu": "well"}, 10, "both are well")
    assert all(ask(account, stream=False).whole for _ in range(4))
    listed = {row["upstream"]: row for row in web.get(base, headers=viewer, timeout=10).json()["data"]}
    assert sum(row["served"] for row in listed.values()) >= 4
    assert listed["eu"]["region"] == "eu"
    assert post_as(viewer, "eu/drain")[0] == 403
    assert post_as(ops, "eu/drain", {"reason": ""})[0] == 400
    assert post_as(ops, "mars/drain")[0] == 404
    assert post_as(ops, "eu/undrain")[1]["error"]["code"] == "not_drained"

    assert post_as(ops, "eu/drain") == (200, {"upstream": "eu", "draining": True})
    wait_until(lambda: not _serves(account, two[1]), 10, "it gets nothing new")
    rows = web.get(base, headers=viewer, timeout=10).json()["data"]
    assert {row["upstream"]: row["state"] for row in rows} == {"openai": "well", "eu": "draining"}
    assert "upstreams.eu.draining" in web.get(f"{server.url}/readyz", timeout=5).json()["notes"]["overrides"]
    assert post_as(ops, "openai/drain")[1]["error"]["code"] == "nobody_would_serve"

    assert post_as(ops, "eu/undrain") == (200, {"upstream": "eu", "draining": False})
    wait_until(lambda: _serves(account, two[1]), 10, "it serves again")
    query = "subject=upstreams.eu.draining"
    audit = web.get(f"{server.url}/api/admin/audit?{query}", headers=ops, timeout=10).json()["data"]
    assert {row["action"] for row in audit} == {"flag.set", "flag.clear"}
    assert {row["reason"] for row in audit} == {why["reason"]}


def test_what_the_file_drains_no_admin_undrains(server: Tollkeeper, account: Account, two: list[Place]) -> None:
    two[1].more["draining"] = True
    write(server, two)
    del two[1].more["draining"]
    ops = {"Authorization": f"Bearer {server.cli('admin', 'create', 'otto', '--role', 'ops')['adminKey']}"}
    url = f"{server.url}/api/admin/upstreams/eu/undrain"
    wait_until(
        lambda: (
            web.post(url, json={"reason": "x"}, headers=ops, timeout=10).json()["error"]["code"] == "drained_in_file"
        ),
        10,
        "it is the file's",
    )


def test_staff_see_the_upstreams(server: Tollkeeper, account: Account) -> None:
    key = server.cli("admin", "create", "ada", "--role", "owner")["adminKey"]
    signed = web.post(f"{server.url}/admin/sign-in", data={"key": key}, headers={"Origin": server.url}, timeout=10)
    page = web.get(f"{server.url}/admin/upstreams", cookies=signed.cookies, timeout=10)
    assert page.status_code == 200, page.text
    assert "<code>eu</code>" in page.text
    assert '<span class="state good">well</span>' in page.text

"""`tollkeeper preflight`: everything is right on a good server, and each row of its table is seen to go wrong when its thing is broken."""

import json
import signal
from typing import Any

import pytest

from tests.launch.breaks import CASES
from tests.support.live import Live
from tests.support.rate_cards import activate_ends, day
from tests.support.servers import wait_until

NOT_BROKEN_HERE = {
    "database version": "a PostgreSQL of 2020",
    "redis version": "a Redis of 2020",
    "stripe mode": "live keys",
    "clocks PostgreSQL": "another machine's clock",
    "clocks Redis": "another machine's clock",
    "edge tls": "its FAIL asks for a public address",
    "database role": "WARN on the good server already, PASS with a role of its own",
}
"""Rows that a break here cannot reach; their rules have tests of their own in test_preflight_rules.py."""
LOOKS = 20
LOOSE = {"edge tls": "WARN", "stripe mode": "WARN", "database role": "WARN", "database backup": "WARN"}
"""What is not as it should be on a test's own server, and why that is no failure: loopback, test mode, one role, no backup."""


def states(found: dict[str, Any]) -> dict[str, str]:
    return {f"{row['area']} {row['name']}": row["state"] for row in found["checks"]}


@pytest.fixture(scope="module")
def good(live: Live) -> dict[str, str]:
    """The table of the server as it should be; its prices are of today, on whatever day this is run."""
    activate_ends(live.server, day(0))
    found = live.server.cli("preflight")
    return states(found)


def test_a_good_server_passes(live: Live, good: dict[str, str]) -> None:
    assert {name: state for name, state in good.items() if state != "PASS"} == LOOSE
    done = live.server.run("preflight")
    assert done.returncode == 0
    assert f"{len(good) - 4} pass, 4 to look at, 0 fail. Nothing stands in the way." in done.stdout
    for name in good:
        assert f"  {name} " in done.stdout


@pytest.mark.parametrize("name", CASES)
def test_each_break_is_seen_with_what_to_do_and_nothing_else_changes(
    name: str, live: Live, good: dict[str, str]
) -> None:
    work, rows = CASES[name]
    expected = {row: state for row, state in rows.items() if good.get(row) != state}
    with work(live) as given:
        for _ in range(LOOKS):  # a server on a busy machine may be late with its own health
            done = live.server.run("preflight", "--json", *given.arguments, **given.environment)
            found = json.loads(done.stdout)
            now = states(found)
            changed = {row: now.get(row) for row in {*good, *now} if good.get(row) != now.get(row)}
            if changed == expected:
                break
    assert changed == expected
    assert [row for row in found["checks"] if row["state"] != "PASS" and not row["fix"]] == []
    bad = "FAIL" in now.values()
    assert (done.returncode, found["ok"], found["counts"]["FAIL"] > 0) == (int(bad), not bad, bad)
    for secret in (*live.server.all_environment().values(), *given.environment.values()):
        assert not secret.startswith(("sk_", "sk-", "whsec_")) or secret not in done.stdout


def test_every_row_is_broken_by_some_break(good: dict[str, str]) -> None:
    broken = {row for _, rows in CASES.values() for row, state in rows.items() if state in ("WARN", "FAIL")}
    assert {row for row in good if row not in broken} == NOT_BROKEN_HERE.keys()


def test_a_server_whose_redis_hangs_is_not_ready(live: Live, good: dict[str, str]) -> None:
    def seen() -> dict[str, str]:
        return states(json.loads(live.server.run("preflight", "--json").stdout))

    live.redis.signal(signal.SIGSTOP)
    try:
        wait_until(
            lambda: {"redis reachable": "FAIL", "edge ready": "FAIL"}.items() <= seen().items(), 20, "both rows fail"
        )
    finally:
        live.redis.signal(signal.SIGCONT)
    wait_until(lambda: seen() == good, 20, "all is well again")


def test_a_file_that_cannot_be_read_is_a_row_too(live: Live) -> None:
    (live.server.folder / "broken.toml").write_text("[listen]\nprot = 1\n")
    found = live.server.cli("preflight", "--config", "broken.toml", code=1)
    (row,) = found["checks"]
    assert (row["area"], row["name"], row["state"]) == ("config", "valid", "FAIL")
    assert "prot" in row["found"]
    assert row["fix"]


def test_it_changed_nothing(live: Live) -> None:
    before = live.server.cli("audit", "verify"), live.server.cli("stripe", "inbox")["counts"]
    live.server.run("preflight")
    assert (live.server.cli("audit", "verify"), live.server.cli("stripe", "inbox")["counts"]) == before

"""What a command takes from its command line and its environment, and what it refuses there as a wrong use."""

import os
import pwd
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from proxy.cli.context import actor
from tests.support.customers import new_customer
from tests.support.schema import lay_sqlite
from tests.support.servers import TOLLKEEPER, Serve, Tollkeeper


@pytest.fixture
def running(make_tollkeeper: Serve) -> Tollkeeper:
    return make_tollkeeper().start()


def test_a_time_in_the_past_is_no_expiry(running: Tollkeeper) -> None:
    account = new_customer(running, 0)
    past = (datetime.now(UTC) - timedelta(days=1)).isoformat()
    flag = ("flags", "set", "auto_recharge", "true", "--reason", "x")
    for command in (("key", "create", account.account_id), ("admin", "create", "x", "--role", "viewer"), flag):
        for when in (past, "0d", "0001-01-02T00:00:00Z"):
            assert "is in the past" in running.cli(*command, "--expires", when, code=2)["error"]


def test_what_is_no_time_that_can_be_shown_is_no_time(running: Tollkeeper) -> None:
    account = new_customer(running, 0)
    flag = ("flags", "set", "auto_recharge", "true", "--reason", "x")
    for when in ("9999-12-31T23:59:59-14:00", "0001-01-01T00:00:00+14:00", "٣d", "1_0d"):
        for command in (("key", "create", account.account_id), ("admin", "create", "x", "--role", "viewer"), flag):
            assert "is not a time of the years 1 to 9999" in running.cli(*command, "--expires", when, code=2)["error"]
        activate = ("rates", "activate", "openai-2026-11-29", "--reason", "x", "--from", when)
        assert "is not a time of the years 1 to 9999" in running.cli(*activate, code=2)["error"]
    assert running.cli("key", "list", account.account_id)["data"][0]["expiresAt"] is None


def test_who_runs_a_command_is_known_without_an_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("USER", "ann")
    assert actor() == "cli:ann"
    monkeypatch.delenv("USER")
    assert actor() == f"cli:{pwd.getpwuid(os.getuid()).pw_name}"
    monkeypatch.setattr(os, "getuid", lambda: 2**31 - 7)
    assert actor() == f"cli:uid {2**31 - 7}"


def test_an_argument_that_is_no_text_is_a_wrong_use(running: Tollkeeper) -> None:
    for command in (("account", "show", b"\xff"), ("key", "revoke", b"key_\xed\xa0\x80"), ("portal", b"acct_\xff")):
        done = subprocess.run(
            [TOLLKEEPER, *command], check=False, cwd=running.folder, env=running.all_environment(), capture_output=True
        )
        assert (done.returncode, b"not UTF-8 text" in done.stderr) == (2, True), done.stderr


def test_an_account_that_cannot_be_refunded_without_stripe_is_not_closed_either(folder: Path) -> None:
    lay_sqlite(folder / "var" / "tollkeeper.db")
    server = Tollkeeper(folder, {})
    account = server.cli("account", "create", "x")["accountId"]
    refused = server.cli("account", "close", account, "--refund", "--reason", "they left", code=2)
    assert "STRIPE_API_KEY" in refused["error"]
    assert server.cli("account", "show", account)["status"] == "active"

"""The `tollkeeper` command as people and scripts use it: beside a running server, over both stores.

Names, flags, JSON keys and exit codes (0 ok, 1 a finding or a refusal, 2 usage or configuration) are promises.
"""

import json
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support import web
from tests.support.customers import new_customer
from tests.support.servers import (
    TOLLKEEPER,
    RedisServer,
    Sandbox,
    Serve,
    Tollkeeper,
    free_port,
    sandbox_says,
    served_over,
    wait_until,
)

pytestmark = pytest.mark.served

LEDGER_KEYS = {
    "id", "kind", "amountMillicredits", "debitAccount", "creditAccount", "referenceType", "referenceId", "purchaseId", "actor", "reason", "createdAt", "expiresAt", "reasonShown"
}  # fmt: skip
USAGE_KEYS = {
    "requestId", "keyId", "endpoint", "model", "serviceTier", "stream", "inputTokens", "outputTokens", "cachedTokens", "cacheWriteTokens",
    "reasoningTokens", "audioInputTokens", "audioOutputTokens", "imageInputTokens", "imageOutputTokens", "audioMilliseconds", "characters", "chargedMillicredits", "chargedCredits", "usageSource", "outcome", "free", "endUser", "tags",
    "createdAt", "upstream", "tries", "abandonedMillicredits", "costMillicredits",
}  # fmt: skip


@pytest.fixture(scope="module", params=["embedded", "redis"])
def running(
    request: pytest.FixtureRequest, new_folder: Callable[[str], Path], session_sandbox: Sandbox
) -> Iterator[Tollkeeper]:
    """One served product per store; the tests use accounts of their own."""
    home = new_folder(f"cli-{request.param}")
    environment = {"TOLLKEEPER_UPSTREAM__BASE_URL": session_sandbox.url}
    with served_over(request.param, home, **environment) as server:
        yield server


@pytest.fixture(scope="module")
def alone(new_folder: Callable[[str], Path]) -> Tollkeeper:
    """A folder without a server; its environment is what the CLI runs in."""
    home = new_folder("cli-alone")
    server = Tollkeeper(home, {})
    server.cli("migrate")
    return server


def chat(server: Tollkeeper, key: str, text: str = "hello", **body: Any) -> httpx.Response:
    full = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": text}], "max_tokens": 5, **body}
    return web.post(f"{server.v1}/chat/completions", json=full, headers={"Authorization": f"Bearer {key}"}, timeout=30)


def code_of(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"] if answer.status_code != 200 else ""


# -- accounts and money -----------------------------------------------------------------------------------------


def test_an_account_from_its_creation_to_its_first_booked_request(running: Tollkeeper, sandbox: Sandbox) -> None:
    made = running.cli("account", "create", "Acme Ltd & Söhne")
    assert made.keys() == {
        "accountId",
        "name",
        "externalId",
        "status",
        "created",
        "keyId",
        "apiKey",
        "welcomeMillicredits",
    }
    assert made["name"] == "Acme Ltd & Söhne"
    account, key = made["accountId"], made["apiKey"]
    assert key.startswith("tk-")
    assert len(key) >= 46  # 256 bits
    assert code_of(chat(running, key)) == (402, "insufficient_credits")

    granted = running.cli("grant", account, "12.5", "--reason", "pilot & more")
    assert granted.keys() == {"accountId", "grantedMillicredits", "reference", "postedMillicredits", "expiresAt"}
    assert (granted["grantedMillicredits"], granted["postedMillicredits"]) == ("12500", "12500")
    wait_until(lambda: chat(running, key).status_code == 200, 5, "the grant goes live by itself")

    # 8 input and 5 output tokens of gpt-4o-mini: 1.2 + 3 millicredits, rounded up
    running.cli("drain")
    shown = running.cli("account", "show", account)
    assert shown.pop("createdAt").endswith("Z")
    said = {"externalId": None, "email": None, "metadata": {}, "closedAt": None, "erasedAt": None}
    assert shown == {
        **said,
        "accountId": account,
        "name": "Acme Ltd & Söhne",
        "status": "active",
        "balanceMillicredits": "12495",
        "heldMillicredits": "0",
        "postedMillicredits": "12495",
        "unflushedMillicredits": "0",
        "expiringCredits": [],
    }
    (listed,) = [row for row in running.cli("account", "list")["data"] if row["accountId"] == account]
    assert listed.keys() == {"accountId", "name", "status", "postedMillicredits", "createdAt", *said}
    assert (listed["status"], listed["postedMillicredits"]) == ("active", "12495")

    charge, grant = running.cli("ledger", account)["data"]
    assert charge.keys() == grant.keys() == LEDGER_KEYS
    served = sandbox.record()[-1]["clientRequestId"]
    assert (charge["kind"], charge["amountMillicredits"], charge["referenceId"]) == ("usage", "-5", served)
    assert (charge["debitAccount"], charge["creditAccount"]) == (f"customer:{account}", "revenue")
    assert (grant["amountMillicredits"], grant["reason"], grant["referenceId"]) == (
        "12500",
        "pilot & more",
        granted["reference"],
    )
    assert (grant["debitAccount"], grant["creditAccount"]) == ("promo", f"customer:{account}")
    assert grant["actor"].startswith("cli:")

    (usage,) = running.cli("usage", account)["data"]
    assert usage.keys() == USAGE_KEYS
    assert (usage["requestId"], usage["chargedMillicredits"], usage["keyId"]) == (served, "5", made["keyId"])
    assert running.cli("reconcile") == {"ok": True, "findings": []}


def test_a_grant_with_a_reference_is_booked_once_and_a_negative_one_takes_back(running: Tollkeeper) -> None:
    account = new_customer(running, 0)
    first = running.cli(
        "grant", account.account_id, "10", "--reason", "x", "--reference", f"order-{account.account_id}"
    )
    again = running.cli(
        "grant", account.account_id, "10", "--reason", "x", "--reference", f"order-{account.account_id}"
    )
    assert (first["grantedMillicredits"], again["grantedMillicredits"], again["postedMillicredits"]) == (
        "10000",
        "0",
        "10000",
    )
    back = running.cli("grant", account.account_id, "-4.001", "--reason", "correction")
    assert (back["grantedMillicredits"], back["postedMillicredits"]) == ("-4001", "5999")
    account.wait_balance(5_999)


def test_a_listing_is_as_long_as_its_limit_and_newest_first(running: Tollkeeper) -> None:
    account = new_customer(running, 0)
    for credits in ("1", "2", "3"):
        running.cli("grant", account.account_id, credits, "--reason", "x")
    rows = running.cli("ledger", account.account_id, "--limit", "2")["data"]
    assert [row["amountMillicredits"] for row in rows] == ["3000", "2000"]
    assert running.cli("usage", account.account_id, "--limit", "2") == {"data": []}


def test_a_blocked_account_is_refused_everywhere_within_five_seconds_and_back_again(running: Tollkeeper) -> None:
    account = new_customer(running, 100_000)
    assert account.chat(max_tokens=1).status_code == 200
    assert running.cli("account", "block", account.account_id) == {"accountId": account.account_id, "status": "blocked"}
    everywhere(lambda: code_of(account.chat(max_tokens=1)) == (403, "account_blocked"), "the account is blocked")
    assert running.cli("account", "show", account.account_id)["status"] == "blocked"
    assert running.cli("account", "block", account.account_id, "--unblock")["status"] == "active"
    everywhere(lambda: account.chat(max_tokens=1).status_code == 200, "the account is active")


def everywhere(check: Callable[[], bool], what: str, seconds: float = 5) -> None:
    """True on every worker within the promised time: connections are spread over them, so ask many times in a row."""
    wait_until(lambda: all(check() for _ in range(12)), seconds, what)


# -- keys --------------------------------------------------------------------------------------------------------------


def test_a_revoked_key_is_refused_everywhere_within_five_seconds_and_its_sister_works_on(running: Tollkeeper) -> None:
    account = new_customer(running, 100_000)
    made = running.cli("key", "create", account.account_id)
    assert made.keys() == {"accountId", "keyId", "apiKey"}
    assert all(chat(running, made["apiKey"]).status_code == 200 for _ in range(12))  # every worker knows it now
    began = time.monotonic()
    assert running.cli("key", "revoke", made["keyId"]) == {"keyId": made["keyId"], "revoked": True}
    everywhere(
        lambda: code_of(chat(running, made["apiKey"])) == (401, "invalid_api_key"), "the key is refused everywhere"
    )
    assert time.monotonic() - began < 7  # five seconds, and the time it took to ask
    assert account.chat(max_tokens=1).status_code == 200
    listed = {row["keyId"]: row for row in running.cli("key", "list", account.account_id)["data"]}
    assert len(listed) == 2
    assert listed[made["keyId"]]["revokedAt"].endswith("Z")
    again = running.cli("key", "revoke", made["keyId"], code=1)
    assert made["keyId"] in again["error"]


def test_keys_are_listed_with_their_rules_and_without_their_secrets(running: Tollkeeper) -> None:
    account = new_customer(running, 0)
    flags = [
        "--models",
        "gpt-4o*",
        "o3",
        "--spend-limit",
        "12.5",
        "--period",
        "week",
        "--rpm",
        "60",
        "--tpm",
        "9000",
        "--concurrency",
        "3",
    ]
    made = running.cli("key", "create", account.account_id, *flags, "--expires", "2030-01-02T03:04:05Z")
    done = running.run("key", "list", account.account_id, "--json")
    assert made["apiKey"] not in done.stdout
    (row,) = [row for row in json.loads(done.stdout)["data"] if row["keyId"] == made["keyId"]]
    assert row.pop("createdAt").endswith("Z")
    assert row.pop("spendStartsAnewAt").endswith("T00:00:00.000Z")
    assert row == {
        "keyId": made["keyId"],
        "accountId": account.account_id,
        "name": None,
        "tags": [],
        "budgets": [],
        "spendUsedMillicredits": "0",
        "lastUsedAt": None,
        "oldSecretUntil": None,
        "hint": f"{made['apiKey'][:8]}…{made['apiKey'][-4:]}",
        "models": ["gpt-4o*", "o3"],
        "spendLimitMillicredits": "12500",
        "spendPeriod": "week",
        "requestsPerMinute": 60,
        "tokensPerMinute": 9_000,
        "concurrency": 3,
        "expiresAt": "2030-01-02T03:04:05.000Z",
        "revokedAt": None,
        "role": "owner",
    }
    plain = running.cli("key", "create", account.account_id)["keyId"]
    (row,) = [row for row in running.cli("key", "list", account.account_id)["data"] if row["keyId"] == plain]
    unset = (
        "models",
        "spendLimitMillicredits",
        "spendPeriod",
        "requestsPerMinute",
        "tokensPerMinute",
        "concurrency",
        "expiresAt",
    )
    assert [row[name] for name in unset] == [None] * 7


def limited_key(server: Tollkeeper, *flags: str) -> str:
    account = new_customer(server, 1000_000)
    return str(server.cli("key", "create", account.account_id, *flags)["apiKey"])


def test_a_keys_models_are_all_it_may_use(running: Tollkeeper, sandbox: Sandbox) -> None:
    key = limited_key(running, "--models", "gpt-4o-mini", "text-*")
    assert chat(running, key).status_code == 200
    assert code_of(chat(running, key, model="gpt-4o")) == (404, "model_not_found")
    listed = web.get(f"{running.v1}/models", headers={"Authorization": f"Bearer {key}"}).json()["data"]
    names = {model["id"] for model in listed}
    assert {"gpt-4o-mini", "text-embedding-3-small"} <= names
    assert all(name == "gpt-4o-mini" or name.startswith("text-") for name in names)
    assert len(sandbox.record()) == 1


def test_a_keys_spend_limit_ends_it_though_its_account_has_more(running: Tollkeeper) -> None:
    key = limited_key(running, "--spend-limit", "0.025", "--period", "month")
    # a request is held at 1 token a byte and 5 tokens out: about 20 millicredits, and charged 5
    statuses = []
    for _ in range(8):
        answer = chat(running, key)
        statuses.append(answer.status_code)
        if answer.status_code == 402:
            assert answer.json()["limitSource"] == "key_limit"
    spent = 5 * statuses.count(200)
    assert statuses == sorted(statuses)  # once refused, always refused
    assert statuses[0] == 200
    assert statuses[-1] == 402
    assert spent <= 25


def test_a_keys_requests_a_minute_are_bounded(running: Tollkeeper) -> None:
    key = limited_key(running, "--rpm", "3")
    answers = [chat(running, key) for _ in range(5)]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429, 429]
    assert code_of(answers[-1]) == (429, "rate_limit_exceeded")
    # one of three a minute comes back every 20 s
    assert 0 < int(answers[-1].headers["retry-after"]) <= 20


def test_a_keys_tokens_a_minute_are_bounded(running: Tollkeeper) -> None:
    key = limited_key(running, "--tpm", "1000")
    assert chat(running, key, "long " + sandbox_says(output_tokens=800), max_tokens=800).status_code == 200
    answer = chat(running, key, max_tokens=800)
    assert code_of(answer) == (429, "rate_limit_exceeded")
    assert "tokens" in answer.json()["error"]["message"]
    assert 0 < int(answer.headers["retry-after"]) <= 60


def test_a_keys_concurrency_is_bounded(running: Tollkeeper, sandbox: Sandbox) -> None:
    key = limited_key(running, "--concurrency", "1")
    body = {
        "model": "gpt-4o-mini",
        "stream": True,
        "messages": [{"role": "user", "content": sandbox_says(output_tokens=400, chunk_interval_ms=50)}],
    }
    url, headers = f"{running.v1}/chat/completions", {"Authorization": f"Bearer {key}"}
    with web.stream("POST", url, json=body, headers=headers, timeout=30) as first:
        assert first.status_code == 200
        refused = chat(running, key)
        assert code_of(refused) == (429, "concurrency_limit_exceeded")
        assert refused.headers["retry-after"] == "1"
    wait_until(lambda: chat(running, key).status_code == 200, 5, "the place is free again")


def test_a_key_expires(running: Tollkeeper) -> None:
    key = limited_key(running, "--expires", "2s")
    wait_until(lambda: code_of(chat(running, key)) == (401, "key_expired"), 8, "the key expires")
    assert chat(running, limited_key(running, "--expires", "30d")).status_code == 200


def test_listings_for_people_say_units_and_states(running: Tollkeeper) -> None:
    account = new_customer(running, 1_234_567_890)
    key = json.loads(
        running.run(
            "key", "create", account.account_id, "--models", "gpt-4o*", "--spend-limit", "12.5", "--json"
        ).stdout
    )["keyId"]
    running.cli("key", "create", account.account_id, "--expires", "1s")
    running.cli("key", "revoke", key)
    header, *rows = running.run("account", "list").stdout.splitlines()
    assert header.split() == ["ACCOUNT", "STATUS", "CREDITS", "EXTERNAL", "ID", "E", "MAIL", "NAME"]
    (mine,) = [row for row in rows if account.account_id in row]
    assert mine[: header.index("CREDITS") + len("CREDITS")].endswith(" 1,234,567.890")

    def listed() -> str:
        return running.run("key", "list", account.account_id).stdout

    wait_until(lambda: "expired 20" in listed(), 5, "an expired key is called that")
    assert any(
        "revoked" in row and "gpt-4o*" in row and "12.500 credits a month" in row for row in listed().splitlines()
    )
    ledger = running.run("ledger", account.account_id).stdout.splitlines()
    assert ledger[0].split() == ["TIME", "CREDITS", "KIND", "REFERENCE", "ACTOR", "REASON"]
    assert "1,234,567.890  adjustment" in ledger[1]


def test_a_reference_stands_for_one_grant(running: Tollkeeper) -> None:
    account, other, reference = new_customer(running, 0), new_customer(running, 0), f"order {time.time_ns()}"
    running.cli("grant", account.account_id, "10", "--reason", "x", "--reference", reference)
    for whose, credits in ((account, "11"), (account, "-10"), (other, "10")):
        assert (
            "used before"
            in running.cli("grant", whose.account_id, credits, "--reason", "x", "--reference", reference, code=1)[
                "error"
            ]
        )
    assert running.cli("account", "show", account.account_id)["postedMillicredits"] == "10000"
    assert "below zero" in running.run("grant", account.account_id, "-11", "--reason", "taken back").stdout


def test_a_wrong_folder_is_said_and_left_as_it_is(folder: Path) -> None:
    lost = Tollkeeper(folder, {})
    assert "there is no ledger at" in lost.cli("account", "list", code=1)["error"]
    assert list(folder.rglob("*.db")) == []
    lost.cli("account", "create", "first")
    assert len(lost.cli("account", "list")["data"]) == 1


def test_the_command_says_its_version_and_hides_what_is_not_for_people(alone: Tollkeeper) -> None:
    assert alone.run("--version").stdout.startswith("tollkeeper ")
    shown = alone.run("--help").stdout
    assert "reconcile" in shown
    assert "SUPPRESS" not in shown


# -- the operator's commands --------------------------------------------------------------------------------------


def test_drain_reports_what_it_moved(running: Tollkeeper) -> None:
    account = new_customer(running, 100_000)
    assert account.chat(max_tokens=1).status_code == 200
    done = running.cli("drain")
    assert done.keys() == {
        "chargesFlushed",
        "creditsApplied",
        "pendingCharges",
        "heldMillicredits",
        "accountsWithHolds",
    }
    assert (done["pendingCharges"], done["heldMillicredits"], done["accountsWithHolds"]) == (0, "0", 0)
    assert len(running.cli("usage", account.account_id)["data"]) == 1


def test_rebuild_makes_the_balances_from_the_ledger(
    make_tollkeeper: Serve, redis_server: RedisServer, sandbox: Sandbox
) -> None:
    server = make_tollkeeper(TOLLKEEPER_REDIS__URL=redis_server.url).start()
    account = new_customer(server, 100_000)
    assert account.chat(max_tokens=5).status_code == 200
    server.cli("drain")
    assert server.cli("rebuild") == {"ok": True, "accounts": 1}
    account.wait_balance(99_995)
    assert account.chat(max_tokens=5).status_code == 200
    assert server.cli("reconcile") == {"ok": True, "findings": []}


def test_rebuild_of_the_embedded_store_needs_its_server_stopped(make_tollkeeper: Serve) -> None:
    server = make_tollkeeper().start()
    account = new_customer(server, 100_000)
    assert account.chat(max_tokens=5).status_code == 200
    refused = server.cli("rebuild", code=1)
    assert "error" in refused
    assert server.stop() == 0
    assert server.cli("rebuild") == {"ok": True, "accounts": 1}
    assert server.cli("drain")["pendingCharges"] == 0
    assert server.cli("account", "show", account.account_id)["postedMillicredits"] == "99995"


TAMPERINGS = {
    "a posted balance": (
        "UPDATE balances SET posted_millicredits = posted_millicredits + 7 WHERE account_id = :account",
        7,
    ),
    "an amount of the ledger": (
        "DROP TRIGGER IF EXISTS {update}; UPDATE transfers SET amount_millicredits = amount_millicredits + 7 WHERE kind = 'usage'",
        7,
    ),
    "a lost transfer": ("DROP TRIGGER IF EXISTS {delete}; DELETE FROM transfers WHERE kind = 'usage'", 5),
    "a usage row": ("UPDATE usage SET charged_millicredits = charged_millicredits + 7", 7),
}


@pytest.fixture(scope="module")
def quiet(new_folder: Callable[[str], Path], session_sandbox: Sandbox) -> tuple[Tollkeeper, str]:
    """A stopped product with one booked request, to be copied and tampered with; its account."""
    home = new_folder("cli-quiet")
    server = Tollkeeper(home, {"TOLLKEEPER_UPSTREAM__BASE_URL": session_sandbox.url}).start()
    try:
        account = new_customer(server, 100_000)
        assert account.chat(max_tokens=5).status_code == 200
        server.cli("drain")
    finally:
        assert server.stop() == 0
    assert server.cli("reconcile") == {"ok": True, "findings": []}
    return server, account.account_id


@pytest.mark.parametrize("case", TAMPERINGS)
def test_reconcile_finds_what_was_changed_by_hand(case: str, quiet: tuple[Tollkeeper, str], tmp_path: Path) -> None:
    server, account = quiet
    statement, difference = TAMPERINGS[case]
    path = tmp_path / "ledger.db"
    with sqlite3.connect(server.folder / "var" / "tollkeeper.db") as source, sqlite3.connect(path) as database:
        source.backup(database)
        triggers = dict(
            database.execute(
                "SELECT name, sql FROM sqlite_master WHERE type = 'trigger' AND tbl_name = 'transfers'"
            ).fetchall()
        )
        assert len(triggers) == 3
        update = next(name for name, sql in triggers.items() if "UPDATE" in sql.upper().partition("BEGIN")[0])
        delete = next(name for name, sql in triggers.items() if "DELETE" in sql.upper().partition("BEGIN")[0])
        for line in ("UPDATE transfers SET reason = 'x'", "DELETE FROM transfers"):
            with pytest.raises(sqlite3.DatabaseError):  # what the triggers are there for
                database.execute(line)
        for part in statement.format(update=update, delete=delete).split(";"):
            database.execute(part, {"account": account} if ":account" in part else {})
    tampered = Tollkeeper(
        server.folder, {**server.environment, "TOLLKEEPER_DATABASE__URL": f"sqlite+aiosqlite:///{path}"}
    )
    found = tampered.cli("reconcile", code=1)
    assert found["ok"] is False
    assert found["findings"]
    assert all(finding.keys() == {"check", "subject", "expected", "found"} for finding in found["findings"])
    assert difference in {abs(int(finding["expected"]) - int(finding["found"])) for finding in found["findings"]}
    assert account in {finding["subject"].partition(" ")[0] for finding in found["findings"]}


def test_reconcile_finds_a_cached_balance_that_was_changed_by_hand(
    make_tollkeeper: Serve, redis_server: RedisServer, sandbox: Sandbox
) -> None:
    import redis

    server = make_tollkeeper(TOLLKEEPER_REDIS__URL=redis_server.url).start()
    account = new_customer(server, 100_000)
    with redis.Redis(port=redis_server.port) as client:
        (key,) = [
            key for key in client.scan_iter() if account.account_id.encode() in key and client.type(key) == b"hash"
        ]
        client.hincrby(key, "balance" if client.hexists(key, "balance") else "b", 7)
    found = server.cli("reconcile", code=1)
    (finding,) = found["findings"]
    assert (finding["check"], finding["subject"]) == ("cached balance vs ledger", account.account_id)
    assert int(finding["found"]) - int(finding["expected"]) == 7
    assert "difference 7" in server.run("reconcile").stdout


# -- starting, configuration, usage ------------------------------------------------------------------------------------


def test_check_config_and_migrate(folder: Path) -> None:
    alone = Tollkeeper(folder, {})
    assert alone.cli("check-config")["ok"] is True
    assert list(folder.rglob("*.db")) == []
    assert alone.cli("migrate")["revision"]
    assert alone.cli("check-config")["ok"] is True
    assert alone.cli("migrate") == alone.cli("migrate")
    assert alone.cli("account", "list") == {"data": []}


def test_a_file_can_be_named_by_flag_and_by_variable(alone: Tollkeeper, tmp_path: Path) -> None:
    good, bad = tmp_path / "good.toml", tmp_path / "bad.toml"
    good.write_text("[listen]\nport = 1234\n")
    bad.write_text("[listen]\nprot = 1\n")
    assert alone.run("check-config", "--config", str(good)).returncode == 0
    for done in (
        alone.run("check-config", "--config", str(bad)),
        alone.run("check-config", TOLLKEEPER_CONFIG=str(bad)),
    ):
        assert done.returncode == 2
        assert done.stderr == (
            f"tollkeeper: {bad}:2: listen.prot: is not a known setting. "
            "Fix: did you mean listen.port? Otherwise remove it (proxy.toml lists every key)\n"
        )
    assert alone.run("check-config", TOLLKEEPER_CONFIG=str(good)).returncode == 0
    read = alone.cli("check-config", "--config", str(good))
    assert (read["file"], "TOLLKEEPER_LISTEN__PORT" in read["variables"]) == (str(good), True)
    assert f"Read: {good}, and over it " in alone.run("check-config", "--config", str(good)).stdout
    assert alone.cli("check-config")["file"] is None
    assert "there is no proxy.toml here" in alone.run("check-config").stdout


NOT_STARTED = [
    ({"OPENAI_API_KEY": ""}, "OPENAI_API_KEY: is not set"),
    ({"OPENAI_API_KEY": "sk a"}, "OPENAI_API_KEY: has blanks"),
    ({"TOLLKEEPER_UPSTREAM__API_KEY_FILE": "none", "OPENAI_API_KEY": ""}, "upstream.api_key_file: cannot be read"),
    ({"TOLLKEEPER_UPSTREAM__CA_FILE": "none.pem"}, "upstream.ca_file: names a file that cannot be read"),
    ({"TOLLKEEPER_APP__LOGO_FILE": "none.svg"}, "app.logo_file: cannot be read"),
    ({"STRIPE_API_KEY": "sk_test_1"}, "STRIPE_WEBHOOK_SECRET: is not set"),
    ({"PORTAL_SERVICE_KEY": "short"}, "PORTAL_SERVICE_KEY: is shorter"),
    ({"TOLLKEEPER_NOTICES__URL": "https://app.example.com/n"}, "NOTICES_SECRET: is not set"),
    ({"OPENAI_ADMIN_KEY": "a b"}, "OPENAI_ADMIN_KEY: has blanks"),
    ({"TOLLKEEPER_LISTEN__WORKERS": "2"}, "listen.workers"),
    (
        {"TOLLKEEPER_DATABASE__URL": "postgresql+asyncpg://db/x?sslmode=verify-full&sslrootcert=none.pem"},
        "database.url: names a file in sslrootcert that cannot be read",
    ),
    ({"TOLLKEEPER_DATABASE__URL": "postgresql+asyncpg://db/x?sslmode=on"}, "database.url: has a 'sslmode'"),
    (
        {"TOLLKEEPER_DATABASE__REPLICA_URL": "postgresql+asyncpg://db/x"},
        "database.replica_url: needs a ledger in PostgreSQL",
    ),
    (
        {
            "TOLLKEEPER_DATABASE__URL": "postgresql+asyncpg://db/x",
            "TOLLKEEPER_DATABASE__REPLICA_URL": "postgresql+asyncpg://copy/x?sslrootcert=none.pem",
        },
        "database.replica_url: names a file in sslrootcert that cannot be read",
    ),
    ({"TOLLKEEPER_REDIS__URL": "rediss://x?ssl_ca_certs=none.pem"}, "redis.url: names a file in ssl_ca_certs"),
]


@pytest.mark.parametrize(("environment", "said"), NOT_STARTED, ids=[said for _, said in NOT_STARTED])
def test_check_config_refuses_what_serve_refuses(environment: dict[str, str], said: str, alone: Tollkeeper) -> None:
    code, serving = refused_start(alone, **environment)
    checked = alone.run("check-config", **environment)
    assert (code, checked.returncode) == (2, 2)
    assert said in serving
    assert checked.stderr == serving


def test_everything_that_is_missing_is_said_at_once(alone: Tollkeeper) -> None:
    done = alone.run("check-config", "--json", OPENAI_API_KEY="", STRIPE_API_KEY="sk_test_1", PORTAL_SERVICE_KEY="x")
    assert [problem["key"] for problem in json.loads(done.stdout)["problems"]] == [
        "STRIPE_WEBHOOK_SECRET",
        "PORTAL_SERVICE_KEY",
        "OPENAI_API_KEY",
    ]
    assert done.stderr.startswith("tollkeeper: 3 problems in the configuration:\nenvironment: STRIPE_WEBHOOK_SECRET: ")


def test_an_override_that_fits_no_setting_is_seen_before_the_start(alone: Tollkeeper, folder: Path) -> None:
    server = Tollkeeper(folder, {})
    server.cli("flags", "set", "auto_recharge", "true", "--reason", "x")
    assert server.run("check-config").returncode == 0
    with closing(sqlite3.connect(folder / "var" / "tollkeeper.db")) as store, store:
        store.execute("UPDATE flag_overrides SET value = '\"sometimes\"'")  # as another version may have written it
    done = server.run("check-config")
    assert done.returncode == 2
    assert "billing.auto_recharge" in done.stderr


USAGE_ERRORS = [
    [],
    ["nonsense"],
    ["serve", "--nonsense"],
    ["account"],
    ["account", "create"],
    ["account", "show"],
    ["key", "create"],
    ["key", "create", "acct_x", "--rpm", "many"],
    ["key", "create", "acct_x", "--rpm", "-1"],
    ["key", "create", "acct_x", "--concurrency", "1.5"],
    ["key", "create", "acct_x", "--tpm", "99999999999"],
    ["key", "create", "acct_x", "--period", "year"],
    ["key", "create", "acct_x", "--expires", "tomorrow"],
    ["key", "create", "acct_x", "--expires", "9999999999d"],
    ["key", "create", "acct_x", "--spend-limit", "lots"],
    ["key", "create", "acct_x", "--spend-limit", "-5"],
    ["key", "create", "acct_x", "--spend-limit", "0.0001"],
    ["grant", "acct_x", "5"],
    ["grant", "acct_x", "five", "--reason", "x"],
    ["grant", "acct_x", "0", "--reason", "x"],
    ["grant", "acct_x", "0.0001", "--reason", "x"],
    ["grant", "acct_x", "nan", "--reason", "x"],
    ["grant", "acct_x", "1e30", "--reason", "x"],
    ["grant", "acct_x", "1000000001", "--reason", "x"],
    ["grant", "acct_x", "5", "--reason", " "],
    ["grant", "acct_x", "5", "--reason", "x", "--reference", "r" * 81],
    ["account", "create", ""],
    ["account", "create", "n" * 201],
    ["account", "create", "two\nlines"],
    ["ledger", "acct_x", "--limit", "-1"],
    ["ledger", "acct_x", "--limit", "ten"],
]


@pytest.mark.parametrize("arguments", USAGE_ERRORS, ids=lambda words: " ".join(words)[:60])
def test_bad_usage_is_exit_code_2_with_one_clear_line(arguments: list[str], alone: Tollkeeper) -> None:
    done = alone.run(*arguments)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert done.stderr.strip()
    assert done.stdout == ""


REFUSALS = [
    ["account", "show", "acct_nobody"],
    ["account", "block", "acct_nobody"],
    ["key", "create", "acct_nobody"],
    ["key", "list", "acct_nobody"],
    ["key", "revoke", "key_none"],
    ["grant", "acct_nobody", "5", "--reason", "x"],
    ["ledger", "acct_nobody"],
    ["usage", "acct_nobody"],
]


@pytest.mark.parametrize("arguments", REFUSALS, ids=" ".join)
def test_what_does_not_exist_is_exit_code_1_and_named(arguments: list[str], alone: Tollkeeper) -> None:
    done = alone.run(*arguments, "--json")
    assert done.returncode == 1
    name = next(word for word in arguments if word.startswith(("acct_", "key_")))
    assert name in json.loads(done.stdout)["error"]
    assert name in done.stderr
    assert "Traceback" not in done.stderr


def test_people_get_text_and_help(alone: Tollkeeper) -> None:
    made = alone.run("account", "create", "Text")
    assert made.returncode == 0
    account = made.stdout.split()[1]
    assert "API key (shown this once): tk-" in made.stdout
    for arguments in (
        ["account", "show", account],
        ["account", "list"],
        ["key", "list", account],
        ["grant", account, "1", "--reason", "x"],
        ["ledger", account],
        ["usage", account],
        ["drain"],
        ["reconcile"],
        ["rebuild"],
        ["check-config"],
        ["migrate"],
        ["account", "block", account],
        ["--help"],
        ["key", "create", "--help"],
        ["serve", "--help"],
    ):
        done = alone.run(*arguments)
        assert done.returncode == 0, (arguments, done.stderr)
        assert done.stdout.strip(), arguments
        assert not done.stdout.startswith("{"), arguments


def refused_start(server: Tollkeeper, **environment: str) -> tuple[int, str]:
    """`serve` that must end by itself: its exit code and its words."""
    done = subprocess.run(
        [str(TOLLKEEPER), "serve"],
        cwd=server.folder,
        env={**server.all_environment(), **environment},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert "Traceback" not in done.stderr
    return done.returncode, done.stderr


def test_serve_without_an_upstream_key_says_so(alone: Tollkeeper) -> None:
    code, said = refused_start(alone, OPENAI_API_KEY="")
    assert code == 2
    assert "environment: OPENAI_API_KEY: is not set" in said
    assert "make run" in said


def test_serve_with_a_broken_upstream_key_does_not_show_it(alone: Tollkeeper) -> None:
    code, said = refused_start(alone, OPENAI_API_KEY="sk-first sk-second")
    assert code == 2
    assert "OPENAI_API_KEY" in said
    assert "sk-first" not in said


def test_two_workers_on_the_embedded_store_do_not_start(alone: Tollkeeper) -> None:
    code, said = refused_start(alone, TOLLKEEPER_LISTEN__WORKERS="2")
    assert code == 2
    assert "TOLLKEEPER_LISTEN__WORKERS" in said
    assert "set redis.url" in said


def test_a_taken_port_is_named(alone: Tollkeeper, running: Tollkeeper) -> None:
    code, said = refused_start(alone, TOLLKEEPER_LISTEN__PORT=str(running.port))
    assert code == 2
    assert "listen.port: cannot listen (Address already in use)" in said


@pytest.mark.parametrize(
    ("option", "key", "fix"),
    [
        (("--maxmemory-policy", "allkeys-lru"), "redis.url: maxmemory-policy is 'allkeys-lru'", "noeviction"),
        (("--appendonly", "no"), "redis.require_aof: appendonly is off", "appendonly yes"),
    ],
)
def test_a_redis_that_forgets_is_refused(
    option: tuple[str, str], key: str, fix: str, alone: Tollkeeper, folder: Path
) -> None:
    redis = RedisServer(folder / "redis", extra=option)
    redis.start()
    try:
        code, said = refused_start(alone, TOLLKEEPER_REDIS__URL=redis.url)
        assert code == 2
        assert key in said
        assert fix in said.partition("Fix:")[2]
        done = alone.run("check-config", TOLLKEEPER_REDIS__URL=redis.url)
        assert (done.returncode, key in done.stderr) == (2, True)
        if key.startswith("redis.require_aof"):
            allowed = alone.run("check-config", TOLLKEEPER_REDIS__URL=redis.url, TOLLKEEPER_REDIS__REQUIRE_AOF="false")
            assert allowed.returncode == 0
    finally:
        redis.kill()


def test_a_store_that_is_away_is_a_refusal(alone: Tollkeeper) -> None:
    nowhere = free_port()
    for environment in (
        {"TOLLKEEPER_REDIS__URL": f"redis://127.0.0.1:{nowhere}/0"},
        {"TOLLKEEPER_DATABASE__URL": f"postgresql+asyncpg://me:hunter2@127.0.0.1:{nowhere}/none"},
    ):
        code, said = refused_start(alone, **environment)
        assert code == 1
        assert "cannot start" in said
        assert "hunter2" not in said
    done = alone.run("account", "list", TOLLKEEPER_DATABASE__URL=f"postgresql+asyncpg://me@127.0.0.1:{nowhere}/none")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr


def test_an_old_schema_stops_the_start_until_migrate(alone: Tollkeeper, tmp_path: Path) -> None:
    path = tmp_path / "old.db"
    url = f"sqlite+aiosqlite:///{path}"
    assert alone.run("migrate", TOLLKEEPER_DATABASE__URL=url).returncode == 0
    with sqlite3.connect(path) as database:
        database.execute("UPDATE alembic_version SET version_num = '0000_before'")
    code, said = refused_start(alone, TOLLKEEPER_DATABASE__URL=url)
    assert code == 2
    assert "database.url" in said
    assert "tollkeeper migrate" in said


def test_the_cli_works_on_postgresql_beside_a_server(
    make_tollkeeper: Serve, empty_postgres: str, sandbox: Sandbox
) -> None:
    server = make_tollkeeper(TOLLKEEPER_DATABASE__URL=empty_postgres).start()
    account = new_customer(server, 100_000)
    assert account.chat(max_tokens=5).status_code == 200
    (row,) = account.usage()
    assert row["chargedMillicredits"] == "5"
    assert server.cli("account", "show", account.account_id)["postedMillicredits"] == "99995"
    assert server.cli("reconcile") == {"ok": True, "findings": []}
    widest = server.cli("account", "create", "ü" * 200)["accountId"]
    server.cli("key", "create", widest, "--rpm", "2147483647", "--tpm", "2147483647", "--concurrency", "2147483647")
    server.cli("grant", widest, "1000000000", "--reason", "x", "--reference", "r" * 80)
    assert server.cli("account", "show", widest)["postedMillicredits"] == "1000000000000"

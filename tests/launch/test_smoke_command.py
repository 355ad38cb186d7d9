"""`tollkeeper smoke` against the served product: whole, and broken on purpose."""

import json
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any, cast

import httpx
import psutil
import pytest

from config.settings import Settings, Stripe
from proxy.cli.context import Context
from proxy.cli.smoke.customer import Customer
from proxy.cli.smoke.steps import Steps
from tests.launch.breaks import NOWHERE
from tests.support import web
from tests.support.live import Live
from tests.support.servers import wait_until, within
from tests.support.stranger import stranger

STEPS = ["ready", "account", "me", "purchase", "webhook again", "call", "stream", "reconcile", "402", "clean-up"]
STARTER = 9_990_000


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What never comes is not waited for as long as on a slow production machine."""
    monkeypatch.setattr("proxy.cli.smoke.steps.STEP_SECONDS", 1.0)


def smoke(live: Live, *arguments: str, **environment: str) -> tuple[int, dict[str, Any]]:
    done = live.server.run("smoke", "--json", *arguments, **environment)
    return done.returncode, json.loads(done.stdout)


def status_of(live: Live, account: str) -> str:
    return str(live.server.cli("account", "show", account)["status"])


def test_whole(live: Live) -> None:
    """What it says happened is what OpenAI's and Stripe's own records have."""
    live.sandbox.clear()
    paid = live.control("record", "GET")["totals"]["paid"]
    code, found = smoke(live)
    assert (code, found["ok"]) == (0, True)
    assert [(row["name"], row["state"]) for row in found["checks"]] == [(name, "PASS") for name in STEPS]
    account = found["accountId"]
    calls = [row for row in live.sandbox.record() if row["path"].endswith("/chat/completions")]
    assert [row["stream"] for row in calls] == [False, True]
    assert live.control("record", "GET")["totals"]["paid"] - paid == 999
    rows = live.server.cli("ledger", account)["data"]
    assert sorted(row["kind"] for row in rows) == ["adjustment", "purchase", "refund", "usage", "usage"]
    moved = {row["kind"]: int(row["amountMillicredits"]) for row in rows}
    assert -STARTER < moved["refund"] <= 20_000 - STARTER, "all but what was used, in whole cents"
    assert live.control("record", "GET")["totals"]["refunded"] * 10_000 >= -moved["refund"]
    assert sum(int(row["amountMillicredits"]) for row in rows) == 0, "no test stays in what is owed"
    shown = partial(live.server.cli, "account", "show", account)
    wait_until(lambda: int(shown()["balanceMillicredits"]) == 0, 5, "the store has heard of the adjustment")
    assert status_of(live, account) == "blocked"


def test_text_for_people(live: Live) -> None:
    done = live.server.run("smoke", "--skip-purchase", "--keep")
    assert done.returncode == 0
    assert done.stdout.splitlines()[0].startswith("PASS  smoke ready")
    assert "9,990" in done.stdout or "9990" in done.stdout
    kept = done.stdout.partition("kept: ")[2].split()
    account, key = kept[0].rstrip(","), kept[2]
    assert status_of(live, account) == "active"
    me = web.get(f"{live.server.url}/api/billing/me", headers={"Authorization": f"Bearer {key}"}).json()
    assert me["accountId"] == account
    assert live.server.cli("ledger", account)["data"][-1]["referenceId"] == f"smoke:{account}"


# -- broken on purpose: the step that fails, and a word of what to do about it ------------------------------------

Break = Callable[[Live], Iterator[dict[str, str]]]


def webhooks(**delivery: Any) -> Break:
    def work(live: Live) -> Iterator[dict[str, str]]:
        live.control("settings", "PUT", delivery={"retry_scale": 0.0, "max_attempts": 1, **delivery})
        yield {}
        live.control("settings", "PUT", delivery={"drop": 0.0, "signature": "valid", "livemode": None})

    return work


def switch(flag: str, value: str, *more: str) -> Break:
    def work(live: Live) -> Iterator[dict[str, str]]:
        pairs = [(flag, value), *([(more[0], more[1])] if more else [])]
        for name, wanted in pairs:
            live.server.cli("flags", "set", name, wanted, "--reason", "a test")
        time.sleep(within(2))  # which is promised: every worker follows
        yield {}
        for name, _ in pairs:
            live.server.cli("flags", "clear", name, "--reason", "a test")
        time.sleep(within(2))

    return work


def jobs_process_hangs(live: Live) -> Iterator[dict[str, str]]:
    """The process that handles webhooks and makes grants live."""
    assert live.server.process is not None
    jobs = [child for child in psutil.Process(live.server.process.pid).children() if child.name() == "tk-jobs"]
    assert len(jobs) == 1
    jobs[0].send_signal(signal.SIGSTOP)
    yield {}
    jobs[0].send_signal(signal.SIGCONT)


def bent(table: str, change: str) -> Break:
    """The books take another amount than they were told."""

    def work(live: Live) -> Iterator[dict[str, str]]:
        body = f"CREATE FUNCTION bend() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {change} RETURN NEW; END $$"
        live.sql(body, f"CREATE TRIGGER bent BEFORE INSERT ON {table} FOR EACH ROW EXECUTE FUNCTION bend()")
        yield {}
        live.sql(f"DROP TRIGGER bent ON {table}", "DROP FUNCTION bend")

    return work


def upstream(**settings: Any) -> Break:
    def work(live: Live) -> Iterator[dict[str, str]]:
        live.sandbox.settings(**settings)
        yield {}
        live.sandbox.settings(fail_rate=0.0)

    return work


def another_ledger(live: Live) -> Iterator[dict[str, str]]:
    environment = {"TOLLKEEPER_DATABASE__URL": f"sqlite+aiosqlite:///{live.server.folder}/other.db"}
    assert live.server.run("migrate", **environment).returncode == 0
    yield environment


def nothing(live: Live) -> Iterator[dict[str, str]]:
    del live
    yield {}


BROKEN: dict[str, tuple[Break, tuple[str, ...], str, str]] = {
    "webhooks of another secret": (webhooks(signature="wrong_secret"), (), "purchase", "STRIPE_WEBHOOK_SECRET"),
    "the jobs process hangs": (jobs_process_hangs, (), "purchase", "tollkeeper stripe inbox"),
    "the jobs process hangs, a grant": (jobs_process_hangs, ("--skip-purchase",), "purchase", "jobs process"),
    "purchases are off": (switch("purchase_enabled", "false"), (), "purchase", "flags set purchase_enabled true"),
    "charging is paused": (
        switch("charging_enabled", "false"),
        ("--skip-purchase",),
        "call",
        "flags set charging_enabled true",
    ),
    "charging is off and calls are free": (
        switch("charging_enabled", "false", "charging_disabled_mode", "free"),
        ("--skip-purchase",),
        "call",
        "charging is off",
    ),
    "the purchase is booked with another price": (
        bent(
            "transfers", "IF NEW.kind = 'purchase' THEN NEW.amount_millicredits := NEW.amount_millicredits - 1; END IF;"
        ),
        (),
        "purchase",
        "switch purchases off",
    ),
    "the call is booked with another price": (
        bent("usage", "NEW.charged_millicredits := NEW.charged_millicredits + 1;"),
        ("--skip-purchase",),
        "call",
        "tollkeeper reconcile",
    ),
    "no such package": (nothing, ("--package", "gold"), "purchase", "[[packages]]"),
    "a model that is not sold": (nothing, ("--skip-purchase", "--model", "gpt-99"), "call", "--model"),
    "openai fails": (upstream(fail_rate=1.0, fail_status=401), ("--skip-purchase",), "call", "OPENAI_API_KEY"),
    "another ledger than the server's": (another_ledger, ("--skip-purchase",), "me", "--url"),
    "no server": (nothing, ("--url", NOWHERE), "ready", "--url"),
}


WAITED_FOR = ("webhooks of another secret", "the jobs process hangs", "the jobs process hangs, a grant")


@pytest.mark.parametrize("name", BROKEN)
def test_broken_on_purpose(name: str, live: Live, request: pytest.FixtureRequest) -> None:
    work, arguments, step, hint = BROKEN[name]
    if name in WAITED_FOR:
        request.getfixturevalue("impatient")
    with contextmanager(work)(live) as environment:
        code, found = smoke(live, *arguments, **environment)
    rows = {row["name"]: row for row in found["checks"]}
    failed = [row["name"] for row in found["checks"] if row["state"] == "FAIL"]
    assert (code, found["ok"], failed) == (1, False, [step]), found["checks"]
    assert hint in rows[step]["fix"]
    if name == "the call is booked with another price":
        found_later = live.server.cli("reconcile", "--no-stripe", code=1)["findings"]
        assert any(row["check"] == "usage row vs its transfer" for row in found_later)
    wanted = STEPS[: STEPS.index(step) + 1]
    assert [row for row in rows if row not in ("clean-up", "webhook again")] == [
        row for row in wanted if row != "webhook again"
    ]
    if found["accountId"] and not environment:
        assert status_of(live, found["accountId"]) == "blocked"


@pytest.mark.usefixtures("impatient")
def test_webhooks_that_never_come(live: Live) -> None:
    """Either nobody credits in time, or the sweeper does, which is not the way that it should be."""
    with contextmanager(webhooks(drop=1.0))(live):
        code, found = smoke(live)
    (failed,) = [row for row in found["checks"] if row["state"] == "FAIL"]
    assert code == 1
    assert failed["name"] in ("purchase", "webhook again")
    assert "tollkeeper preflight" in failed["fix"]


def test_something_else_answers(live: Live) -> None:
    with stranger({"/api/billing/me": (200, ["a", "list"])}) as url:
        code, found = smoke(live, "--url", url)
    assert code == 1
    assert found["checks"][-2]["name"] == "me"
    assert "--url" in found["checks"][-2]["fix"]
    with stranger() as url:
        assert "lacks balanceMillicredits" in smoke(live, "--url", url)[1]["checks"][-2]["found"]


def test_beside_make_run(live: Live) -> None:
    """There the command's settings know of no simulator, only the payment page tells of it."""
    code, found = smoke(live, TOLLKEEPER_STRIPE__API_BASE="")
    assert (code, [row["state"] for row in found["checks"]]) == (0, ["PASS"] * len(STEPS))


@pytest.mark.parametrize(
    ("url", "session", "api_base", "simulator"),
    [
        ("https://checkout.stripe.com/c/pay/cs_test_1", "cs_test_1", "", ""),
        ("https://checkout.stripe.com/c/pay/cs_test_1", "cs_test_1", "http://127.0.0.1:9", ""),
        ("https://pay.shop.example/c/pay/cs_live_1", "cs_live_1", "", ""),
        ("https://pay.shop.example/c/pay/cs_test_1", "cs_test_1", "", ""),
        ("http://127.0.0.1:12111/c/pay/cs_live_1", "cs_live_1", "", ""),
        ("http://127.0.0.1:12111/c/pay/cs_test_1", "cs_test_1", "", "http://127.0.0.1:12111"),
        ("http://bank.test:12111/c/pay/cs_test_1", "cs_test_1", "http://bank.test:12111", "http://bank.test:12111"),
    ],
)
def test_only_a_simulators_page_is_paid_by_the_command(url: str, session: str, api_base: str, simulator: str) -> None:
    """A shop's own domain at Stripe, and whatever is live, is paid by a person."""
    context = SimpleNamespace(settings=Settings(stripe=Stripe(api_base=api_base)))
    customer = Customer(cast("Context", context), cast("httpx.AsyncClient", None), "")
    going = Steps(customer, {"url": url, "sessionId": session})
    assert going.simulator == simulator

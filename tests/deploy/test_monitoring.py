"""Alerts, dashboards, compose file: judged by Prometheus itself, and fired in it."""

import contextlib
import json
import os
import re
import sqlite3
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml
from prometheus_client import CollectorRegistry
from redis import Redis

from billing.accounting.daily_finance import Figures
from billing.jobs.runs import JobStanding
from billing.money.holds import Outstanding
from billing.payments.stripe.event_types import API_VERSION
from billing.payments.stripe.signatures import sign
from config.load import load_settings
from proxy.observability.metrics import Metrics
from proxy.observability.upstream_metrics import UpstreamState
from tests.support import web
from tests.support.customers import new_customer
from tests.support.programs import POSTGRES
from tests.support.prometheus import RULES, Exporter, Prometheus, promtool
from tests.support.rate_cards import activate_ends, day
from tests.support.servers import ROOT, RedisServer, Sandbox, Tollkeeper, sandbox_says, wait_until

SECRET = "whsec_monitored"
CASES = ROOT / "deploy" / "alerts" / "tests" / "tollkeeper_test.yml"
DASHBOARDS = sorted((ROOT / "deploy" / "dashboards").glob("*.json"))
GROUPS: list[dict[str, Any]] = yaml.safe_load(RULES.read_text())["groups"]
ALERTS = {rule["alert"]: rule for group in GROUPS for rule in group["rules"] if "alert" in rule}
RECORDED = {rule["record"] for group in GROUPS for rule in group["rules"] if "record" in rule}
OF_A_CLUSTER = {"BucketsAway", "ReplicaUnused"}
"""Their figures are seen to move in tests/faults/test_redis_cluster.py and test_replica.py, their rules in deploy/alerts/tests."""
SLOW = {"WebhooksLate", "JournalLag", "HoldsStuck", "JobNotRun", "ConfigNotFollowed"}
"""Alerts whose cause takes a minute or more to come about."""
OURS = re.compile(r"\b(?:tollkeeper|billing|openai|stripe|finance)[a-z0-9_]*(?::[a-z0-9_:]+)?")


def series() -> set[str]:
    """Every series name that the product exports."""
    found = set()
    registry = CollectorRegistry()
    Metrics(registry)
    for family in registry.collect():
        suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}.get(family.type, ("",))
        found |= {family.name + suffix for suffix in suffixes}
    return found


def queries() -> list[tuple[str, str]]:
    """(panel title, query) of every panel, with Grafana's interval filled in."""
    found = []
    for path in DASHBOARDS:
        for panel in json.loads(path.read_text())["panels"]:
            for target in panel.get("targets", []):
                found.append((f"{path.stem}: {panel['title']}", target["expr"].replace("$__rate_interval", "1m")))
    return found


# -- what the files say ----------------------------------------------------------------------------


@pytest.mark.served
def test_promtool_accepts_the_rules_and_their_cases() -> None:
    for arguments in (("check", "rules", str(RULES)), ("test", "rules", str(CASES))):
        done = promtool(*arguments)
        assert done.returncode == 0, done.stdout + done.stderr
    done = promtool("check", "config", "--syntax-only", str(ROOT / "deploy" / "prometheus" / "prometheus.yml"))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("alert", ALERTS)
def test_an_alert_is_explained_proved_to_fire_and_proved_to_be_silent(alert: str) -> None:
    rule, cases = ALERTS[alert], CASES.read_text()
    assert {"summary", "description", "runbook_url"} <= rule["annotations"].keys()
    assert rule["labels"]["severity"] in ("page", "ticket")
    page, _, anchor = rule["annotations"]["runbook_url"].partition("#")
    assert f"## {alert}\n" in (ROOT / page).read_text()
    assert anchor == alert.lower()
    assert f"alertname: {alert}}}" in cases, "no case in which it is silent"
    assert re.search(rf'alertname="{alert}"[^\n]*firing[^\n]*value: [1-9]', cases), "no case in which it fires"


def test_alerts_and_dashboards_name_only_series_that_exist() -> None:
    known = series() | RECORDED
    used = {
        name for rule in (rule for group in GROUPS for rule in group["rules"]) for name in OURS.findall(rule["expr"])
    }
    used |= {name for _, query in queries() for name in OURS.findall(query)}
    assert used - known - {"tollkeeper", "finance", "stripe"} == set()  # which are names of jobs


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_a_dashboard_is_complete(path: Path) -> None:
    board = json.loads(path.read_text())
    assert [variable["type"] for variable in board["templating"]["list"]] == ["datasource"]
    panels = [panel for panel in board["panels"] if panel["type"] != "row"]
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    for panel in panels:
        assert panel["title"]
        assert panel["description"].endswith(".")
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert panel["targets"]
        assert all(
            target["datasource"]["uid"] == "${datasource}" and target["legendFormat"] for target in panel["targets"]
        )
        assert all(
            "rate(" not in target["expr"] or "$__rate_interval" in target["expr"] for target in panel["targets"]
        ), panel["title"]
        place = panel["gridPos"]
        assert 0 <= place["x"] < place["x"] + place["w"] <= 24
    taken = [(panel["gridPos"]["y"], panel["gridPos"]["x"]) for panel in panels]
    assert len(set(taken)) == len(taken)


def test_compose_mounts_what_exists_and_sets_what_is_a_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    compose = yaml.safe_load((ROOT / "deploy" / "docker-compose.yml").read_text())
    services = compose["services"]
    assert set(services) == {"migrate", "roles", "tollkeeper", "postgres", "redis", "prometheus", "grafana"}
    example = set(re.findall(r"^([A-Z_]+)=", (ROOT / "deploy" / ".env.example").read_text(), re.MULTILINE))
    assert set(re.findall(r"\$\{([A-Z_]+)", (ROOT / "deploy" / "docker-compose.yml").read_text())) == example
    for name, service in services.items():
        assert service["image"] == "tollkeeper" or re.fullmatch(r"[a-z/]+:v?\d+\.\d+(\.\d+)?", service["image"]), (
            "an image is pinned"
        )
        for volume in service.get("volumes", []):
            source = volume.partition(":")[0]
            assert (ROOT / "deploy" / source).exists() if source.startswith(".") else source in compose["volumes"]
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), (
            "nothing is open to the world by itself"
        )
    for name, value in services["tollkeeper"]["environment"].items():
        if name.startswith("TOLLKEEPER_"):
            monkeypatch.setenv(
                name,
                "" if "$" in value else value,
            )
    settings = load_settings(ROOT / "proxy.toml")
    assert settings.listen.workers == 2
    assert not re.search(r"//[^ ]*\$\{", (ROOT / "deploy" / "docker-compose.yml").read_text()), (
        "a secret in a URL would have to be escaped"
    )
    # what operators use is on a port of its own, which Prometheus reaches inside and nobody from outside
    assert settings.listen.admin_port not in (0, settings.listen.port)
    assert f"127.0.0.1:{settings.listen.admin_port}:{settings.listen.admin_port}" in services["tollkeeper"]["ports"]
    scraped = yaml.safe_load((ROOT / "deploy" / "prometheus" / "prometheus.yml").read_text())["scrape_configs"][0][
        "static_configs"
    ]
    assert scraped == [{"targets": [f"tollkeeper:{settings.listen.admin_port}"]}]
    # tables are made by their owner, and served by a role that is not
    owner = services["migrate"]["environment"]["TOLLKEEPER_DATABASE__URL"]
    assert ("//tollkeeper@" in owner, "//tollkeeper_serves@" in settings.database.url) == (True, True)
    assert services["tollkeeper"]["depends_on"]["roles"]["condition"] == "service_completed_successfully"
    assert settings.redis.url == "redis://redis:6379/0"
    flags = services["redis"]["command"]
    assert flags[flags.index("--appendfsync") + 1] == "always"
    assert flags[flags.index("--maxmemory-policy") + 1] == "noeviction"
    assert flags[flags.index("--appendonly") + 1] == "yes"


def test_the_role_that_serves_is_made_again_and_again_and_is_the_runbooks(fresh_postgres: str) -> None:
    """What compose runs with psql: twice, with a password that no URL could carry as it is."""
    script = ROOT / "deploy" / "postgres" / "serving-role.sql"
    says = re.search(r"```sql\n(CREATE ROLE.*?)```", (ROOT / "docs" / "runbook.md").read_text(), re.DOTALL)
    assert says is not None
    assert says[1].splitlines()[1:] == script.read_text().splitlines()[6:]
    url = fresh_postgres.replace("postgresql+asyncpg://", "postgresql://")
    command = [str(POSTGRES / "psql"), url, "--set=ON_ERROR_STOP=1"]
    try:
        for password in ("first", "p@ss/w:rd%20?#'\" "):
            environment = {**os.environ, "SERVING_PASSWORD": password}
            done = subprocess.run(
                [*command, f"--file={script}"], env=environment, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, done.stderr
        tables = "SELECT count(*) FROM usage; INSERT INTO sweep_marks VALUES ('a test', 1); DELETE FROM sweep_marks WHERE name = 'a test'"
        owned = "SELECT 'owned' FROM pg_class WHERE relowner = 'tollkeeper_serves'::regrole"
        assert "owned" not in subprocess.run(command, input=owned, capture_output=True, text=True, check=True).stdout
        for wanted, statement in (
            (0, tables),
            (0, "SELECT keep_usage_month('move', 2031, 1)"),
            (3, "ALTER TABLE transfers DISABLE TRIGGER ALL"),
            (3, "DROP TABLE audit_log"),
            (3, "CREATE TABLE planted ()"),
            (3, "CREATE FUNCTION planted() RETURNS int LANGUAGE sql AS 'SELECT 1'"),
            (3, "CREATE TRIGGER planted BEFORE INSERT ON usage FOR EACH ROW EXECUTE FUNCTION transfers_are_final()"),
            (3, "CREATE TRIGGER planted BEFORE INSERT ON usage_default EXECUTE FUNCTION transfers_are_final()"),
            (3, "ALTER TABLE usage ADD COLUMN planted int"),
            (3, "ALTER TABLE usage_2031_01 ADD CHECK (created_at > 0)"),
            (3, "UPDATE alembic_version SET version_num = '0001'"),
            (3, "UPDATE transfers SET amount_millicredits = 1"),
            (3, "DELETE FROM audit_log"),
            (3, "SELECT keep_usage_month('drop; DROP TABLE transfers', 2031, 1)"),
            (3, "SELECT keep_usage_month('make', 2031, 13)"),
            (0, "SELECT keep_usage_month('drop', 2031, 1)"),
        ):
            done = subprocess.run(
                command, input=f"SET ROLE tollkeeper_serves; {statement};", capture_output=True, text=True, check=False
            )
            assert done.returncode == wanted, (statement, done.stderr)
        # of an installation before, the role owned usage and could create: what it planted there is found
        planted = (
            "GRANT CREATE ON SCHEMA public TO tollkeeper_serves; ALTER TABLE usage OWNER TO tollkeeper_serves; "
            "SET ROLE tollkeeper_serves; CREATE FUNCTION planted() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';"
        )
        subprocess.run(command, input=planted, capture_output=True, text=True, check=True)
        again = [*command, f"--file={script}"]
        environment = {**os.environ, "SERVING_PASSWORD": "again"}
        done = subprocess.run(again, env=environment, capture_output=True, text=True, check=False)
        assert (done.returncode, "functions of its own" in done.stderr) == (3, True)
        subprocess.run(command, input="DROP FUNCTION planted;", capture_output=True, text=True, check=True)
        subprocess.run(again, env=environment, capture_output=True, text=True, check=True)
        assert "owned" not in subprocess.run(command, input=owned, capture_output=True, text=True, check=True).stdout
    finally:  # a role is the whole server's, and other tests make it themselves
        dropped = "DROP OWNED BY tollkeeper_serves CASCADE; DROP ROLE tollkeeper_serves;"
        subprocess.run(command, input=dropped, capture_output=True, text=True, check=True)


# -- fired in Prometheus ---------------------------------------------------------------------------


@pytest.fixture
def watched(folder: Path, session_sandbox: Sandbox) -> Iterator[tuple[Tollkeeper, RedisServer]]:
    """Two workers, Stripe configured, following a file of their own."""
    home = folder / "served"
    home.mkdir()
    redis = RedisServer(home / "redis")
    redis.start()
    (home / "proxy.toml").write_text("# nothing is changed yet\n")
    environment = {
        "TOLLKEEPER_UPSTREAM__BASE_URL": session_sandbox.url,
        "TOLLKEEPER_REDIS__URL": redis.url,
        "TOLLKEEPER_LISTEN__WORKERS": "2",
        "TOLLKEEPER_ADVANCED__FINANCE_SECONDS": "1",
        "TOLLKEEPER_BILLING__EXTENDED_MODELS": '["gpt-[!6]*", "[!g]*", "gpt-6.*"]',  # gpt-6-luna is none of them
        "STRIPE_API_KEY": "sk_test_monitored",
        "STRIPE_WEBHOOK_SECRET": SECRET,
        "TOLLKEEPER_STRIPE__API_BASE": "http://127.0.0.1:9",
        "TOLLKEEPER_STRIPE__SUCCESS_URL": "http://127.0.0.1:9/ok",
        "TOLLKEEPER_STRIPE__CANCEL_URL": "http://127.0.0.1:9/back",
    }
    server = Tollkeeper(home, environment).start()
    yield server, redis
    server.kill()
    redis.kill()


def test_promtool_finds_nothing_wrong_with_the_metrics(watched: tuple[Tollkeeper, RedisServer]) -> None:
    server, _ = watched
    done = promtool("check", "metrics", text=web.get(f"{server.url}/metrics").text)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_what_goes_wrong_here_fires_there(watched: tuple[Tollkeeper, RedisServer], folder: Path) -> None:
    """A real service misbehaves for real; each alert fires, and none that has no cause."""
    server, redis = watched
    prometheus = Prometheus(folder / "prometheus", [f"127.0.0.1:{server.port}"]).start()
    fired = set()
    try:
        account, rich, pays_it_all = new_customer(server, 0), new_customer(server), new_customer(server, 800)
        wait_until(lambda: prometheus.query("tollkeeper:insufficient:rate10m"), 10, "the service is scraped and judged")
        time.sleep(3)  # a quiet past, against which the refusals stand out
        assert prometheus.firing() == set()

        def fires(alert: str, cause: Any, seconds: float = 20) -> None:
            def caused() -> bool:
                cause()
                return alert in prometheus.firing()

            wait_until(caused, seconds, f"{alert} fires; {prometheus.firing()} do")
            fired.add(alert)

        fires(
            "WebhookSignatures",
            lambda: web.post(f"{server.url}/webhooks/stripe", content=b"{}", headers={"stripe-signature": "t=1,v1=0"}),
        )
        assert prometheus.firing() == {"WebhookSignatures"}, "what anybody can post wakes nobody"
        fires("WebhookFailures", lambda: deliver_in_live_mode(server))
        fires("StripeOddities", lambda: deliver(server, id="evt_old", type="invoice.paid", api_version="2019-02-19"))
        fires("InsufficientCreditsSpike", lambda: account.chat(max_tokens=5))
        fires("UpstreamAccount", lambda: rich.chat(sandbox_says(status=401), max_tokens=5))
        fires("UpstreamErrors", lambda: rich.chat(sandbox_says(status=500), max_tokens=5))
        assert not {"PlatformLoss", "NegativeMargin"} & prometheus.firing()
        more_than_held = sandbox_says(output_tokens=100, ignore_cap=True)
        assert pays_it_all.chat(more_than_held, model="gpt-4o", max_tokens=10).status_code == 200
        fires("PlatformLoss", lambda: time.sleep(0.2))
        fires("NegativeMargin", lambda: time.sleep(0.2))
        fires("MarginBelowTarget", lambda: time.sleep(0.2), 30)
        with Redis(port=redis.port) as store:
            (key,) = store.scan_iter(f"*:a:{account.account_id}")
            store.hincrby(key, "balance", 5_000)
            assert server.run("reconcile").returncode == 3, "Stripe is not there, and that hides nothing"
            store.hincrby(key, "balance", -5_000)
        fires("ReconciliationFindings", lambda: time.sleep(0.2))
        fires("ReconciliationMismatch", lambda: time.sleep(0.2))
        activate_ends(server, gpt_6_luna=day(30))
        fires("ModelEnds", lambda: time.sleep(0.2))
        (server.folder / "proxy.toml").write_text("[billing]\nmarkup = 'much'\n")
        fires("ConfigRefused", lambda: time.sleep(0.2))
        (server.folder / "proxy.toml").write_text("# whole again\n")
        redis.kill()
        fires("StoreDown", lambda: account.chat(max_tokens=5))
        fires("ObjectiveBurnsFast", lambda: account.chat(max_tokens=5))
        fires("ObjectiveBurnsSlowly", lambda: account.chat(max_tokens=5))
        redis.start()
        wait_until(lambda: "StoreDown" not in prometheus.firing(), 20, "it is over when Redis is back")
        assert prometheus.firing() <= fired
        server.kill()
        fires("TollkeeperDown", lambda: time.sleep(0.2))
        assert fired == set(ALERTS) - SLOW - OF_A_CLUSTER
    finally:
        prometheus.kill()


def deliver_in_live_mode(server: Tollkeeper) -> None:
    """An event of Stripe's, signed, of the mode that this server is not in."""
    answer = deliver(server, id="evt_live", type="charge.refunded", livemode=True)
    assert answer.json()["error"]["code"] == "wrong_livemode"


def deliver(server: Tollkeeper, **event: Any) -> httpx.Response:
    """An event of Stripe's, signed."""
    body = json.dumps({"object": "event", "created": int(time.time()), "livemode": False, **event}).encode()
    return web.post(
        f"{server.url}/webhooks/stripe",
        content=body,
        headers={"stripe-signature": sign(body, SECRET, int(time.time()))},
    )


def test_what_goes_wrong_for_long_fires_there_as_well(watched: tuple[Tollkeeper, RedisServer], folder: Path) -> None:
    """Causes that need a minute are waited for; of those that need hours, what is stored is made older."""
    server, redis = watched
    account = new_customer(server)
    sql = sqlite3.connect(server.folder / "var" / "tollkeeper.db", timeout=20, isolation_level=None)
    prometheus = Prometheus(folder / "prometheus", [f"127.0.0.1:{server.port}"]).start()
    assert server.process is not None
    (frozen,) = [child for child in psutil.Process(server.process.pid).children() if child.name() == "tk-worker-1"]

    def ask_slowly() -> None:
        body = {
            "model": "gpt-4o-mini",
            "messages": [{"role": "user", "content": sandbox_says(latency_ms=250_000)}],
            "max_tokens": 5,
        }
        with contextlib.suppress(httpx.HTTPError):  # the server is gone before it answers
            web.post(f"{server.v1}/chat/completions", json=body, headers=account.headers, timeout=250)

    slow = threading.Thread(target=ask_slowly)
    try:
        frozen.suspend()  # a process that follows nothing any more
        slow.start()
        with Redis(port=redis.port) as store:
            (hold,) = wait_until(lambda: list(store.scan_iter("*:h:*")), 5, "the slow request is held for")
            record = store.hget(hold, "r")
            assert isinstance(record, bytes)
            aged, times = re.subn(rb'(?<="createdAt":)\d+', b"%d" % (ago(5_000)), record)
            assert times == 1
            store.hset(hold, "r", aged)
        event = ("evt_late", "refund.created", "re_1", 1, API_VERSION, "webhook", ago(400), "", "parked", ago(-9_000))
        names = "event_id, type, object_id, created, api_version, source, received_at, payload, state, next_at"
        sql.execute(f"INSERT INTO stripe_inbox ({names}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", event)
        # Stripe is not there, so that no run of this comes to its end
        done = ("reconcile", ago(10_800), ago(10_800), 1, 0, "")
        sql.execute(
            "INSERT INTO job_runs (job, started_at, finished_at, ok, findings, report) VALUES (?, ?, ?, ?, ?, ?)", done
        )
        sql.execute("BEGIN IMMEDIATE")  # and from here on nobody else writes
        assert account.chat(max_tokens=5).status_code == 200
        wait_until(lambda: prometheus.firing() >= SLOW, 90, "all of them fire")
    finally:
        frozen.resume()
        sql.close()
        prometheus.kill()
        server.kill()  # ends what is slow
        slow.join()


def ago(seconds: int) -> int:
    """So long before now, in Unix milliseconds."""
    return round((time.time() - seconds) * 1_000)


@pytest.mark.served
def test_every_panel_shows_something_and_nothing_fires_while_all_is_well(folder: Path) -> None:
    """The product's own metrics, all of them moving."""
    exporter = Exporter()
    metrics = exporter.metrics
    today = Figures("2026-11-23", 9_000_000, 100_000_000, 80_000_000, 0, 5_000_000, 7)
    intervals = {
        "finance": 30,
        "reconcile": 3_600,
        "stripe": 86_400,
        "costs": 86_400,
        "retention": 86_400,
        "partitions": 86_400,
    }

    def busy() -> None:
        for _ in range(20):
            metrics.count_answer("/v1/responses", 200, "completed")
            metrics.count_webhook_handled(1)
        metrics.count(metrics.calls, "gpt-4o")
        metrics.count(metrics.tokens_in, "gpt-4o", by=100)
        metrics.count(metrics.tokens_out, "gpt-4o", by=100)
        metrics.count(metrics.deducted, by=2)
        metrics.count(metrics.held, by=3)
        metrics.count(metrics.usage_source, "upstream")
        metrics.count(metrics.money_in.purchased, by=9_990)
        metrics.count(metrics.money_in.taken_back, "refund", by=1)
        metrics.count(metrics.money_in.webhook_events, "charge.refunded")
        metrics.count(metrics.insufficient, "balance")
        metrics.count(metrics.upstream_errors, "status_5xx", by=0)
        metrics.count(metrics.upstreams.requests, "openai")
        metrics.count_loss(0)
        metrics.observe_first_byte(0.3)
        metrics.observe_forwarded(0.001)
        metrics.count_side_answer("/api/billing/checkout", 200, selling=True)

    def set_gauges() -> None:
        metrics.finance.show_today(today)
        metrics.finance.show_closed(today)
        metrics.finance.show_models({"gpt-4o": 80_000_000})
        metrics.finance.margin_target.set(0.1)
        metrics.jobs.reconciliation_mismatch.set(0)
        metrics.jobs.jobs_since.set(time.time() - 1)
        for task, seconds in intervals.items():
            metrics.jobs.job_interval.labels(task).set(seconds)
            metrics.jobs.count_run(task, "clean")
            metrics.jobs.show_standing(task, JobStanding(ago(1), 0, 0, 0.1))
        metrics.stores.journal_lag.set(0)
        metrics.stores.show_holds(Outstanding(1, 5_000, 1_000))
        metrics.money_in.inbox_lag.set(0)
        metrics.configuration.config_valid.set(1)
        metrics.configuration.config_checked_at.set(time.time())
        for store in ("sql", "balances"):
            metrics.stores.store_up.labels(store).set(1)
        for switch in ("purchase_enabled", "charging_enabled", "auto_recharge"):
            metrics.configuration.flag.labels(switch).set(1)
        for state in ("open", "idle"):
            metrics.stores.upstream_connections.labels(state).set(1)
        metrics.upstreams.show([UpstreamState("openai", is_well=True, in_flight=1)])

    prometheus = Prometheus(folder / "prometheus", [exporter.target]).start()
    try:

        def empty() -> list[str]:
            set_gauges()
            busy()
            time.sleep(0.25)
            # there is no quarter of an hour of past here
            return [title for title, query in queries() if not prometheus.query(query.replace(" offset 15m", ""))]

        wait_until(lambda: not empty(), 30, f"every panel shows something; not {empty()}")
        assert prometheus.firing() == set()
    finally:
        prometheus.kill()
        exporter.close()

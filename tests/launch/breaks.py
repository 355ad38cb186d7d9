"""Ways to break an installation, each with the rows of preflight's table that must change by it, and no other.

A break is a context manager: it breaks, yields what the command is given beside that, and mends.
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from redis import Redis

from billing.payments.stripe.event_types import API_VERSION, KINDS
from billing.storage.migrate import newest_revision
from tests.support import web
from tests.support.live import SECRET, Live
from tests.support.rate_cards import activate_ends, day
from tests.support.servers import free_port, wait_until
from tests.support.stranger import stranger

Rows = dict[str, str | None]
"""`area name` → state; None: the row is not there."""


@dataclass
class Given:
    """Environment and arguments of the command."""

    environment: dict[str, str] = field(default_factory=dict)
    arguments: tuple[str, ...] = ()


Break = Callable[[Live], AbstractContextManager[Given]]
CASES: dict[str, tuple[Break, Rows]] = {}


def case(rows: Rows) -> Callable[[Callable[[Live], Iterator[Given]]], None]:
    """Note a break and what it must change."""

    def note(work: Callable[[Live], Iterator[Given]]) -> None:
        CASES[work.__name__] = (contextmanager(work), rows)

    return note


def setting(name: str, rows: Rows, **environment: str) -> None:
    """A break that is nothing but other settings."""

    def work(live: Live) -> Iterator[Given]:
        del live
        yield Given(environment)

    CASES[name] = (contextmanager(work), rows)


NOWHERE = "http://127.0.0.1:9"
NO_STRIPE: Rows = {
    "stripe keys": "FAIL",
    "stripe mode": None,
    "stripe account": None,
    "stripe rights": None,
    "webhook endpoint": None,
    "webhook events": None,
    "webhook api version": None,
    "webhook signature": None,
    "webhook unsigned": None,
    "clocks Stripe": None,
}
NO_ANSWER: Rows = {f"edge {name}": None for name in ("ready", "headers", "cors", "admin listener")}
NO_ENDPOINT: Rows = {"webhook endpoint": "FAIL", "webhook events": None, "webhook api version": None}
NO_STRIPE_ANSWER: Rows = {
    **NO_ENDPOINT,
    "webhook endpoint": None,
    "stripe account": "FAIL",
    "stripe rights": None,
    "clocks Stripe": None,
}
NO_OPENAI: Rows = {"openai key": "FAIL", "openai models": None, "prices allowlist": None}
IN_SQL = (
    "database version",
    "database fsync",
    "database full_page_writes",
    "database synchronous_commit",
    "database role",
    "webhook inbox",
    "webhook event version",
    "prices rate card",
    "prices model ends",
    "prices allowlist",
    "prices margin",
    "openai models",
    "redis epoch",
    "clocks PostgreSQL",
    "admin owner",
    "admin audit chain",
)
NO_SCHEMA: Rows = {**dict.fromkeys(IN_SQL), "database migrations": "FAIL"}

# -- keys ----------------------------------------------------------------------------------------------------

setting("no webhook secret", {"config valid": "FAIL", **NO_STRIPE}, STRIPE_WEBHOOK_SECRET="")
setting("no openai key", {**NO_OPENAI, "clocks OpenAI": None}, OPENAI_API_KEY="")
setting("a wrong openai key", NO_OPENAI, OPENAI_API_KEY="sk-of-somebody-else")
setting("openai is not reached", {**NO_OPENAI, "clocks OpenAI": None}, TOLLKEEPER_UPSTREAM__BASE_URL=f"{NOWHERE}/v1")
setting("a wrong openai admin key", {"openai admin key": "FAIL"}, OPENAI_ADMIN_KEY="sk-admin-of-somebody-else")
setting(
    "openai's costs are not reached",
    {"openai admin key": "FAIL"},
    TOLLKEEPER_ADVANCED__OPENAI_COSTS_URL=f"{NOWHERE}/costs",
)
setting("no openai admin key", {"openai admin key": None}, OPENAI_ADMIN_KEY="")
setting("no stripe", NO_STRIPE, STRIPE_API_KEY="", STRIPE_WEBHOOK_SECRET="")
setting(
    "no stripe and nothing sold",
    {**NO_STRIPE, "stripe keys": "WARN", "flags purchase_enabled": "FAIL"},
    STRIPE_API_KEY="",
    STRIPE_WEBHOOK_SECRET="",
    TOLLKEEPER_BILLING__PURCHASE_ENABLED="false",
)
setting("a wrong stripe key", NO_STRIPE_ANSWER, STRIPE_API_KEY="sk_test_of_somebody_else")
setting("stripe is not reached", NO_STRIPE_ANSWER, TOLLKEEPER_STRIPE__API_BASE=NOWHERE)
setting(
    "another webhook secret than the server's",
    {"webhook signature": "FAIL"},
    STRIPE_WEBHOOK_SECRET="whsec_of_another_endpoint",
)


@case({**NO_OPENAI, "clocks OpenAI": "FAIL"})
def openai_answers_no_list_from_another_time(live: Live) -> Iterator[Given]:
    with stranger(seconds_ahead=-60) as url:
        yield Given({"TOLLKEEPER_UPSTREAM__BASE_URL": f"{url}/v1"})


LISTS = tuple(
    f"/v1/{name}" for name in ("checkout/sessions", "payment_intents", "charges", "refunds", "disputes", "events")
)
NOT_PERMITTED = (
    403,
    {"error": {"type": "invalid_request_error", "message": "The provided key 'rk_test_***' may not do this"}},
)


def account(**fields: Any) -> dict[str, tuple[int, Any]]:
    whole = {"id": "acct_1", "object": "account", "charges_enabled": True, "payouts_enabled": True, **fields}
    empty = (200, {"object": "list", "data": [], "has_more": False})
    return {"/v1/account": (200, whole), **dict.fromkeys(("/v1/webhook_endpoints", *LISTS), empty)}


@case({"stripe account": "FAIL", **NO_ENDPOINT, "clocks Stripe": "FAIL"})
def stripe_account_is_not_activated(live: Live) -> Iterator[Given]:
    with stranger(account(charges_enabled=False), seconds_ahead=30) as url:
        yield Given({"TOLLKEEPER_STRIPE__API_BASE": url})


@case({"stripe account": "WARN", **NO_ENDPOINT})
def stripe_account_pays_nothing_out(live: Live) -> Iterator[Given]:
    with stranger(account(payouts_enabled=False)) as url:
        yield Given({"TOLLKEEPER_STRIPE__API_BASE": url})


@case({"stripe account": "FAIL", "stripe rights": None, **NO_ENDPOINT, "webhook endpoint": None, "clocks Stripe": None})
def the_key_may_not_read_the_account(live: Live) -> Iterator[Given]:
    with stranger({"/v1/account": NOT_PERMITTED}) as url:
        yield Given({"TOLLKEEPER_STRIPE__API_BASE": url})


@case({"stripe rights": "FAIL", **NO_ENDPOINT})
def the_key_may_not_read_events_and_disputes(live: Live) -> Iterator[Given]:
    with stranger({**account(), "/v1/events": NOT_PERMITTED, "/v1/disputes": NOT_PERMITTED}) as url:
        yield Given({"TOLLKEEPER_STRIPE__API_BASE": url})


@case({"stripe rights": "FAIL", **NO_ENDPOINT})
def the_key_may_not_read_the_invoices_that_it_makes(live: Live) -> Iterator[Given]:
    with stranger({**account(), "/v1/invoices": NOT_PERMITTED}) as url:
        yield Given({"TOLLKEEPER_STRIPE__API_BASE": url, "TOLLKEEPER_STRIPE__INVOICES": "true"})


# -- the webhook endpoint ------------------------------------------------------------------------------------


def at_stripe(live: Live, method: str, path: str, **form: Any) -> Any:
    """A call of the API's, as the dashboard would make it."""
    answer = web.request(
        method, f"{live.bank}/v1/{path}", data=form, headers={"Authorization": "Bearer sk_test_sandbox"}, timeout=20
    )
    assert answer.status_code == 200, answer.text
    return answer.json()


def endpoint(live: Live) -> str:
    return str(at_stripe(live, "GET", "webhook_endpoints")["data"][0]["id"])


@contextmanager
def other_endpoint(live: Live, **form: Any) -> Iterator[Given]:
    """Ours is away, another one stands in for it."""
    ours, url = endpoint(live), f"{live.server.url}/webhooks/stripe"
    at_stripe(live, "DELETE", f"webhook_endpoints/{ours}")
    made = at_stripe(
        live,
        "POST",
        "webhook_endpoints",
        **{"url": url, "enabled_events[]": [*KINDS], "api_version": API_VERSION, **form},
    )
    yield Given()
    at_stripe(live, "DELETE", f"webhook_endpoints/{made['id']}")
    live.endpoint()


@case(NO_ENDPOINT)
def endpoint_of_another_address(live: Live) -> Iterator[Given]:
    with other_endpoint(live, url="https://old.example/webhooks/stripe") as given:
        yield given


@case({"webhook events": "FAIL"})
def endpoint_without_refunds(live: Live) -> Iterator[Given]:
    with other_endpoint(live, **{"enabled_events[]": [kind for kind in KINDS if "refund" not in kind]}) as given:
        yield given


@case({"webhook api version": "WARN"})
def endpoint_of_another_version(live: Live) -> Iterator[Given]:
    with other_endpoint(live, api_version="2025-01-27.acacia") as given:
        yield given


@case(NO_ENDPOINT)
def endpoint_is_disabled(live: Live) -> Iterator[Given]:
    at_stripe(live, "POST", f"webhook_endpoints/{endpoint(live)}", disabled="true")
    yield Given()
    at_stripe(live, "POST", f"webhook_endpoints/{endpoint(live)}", disabled="false")


@case({"webhook endpoint": "WARN"})
def two_endpoints(live: Live) -> Iterator[Given]:
    second = live.endpoint()
    yield Given()
    at_stripe(live, "DELETE", f"webhook_endpoints/{second}")


INBOX = (
    "INSERT INTO stripe_inbox (event_id, type, object_id, created, api_version, source, received_at, payload, state, next_at) "
    "VALUES ('evt_broken', 'refund.created', 're_1', 1, '{version}', 'webhook', "
    "(extract(epoch FROM now()) * 1000)::bigint - {age}, '', '{state}', 9999999999999)"
)
NO_EVENT = "DELETE FROM stripe_inbox WHERE event_id = 'evt_broken'"


@case({"webhook inbox": "FAIL"})
def an_event_waits(live: Live) -> Iterator[Given]:
    live.sql(INBOX.format(version=API_VERSION, age=600_000, state="parked"))
    yield Given()
    live.sql(NO_EVENT)


@case({"webhook event version": "WARN"})
def an_event_of_another_version_came(live: Live) -> Iterator[Given]:
    live.sql(INBOX.format(version="2025-01-27.acacia", age=0, state="done"))
    yield Given()
    live.sql(NO_EVENT)


# -- what answers where we should ----------------------------------------------------------------------------


setting(
    "the server is not reached",
    {
        **NO_ANSWER,
        **NO_ENDPOINT,
        "edge reachable": "FAIL",
        "webhook reachable": "FAIL",
        "webhook signature": None,
        "webhook unsigned": None,
    },
    TOLLKEEPER_PORTAL__PUBLIC_URL=NOWHERE,
)
setting(
    "an https address that leads nowhere",
    {
        **NO_ANSWER,
        **NO_ENDPOINT,
        "edge tls": "PASS",
        "edge reachable": "FAIL",
        "webhook reachable": "FAIL",
        "webhook signature": None,
        "webhook unsigned": None,
    },
    TOLLKEEPER_PORTAL__PUBLIC_URL="https://tollkeeper.invalid",
)
SOMEBODY: Rows = {
    **NO_ENDPOINT,
    "webhook signature": "FAIL",
    "webhook unsigned": "FAIL",
    "edge headers": "FAIL",
    "edge admin listener": "WARN",
}


@case({**SOMEBODY, "edge cors": "FAIL"})
def a_proxy_that_takes_headers_away_and_lets_everybody_in(live: Live) -> Iterator[Given]:
    with stranger(access_control_allow_origin="*") as url:
        yield Given({"TOLLKEEPER_PORTAL__PUBLIC_URL": url})


@case({**SOMEBODY, "edge ready": "FAIL"})
def a_server_that_is_not_ready(live: Live) -> Iterator[Given]:
    with stranger({"/readyz": (503, {"sql": "away"})}, content_security_policy="default-src *") as url:
        yield Given({"TOLLKEEPER_PORTAL__PUBLIC_URL": url})


setting(
    "origins that are not https", {"edge origins": "FAIL"}, TOLLKEEPER_CORS__ALLOWED_ORIGINS='["http://app.example"]'
)
setting(
    "an origin of a developer", {"edge origins": "WARN"}, TOLLKEEPER_CORS__ALLOWED_ORIGINS='["http://localhost:3000"]'
)
setting("admin listens everywhere", {"admin listener": "FAIL"}, TOLLKEEPER_LISTEN__ADMIN_HOST="0.0.0.0")  # noqa: S104

# -- prices --------------------------------------------------------------------------------------------------

setting("nothing for sale", {"prices packages": "FAIL", "prices margin": None}, TOLLKEEPER_PACKAGES="[]")
setting("sold below cost", {"prices margin": "WARN"}, TOLLKEEPER_BILLING__MARKUP="1")
setting("other packages", {"prices packages": "PASS"}, TOLLKEEPER_PACKAGES='[{"code": "starter", "usd": "9.99"}]')
setting("everything is allowed", {"openai models": "WARN"}, TOLLKEEPER_BILLING__MODEL_ALLOWLIST='["*"]')
setting(
    "an allowed model has no price",
    {"prices allowlist": "FAIL"},
    TOLLKEEPER_BILLING__MODEL_ALLOWLIST='["gpt-4o-mini", "gpt-99"]',
)


@case({"openai models": "FAIL"})
def openai_shows_the_key_other_models(live: Live) -> Iterator[Given]:
    with stranger({"/v1/models": (200, {"object": "list", "data": [{"id": "gpt-4o"}]})}) as url:
        yield Given({"TOLLKEEPER_UPSTREAM__BASE_URL": f"{url}/v1"})


@contextmanager
def card_of(live: Live, dated: str, **ends: str) -> Iterator[Given]:
    before = live.server.cli("rates", "show")["active"]
    activate_ends(live.server, dated, **ends)
    yield Given({"TOLLKEEPER_BILLING__EXTENDED_MODELS": "[]"} if ends else {})
    live.server.cli("rates", "activate", before)


@case({"prices rate card": "FAIL"})
def a_rate_card_of_the_future(live: Live) -> Iterator[Given]:
    with card_of(live, "2099-01-01") as given:
        yield given


@case({"prices rate card": "WARN"})
def an_old_rate_card(live: Live) -> Iterator[Given]:
    with card_of(live, "2024-01-01") as given:
        yield given


@case({"prices model ends": "FAIL"})
def a_model_that_has_ended_is_allowed(live: Live) -> Iterator[Given]:
    with card_of(live, day(0), gpt_4_0613=day(-1)) as given:
        given.environment["TOLLKEEPER_BILLING__MODEL_ALLOWLIST"] = '["gpt-6-luna", "gpt-4-0613"]'
        yield given


@case({"prices model ends": "WARN"})
def an_allowed_model_ends_soon(live: Live) -> Iterator[Given]:
    with card_of(live, day(0), gpt_6_luna=day(30)) as given:
        yield given


BY_THE_CARD = ("prices model ends", "prices allowlist", "prices margin", "openai models")


@case({"prices rate card": "FAIL", **dict.fromkeys(BY_THE_CARD)})
def no_rate_card(live: Live) -> Iterator[Given]:
    move = "UPDATE rate_activations SET effective_at = effective_at {} 10000000000000"
    allow, forbid = (
        "ALTER TABLE rate_activations DISABLE TRIGGER ALL",
        "ALTER TABLE rate_activations ENABLE TRIGGER ALL",
    )
    live.sql(allow, move.format("+"), forbid)
    yield Given()
    live.sql(allow, move.format("-"), forbid)


# -- switches ------------------------------------------------------------------------------------------------


OVERRIDES = {
    "purchase_enabled": ("false", "FAIL"),
    "charging_enabled": ("false", "FAIL"),
    "charging_disabled_mode": ("free", "WARN"),
    "rounding_mode": ("ceil", "WARN"),
    "model_allowlist": ('["gpt-4o-mini", "gpt-4o"]', "WARN"),
    "auto_recharge": ("true", "WARN"),
    "rollout.percent": ("25", "WARN"),
    "rollout.outside": ("block", "WARN"),
}


@case({f"flags {flag}": state for flag, (_, state) in OVERRIDES.items()})
def every_switch_is_overridden(live: Live) -> Iterator[Given]:
    for flag, (value, _) in OVERRIDES.items():
        live.server.cli("flags", "set", flag, value, "--reason", "a test")
    yield Given()
    for flag in OVERRIDES:
        live.server.cli("flags", "clear", flag, "--reason", "a test")


setting(
    "somebody is both in and out",
    {"flags rollout.include": "WARN"},
    TOLLKEEPER_ROLLOUT__INCLUDE='["acct_1"]',
    TOLLKEEPER_ROLLOUT__EXCLUDE='["acct_1"]',
)

# -- SQL and backups -----------------------------------------------------------------------------------------


@case({**NO_SCHEMA, "edge ready": "FAIL"})
def migrations_are_behind(live: Live) -> Iterator[Given]:
    live.sql("UPDATE alembic_version SET version_num = '0001'")
    yield Given()
    live.sql(f"UPDATE alembic_version SET version_num = '{newest_revision()}'")
    wait_until(
        lambda: all(web.get(f"{live.server.url}/readyz").is_success for _ in range(6)),
        10,
        "both workers are ready again",
    )


setting("sql is away", NO_SCHEMA, TOLLKEEPER_DATABASE__URL="postgresql+asyncpg://postgres@127.0.0.1:9/none")


@case({**NO_SCHEMA, "host disk of database.url": "PASS"})
def no_ledger_where_the_settings_say(live: Live) -> Iterator[Given]:
    path = live.server.folder / "var" / "elsewhere.db"
    yield Given({"TOLLKEEPER_DATABASE__URL": f"sqlite+aiosqlite:///{path}"})
    assert not path.exists(), "looking made an empty ledger"


DURABLE = ("fsync", "full_page_writes", "synchronous_commit")


@case({f"database {name}": "FAIL" for name in DURABLE})
def sql_forgets_in_a_crash(live: Live) -> Iterator[Given]:
    live.sql(*(f"ALTER SYSTEM SET {name} = off" for name in DURABLE), "SELECT pg_reload_conf()", "SELECT pg_sleep(0.2)")
    yield Given()
    live.sql(*(f"ALTER SYSTEM RESET {name}" for name in DURABLE), "SELECT pg_reload_conf()", "SELECT pg_sleep(0.2)")


@case({"database role": "PASS"})
def a_role_that_only_writes_rows(live: Live) -> Iterator[Given]:
    """The one thing that is better here than on the good server."""
    role = f"serves_{free_port()}"
    grants = (
        f"CREATE ROLE {role} LOGIN",
        f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {role}",
        f"GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO {role}",
    )
    live.sql(*grants)
    yield Given({"TOLLKEEPER_DATABASE__URL": live.postgres.replace("//postgres:@", f"//{role}@")})
    live.sql(f"DROP OWNED BY {role}", f"DROP ROLE {role}")


@case({"database replica": "FAIL"})
def a_replica_that_is_the_primary(live: Live) -> Iterator[Given]:
    yield Given({"TOLLKEEPER_DATABASE__REPLICA_URL": f"{live.postgres}&application_name=replica"})


setting(
    "a replica that is away",
    {"database replica": "WARN"},
    TOLLKEEPER_DATABASE__REPLICA_URL="postgresql+asyncpg://postgres@127.0.0.1:9/none",
)


def backup(name: str, state: str, make: Callable[[Path], object]) -> None:
    def work(live: Live) -> Iterator[Given]:
        folder = live.server.folder / "backups" / name.replace(" ", "-")
        folder.mkdir(parents=True)
        make(folder)
        yield Given(arguments=("--backup", str(folder)))

    CASES[f"backup: {name}"] = (contextmanager(work), {"database backup": state})


def old_file(folder: Path) -> None:
    (folder / "monday.dump").write_bytes(b"PGDMP...")
    os.utime(folder / "monday.dump", (1_000_000_000, 1_000_000_000))


backup("nothing there", "FAIL", lambda _: None)
backup("an empty file", "FAIL", lambda folder: (folder / "tonight.dump").touch())
backup("an old file", "FAIL", old_file)
backup(
    "a torn sqlite file",
    "FAIL",
    lambda folder: (folder / "tonight.db").write_bytes(b"SQLite format 3\0" + b"torn" * 2_000),
)
backup("a fresh dump", "PASS", lambda folder: (folder / "tonight.dump").write_bytes(b"PGDMP..."))


@case({"database backup": "FAIL"})
def a_backup_at_no_such_path(live: Live) -> Iterator[Given]:
    yield Given(arguments=("--backup", str(live.server.folder / "no-such-file")))


# -- people --------------------------------------------------------------------------------------------------

REVOKED, BACK = "UPDATE admin_keys SET revoked_at = 1", "UPDATE admin_keys SET revoked_at = NULL"


@case({"admin owner": "FAIL"})
def nobody_is_owner(live: Live) -> Iterator[Given]:
    live.sql(REVOKED)
    yield Given()
    live.sql(BACK)


@case({"admin owner": "WARN"})
def owners_by_the_issuer_only(live: Live) -> Iterator[Given]:
    live.sql(REVOKED)
    issuer = {
        "ISSUER": "https://login.example",
        "AUDIENCE": "tollkeeper",
        "JWKS_URL": "https://login.example/jwks.json",
    }
    yield Given({f"TOLLKEEPER_ADMIN__OIDC_{name}": value for name, value in issuer.items()})
    live.sql(BACK)


@case({"admin audit chain": "FAIL"})
def somebody_changed_the_audit_log(live: Live) -> Iterator[Given]:
    change = "UPDATE audit_log SET actor = {} WHERE id = 1"
    allow, forbid = "ALTER TABLE audit_log DISABLE TRIGGER ALL", "ALTER TABLE audit_log ENABLE TRIGGER ALL"
    live.sql(allow, change.format("actor || '!'"), forbid)
    yield Given()
    live.sql(allow, change.format("rtrim(actor, '!')"), forbid)


# -- Redis ---------------------------------------------------------------------------------------------------


def redis_setting(name: str, wrong: str, state: str, **environment: str) -> None:
    def work(live: Live) -> Iterator[Given]:
        with contextlib.closing(Redis.from_url(live.redis.url)) as client:
            good = client.config_get(name)[name]
            client.config_set(name, wrong)
            yield Given(environment)
            client.config_set(name, good)

    CASES[f"redis {name} {wrong} {environment}"] = (contextmanager(work), {f"redis {name}": state})


redis_setting("maxmemory-policy", "allkeys-lru", "FAIL")
redis_setting("appendonly", "no", "FAIL")
redis_setting("appendonly", "no", "WARN", TOLLKEEPER_REDIS__REQUIRE_AOF="false")
redis_setting("appendfsync", "everysec", "WARN")
redis_setting("appendfsync", "no", "FAIL")
NO_REDIS: Rows = {
    f"redis {name}": None for name in ("version", "maxmemory-policy", "appendonly", "appendfsync", "epoch")
}
NO_REDIS["clocks Redis"] = None
setting("redis is away", {**NO_REDIS, "redis reachable": "FAIL"}, TOLLKEEPER_REDIS__URL="redis://127.0.0.1:9/0")


@case({"redis epoch": "FAIL"})
def another_redis_database_than_the_servers(live: Live) -> Iterator[Given]:
    yield Given({"TOLLKEEPER_REDIS__URL": live.redis.url.replace("/0", "/1")})


@case({"redis settings": "WARN", "redis maxmemory-policy": None, "redis appendonly": None, "redis appendfsync": None})
def a_managed_redis_forbids_config(live: Live) -> Iterator[Given]:
    with contextlib.closing(Redis.from_url(live.redis.url)) as client:
        client.execute_command("ACL", "SETUSER", "managed", "on", ">secret", "~*", "+@all", "-config")
        yield Given({"TOLLKEEPER_REDIS__URL": live.redis.url.replace("redis://", "redis://managed:secret@")})
        client.execute_command("ACL", "DELUSER", "managed")


# -- this machine --------------------------------------------------------------------------------------------

setting("more connections than files", {"host open files": "FAIL"}, TOLLKEEPER_LISTEN__MAX_CONNECTIONS="900000")


@case({**NO_REDIS, "redis store": "PASS", "host disk of embedded.path": "FAIL"})
def a_full_disk(live: Live) -> Iterator[Given]:
    yield Given({"TOLLKEEPER_REDIS__URL": "", "TOLLKEEPER_LISTEN__WORKERS": "1"}, ("--min-free-gib", "900000"))


def secret_file(mode: int, state: str) -> None:
    def work(live: Live) -> Iterator[Given]:
        path = live.server.folder / "webhook-secret"
        path.write_text(SECRET)
        path.chmod(mode)
        yield Given({"STRIPE_WEBHOOK_SECRET": "", "TOLLKEEPER_STRIPE__WEBHOOK_SECRET_FILE": str(path)})
        path.unlink()

    CASES[f"secret file of mode {mode:o}"] = (contextmanager(work), {"host secrets": state})


secret_file(0o644, "FAIL")
secret_file(0o640, "WARN")
secret_file(0o600, "PASS")

"""proxy.toml and the environment: every key documented and overridable, every mistake named with file, key, reason and fix."""

import json
import re
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import pytest

from config.errors import ConfigError
from config.load import load_settings, parse_settings
from config.secrets import upstream_key
from config.settings import Section, Settings
from tests.support.servers import ROOT

SHIPPED = ROOT / "proxy.toml"
TEXT = SHIPPED.read_text()


def all_keys() -> list[tuple[str, str]]:
    """(section, key) of every setting, from the structs."""
    found = []
    for section in msgspec.structs.fields(Settings):
        if isinstance(section.type, type) and issubclass(section.type, Section):
            found += [(section.name, key.name) for key in msgspec.structs.fields(section.type)]
    return found


KEYS = all_keys()


def plain(value: Any) -> Any:
    """As TOML and JSON have it: lists, not tuples."""
    return json.loads(msgspec.json.encode(value))


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "proxy.toml"
    path.write_text(text)
    return path


def refused(path: Path | None, **environ: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load_settings(path, environ)
    error = caught.value
    place = error.where if error.line is None else f"{error.where}:{error.line}"
    assert str(error).splitlines()[0] == f"{place}: {error.key}: {error.reason}. Fix: {error.fix}"
    assert error.reason
    assert error.fix
    return error


# -- the shipped file -------------------------------------------------------------------------------------------


def test_the_shipped_file_names_every_key_and_no_other() -> None:
    shipped = tomllib.loads(TEXT)
    packages = shipped.pop("packages")
    assert sorted((section, key) for section, table in shipped.items() for key in table) == sorted(KEYS)
    assert {key for package in packages for key in package} == {"code", "usd", "bonus_percent", "bonus_expires_days"}
    assert len(KEYS) > 50


def test_the_shipped_file_says_the_defaults() -> None:
    shipped = tomllib.loads(TEXT)
    del shipped["packages"]
    defaults = msgspec.json.decode(msgspec.json.encode(Settings()))
    # credits of the shipped packages must pay for their bonus and Stripe's fees; without the file nothing is for sale
    assert (shipped["billing"].pop("markup"), defaults["billing"].pop("markup")) == ("1.2", "1")
    for section, key in KEYS:
        assert (section, key) == ("billing", "markup") or shipped[section][key] == defaults[section][key], (
            f"{section}.{key}"
        )


def test_the_shipped_file_sells_the_three_packages_of_the_design() -> None:
    packages = load_settings(SHIPPED, {}).packages
    assert [(package.code, package.usd, package.bonus_percent) for package in packages] == [
        ("starter", "9.99", "0"),
        ("plus", "49.99", "5"),
        ("pro", "99.99", "10"),
    ]


def test_every_key_of_the_shipped_file_is_commented() -> None:
    explained = set()
    section = ""
    for line in TEXT.splitlines():
        header = re.match(r"\[\[?(\w+)\]", line)
        if header:
            section = header[1]
        key = re.match(r"(\w+) = (.*)", line)
        if key and re.search(r"\s#\s\S.*$", key[2]):
            explained.add((section, key[1]))
    assert set(KEYS) - explained == set()
    assert {("packages", "code"), ("packages", "usd"), ("packages", "bonus_percent")} <= explained


def test_settings_cannot_be_changed_after_loading() -> None:
    settings = load_settings(None, {})
    with pytest.raises(AttributeError):
        settings.listen.port = 1  # type: ignore[misc]
    with pytest.raises(AttributeError):
        settings.listen = settings.listen  # type: ignore[misc]


# -- the environment --------------------------------------------------------------------------------------------

OTHER_VALUES: dict[tuple[str, str], Any] = {
    ("listen", "workers"): 3,
    ("listen", "trusted_proxies"): ["10.0.0.0/8", "fd00::/8"],
    ("upstream", "base_url"): "http://127.0.0.1:9/v1",
    ("database", "url"): "postgresql+asyncpg://user:secret@db/tollkeeper",
    ("database", "replica_url"): "postgresql+asyncpg://user:secret@replica/tollkeeper",
    ("redis", "url"): "redis://:secret@cache:6380/2",
    ("billing", "charging_disabled_mode"): "free",
    ("billing", "rounding_mode"): "ceil",
    ("billing", "model_allowlist"): ["gpt-6*", "o3"],
    ("billing", "extended_models"): ["gpt-4o*"],
    ("notices", "kinds"): ["key.*", "balance.low"],
    ("notices", "low_balance_percents"): [50, 20],
    ("billing", "markup"): "1.25",
    ("billing", "service_tier"): "flex",
    ("billing", "allowed_service_tiers"): ["default", "priority"],
    ("metering", "on_disconnect"): "read_on",
    ("billing", "allowed_tools"): ["web_search", "mcp"],
    ("log", "level"): "error",
    ("stripe", "checkout_domain"): "pay.example.com",
    ("purchases", "auto_recharge_monthly_usd"): "250.50",
    ("purchases", "amount_min_usd"): "5",
    ("purchases", "amount_max_usd"): "500",
    ("purchases", "usd_per_1000_credits"): "0.9",
    ("credits", "welcome_credits"): "12.5",
    ("stripe", "tax_code"): "txcd_10103001",
    ("seller", "address"): ["1 Example Street", "Springfield"],
    ("notices", "low_balance_credits"): "500",
    ("rollout", "percent"): 25,
    ("rollout", "include"): ["acct_1"],
    ("rollout", "exclude"): ["acct_2"],
    ("rollout", "outside"): "block",
    ("cors", "allowed_origins"): ["https://app.example.com"],
    ("admin", "oidc_jwks_url"): "https://id.example.com/jwks.json",
    ("admin", "oidc_algorithms"): ["ES256"],
    ("admin", "oidc_scopes"): ["openid", "groups"],
    ("admin", "oidc_roles"): {"@example.com": "viewer"},
    ("admin", "public_url"): "https://admin.example.com",
    ("app", "url"): "https://app.example.com",
    ("app", "color"): "#7a1fa2",
    ("app", "dark_color"): "#d7a6f0",
    ("app", "support_url"): "mailto:help@example.com",
    ("app", "terms_url"): "https://example.com/terms",
    ("app", "privacy_url"): "https://example.com/privacy",
    ("advanced", "openai_costs_url"): "http://127.0.0.1:9/v1/organization/costs",
}


NEEDS = {
    "workers": [("redis", "url", "redis://cache:6379/0")],
    "replica_url": [("database", "url", "postgresql+asyncpg://db/tollkeeper")],
    "oidc_client_id": [("admin", "oidc_issuer", "https://id.example.com")],
    "amount_max_usd": [("purchases", "amount_min_usd", "5")],
    "oidc_issuer": [
        ("admin", "oidc_audience", "tollkeeper"),
        ("admin", "oidc_jwks_url", "https://id.example.com/jwks.json"),
    ],
}
"""Keys that cannot be set alone."""


def other_value(section: str, key: str) -> Any:
    """A valid value that is not the default, of the default's type."""
    if (section, key) in OTHER_VALUES:
        return OTHER_VALUES[section, key]
    default = getattr(getattr(Settings(), section), key)
    if isinstance(default, bool):
        return not default
    if isinstance(default, int | float):
        return default + 1
    assert isinstance(default, str)
    return f"other {key}"


@cache
def shipped_settings() -> Settings:
    return load_settings(SHIPPED, {})


@pytest.mark.parametrize(("section", "key"), KEYS)
def test_every_key_can_be_set_from_the_environment_over_the_file(section: str, key: str) -> None:
    value = other_value(section, key)
    # text stands as it is, everything else as JSON
    raw = value if isinstance(value, str) else json.dumps(value)
    needs = NEEDS.get(key, [])
    extra = {f"TOLLKEEPER_{other}__{name}".upper(): text for other, name, text in needs}
    before = shipped_settings()
    after = load_settings(SHIPPED, {f"TOLLKEEPER_{section}__{key}".upper(): raw, **extra})
    found = plain(getattr(getattr(after, section), key))
    assert found == value
    assert type(found) is type(plain(getattr(getattr(before, section), key)))
    assert found != plain(getattr(getattr(before, section), key))
    # and nothing else has changed
    changed = [
        pair for pair in KEYS if getattr(getattr(before, pair[0]), pair[1]) != getattr(getattr(after, pair[0]), pair[1])
    ]
    assert set(changed) == {(section, key), *((other, name) for other, name, _ in needs)}


def test_packages_can_be_set_from_the_environment() -> None:
    packages = load_settings(SHIPPED, {"TOLLKEEPER_PACKAGES": '[{"code": "one", "usd": "1"}]'}).packages
    assert [(package.code, package.usd, package.bonus_percent) for package in packages] == [("one", "1", "0")]


def test_other_variables_are_none_of_our_business() -> None:
    assert load_settings(None, {"TOLLKEEPERX": "1", "PATH": "/bin", "LISTEN__PORT": "1"}) == Settings()


def test_the_variable_that_names_the_file_is_no_setting() -> None:
    assert load_settings(None, {"TOLLKEEPER_CONFIG": "/etc/tollkeeper.toml"}) == Settings()


@pytest.mark.parametrize(
    ("name", "value", "key", "reason"),
    [
        ("LISTEN__PORT", "eighty", "TOLLKEEPER_LISTEN__PORT", "'eighty' is not JSON"),
        ("LISTEN__PORT", "", "TOLLKEEPER_LISTEN__PORT", "is not JSON"),
        ("LISTEN__PORT", '"80"', "listen.port", "Expected `int`, got `str`"),
        ("LISTEN__PORT", "70000", "listen.port", "<= 65535"),
        ("LISTEN__PORT", "80.5", "listen.port", "Expected `int`, got `float`"),
        ("LISTEN__PORT", "true", "listen.port", "Expected `int`, got `bool`"),
        ("LISTEN__HEADER_TIMEOUT_SECONDS", "0", "listen.header_timeout_seconds", "> 0.0"),
        ("LISTEN__HEADER_TIMEOUT_SECONDS", "1e300", "listen.header_timeout_seconds", "<="),
        ("LISTEN__TRUSTED_PROXIES", '["10.0.0.1/8"]', "listen.trusted_proxies", "has host bits set"),
        ("LISTEN__TRUSTED_PROXIES", '["load-balancer"]', "listen.trusted_proxies", "does not appear to be"),
        ("REDIS__REQUIRE_AOF", "yes", "TOLLKEEPER_REDIS__REQUIRE_AOF", "is not JSON"),
        ("REDIS__REQUIRE_AOF", "1", "redis.require_aof", "Expected `bool`"),
        ("BILLING__MODEL_ALLOWLIST", "gpt-4o", "TOLLKEEPER_BILLING__MODEL_ALLOWLIST", "is not JSON"),
        ("BILLING__MODEL_ALLOWLIST", '"gpt-4o"', "billing.model_allowlist", "Expected `array`"),
        ("BILLING__MODEL_ALLOWLIST", "[1]", "billing.model_allowlist[0]", "Expected `str`"),
        ("BILLING__SERVICE_TIER", "gold", "billing.service_tier", "Invalid enum value 'gold'"),
        ("BILLING__MARKUP", "1e3", "billing.markup", "matching regex"),
        ("LISTEN__NOPE", "1", "TOLLKEEPER_LISTEN__NOPE", "there is no setting listen.nope"),
        ("NOPE__PORT", "1", "TOLLKEEPER_NOPE__PORT", "there is no setting nope.port"),
        ("NOPE", "1", "TOLLKEEPER_NOPE", "names no section and key"),
        ("LISTEN_PORT", "1", "TOLLKEEPER_LISTEN_PORT", "names no section and key"),
        ("LISTEN", '{"port": 1}', "TOLLKEEPER_LISTEN", "names no section and key"),
        ("PACKAGES", "starter", "TOLLKEEPER_PACKAGES", "is not JSON"),
        ("PACKAGES", '[{"code": "A B", "usd": "1"}]', "packages[0].code", "matching regex"),
        ("PACKAGES", '[{"code": "a", "usd": 1}]', "packages[0].usd", "Expected `str`"),
        ("PACKAGES", '[{"code": "a"}]', "packages[0]", "missing required field `usd`"),
    ],
)
def test_a_bad_variable_is_named(name: str, value: str, key: str, reason: str) -> None:
    error = refused(SHIPPED, **{f"TOLLKEEPER_{name}": value})
    assert error.where.startswith("environment")
    assert f"TOLLKEEPER_{name}" in str(error)
    assert error.key == key
    assert reason in error.reason


# -- the file ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "key", "reason"),
    [
        ("[listen]\nprot = 80\n", "listen.prot", "not a known setting"),
        ("port = 80\n", "port", "not a known setting"),
        ("[listen.more]\nport = 80\n", "listen.more", "not a known setting"),
        ("[listen]\nport = '80'\n", "listen.port", "Expected `int`, got `str`"),
        ("[listen]\nport = -1\n", "listen.port", ">= 0"),
        ("[listen]\nport = 2026-01-01\n", "listen.port", "Expected `int`"),
        ("[listen]\nworkers = 0\n", "listen.workers", ">= 1"),
        ("[listen]\nheader_timeout_seconds = nan\n", "listen.header_timeout_seconds", "> 0.0"),
        ("[listen]\nheader_timeout_seconds = inf\n", "listen.header_timeout_seconds", "<="),
        ("[billing]\nmarkup = 1.5\n", "billing.markup", "Expected `str`, got `float`"),
        ("[billing]\nmodel_allowlist = 'gpt-*'\n", "billing.model_allowlist", "Expected `array`"),
        ("[billing]\nallowed_service_tiers = ['gold']\n", "billing.allowed_service_tiers[0]", "Invalid enum value"),
        ("listen = 1\n", "listen", "Expected `object`"),
        ("[[packages]]\ncode = 'a'\nusd = '1'\nprice = '2'\n", "packages[0].price", "not a known setting"),
    ],
)
def test_a_bad_key_in_the_file_is_named(text: str, key: str, reason: str, tmp_path: Path) -> None:
    path = written(tmp_path, text)
    error = refused(path)
    assert error.where == str(path)
    assert error.key == key
    assert reason in error.reason


@pytest.mark.parametrize("content", [b"[listen\n", b"port == 1\n", b"\xff\xfe", b"a = 1\na = 2\n"])
def test_a_file_that_is_no_toml_is_named(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "proxy.toml"
    path.write_bytes(content)
    assert refused(path).where == str(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    error = refused(tmp_path / "none.toml")
    assert error.where == str(tmp_path / "none.toml")
    assert "cannot be read" in error.reason


@pytest.mark.parametrize(
    ("text", "key", "reason", "fix"),
    [
        ("[listen]\nworkers = 2\n", "listen.workers", "embedded store", "redis.url"),
        (
            "[upstream]\nbase_url = 'ftp://x/v1'\n",
            "upstream.base_url",
            "not a plain http(s) URL",
            "https://api.openai.com/v1",
        ),
        ("[upstream]\nbase_url = 'api.openai.com'\n", "upstream.base_url", "not a plain http(s) URL", "https://"),
        ("[upstream]\nbase_url = 'https://x/v1?a=b'\n", "upstream.base_url", "not a plain http(s) URL", "https://"),
        ("[upstream]\nbase_url = 'https://x/a b'\n", "upstream.base_url", "not a plain http(s) URL", "https://"),
        (
            '[upstream]\nbase_url = "https://x/v1\\r\\nX: 1"\n',
            "upstream.base_url",
            "not a plain http(s) URL",
            "https://",
        ),
        ("[upstream]\nbase_url = 'https://x:99999/v1'\n", "upstream.base_url", "not a plain http(s) URL", "https://"),
        ("[upstream]\nbase_url = 'https://[::1/v1'\n", "upstream.base_url", "not a plain http(s) URL", "https://"),
        (
            "[upstream]\nbase_url = 'https://me:hunter2@x/v1'\n",
            "upstream.base_url",
            "not a plain http(s) URL",
            "https://",
        ),
        ("[database]\nurl = 'mysql://x/y'\n", "database.url", "not a database we speak", "sqlite+aiosqlite"),
        ("[database]\nurl = 'postgresql://x/y'\n", "database.url", "not a database we speak", "postgresql+asyncpg"),
        ("[database]\nurl = 'postgresql+asyncpg://x:port/y'\n", "database.url", "broken", "postgresql+asyncpg"),
        (
            "[database]\nreplica_url = 'postgresql+asyncpg://x/y'\n",
            "database.replica_url",
            "ledger in PostgreSQL",
            '""',
        ),
        *(
            (
                f"[database]\nurl = 'postgresql+asyncpg://a/y'\nreplica_url = '{url}'\n",
                "database.replica_url",
                said,
                fix,
            )
            for url, said, fix in (
                ("sqlite+aiosqlite:///var/copy.db", "no URL of PostgreSQL", "postgresql+asyncpg"),
                ("postgresql://b/y", "no URL of PostgreSQL", "postgresql+asyncpg"),
                ("postgresql+asyncpg://b:port/y", "no URL of PostgreSQL", "postgresql+asyncpg"),
                ("postgresql+asyncpg://a/y", "is database.url itself", "name a replica"),
                ("postgresql+asyncpg://b/y?sslmode=on", "sslmode", "verify-full"),
                ("postgresql+asyncpg://me:hunter2@b/y", "password", "TOLLKEEPER_DATABASE__REPLICA_URL"),
            )
        ),
        ("[redis]\nurl = 'http://x'\n", "redis.url", "not a Redis URL", "redis://"),
        ("[redis]\nurl = 'redis://x:port'\n", "redis.url", "not a Redis URL", "redis://"),
        ("[billing]\nservice_tier = 'ultrafast'\n", "billing.service_tier", "not among", "add it"),
        ("[billing]\nmarkup = '0.00'\n", "billing.markup", "give everything away", "charging_enabled"),
        (
            "[[packages]]\ncode = 'a'\nusd = '1'\n[[packages]]\ncode = 'a'\nusd = '2'\n",
            "packages",
            "share a code",
            "own",
        ),
        ("[[packages]]\ncode = 'a'\nusd = '0'\n", "packages", "whole number of millicredits", "cents"),
        ("[[packages]]\ncode = 'a'\nusd = '0.0000001'\n", "packages", "whole number of millicredits", "cents"),
        (
            "[[packages]]\ncode = 'a'\nusd = '0.000001'\nbonus_percent = '5'\n",
            "packages",
            "whole number of millicredits",
            "bonus",
        ),
        (
            "[database]\nurl = 'postgresql+asyncpg://me:hunter2@db/y'\n",
            "database.url",
            "password",
            "TOLLKEEPER_DATABASE__URL",
        ),
        ("[redis]\nurl = 'redis://:hunter2@cache:6379/0'\n", "redis.url", "password", "TOLLKEEPER_REDIS__URL"),
        ("[upstream]\napi_key = 'hunter2'\n", "upstream.api_key", "not a known setting", "remove it"),
        ("[upstream]\nopenai_api_key = 'hunter2'\n", "upstream.openai_api_key", "not a known setting", "remove it"),
    ],
)
def test_what_cannot_work_is_refused_with_a_fix_and_no_secret_is_repeated(
    text: str, key: str, reason: str, fix: str, tmp_path: Path
) -> None:
    path = written(tmp_path, text)
    error = refused(path)
    assert (error.where, error.key) == (str(path), key)
    assert reason in error.reason
    assert fix in error.fix
    assert "hunter2" not in str(error)


def test_an_impossible_combination_out_of_the_environment_names_the_variable() -> None:
    error = refused(SHIPPED, TOLLKEEPER_LISTEN__WORKERS="2")
    assert (error.where, error.key) == ("environment (TOLLKEEPER_LISTEN__WORKERS)", "listen.workers")


def test_a_key_in_the_right_place_with_a_path_that_has_blanks_is_fine(tmp_path: Path) -> None:
    path = written(tmp_path, "[database]\nurl = 'sqlite+aiosqlite:////tmp/my data/größe.db'\n")
    assert load_settings(path, {}).database.url.endswith("größe.db")


# -- the upstream's key ----------------------------------------------------------------------------------------------


def test_the_key_comes_from_the_environment_before_the_file(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("sk-file\n")
    settings = load_settings(written(tmp_path, f"[upstream]\napi_key_file = '{tmp_path}/key'\n"), {})
    assert upstream_key(settings, {"OPENAI_API_KEY": "sk-environment"}).reveal() == "sk-environment"
    assert upstream_key(settings, {"OPENAI_API_KEY": "  "}).reveal() == "sk-file"
    assert upstream_key(settings, {}).reveal() == "sk-file"
    assert not upstream_key(Settings(), {})


def test_blanks_around_the_key_are_dropped() -> None:
    assert upstream_key(Settings(), {"OPENAI_API_KEY": " sk-canary\n"}).reveal() == "sk-canary"


@pytest.mark.parametrize(
    "key", ["sk can ary", "sk-can\nary", "sk-can\r\nX-Evil: 1", "sk-\tcanary", "sk-kanarienvögel", "sk-\x00"]
)
def test_a_key_with_blanks_in_it_is_refused_and_not_shown(key: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        upstream_key(Settings(), {"OPENAI_API_KEY": key})
    assert (caught.value.where, caught.value.key) == ("environment", "OPENAI_API_KEY")
    assert key not in str(caught.value)
    (tmp_path / "key").write_bytes(key.encode())
    settings = load_settings(written(tmp_path, f"[upstream]\napi_key_file = '{tmp_path}/key'\n"), {})
    with pytest.raises(ConfigError) as caught:
        upstream_key(settings, {})
    assert (caught.value.where, caught.value.key) == (f"{tmp_path}/key", "upstream.api_key_file")
    assert key not in str(caught.value)


def test_a_key_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    settings = load_settings(written(tmp_path, f"[upstream]\napi_key_file = '{tmp_path}/none'\n"), {})
    with pytest.raises(ConfigError, match=r"upstream\.api_key_file: cannot be read \(FileNotFoundError\)"):
        upstream_key(settings, {})


def test_a_secret_never_shows_itself() -> None:
    secret = upstream_key(Settings(), {"OPENAI_API_KEY": "sk-canary"})
    for shown in (repr(secret), str(secret), f"{secret}", f"{secret!r}", repr([secret])):
        assert "sk-canary" not in shown


def test_a_mark_before_the_text_is_no_part_of_it() -> None:
    """As editors on Windows write it."""
    found = parse_settings("\ufeff[listen]\nport = 4321\n".encode(), "proxy.toml", {})
    assert found.listen.port == 4321

"""Keys that moved or went are refused by their sentence, in the file and in the environment; promised names still load."""

import tomllib
from pathlib import Path
from typing import Any

import msgspec
import pytest

from config.errors import ConfigError
from config.former_keys import FIXED, MOVED
from config.load import load_settings
from config.settings import Section, Settings, variable_of
from tests.support.servers import ROOT

SENTENCES = {
    "billing.min_output_tokens": "is now holds.min_output_tokens",
    "billing.default_max_output_tokens": "is now holds.default_max_output_tokens",
    "billing.realtime_max_output_tokens": "is now holds.realtime_max_output_tokens",
    "billing.max_tool_calls": "is now holds.max_tool_calls",
    "billing.on_disconnect": 'is now metering.on_disconnect, where "drain" is called "read_on"',
    "billing.drain_seconds": "is now metering.read_on_seconds",
    "billing.drain_output_tokens": "is now metering.read_on_output_tokens",
    "billing.zero_completion_insurance": "is now metering.zero_completion_insurance",
    "billing.top_up_url": "is now purchases.top_up_url",
    "billing.auto_recharge_monthly_usd": "is now purchases.auto_recharge_monthly_usd",
    "billing.hold_lease_seconds": "is now advanced.hold_lease_seconds",
    "embedded.timeout_seconds": "is now advanced.embedded_timeout_seconds",
    "journal.flush_interval_ms": "is now advanced.journal_flush_interval_ms",
    "stripe.same_checkout_seconds": "is now advanced.same_checkout_seconds",
    "stripe.max_webhook_bytes": "is now advanced.max_webhook_bytes",
    "stripe.sweep_minutes": "is now advanced.sweep_minutes",
    "jobs.finance_seconds": "is now advanced.finance_seconds",
    "jobs.openai_costs_url": "is now advanced.openai_costs_url",
    "upstream.connect_timeout_seconds": "is no longer a setting: connecting to OpenAI always may take 5 s",
    "upstream.keepalive_seconds": "is no longer a setting: idle connections to OpenAI always are used again for 30 s",
    "upstream.max_response_bytes": "is no longer a setting: an answer that is not streamed always may have 256 MiB",
    "journal.batch_size": "is no longer a setting: always 500 charges are written in one transaction",
    "stripe.timeout_seconds": "is no longer a setting: a call to Stripe always may take 10 s",
    "stripe.signature_tolerance_seconds": "is no longer a setting: a webhook's time always may be off by 300 s",
    "notices.timeout_seconds": "is no longer a setting: a delivery always may take 5 s",
    "notices.max_attempts": "is no longer a setting: a notice always is tried 12 times",
    "admin.jwks_cache_seconds": "is no longer a setting: an issuer's keys always are kept for 300 s",
}
FORMER = sorted(SENTENCES)

PROMISED = """
[billing]
purchase_enabled = false
charging_enabled = false
charging_disabled_mode = "free"
rounding_mode = "ceil"
model_allowlist = ["gpt-4o*"]
auto_recharge = true
allow_store = true
allowed_tools = ["web_search", "mcp"]
markup = "1.2"

[upstream]
base_url = "http://127.0.0.1:9/v1"

[redis]
url = "redis://127.0.0.1:6379/0"

[database]
url = "sqlite+aiosqlite:///elsewhere.db"

[embedded]
path = "elsewhere/embedded.db"

[listen]
host = "0.0.0.0"
port = 8090
side_port = 8091
admin_host = "10.0.0.1"
admin_port = 8092
trusted_proxies = ["10.0.0.0/8"]
max_failures_per_minute = 7
workers = 2
max_connections = 11
max_connections_per_address = 12
max_sockets_per_key = 13
max_sockets_per_address = 14
socket_idle_seconds = 15
max_header_bytes = 8192
max_body_bytes = 100000
max_upload_bytes = 100001
max_buffered_bytes = 100002
header_timeout_seconds = 1
body_timeout_seconds = 2
keepalive_seconds = 3
drain_seconds = 4

[rollout]
percent = 25
include = ["acct_1"]
exclude = ["acct_2"]
outside = "block"

[[packages]]
code = "one"
usd = "1"
bonus_percent = "5"
"""


def refusal(path: Path | None, environ: dict[str, str]) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load_settings(path, environ)
    return caught.value


def in_file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "proxy.toml"
    path.write_text(text)
    return path


def lines_of(key: str, value: str = "1") -> str:
    section, _, name = key.partition(".")
    return f"[{section}]\n{name} = {value}\n"


def test_every_former_key_has_its_sentence() -> None:
    assert {*MOVED, *FIXED} == SENTENCES.keys()
    assert not MOVED.keys() & FIXED.keys()


@pytest.mark.parametrize("key", FORMER)
def test_a_former_key_in_the_file_is_refused_by_its_sentence(key: str, tmp_path: Path) -> None:
    path = in_file(tmp_path, lines_of(key))
    error = refusal(path, {})
    assert (error.where, error.key, error.reason) == (str(path), key, SENTENCES[key])
    if key in MOVED:
        section, _, name = MOVED[key].partition(".")
        assert error.fix == f"write it as {name} under [{section}]"
    else:
        assert error.fix == "remove it"


@pytest.mark.parametrize("key", FORMER)
def test_a_former_key_in_the_environment_is_refused_by_its_sentence(key: str) -> None:
    variable = "TOLLKEEPER_" + key.replace(".", "__").upper()
    error = refusal(None, {variable: "1"})
    assert (error.where, error.key, error.reason) == ("environment", variable, f"{key} {SENTENCES[key]}")
    assert error.fix == (f"set {variable_of(MOVED[key])} instead" if key in MOVED else "unset it")


def test_all_former_keys_of_a_file_are_in_one_complaint(tmp_path: Path) -> None:
    path = in_file(
        tmp_path, "[billing]\nmarkup = '1.2'\ndrain_seconds = 9\nmax_tool_calls = 2\n[journal]\nbatch_size = 7\n"
    )
    assert str(refusal(path, {})).splitlines() == [
        f"{path}:3: billing.drain_seconds: is now metering.read_on_seconds. Fix: write it as read_on_seconds under [metering]",
        f"{path}:4: billing.max_tool_calls: is now holds.max_tool_calls. Fix: write it as max_tool_calls under [holds]",
        f"{path}:6: journal.batch_size: is no longer a setting: always 500 charges are written in one transaction. Fix: remove it",
    ]


def test_all_former_variables_are_in_one_complaint() -> None:
    error = refusal(None, {"TOLLKEEPER_STRIPE__TIMEOUT_SECONDS": "3", "TOLLKEEPER_BILLING__TOP_UP_URL": "/buy"})
    assert str(error) == (
        "environment: TOLLKEEPER_BILLING__TOP_UP_URL: billing.top_up_url is now purchases.top_up_url. "
        "Fix: set TOLLKEEPER_PURCHASES__TOP_UP_URL instead\n"
        "environment: TOLLKEEPER_STRIPE__TIMEOUT_SECONDS: stripe.timeout_seconds is no longer a setting: "
        "a call to Stripe always may take 10 s. Fix: unset it"
    )


def test_a_moved_key_loads_at_its_new_place_and_no_former_key_is_a_setting() -> None:
    for former in MOVED:
        section, _, name = former.partition(".")
        assert not hasattr(getattr(Settings(), section), name), former
    for former in FIXED:
        section, _, name = former.partition(".")
        assert not hasattr(getattr(Settings(), section), name), former
    for place in MOVED.values():
        section, _, name = place.partition(".")
        assert hasattr(getattr(Settings(), section), name), place


def test_draining_is_what_a_stopping_server_does_and_nothing_else() -> None:
    """`drain_seconds` was how long a server may take to stop, and how long an answer is read on for."""
    with_drain = [
        f"{section.name}.{key.name}"
        for section in msgspec.structs.fields(Settings)
        if isinstance(section.type, type) and issubclass(section.type, Section)
        for key in msgspec.structs.fields(section.type)
        if "drain" in key.name
    ]
    assert with_drain == ["listen.drain_seconds"]


# -- names in users' hands ----------------------------------------------------------------------------------------


def test_every_promised_name_loads_from_a_file(tmp_path: Path) -> None:
    wanted = tomllib.loads(PROMISED)
    found = msgspec.to_builtins(load_settings(in_file(tmp_path, PROMISED), {}))
    for section, table in wanted.items():
        if section == "packages":
            assert [{key: package[key] for key in table[0]} for package in found["packages"]] == table
            continue
        for key, value in table.items():
            assert plain(found[section][key]) == value, f"{section}.{key}"
    assert wanted["listen"].keys() == found["listen"].keys(), "listen.* is promised whole"
    assert wanted["rollout"].keys() == found["rollout"].keys(), "[rollout] is promised whole"


def test_every_promised_name_loads_from_the_environment() -> None:
    wanted = tomllib.loads(PROMISED)
    environ = {"TOLLKEEPER_PACKAGES": msgspec.json.encode(wanted.pop("packages")).decode()}
    for section, table in wanted.items():
        for key, value in table.items():
            raw = value if isinstance(value, str) else msgspec.json.encode(value).decode()
            environ[f"TOLLKEEPER_{section.upper()}__{key.upper()}"] = raw
    found = msgspec.to_builtins(load_settings(ROOT / "proxy.toml", environ))
    for section, table in wanted.items():
        for key, value in table.items():
            assert plain(found[section][key]) == value, f"{section}.{key}"
    assert [package["code"] for package in found["packages"]] == ["one"]


def plain(value: Any) -> Any:
    """As TOML has it: lists, not tuples."""
    return list(value) if isinstance(value, tuple) else value

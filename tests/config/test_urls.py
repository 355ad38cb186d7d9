"""Addresses of every key that can be written and not be followed: each is a complaint with its key, and no fault."""

import pytest

from config.checks import find_http_url_problems
from config.errors import ConfigError
from config.load import parse_settings

BROKEN = ["http://[::1", "https://a:99999/x", "https://a:x/"]


@pytest.mark.parametrize("url", BROKEN)
@pytest.mark.parametrize("key", ["app.url", "app.support_url", "app.terms_url", "app.privacy_url", "admin.public_url"])
def test_an_address_that_no_browser_follows_is_refused(key: str, url: str) -> None:
    section, _, name = key.partition(".")
    with pytest.raises(ConfigError) as refused:
        parse_settings(f'[{section}]\n{name} = "{url}"\n'.encode(), "proxy.toml", {})
    assert (refused.value.problems[0].key, "URL" in refused.value.problems[0].reason) == (key, True)


@pytest.mark.parametrize("url", BROKEN)
def test_of_other_keys_too(url: str) -> None:
    assert [problem.key for problem in find_http_url_problems("stripe.success_url", url)] == ["stripe.success_url"]


@pytest.mark.parametrize("origin", ["http://[::1", "https://a:99999", "https://:1"])
def test_an_origin_that_no_browser_sends_is_refused(origin: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_settings(f'[cors]\nallowed_origins = ["{origin}"]\n'.encode(), "proxy.toml", {})
    assert refused.value.problems[0].key == "cors.allowed_origins"


@pytest.mark.parametrize("url", ["postgresql+asyncpg://h/x", "sqlite+aiosqlite:///x.db", "sqlite://"])
def test_a_databases_url_is_none_of_redis(url: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_settings(f'[redis]\nurl = "{url}"\n'.encode(), "proxy.toml", {})
    assert [problem.key for problem in refused.value.problems] == ["redis.url"]


@pytest.mark.parametrize("path", ["", "/", "/var/", ":memory:", "a" * 256, "漢" * 86, "a" * 300 + "/x.db"])
def test_a_ledger_is_a_file_with_a_name(path: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_settings(f'[database]\nurl = "sqlite+aiosqlite:///{path}"\n'.encode(), "proxy.toml", {})
    assert [(problem.key, problem.reason) for problem in refused.value.problems] == [("database.url", "names no file")]


@pytest.mark.parametrize("path", ["x.db", "/var/x.db", "a" * 255, "var/tollkeeper.db?timeout=3"])
def test_a_ledger_with_a_name_is_one(path: str) -> None:
    url = f"sqlite+aiosqlite:///{path}"
    assert parse_settings(f'[database]\nurl = "{url}"\n'.encode(), "proxy.toml", {}).database.url == url

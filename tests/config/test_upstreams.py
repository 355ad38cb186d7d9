"""`[[upstreams]]`: what is refused, all at once, and where keys come from."""

from pathlib import Path

import pytest

from config.errors import ConfigError
from config.load import parse_settings
from config.secrets import upstream_keys
from config.settings import Settings
from config.upstreams import default_of, entries_of, recorded_name


def settings(text: str, **environ: str) -> Settings:
    return parse_settings(text.encode(), "proxy.toml", environ)


def entry(name: str, more: str = "", key: str = 'api_key_variable = "KEY"') -> str:
    return f'[[upstreams]]\nname = "{name}"\nbase_url = "http://127.0.0.1:9/v1"\n{key}\n{more}\n'


def refused(text: str, **environ: str) -> str:
    with pytest.raises(ConfigError) as caught:
        upstream_keys(settings(text), environ)
    return str(caught.value)


def test_a_single_upstream_is_an_entry_like_others() -> None:
    (only,) = entries_of(settings('[upstream]\nbase_url = "https://eu.api.openai.com/v1"'))
    assert (only.name, only.base_url, recorded_name(only.name)) == ("openai", "https://eu.api.openai.com/v1", "")


def test_the_default_is_who_is_named_openai_else_the_first() -> None:
    assert default_of(settings(entry("eu") + entry("openai")).upstreams).name == "openai"
    assert default_of(settings(entry("eu") + entry("us")).upstreams).name == "eu"


def test_every_reason_is_said_at_once() -> None:
    text = (
        entry("a", 'dialect = "azure"', key="") + entry("a", 'price_adjustment = "0"') + entry("tax", "draining = true")
    )
    words = refused(text)
    for reason in ("two are named 'a'", "a: has no key", "needs a rate_card", "cost nothing", "tax: the ledger has"):
        assert reason in words, words


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (entry("a", "draining = true"), "nobody would serve"),
        (entry("a", 'deployments = {x = "y"}'), "has deployments, which OpenAI does not know"),
        (entry("a", 'api_key_file = "k"'), "has both api_key_file and api_key_variable"),
        (entry("A"), "upstreams[0].name"),
        (entry("a", "weigth = 1"), "weigth"),
        ('[upstream]\nbase_url = "http://x/v1"\n' + entry("a"), "is set beside [[upstreams]]"),
    ],
)
def test_what_could_not_serve_is_refused(text: str, reason: str) -> None:
    assert reason in refused(text)


def test_keys_come_from_files_and_variables_and_are_never_said(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text("sk-file\n")
    text = (
        entry("a")
        + entry("b", key=f'api_key_file = "{path}"')
        + entry("c", 'dialect = "generic"\nrate_card = "c"', key="")
    )
    keys = upstream_keys(settings(text), {"KEY": "sk-variable"})
    assert {name: key.reveal() for name, key in keys.items()} == {"a": "sk-variable", "b": "sk-file", "c": ""}
    path.write_text("sk with blanks")
    words = refused(text)
    assert "a: KEY is empty" in words
    assert "b: its key has blanks" in words
    assert "sk with" not in words


def test_a_variable_sets_all_of_them() -> None:
    found = settings("", TOLLKEEPER_UPSTREAMS='[{"name": "a", "base_url": "http://x/v1", "api_key_variable": "K"}]')
    assert [one.name for one in found.upstreams] == ["a"]

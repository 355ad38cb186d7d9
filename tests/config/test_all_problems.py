"""A broken proxy.toml: every problem at once, each with its line and a cure that works when it is typed."""

from pathlib import Path

import pytest

from config.errors import ConfigError
from config.load import load_settings, parse_settings
from config.settings import Settings
from config.toml_lines import MOST_PROBLEMS, key_lines


def problems(text: str, **environ: str) -> list[tuple[int | None, str, str, str]]:
    """(line, key, reason, fix) of every problem, in the order that people read them."""
    with pytest.raises(ConfigError) as caught:
        parse_settings(text.encode(), "proxy.toml", environ)
    assert str(caught.value).splitlines() == [str(one) for one in caught.value.problems]
    return [(one.line, one.key, one.reason, one.fix) for one in caught.value.problems]


def one(text: str, **environ: str) -> tuple[int | None, str, str, str]:
    (found,) = problems(text, **environ)
    return found


def test_all_problems_are_said_at_once_in_the_order_of_the_file() -> None:
    found = problems(
        """\
[listen]
port = "80"
workes = 2
[biling]
[billing]
markup = 1.2
model_allowlist = ["a",
[database]
url = "postgresql+asyncpg://db/x?sslmode=on"
[log]
level = "warn"
access = True
""",
        TOLLKEEPER_LISTEN_PORT="1",
    )
    assert [(line, key) for line, key, _, _ in found] == [
        (2, "listen.port"),
        (3, "listen.workes"),
        (4, "biling"),
        (6, "billing.markup"),
        (7, "billing.model_allowlist"),
        (9, "database.url"),
        (11, "log.level"),
        (12, "log.access"),
        (None, "TOLLKEEPER_LISTEN_PORT"),
    ]


@pytest.mark.parametrize(
    ("text", "line", "key", "fix"),
    [
        ("[billing]\n\nmarkup = 1.2\n", 3, "billing.markup", 'put it in quotes: markup = "1.2"'),
        ("[listen]\nhost = true\n", 2, "listen.host", 'write text in quotes: host = "..."'),
        ("[listen]\nport = '80'\n", 2, "listen.port", "write it without quotes: port = 80"),
        ("[listen]\nworkers = 2.0\n", 2, "listen.workers", "write a whole number, without quotes"),
        ("[listen]\nworkers = -1\n", 2, "listen.workers", "write 1 or more"),
        (
            "[billing]\nallowed_tools = [1]\n",
            2,
            "billing.allowed_tools[0]",
            'write each in quotes: allowed_tools = ["..."]',
        ),
        ("[log]\naccess = 'yes'\n", 2, "log.access", "write access = true or access = false, without quotes"),
        ("[redis]\ntimeout_seconds = '1'\n", 2, "redis.timeout_seconds", "write a number, without quotes"),
        ("[billing]\nmodel_allowlist = 'gpt-*'\n", 2, "billing.model_allowlist", 'a list: model_allowlist = ["..."]'),
        ("[billing]\nmarkup = '1,2'\n", 2, "billing.markup", 'a plain number in quotes, such as "1.25"'),
        ("[log]\nlevel = 'warn'\n", 2, "log.level", "did you mean warning? It is one of debug, error, info, warning"),
        (
            "[billing]\nallowed_service_tiers = ['fleks']\n",
            2,
            "billing.allowed_service_tiers[0]",
            "did you mean flex? It is one of ",
        ),
        ("[listen]\nprot = 1\n", 2, "listen.prot", "did you mean listen.port?"),
        ("[listen]\nmarkup = '1'\n", 2, "listen.markup", "did you mean billing.markup?"),
        ("[listn]\nport = 1\n", 1, "listn", "did you mean [listen]?"),
        ("port = 1\n", 1, "port", "write port under [listen]"),
        ("[a]\n[upstream]\n", 1, "a", "remove it"),
        ("redis = 'x'\n", 1, "redis", "make it a table: [redis]"),
        ("packages = 'x'\n", 1, "packages", "begin each package with [[packages]]"),
        (
            "[[packages]]\ncode = 'a'\nusd = '1'\n[[packages]]\nusd = '1'\n",
            4,
            "packages[1]",
            "give it a code",
        ),
        ("[[packages]]\ncode = 'a'\nusd = '1'\nbonus = '2'\n", 4, "packages[0].bonus", "did you mean bonus_percent?"),
        # what is no TOML
        ("[log]\nlevel = info\n", 2, "log.level", 'put text in quotes: level = "..."'),
        ("[log]\naccess = FALSE\n", 2, "log.access", "write access = false"),
        ("[log]\naccess\n", 2, "log.access", "write it as access = value"),
        ("[log]\nlevel =\n", 2, "log.level", "give it a value, or remove the line"),
        ("[redis]\ntimeout_seconds = 1s\n", 2, "redis.timeout_seconds", "a number stands alone"),
        ('[log]\nlevel = "info\n', 2, "log.level", "close the quotes"),
        ("[log\nlevel = 'info'\n", 1, "log", "write it as [log]"),
        ("[log]\n[redis]\n[log]\n", 3, "log", "a table stands once"),
        ("[log]\nlevel = 'info'\nlevel = 'error'\n", 3, "log.level", "correct that line, or remove it"),
        ("[billing]\n# x\nmodel_allowlist = [\n  'a',\n", 3, "billing.model_allowlist", "close it with the ], }"),
        ("[billing]\nmodel_allowlist = ['a'\n\n[log]\n", 2, "billing.model_allowlist", "close it with the ], }"),
        ('[listen]\nhost = """\na\n[log]\n', 2, "listen.host", "close it with the ], }, or quotes"),
    ],
)
def test_a_problem_has_its_line_and_what_to_type(text: str, line: int, key: str, fix: str) -> None:
    found = one(text)
    assert found[:2] == (line, key)
    assert fix in found[3]


def test_what_could_be_a_secret_is_not_shown_again() -> None:
    for text in (
        "[upstream]\napi_key_file = sk-hunter2\n",
        "[upstream]\napi_key = 'hunter2'\n",
        "[redis]\nurl = ['hunter2']\n",
    ):
        assert "hunter2" not in str(problems(text))


def test_a_broken_key_makes_no_other_key_look_wrong() -> None:
    """Two workers need Redis: what redis.url says is not known, so nothing is said about it."""
    assert one("[listen]\nworkers = 2\n[redis]\nurl = redis\n")[1] == "redis.url"
    assert one("[listen]\nworkers = 2\n[redis]\nurl = 3\n")[1] == "redis.url"
    assert one("[listen]\nworkers = 2\n[redis\nurl = 'redis://x'\n")[1] == "redis"


def test_combinations_are_said_beside_all_else_with_their_line() -> None:
    found = problems("[billing]\nservice_tier = 'ultrafast'\nmarkup = '0'\n[listen]\nworkers = 2\nprot = 1\n")
    assert [(line, key) for line, key, _, _ in found] == [
        (2, "billing.service_tier"),
        (3, "billing.markup"),
        (5, "listen.workers"),
        (6, "listen.prot"),
    ]


def test_a_variable_that_is_wrong_is_named_and_has_no_line() -> None:
    found = problems("[listen]\nworkers = 2\n", TOLLKEEPER_LISTEN__PROT="1", TOLLKEEPER_LISTEN__WORKERS="3")
    assert [(line, key) for line, key, _, _ in found] == [(None, "listen.workers"), (None, "TOLLKEEPER_LISTEN__PROT")]
    assert found[1][3] == "did you mean TOLLKEEPER_LISTEN__PORT?"


def test_a_hopeless_file_ends_after_some_problems() -> None:
    assert len(problems("no toml\n" * 500)) <= MOST_PROBLEMS
    assert len(problems("a = 1\n" * 30)) >= MOST_PROBLEMS


def test_lines_are_found_past_strings_lists_and_comments() -> None:
    text = '[listen]\nhost = "a # no [comment]"\nport = 1 # [log]\n[billing]\nmodel_allowlist = [ # one\n  "b = [",\n]\nmarkup = """\nx = 1\n"""\n[[packages]]\ncode = \'"""\'\nusd = "1"\n'
    lines = key_lines(text)
    assert lines == {
        "listen": 1,
        "listen.host": 2,
        "listen.port": 3,
        "billing": 4,
        "billing.model_allowlist": 5,
        "billing.markup": 8,
        "packages[0]": 11,
        "packages": 11,
        "packages[0].code": 12,
        "packages[0].usd": 13,
    }


def test_what_is_right_stays_right(tmp_path: Path) -> None:
    path = tmp_path / "proxy.toml"
    path.write_text("[listen]\r\nport = 1\r\n[billing]\r\nmodel_allowlist = [\r\n'a',\r\n]\r\n")
    assert load_settings(path, {}).billing.model_allowlist == ("a",)
    assert parse_settings(b"", "proxy.toml", {}) == Settings()

"""An edit of proxy.toml: whole or not at all, the live part at once, the rest at the next restart."""

import os
import time
from pathlib import Path

import msgspec
import pytest

from config.errors import ConfigError
from config.flags import FLAGS, flag_named, full_name, read_flag, value_of, with_flags
from config.load import load_settings
from config.settings import LIVE_SECTIONS, Settings
from config.watch import HEADER, MOST_BYTES, Edit, Follower, Herald, Judge, Watcher, live_part

NO_ENVIRONMENT: dict[str, str] = {}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "proxy.toml"
    path.write_text('[purchases]\ntop_up_url = "/a"\n')
    return path


def watcher(file: Path, **more: object) -> Watcher:
    made = Watcher(Judge(file, load_settings(file, NO_ENVIRONMENT), environ=NO_ENVIRONMENT, **more))  # type: ignore[arg-type]
    settle(made)
    return made


def settle(watching: Watcher) -> Edit | None:
    """Looks until it is at rest; the edit that was taken."""
    found = [watching.look() for _ in range(3)]
    (edit,) = [edit for edit in found if edit is not None] or [None]
    return edit


def test_an_edit_is_taken_once_it_rests(file: Path) -> None:
    watching = watcher(file)
    assert watching.look() is None
    file.write_text('[purchases]\ntop_up_url = "/b"\n')
    assert watching.look() is None  # it may be half written
    edit = watching.look()
    assert edit is not None
    assert edit.settings is not None
    assert edit.settings.purchases.top_up_url == "/b"
    assert watching.look() is None


def test_a_file_that_is_being_written_is_not_taken_half(file: Path) -> None:
    watching = watcher(file)
    for part in (
        '[purchases]\ntop_up_url = "/b"\n',
        '[purchases]\ntop_up_url = "/b"\n[billing]\npurchase_enabled = false\n',
    ):
        file.write_text(part)
        assert watching.look() is None
    edit = watching.look()
    assert edit is not None
    assert edit.settings is not None
    assert not edit.settings.billing.purchase_enabled


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("[billing", "not valid TOML"),
        ("[billing]\nchargin_enabled = false\n", "billing.chargin_enabled"),
        ('[purchases]\ntop_up_url = "/b"\n[billing]\nservice_tier = "ultrafast"\n', "allowed_service_tiers"),
        ("[rollout]\npercent = 101\n", "rollout.percent"),
        ("", "is missing, unreadable or empty"),
        (" \n", "is missing, unreadable or empty"),
        ("\xff", "UTF-8"),
        ("x = " + "[" * 5_000 + "]" * 5_000, "RecursionError"),
        ("x = " + "9" * 5_000, "ValueError"),
    ],
)
def test_a_bad_edit_says_what_is_wrong_and_brings_nothing(content: str, says: str, file: Path) -> None:
    watching = watcher(file)
    file.write_bytes(content.encode("latin-1"))
    edit = settle(watching)
    assert edit is not None
    assert edit.settings is None
    assert says in edit.problem
    file.write_text('[purchases]\ntop_up_url = "/c"\n')
    good = settle(watching)
    assert good is not None
    assert good.settings is not None
    assert good.problem == ""


def test_a_file_that_is_gone_is_a_problem_and_one_that_comes_back_is_not(file: Path) -> None:
    watching = watcher(file)
    content = file.read_text()
    file.unlink()
    edit = settle(watching)
    assert edit is not None
    assert edit.settings is None
    file.write_text(content)
    back = settle(watching)
    assert back is not None
    assert back.settings is not None


def test_what_needs_a_restart_is_named_and_not_applied(file: Path) -> None:
    watching = watcher(file)
    file.write_text(
        "[listen]\nport = 1234\n[billing]\npurchase_enabled = false\n[journal]\nmax_pending = 7\n"
        "[advanced]\nhold_lease_seconds = 99\n"
    )
    edit = settle(watching)
    assert edit is not None
    assert edit.settings is not None
    assert set(edit.restart) == {"listen.port", "journal.max_pending", "advanced.hold_lease_seconds"}
    kept = edit.settings
    assert (kept.listen.port, kept.journal.max_pending, kept.advanced.hold_lease_seconds) == (8080, 200_000, 15)
    assert not edit.settings.billing.purchase_enabled


def test_the_environment_still_wins(file: Path) -> None:
    environment = {"TOLLKEEPER_PURCHASES__TOP_UP_URL": "/env"}
    watching = Watcher(Judge(file, load_settings(file, environment), environ=environment))
    settle(watching)
    file.write_text('[purchases]\ntop_up_url = "/b"\n[billing]\npurchase_enabled = false\n')
    edit = settle(watching)
    assert edit is not None
    assert edit.settings is not None
    assert (edit.settings.purchases.top_up_url, edit.settings.billing.purchase_enabled) == ("/env", False)


def test_a_check_that_fails_in_a_way_nobody_foresaw_is_a_bad_edit(file: Path) -> None:
    def check(settings: Settings) -> None:
        if settings.packages:
            raise ValueError("nobody foresaw this")

    watching = watcher(file, check=check)
    file.write_text('[[packages]]\ncode = "a"\nusd = "1"\n')
    edit = settle(watching)
    assert edit is not None
    assert edit.settings is None
    assert "ValueError" in edit.problem


def test_what_only_the_keys_know_is_checked_too(file: Path) -> None:
    def check(settings: Settings) -> None:
        if settings.packages:
            raise ConfigError("proxy.toml", "packages", "cannot be sold", "sell something else")

    watching = watcher(file, check=check)
    file.write_text('[[packages]]\ncode = "a"\nusd = "1"\n')
    edit = settle(watching)
    assert edit is not None
    assert edit.settings is None
    assert "cannot be sold" in edit.problem


def test_every_section_is_either_live_or_says_that_it_needs_a_restart() -> None:
    for section in Settings.__struct_fields__:
        kind = type(getattr(Settings(), section))
        if section not in LIVE_SECTIONS:
            assert "*restart*" in (kind.__doc__ or ""), section
        elif section != "packages":
            assert "*restart*" not in (kind.__doc__ or ""), section
    text = (Path(__file__).parents[2] / "proxy.toml").read_text()
    for section in Settings.__struct_fields__:
        if section in LIVE_SECTIONS:
            assert f"[{section}]" in text
    assert live_part(Settings(), Settings()) == Settings()


# -- flags ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("charging_enabled", "false", False),
        ("billing.purchase_enabled", "true", True),
        ("charging_disabled_mode", "free", "free"),
        ("rounding_mode", '"ceil"', "ceil"),
        ("model_allowlist", '["gpt-4o*"]', ["gpt-4o*"]),
        ("auto_recharge", "true", True),
        ("rollout.percent", "25", 25),
        ("rollout.outside", "block", "block"),
    ],
)
def test_a_flag_is_read_and_laid_over_the_settings(name: str, text: str, value: object) -> None:
    flag = flag_named(name)
    assert read_flag(flag, text) == value
    found = with_flags(Settings(), {flag: value})
    assert msgspec.to_builtins(value_of(found, flag)) == value
    assert msgspec.structs.replace(found, billing=Settings().billing, rollout=Settings().rollout) == Settings()
    assert flag_named(full_name(flag)) == flag


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("charging_enabled", "maybe"),
        ("charging_enabled", "1"),
        ("charging_disabled_mode", "half"),
        ("model_allowlist", "gpt-4o"),
        ("rollout.percent", "101"),
        ("rollout.percent", "2.5"),
        ("markup", "1"),
        ("percent", "5"),
        ("listen.port", "5"),
        ("", ""),
    ],
)
def test_no_other_value_and_no_other_flag(name: str, text: str) -> None:
    with pytest.raises(ConfigError):
        read_flag(flag_named(name), text)


def test_every_flag_of_the_design_is_one() -> None:
    wanted = {
        "purchase_enabled",
        "charging_enabled",
        "charging_disabled_mode",
        "rounding_mode",
        "model_allowlist",
        "auto_recharge",
    }
    assert wanted <= FLAGS.keys()


# -- several processes ---------------------------------------------------------------------------------


def top_up_url(edit: Edit | None) -> str:
    assert edit is not None
    assert edit.settings is not None, edit.problem
    return edit.settings.purchases.top_up_url


@pytest.fixture
def herald() -> Herald:
    return Herald()


def follower(herald: Herald, file: Path) -> Follower:
    return Follower(herald.memory, Judge(file, load_settings(file, NO_ENVIRONMENT), environ=NO_ENVIRONMENT))


def edit(name: str) -> bytes:
    return f'[purchases]\ntop_up_url = "/{name}"\n'.encode()


def test_a_follower_is_told_what_was_taken_and_what_was_refused(file: Path, herald: Herald) -> None:
    following = follower(herald, file)
    assert following.look() is None
    herald.took(edit("b"))
    assert top_up_url(following.look()) == "/b"
    assert following.look() is None
    herald.refused("line 3 is wrong")
    assert following.look() == Edit(None, "line 3 is wrong")
    assert following.look() is None
    herald.took(edit("b"))
    assert top_up_url(following.look()) == "/b", "the problem is over"


def test_a_follower_misses_no_edit_that_was_taken_before_a_broken_one(file: Path, herald: Herald) -> None:
    quick, slow = follower(herald, file), follower(herald, file)
    herald.took(edit("b"))
    assert top_up_url(quick.look()) == "/b"
    herald.refused("line 3 is wrong")
    assert quick.look() == Edit(None, "line 3 is wrong")
    assert top_up_url(slow.look()) == "/b"
    assert slow.look() == Edit(None, "line 3 is wrong")
    assert slow.look() is None
    late = follower(herald, file)
    assert top_up_url(late.look()) == "/b"
    assert late.look() == Edit(None, "line 3 is wrong")


def test_a_follower_knows_when_somebody_last_looked_at_the_file(
    file: Path, herald: Herald, monkeypatch: pytest.MonkeyPatch
) -> None:
    following = follower(herald, file)
    assert time.time() - following.looked_at < 60
    with monkeypatch.context() as clock:
        clock.setattr("config.watch.time.time", lambda: 1_000.5)
        herald.looked()
    assert following.looked_at == 1_000.5
    assert following.look() is None


def test_what_is_being_told_at_this_moment_is_heard_at_the_next_look(file: Path, herald: Herald) -> None:
    following = follower(herald, file)
    herald.took(edit("b"))
    last = HEADER.size + len(edit("b"))
    herald.memory[last] ^= 1
    assert following.look() is None
    herald.memory[last] ^= 1
    assert top_up_url(following.look()) == "/b"


def test_one_whom_judging_fails_is_told_again(file: Path, herald: Herald) -> None:
    failures = [TypeError("nobody foresaw this")]

    def check(_settings: object) -> None:
        if failures:
            raise failures.pop()

    following = Follower(herald.memory, Judge(file, load_settings(file, NO_ENVIRONMENT), check, NO_ENVIRONMENT))
    herald.took(edit("b"))
    with pytest.raises(TypeError):
        following.look()
    assert top_up_url(following.look()) == "/b"


def test_the_largest_file_and_the_longest_problem_fit(file: Path, herald: Herald) -> None:
    following = follower(herald, file)
    herald.took(edit("b") + b"#" * (MOST_BYTES - len(edit("b"))))
    assert top_up_url(following.look()) == "/b"
    herald.refused("\N{FACE WITH TEARS OF JOY}" * 1_000_000)
    told = following.look()
    assert told is not None
    assert len(told.problem) == 16_384


# -- files that are none --------------------------------------------------------------------------------


def test_a_file_that_is_too_large_is_refused(file: Path) -> None:
    watching = watcher(file)
    file.write_bytes(edit("b") + b"#" * MOST_BYTES)
    found = settle(watching)
    assert found is not None
    assert "is larger than" in found.problem


def test_a_pipe_of_that_name_keeps_nobody_waiting(file: Path) -> None:
    watching = watcher(file)
    file.unlink()
    os.mkfifo(file)
    found = settle(watching)
    assert found is not None
    assert "missing, unreadable or empty" in found.problem
    file.unlink()
    file.write_bytes(edit("b"))
    assert top_up_url(settle(watching)) == "/b"

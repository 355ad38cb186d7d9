"""deploy/systemd/tollkeeper.service says what the product, its image and its installation say."""

import re
import shutil
import subprocess
from pathlib import Path

import yaml

from config.load import load_settings
from tests.support.servers import ROOT

UNIT = (ROOT / "deploy" / "systemd" / "tollkeeper.service").read_text()
README = (ROOT / "deploy" / "README.md").read_text()
SETTINGS = dict(re.findall(r"^(\w+)=(.*)$", UNIT, re.MULTILINE))


def test_it_starts_the_command_that_make_install_puts_there() -> None:
    assert SETTINGS["ExecStart"] == "/opt/tollkeeper/.venv/bin/tollkeeper serve"
    assert "make -C /opt/tollkeeper install" in README
    assert (ROOT / ".venv" / "bin" / "tollkeeper").is_file()


def test_it_waits_for_streams_as_long_as_compose_does() -> None:
    compose = yaml.safe_load((ROOT / "deploy" / "docker-compose.yml").read_text())["services"]["tollkeeper"]
    assert f"{SETTINGS['TimeoutStopSec']}s" == compose["stop_grace_period"]
    assert int(SETTINGS["TimeoutStopSec"]) > load_settings(ROOT / "proxy.toml").listen.drain_seconds
    assert (SETTINGS["KillMode"], SETTINGS["KillSignal"]) == ("mixed", "SIGTERM")
    assert int(SETTINGS["LimitNOFILE"]) == compose["ulimits"]["nofile"]


def test_it_is_nobody_in_particular_and_writes_its_own_folder_alone() -> None:
    assert SETTINGS["User"] == "tollkeeper"
    assert SETTINGS["WorkingDirectory"] == f"/var/lib/{SETTINGS['StateDirectory']}"
    assert (SETTINGS["ProtectSystem"], SETTINGS["NoNewPrivileges"], SETTINGS["CapabilityBoundingSet"]) == (
        "strict",
        "yes",
        "",
    )
    assert "ReadWritePaths" not in SETTINGS


def test_secrets_and_configuration_are_where_the_readme_puts_them() -> None:
    for path in (SETTINGS["EnvironmentFile"], "/etc/tollkeeper/proxy.toml"):
        assert f" {path}" in README
    assert "TOLLKEEPER_CONFIG=/etc/tollkeeper/proxy.toml" in SETTINGS["Environment"]
    assert not re.search(r"KEY=|SECRET=|PASSWORD=", UNIT)


def test_systemd_takes_every_line_and_finds_little_that_it_may_do(tmp_path: Path) -> None:
    """By systemd-analyze, which machines with systemd have; its program is one that is there."""
    program = shutil.which("systemd-analyze")
    if program is None:
        return  # the rules above hold all the same
    unit = tmp_path / "tollkeeper.service"
    unit.write_text(UNIT.replace(SETTINGS["ExecStart"], "/bin/true"))
    verified = subprocess.run([program, "verify", str(unit)], capture_output=True, text=True, check=False)
    assert verified.returncode == 0, verified.stderr
    assert "tollkeeper.service" not in verified.stderr, verified.stderr
    judged = subprocess.run(
        [program, "security", "--offline=true", "--threshold=25", "--no-pager", str(unit)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert judged.returncode == 0, judged.stdout[-400:] + judged.stderr


def test_the_readme_names_every_folder_and_file_beside_it() -> None:
    for path in (ROOT / "deploy").iterdir():
        if path.name not in ("README.md", ".env"):
            assert f"`{path.name}" in README, path.name
    for test in re.findall(r"`(test_\w+)`", README):
        assert any(f"def {test}(" in found.read_text() for found in (ROOT / "tests").rglob("test_*.py")), test

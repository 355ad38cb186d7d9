"""The image, checked without an engine: its instructions are parsed, and what it would install and run is installed and run here."""

import http.server
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support import web
from tests.support.servers import ROOT, UPSTREAM_KEY, free_port, wait_until


class Instruction(NamedTuple):
    """One instruction of a stage."""

    stage: str
    word: str
    rest: str


def instructions() -> list[Instruction]:
    """The Dockerfile with its continued lines joined and its comments dropped."""
    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if not line.lstrip().startswith("#")]
    stage, found = "", []
    for line in re.sub(r"\\\n\s*", " ", "\n".join(lines)).splitlines():
        if line.strip():
            word, _, rest = line.strip().partition(" ")
            if word == "FROM":
                stage = rest.partition(" AS ")[2]
            found.append(Instruction(stage, word, rest.strip()))
    return found


STEPS = instructions()
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def of(word: str, stage: str = "run") -> list[str]:
    return [step.rest for step in STEPS if step.word == word and step.stage == stage]


def environment() -> dict[str, str]:
    return dict(part.split("=", 1) for line in of("ENV") for part in shlex.split(line))


def copied() -> list[str]:
    """Everything the build takes from the repository."""
    found = []
    for step in STEPS:
        if step.word == "COPY" and not step.rest.startswith("--from="):
            found += step.rest.split()[:-1]
    return found


def health_check() -> list[str]:
    (line,) = of("HEALTHCHECK")
    command: list[str] = json.loads(line.partition("CMD ")[2])
    return [sys.executable if word == "python" else word for word in command]


def test_there_are_two_stages_of_one_slim_base_and_the_second_takes_only_the_result() -> None:
    assert [step.rest for step in STEPS if step.word == "FROM"] == [
        "python:3.11-slim AS build",
        "python:3.11-slim AS run",
    ]
    assert [line for line in of("COPY") if line.startswith("--from=")] == [
        "--from=build /opt/tollkeeper /opt/tollkeeper"
    ]
    assert [line for line in of("COPY") if not line.startswith("--from=")] == ["proxy.toml /etc/tollkeeper/proxy.toml"]


def test_everything_is_installed_from_locks_with_hashes_and_nothing_is_fetched_otherwise() -> None:
    runs = " && ".join(of("RUN", "build") + of("RUN"))
    assert not re.search(r"\b(curl|wget|git|apt|apt-get|npm)\b", runs)
    assert not [step for step in STEPS if step.word == "ADD"]
    installs = [command for command in runs.split("&&") if "pip install" in command or "pip wheel" in command]
    assert len(installs) == 4
    for command in installs:
        assert "--require-hashes" in command or "--no-index" in command, command
    assert re.search(r"--require-hashes -r requirements/run\.lock\b", runs)
    assert re.search(r"--require-hashes -r requirements/build\.lock\b", runs)
    for name in ("run", "build"):
        pins = re.findall(
            r"^[a-z0-9._-]+==\S+.*?(?=^[a-z0-9]|\Z)",
            (ROOT / "requirements" / f"{name}.lock").read_text(),
            re.MULTILINE | re.DOTALL,
        )
        assert pins
        assert all("--hash=sha256:" in pin for pin in pins)


def test_the_locks_are_copied_before_the_code_so_that_layers_are_kept() -> None:
    order = [step.rest for step in STEPS if step.stage == "build" and step.word == "COPY"]
    assert "requirements/run.lock" in order[0]
    assert not any("requirements" in line for line in order[1:])


def test_it_runs_as_nobody_in_particular_on_a_volume_and_stops_politely() -> None:
    assert of("USER") == ["10001:10001"]
    assert "useradd --system --uid 10001" in of("RUN")[0]
    words = [step.word for step in STEPS if step.stage == "run"]
    assert words.index("USER") > max(number for number, word in enumerate(words) if word == "RUN")
    assert of("VOLUME") == ['["/data"]']
    assert of("WORKDIR") == ["/data"]
    assert of("EXPOSE") == ["8080"]
    assert of("STOPSIGNAL") == ["SIGTERM"]
    assert of("ENTRYPOINT") == ['["tollkeeper"]']
    assert of("CMD") == ['["serve"]']


def test_it_listens_everywhere_and_keeps_its_data_on_the_volume() -> None:
    found = environment()
    assert found["TOLLKEEPER_LISTEN__HOST"] == "0.0.0.0"
    assert found["TOLLKEEPER_LISTEN__PORT"] == "8080"
    assert found["TOLLKEEPER_DATABASE__URL"].startswith("sqlite+aiosqlite:////data/")
    assert found["TOLLKEEPER_EMBEDDED__PATH"].startswith("/data/")
    assert not any("KEY" in name or "SECRET" in name for name in found)


def test_what_is_copied_exists_and_passes_the_ignore_file() -> None:
    kept = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert lines[0] == "*"
    for source in copied():
        assert (ROOT / source).exists(), source
        assert source.rstrip("/") in kept, source
    assert {name for name in kept} == {source.rstrip("/") for source in copied()}
    assert not {".git", "tests", ".venv", "var", "bench"} & set(kept)


@pytest.fixture(scope="module")
def image(new_folder: Callable[[str], Path]) -> Path:
    """What the build stage would install, installed here: a wheel of nothing but what is copied."""
    home = new_folder("image")
    context, site, wheels = home / "context", home / "site", home / "wheels"
    context.mkdir()
    for source in copied():
        target = context / source
        target.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / source).is_dir():
            shutil.copytree(ROOT / source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / source, target)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    build = ["wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(wheels), str(context)]
    subprocess.run([*pip, *build], cwd=home, capture_output=True, check=True)
    (wheel,) = wheels.glob("*.whl")
    install = ["install", "--no-deps", "--no-index", "--target", str(site), str(wheel)]
    subprocess.run([*pip, *install], cwd=home, capture_output=True, check=True)
    return site


@pytest.fixture
def container(image: Path, folder: Path) -> Iterator[tuple[dict[str, str], Path]]:
    """The environment the image sets, with /data in a folder and the wheel in place of the repository."""
    data = folder / "data"
    data.mkdir()
    config = folder / "proxy.toml"
    shutil.copy(ROOT / "proxy.toml", config)
    found = {name: value.replace("/data", str(data)) for name, value in environment().items() if name != "PATH"}
    found |= {
        "TOLLKEEPER_CONFIG": str(config),
        "TOLLKEEPER_LISTEN__PORT": str(free_port()),
        "TOLLKEEPER_LISTEN__HOST": "127.0.0.1",
    }
    yield {"PATH": os.environ["PATH"], "PYTHONPATH": str(image), "OPENAI_API_KEY": UPSTREAM_KEY, **found}, data


@pytest.mark.served
def test_the_wheel_carries_every_file_the_product_reads(image: Path) -> None:
    for package in ("proxy", "billing", "config", "sandbox"):
        for path in (ROOT / package).rglob("*"):
            # folders' READMEs are for people, source.json for scripts/build_prices.py
            if path.is_file() and "__pycache__" not in path.parts and path.name not in ("README.md", "source.json"):
                assert (image / path.relative_to(ROOT)).is_file(), path
    assert not {"tests", "scripts", "bench", "deploy", "docs"} & {path.name for path in image.iterdir()}


@pytest.mark.parametrize(
    "kind",
    [
        "billing/**/lua/*.lua",
        "billing/storage/migrations/versions/*.py",
        "config/prices/catalogue.json",
        "config/tokenizer/*.xz",
        "proxy/admin/templates/*.html",
        "proxy/credits_page/templates/*.html",
        "proxy/customer_api/openapi.json",
        "proxy/gateway/refused.json",
    ],
)
@pytest.mark.slow
def test_the_wheel_has_each_kind_of_file_that_is_no_module_or_is_found_by_its_folder(image: Path, kind: str) -> None:
    assert list(image.glob(kind))


@pytest.mark.slow
def test_the_command_of_the_wheel_helps_and_says_its_version(
    container: tuple[dict[str, str], Path], image: Path
) -> None:
    found, data = container
    command = str(image / "bin" / "tollkeeper")
    for argument, says in (("--help", "usage: tollkeeper"), ("--version", f"tollkeeper {VERSION}\n")):
        done = subprocess.run([command, argument], cwd=data, env=found, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        assert says in done.stdout


def test_one_version_is_said_everywhere() -> None:
    assert json.loads((ROOT / "proxy" / "customer_api" / "openapi.json").read_text())["info"]["version"] == VERSION
    (newest, _date), *_older = re.findall(
        r"^## (\d+\.\d+\.\d+) - (\d{4}-\d\d-\d\d)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE
    )
    assert newest == VERSION


@pytest.mark.served
def test_it_serves_is_healthy_and_stops_on_sigterm(container: tuple[dict[str, str], Path]) -> None:
    found, data = container
    with (data / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "proxy.cli", "serve"], cwd=data, env=found, stdout=log, stderr=log
        )
    try:
        url = f"http://127.0.0.1:{found['TOLLKEEPER_LISTEN__PORT']}"
        wait_until(lambda: web.get(f"{url}/readyz").status_code == 200, 20, "it serves")
        assert subprocess.run(health_check(), env=found, timeout=10, check=False).returncode == 0
        maps = Path(f"/proc/{process.pid}/environ").read_bytes().decode()
        assert found["PYTHONPATH"] in maps
        assert {path.name for path in data.iterdir()} >= {"tollkeeper.db", "embedded.db"}
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(40) == 0
    unhealthy = subprocess.run(health_check(), env=found, timeout=10, capture_output=True, check=False)
    assert unhealthy.returncode == 1


class Unwell(http.server.BaseHTTPRequestHandler):
    """Answers every question with 503."""

    def do_GET(self) -> None:
        self.send_error(503)

    def log_message(self, *_arguments: object) -> None:
        """Say nothing."""


@pytest.mark.served
def test_the_health_check_fails_on_a_bad_status() -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Unwell) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        found = {"PATH": os.environ["PATH"], "TOLLKEEPER_LISTEN__PORT": str(server.server_port)}
        assert subprocess.run(health_check(), env=found, timeout=10, check=False).returncode == 1
        server.shutdown()

"""A release is the same bytes however it is made, names all that runs, and its wheel is the whole product."""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from scripts.release import bill_of_materials
from tests.support import web
from tests.support.make_run import environment
from tests.support.servers import ROOT, free_port, wait_until

pytestmark = pytest.mark.served
VERSION = re.findall(r'^version = "(.*)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[0]


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("one") / "dist", umask=0o022, TZ="UTC")


def made(output: Path, umask: int, **more: str) -> Path:
    command = [sys.executable, "-m", "scripts.release", str(output)]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **more}, umask=umask, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return output


def test_two_builds_are_byte_equal(release: Path, tmp_path: Path) -> None:
    again = made(tmp_path / "elsewhere" / "dist", umask=0o077, TZ="Asia/Tokyo", PYTHONHASHSEED="7", LC_ALL="C")
    names = sorted(path.name for path in release.iterdir())
    assert names == sorted(
        [
            "SHA256SUMS",
            f"tollkeeper-{VERSION}-py3-none-any.whl",
            f"tollkeeper-{VERSION}.cdx.json",
            f"tollkeeper-{VERSION}.tar.gz",
        ]
    )
    for name in names:
        assert (release / name).read_bytes() == (again / name).read_bytes(), name


def test_the_sums_are_those_of_the_files(release: Path) -> None:
    for line in (release / "SHA256SUMS").read_text().splitlines():
        digest, name = line.split("  ")
        assert hashlib.sha256((release / name).read_bytes()).hexdigest() == digest


def test_the_bill_of_materials_is_cyclonedx_and_names_all_that_runs(release: Path) -> None:
    file = release / f"tollkeeper-{VERSION}.cdx.json"
    look = (
        "import sys; from cyclonedx.schema import SchemaVersion; from cyclonedx.validation.json import JsonStrictValidator\n"
        "print(JsonStrictValidator(SchemaVersion.V1_6).validate_str(open(sys.argv[1]).read()))"
    )
    python = ROOT / ".venv-tools" / "bin" / "python"
    done = subprocess.run([str(python), "-c", look, str(file)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "None\n"), done.stdout[:500] + done.stderr
    found = {part["name"]: part for part in json.loads(file.read_text())["components"]}
    lock = (ROOT / "requirements" / "run.lock").read_text()
    assert len(found) == len(re.findall(r"^\S+==", lock, re.MULTILINE))
    assert {"starlette", "uvicorn", "sqlalchemy", "stripe"} <= set(found)
    assert all(part["externalReferences"][0]["hashes"] for part in found.values())


def test_a_changed_lock_is_another_bill() -> None:
    project = {"name": "tollkeeper", "version": "1", "description": "x"}
    one, two = (bill_of_materials(f"a=={number} \\\n    --hash=sha256:{'0' * 64}\n", project, 1) for number in (1, 2))
    assert json.loads(one)["serialNumber"] != json.loads(two)["serialNumber"]


def test_the_wheel_has_no_tests_and_its_demo_serves_without_a_checkout(release: Path, folder: Path) -> None:
    """As `pipx run` and `uvx` have it, but for the packages it depends on, which are this interpreter's."""
    with zipfile.ZipFile(release / f"tollkeeper-{VERSION}-py3-none-any.whl") as wheel:
        names = wheel.namelist()
        wheel.extractall(folder / "site")
    assert not [name for name in names if name.startswith(("tests", "scripts", "bench", "deploy"))]
    assert (
        "tollkeeper = proxy.cli.main:main"
        in (folder / "site" / f"tollkeeper-{VERSION}.dist-info" / "entry_points.txt").read_text()
    )
    port, home = free_port(), folder / "home"
    home.mkdir()
    run = "import sys; from proxy.cli.main import main; import proxy; assert '/site/' in proxy.__file__; sys.exit(main(['demo']))"
    clean = {**environment(port), "PYTHONPATH": str(folder / "site")}
    with (home / "log").open("wb") as log:
        process = subprocess.Popen([sys.executable, "-c", run], cwd=home, env=clean, stdout=log, stderr=log)
        try:
            wait_until(
                lambda: web.get(f"http://127.0.0.1:{port}/readyz").status_code == 200, 60, (home / "log").read_text()
            )
            key = json.loads((home / "var" / "demo.json").read_text())["apiKey"]
            answer = web.post(
                f"http://127.0.0.1:{port}/v1/chat/completions",
                headers={"Authorization": f"Bearer {key}"},
                json={
                    "model": "gpt-6-luna",
                    "messages": [{"role": "user", "content": "hi"}],
                    "max_completion_tokens": 20,
                },
            )
            assert answer.status_code == 200, answer.text
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0

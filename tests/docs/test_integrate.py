"""docs/integrate.md from its top to its end, against a served product: what an integrator pastes works."""

import os
import re
import subprocess
import sys

import pytest

from tests.support.servers import ROOT, Serve, Tollkeeper

PAGE = (ROOT / "docs" / "integrate.md").read_text()

pytestmark = pytest.mark.served


def blocks(language: str) -> str:
    """Every block of a language, one program."""
    return "\n".join(re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL))


def environment(server: Tollkeeper) -> dict[str, str]:
    key = server.cli("admin", "create", "our app", "--role", "service")["adminKey"]
    return {
        **server.all_environment(),
        "BASE_URL": server.url,
        "SERVICE_KEY": key,
        "PATH": f"{ROOT}/.venv/bin:{os.environ['PATH']}",
    }


@pytest.mark.parametrize("language", ["python", "sh"])
def test_every_block_of_the_guide_runs_in_its_order(language: str, make_tollkeeper: Serve) -> None:
    server = make_tollkeeper(TOLLKEEPER_ADMIN__WELCOME_CREDITS="100").start()
    command = [sys.executable, "-c"] if language == "python" else ["bash", "-euo", "pipefail", "-c"]
    done = subprocess.run(
        [*command, blocks(language)],
        cwd=server.folder,
        env=environment(server),
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr

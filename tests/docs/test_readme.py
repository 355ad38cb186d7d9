"""Every command and every snippet in the README runs as it stands (with the served port in place of 8080)."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from tests.support import web
from tests.support.make_run import make_run
from tests.support.servers import ROOT, Tollkeeper, free_port, wait_until

README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(sh|python)\n(.*?)```", README, re.DOTALL)
NAMED = re.findall(r"```sh ([\w-]+)\n(.*?)```", README, re.DOTALL)


BESIDE_RUN = """\
export PATH="$PWD/.venv/bin:$PATH"
set -a; . var/sandbox.env; set +a
tollkeeper smoke
tollkeeper stripe sweep
tollkeeper jobs list
tollkeeper reconcile
"""


def test_the_readme_names_the_two_commands_that_the_makefile_and_ci_have() -> None:
    assert dict(NAMED) == {"run": "make run\n", "test": "make test\n", "beside-run": BESIDE_RUN}
    makefile = (ROOT / "Makefile").read_text()
    assert "\nrun: install" in makefile
    assert "\ntest: install-dev" in makefile
    assert "make test" in (ROOT / ".ci" / "run").read_text()


@pytest.mark.parametrize(("language", "code"), BLOCKS)
def test_every_snippet_of_the_readme_runs(language: str, code: str, embedded: Tollkeeper) -> None:
    account = embedded.account("1000")
    account.wait_balance(1_000_000)
    code = code.replace("127.0.0.1:8080", f"127.0.0.1:{embedded.port}")
    environment = {
        **embedded.all_environment(),
        "KEY": account.api_key,
        "ACCOUNT": account.account_id,
        "PATH": f"{ROOT}/.venv/bin:{os.environ['PATH']}",
    }
    command = [sys.executable, "-c", code] if language == "python" else ["bash", "-euo", "pipefail", "-c", code]
    done = subprocess.run(
        command, cwd=embedded.folder, env=environment, capture_output=True, text=True, timeout=170, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.strip()
    assert not re.search(r'"error":\s*\{', done.stdout)


@pytest.mark.served
def test_make_run_serves_the_sandbox_and_prints_lines_that_work_when_pasted(folder: Path) -> None:
    port = free_port()
    with make_run(folder, port) as served:
        text = served.text
        assert "NO OPENAI_API_KEY IS SET" in text
        lines = [
            line.strip() for line in text.splitlines() if line.startswith(("  curl ", "  python3 ", "What it cost:"))
        ]
        assert len(lines) == 4
        for line in lines:
            done = served.shell(line.removeprefix("What it cost:"), known=False)
            assert done.returncode == 0, done.stderr
            assert len(done.stdout.split()) > 5 or "balanceMillicredits" in done.stdout or '"url"' in done.stdout
            assert '"error"' not in done.stdout
        assert "\n  set -a; . var/sandbox.env; set +a\n" in text
        assert _no_key_in(folder, text)
        _buy_credits_by_hand(text)
        beside = served.shell(dict(NAMED)["beside-run"], known=False)
        assert beside.returncode == 0, beside.stdout + beside.stderr
        assert "10 pass, 0 to look at, 0 fail" in beside.stdout
    time.sleep(0.1)
    with pytest.raises(httpx.HTTPError):
        web.get(f"http://127.0.0.1:{port}/healthz", timeout=1)


def _buy_credits_by_hand(text: str) -> None:
    """From the printed link through the made-up Stripe's page and back: the balance has risen."""
    link = re.search(r"^  (http://\S+/credits/enter\?token=\S+)$", text, re.MULTILINE)
    assert link is not None
    with web.client(follow_redirects=True, timeout=20) as browser:
        page = web.sign_in(browser, link[1])
        token = re.search(r'name="csrf" value="([0-9a-f]+)"', page.text)
        assert token is not None
        assert 'id="available">999.9' in page.text  # 1,000 and what the lines above cost
        form = browser.post(str(page.url.join("/credits/buy")), data={"csrf": token[1], "package": "pro"})
        assert form.url.path.startswith("/c/pay/")
        fields = dict(re.findall(r'<input[^>]* name="([^"]+)" value="([^"]*)"', form.text)) | {"method": "card"}
        back = browser.post(str(form.url), data=fields)
        assert back.url.path == "/credits"
        assert "Thank you" in back.text
        wait_until(lambda: 'id="available">110,988.9' in browser.get(str(page.url)).text, 10, "the credits are there")


def _no_key_in(folder: Path, text: str) -> bool:
    """The printed key is nowhere in the databases."""
    key = re.search(r"^  (tk-\S+)$", text, re.MULTILINE)
    assert key is not None
    return all(key[1].encode() not in path.read_bytes() for path in (folder / "var").glob("*.db*"))

"""`make run` over restarts, beside other commands, and when it cannot start."""

import json
import re
import socket
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.support import web
from tests.support.make_run import MakeRun, environment, make_run, recipe
from tests.support.servers import free_port, wait_until

pytestmark = pytest.mark.served


def buy(served: MakeRun) -> dict[str, Any]:
    """A purchase at the first click, paid on its page; as its buyer sees it once it is credited."""
    headers = {"Authorization": f"Bearer {served.key}"}
    answer = web.post(
        f"{served.url}/api/billing/checkout", json={"packageCode": "starter"}, headers=headers, timeout=20
    )
    assert answer.status_code == 201, answer.text
    page = answer.json()["url"]
    fields = dict(re.findall(r'<input[^>]* name="([^"]+)" value="([^"]*)"', web.get(page).text)) | {"method": "card"}
    assert web.post(page, data=fields).status_code == 303
    own = f"{served.url}/api/billing/purchases/{answer.json()['id']}"
    wait_until(lambda: web.get(own, headers=headers).json()["state"] == "credited", 15, "the credits are there")
    found: dict[str, Any] = web.get(own, headers=headers).json()
    return found


def receipt_opens(served: MakeRun, purchase: dict[str, Any]) -> bool:
    headers = {"Authorization": f"Bearer {served.key}"}
    link = web.get(f"{served.url}{purchase['receiptPath']}", headers=headers).headers["location"]
    return web.get(link).status_code == 200


def receipts_on_file(folder: Path) -> list[str]:
    with closing(sqlite3.connect(folder / "var" / "tollkeeper.db")) as connection:
        return [row[0] for row in connection.execute("SELECT receipt_url FROM purchases WHERE receipt_url != ''")]


def make_older(folder: Path) -> None:
    """What is younger than five minutes is on its way, and no finding yet."""
    with closing(sqlite3.connect(folder / "var" / "tollkeeper.db", timeout=10)) as connection, connection:
        connection.execute(
            "UPDATE purchases SET created_at = created_at - 1000000, credited_at = credited_at - 1000000"
        )


def test_a_restart_forgets_nothing_that_was_bought(folder: Path) -> None:
    port = free_port()
    with make_run(folder, port) as served:
        first = buy(served)
    assert (folder / "var" / "sandbox-stripe.json").stat().st_mode & 0o777 == 0o600
    make_older(folder)
    with make_run(folder, port) as served:
        second = buy(served)
        assert receipt_opens(served, first)
        assert receipt_opens(served, second)
        assert [web.get(link).status_code for link in receipts_on_file(folder)] == [200, 200], (
            "links that were kept lead somewhere"
        )
        for line in ("tollkeeper stripe sweep", "tollkeeper jobs run stripe", "tollkeeper reconcile"):
            done = served.shell(line)
            assert done.returncode == 0, (line, done.stdout + done.stderr)
        assert "Everything agrees." in done.stdout


def test_a_second_terminal_knows_what_the_server_knows(folder: Path) -> None:
    with make_run(folder, free_port()) as served:
        path = folder / "var" / "sandbox.env"
        assert path.stat().st_mode & 0o777 == 0o600
        purchase = buy(served)
        admin = served.shell('tollkeeper admin create "Ada" --role owner --json')
        headers = {"Authorization": f"Bearer {json.loads(admin.stdout)['adminKey']}"}
        shown = web.get(f"{served.url}/api/admin/jobs", headers=headers).json()
        names = [row["job"] for row in shown["data"]]
        assert sorted(names) == ["expiry", "finance", "reconcile", "stripe", "sweep"]
        listed = served.shell("tollkeeper jobs list").stdout
        assert all(name in listed for name in names)
        assert "stripe" not in served.shell("tollkeeper jobs list", known=False).stdout
        assert served.shell("tollkeeper stripe sweep").returncode == 0
        account = json.loads((folder / "var" / "demo.json").read_text())["accountId"]
        assert purchase["id"] in served.shell(f"tollkeeper stripe purchases {account}").stdout
        assert served.shell("tollkeeper reconcile").returncode == 0
        known = served.shell("env").stdout
    assert "=" not in path.read_text(), "nobody is there any more"
    # that shell may start it again: what it knows is of another time
    old = dict(
        line.split("=", 1) for line in known.splitlines() if line.startswith(("STRIPE_", "OPENAI_", "TOLLKEEPER_"))
    )
    assert old["OPENAI_API_KEY"] == "sk-sandbox"
    port = int(old["TOLLKEEPER_LISTEN__PORT"])
    with make_run(folder, port, **old) as served:
        assert "NO OPENAI_API_KEY IS SET" in served.text
        buy(served)


def test_with_real_keys_the_file_names_nothing(folder: Path) -> None:
    (folder / "var").mkdir()
    (folder / "var" / "sandbox.env").write_text("STRIPE_API_KEY=sk_test_sandbox\n")
    with make_run(folder, free_port(), OPENAI_API_KEY="sk-real-one") as served:
        assert "sandbox" not in served.text.lower()
        assert "=" not in (folder / "var" / "sandbox.env").read_text()


def test_a_taken_port_is_said_in_one_line_before_anything_else(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = subprocess.run(
            recipe(), cwd=folder, env=environment(port), capture_output=True, text=True, timeout=30, check=False
        )
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert f"port {port} is taken" in line
    assert f"TOLLKEEPER_LISTEN__PORT={port + 1} make run" in line
    assert not (folder / "var").exists()


def test_a_second_one_in_the_same_folder_is_told_what_works(folder: Path) -> None:
    """Another port alone would not do: the ledger and the made-up Stripe are in use. What is advised is run as it stands."""
    home = folder / "first"
    home.mkdir()
    port = free_port()
    with make_run(home, port):
        for other in (port, free_port()):
            done = subprocess.run(
                recipe(), cwd=home, env=environment(other), capture_output=True, text=True, timeout=30, check=False
            )
            assert (done.returncode, done.stdout) == (2, "")
            assert "this folder is being served already" in done.stderr
        (advice,) = re.findall(r"mkdir .*", done.stderr)
        asked = advice.replace(f"={other + 1} ", f"={free_port()} ")
        beside = subprocess.Popen(
            [
                "bash",
                "-c",
                f"{asked.rpartition(' && ')[0]} && {asked.rpartition(' && ')[2].replace(' /', ' exec /', 1)}",
            ],
            cwd=home,
            env=environment(port),
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert beside.stdout is not None
            line = next(line for line in beside.stdout if "tollkeeper listening on " in line)
            ready = f"{line.rpartition(' ')[2].strip()}/readyz"
            wait_until(lambda: web.get(ready).status_code == 200, 20, "the second one is ready")
        finally:
            beside.terminate()
            assert beside.wait(30) == 0


def test_a_state_that_cannot_be_read_is_said_and_kept(folder: Path) -> None:
    state = folder / "var" / "sandbox-stripe.json"
    state.parent.mkdir()
    state.write_text("{")
    done = subprocess.run(
        recipe(), cwd=folder, env=environment(free_port()), capture_output=True, text=True, timeout=30, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "move it away" in done.stderr
    assert "Traceback" not in done.stderr
    assert state.read_text() == "{"

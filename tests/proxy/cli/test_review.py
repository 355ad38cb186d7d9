"""A payment in review, by command and by the admin API: who may accept it, and what is noted of it."""

import json
from typing import Any

import httpx

from tests.support import web
from tests.support.live import Live, run_sql
from tests.support.servers import wait_until


def paid_by_somebody_else(live: Live) -> tuple[str, str]:
    """A starter that another customer of Stripe's paid for: the account's key, and the purchase."""
    key = live.server.cli("account", "create", "a buyer")["apiKey"]
    headers = {"Authorization": f"Bearer {key}"}
    page = web.post(
        f"{live.server.url}/api/billing/checkout", json={"packageCode": "starter"}, headers=headers, timeout=20
    ).json()
    live.control("settings", "PUT", delivery={"paused": True})
    live.control(f"sessions/{page['sessionId']}/pay")
    live.control(f"sessions/{page['sessionId']}/fields", customer="cus_of_a_friend")
    live.control("settings", "PUT", delivery={"paused": False})
    wait_until(lambda: page["id"] in waiting(live), 10, "it waits for a person")
    return key, page["id"]


def waiting(live: Live) -> list[str]:
    done = live.server.run("purchases", "review", "--json")
    found = json.loads(done.stdout)["data"]
    assert done.returncode == int(bool(found))
    return [row["id"] for row in found]


def balance(live: Live, key: str) -> int:
    answer = web.get(f"{live.server.url}/api/billing/me", headers={"Authorization": f"Bearer {key}"})
    return int(answer.json()["balanceMillicredits"])


def test_accepted_by_command(live: Live) -> None:
    key, purchase = paid_by_somebody_else(live)
    assert live.server.run("purchases", "accept", purchase).returncode == 2, "without a reason"
    done = live.server.run("purchases", "accept", purchase, "--reason", "they are married")
    assert (done.returncode, done.stdout) == (0, f"{purchase} is credited: 9990 credits.\n"), done.stderr
    wait_until(lambda: balance(live, key) == 9_990_000, 5, "the credits are there")
    again = live.server.cli("purchases", "accept", purchase, "--reason", "twice")
    assert again == {"id": purchase, "state": "credited", "creditedMillicredits": "0"}
    assert balance(live, key) == 9_990_000
    assert waiting(live) == []
    missing = live.server.run("purchases", "accept", "pur_missing", "--reason", "test")
    assert (missing.returncode, "no purchase" in missing.stderr) == (1, True)


def test_accepted_through_the_admin_api(live: Live) -> None:
    key, purchase = paid_by_somebody_else(live)
    admin = f"http://127.0.0.1:{live.server.environment['TOLLKEEPER_LISTEN__ADMIN_PORT']}/api/admin"

    def post(role: str, purchase: str = purchase, **body: Any) -> httpx.Response:
        made = live.server.cli("admin", "create", f"a {role}", "--role", role)["adminKey"]
        return web.post(
            f"{admin}/purchases/{purchase}/accept",
            json=body or {"reason": "test"},
            headers={"Authorization": f"Bearer {made}"},
            timeout=20,
        )

    for role in ("viewer", "support", "ops"):
        assert post(role).status_code == 403, role
    assert post("finance", reason=" ").status_code == 400
    assert post("finance", purchase="pur_missing").status_code == 404
    assert balance(live, key) == 0
    done = post("finance")
    assert (done.status_code, done.json()) == (
        200,
        {"id": purchase, "state": "credited", "creditedMillicredits": "9990000"},
    )
    assert post("owner").json()["creditedMillicredits"] == "0"
    wait_until(lambda: balance(live, key) == 9_990_000, 5, "the credits are there")
    path = live.server.folder / "audit.jsonl"
    live.server.cli("audit", "export", str(path))
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    notes = [row for row in rows if (row["action"], row["subject"]) == ("purchase.accept", purchase)]
    assert [(row["role"], row["reason"]) for row in notes] == [("finance", "test")]


def test_what_was_refunded_is_refused_and_waits_no_more(live: Live) -> None:
    key, purchase = paid_by_somebody_else(live)
    session = next(
        row["sessionId"] for row in live.server.cli("purchases", "review", code=1)["data"] if row["id"] == purchase
    )
    live.control("refunds", session=session)
    wait_until(lambda: purchase not in waiting(live), 10, "its refund is known")
    done = live.server.run("purchases", "accept", purchase, "--reason", "too late")
    assert (done.returncode, "refunded" in done.stderr) == (1, True), done
    assert balance(live, key) == 0


def test_dismissed_by_command_and_through_the_admin_api(live: Live) -> None:
    admin = f"http://127.0.0.1:{live.server.environment['TOLLKEEPER_LISTEN__ADMIN_PORT']}/api/admin"
    finance, ops = (bearer(live, role) for role in ("finance", "ops"))
    for number in range(2):
        key, purchase = paid_by_somebody_else(live)
        url = f"{admin}/purchases/{purchase}/dismiss"
        if number:
            assert live.server.run("purchases", "dismiss", purchase).returncode == 2, "without a reason"
            done = live.server.run("purchases", "dismiss", purchase, "--reason", "a friend's money: refunded")
            assert (done.returncode, done.stdout) == (0, f"{purchase} is dismissed; nothing was credited.\n"), (
                done.stderr
            )
        else:
            assert web.post(url, json={"reason": "x"}, headers=ops).status_code == 403
            assert web.post(url, json={"reason": ""}, headers=finance).status_code == 400
            assert web.post(url, json={"reason": "x"}, headers=finance).json() == {"id": purchase, "state": "dismissed"}
            assert (
                web.post(f"{admin}/purchases/pur_missing/dismiss", json={"reason": "x"}, headers=finance).status_code
                == 404
            )
        assert waiting(live) == []
        assert live.server.run("purchases", "accept", purchase, "--reason", "after all").returncode == 1
        assert web.post(url, json={"reason": "x"}, headers=finance).status_code == 200  # it is so already
        assert balance(live, key) == 0
    assert live.server.run("purchases", "dismiss", "pur_missing", "--reason", "x").returncode == 1


def test_an_event_that_waits_is_ignored_by_command_and_through_the_admin_api(live: Live) -> None:
    admin = f"http://127.0.0.1:{live.server.environment['TOLLKEEPER_LISTEN__ADMIN_PORT']}/api/admin"
    far, row = (
        2**60,
        "'refund.updated', 're_x', '', 1, 'webhook', {}, '{{}}', 'parked', 9, {}, NULL, 'names a purchase we do not have'",
    )
    for name in ("evt_one", "evt_two"):
        run_sql(
            live.server.environment["TOLLKEEPER_DATABASE__URL"],
            f"INSERT INTO stripe_inbox VALUES ('{name}', {row.format(far, far)})",
        )
    done = live.server.run("stripe", "ignore", "evt_one", "--reason", "the other shop's")
    assert (done.returncode, done.stdout) == (0, "evt_one waits no more.\n"), done.stderr
    assert live.server.run("stripe", "ignore", "evt_one", "--reason", "again").returncode == 1
    url = f"{admin}/webhooks/evt_two/ignore"
    assert web.post(url, json={"reason": "x"}, headers=bearer(live, "support")).status_code == 403
    assert web.post(url, json={"reason": "x"}, headers=bearer(live, "ops")).json() == {
        "eventId": "evt_two",
        "state": "ignored",
    }
    assert web.post(url, json={"reason": "x"}, headers=bearer(live, "ops")).status_code == 404
    assert live.server.cli("stripe", "inbox", "--state", "parked")["data"] == []


def bearer(live: Live, role: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {live.server.cli('admin', 'create', f'a {role}', '--role', role)['adminKey']}"}

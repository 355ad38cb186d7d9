"""A simulator that is started again with its state: nothing is forgotten, links lead somewhere, waiting events arrive."""

import asyncio
import json
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

from sandbox.stripe import Server, Settings, start
from sandbox.stripe.account.settings import Delivery, Live, Webhook
from sandbox.stripe.account.world import ACTIONS
from tests.sandbox.stripe.conftest import KEY, SECRET, Receiver

AUTHORIZED = {"authorization": f"Bearer {KEY}"}
PAGE = {
    "mode": "payment",
    "success_url": "http://shop.example/done",
    "line_items[0][quantity]": "1",
    "line_items[0][price_data][currency]": "usd",
    "line_items[0][price_data][unit_amount]": "999",
    "line_items[0][price_data][product_data][name]": "Credits",
}


class Life:
    """One simulator's life; the next one begins with the same file."""

    def __init__(self, server: Server, http: httpx.AsyncClient) -> None:
        self.server, self.http = server, http

    async def post(self, path: str, key: str = "", **fields: str) -> Any:
        headers = AUTHORIZED | ({"idempotency-key": key} if key else {})
        answer = await self.http.post(f"/v1/{path}", data=fields, headers=headers)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def get(self, path: str) -> Any:
        answer = await self.http.get(f"/v1/{path}", headers=AUTHORIZED)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def control(self, path: str, body: Any = None, method: str = "POST") -> Any:
        answer = await self.http.request(method, f"/__stripe/{path}", json=body or {})
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def paid(self, outcome: str = "succeed") -> Any:
        page = await self.post("checkout/sessions", **PAGE)
        return await self.control(f"sessions/{page['id']}/pay", {"outcome": outcome})


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "stripe.json"


@pytest_asyncio.fixture
async def receiver() -> AsyncIterator[Receiver]:
    made = Receiver()
    await made.start()
    yield made
    await made.stop()


def lives(state: Path, receiver: Receiver, **more: Any) -> Settings:
    return Settings(state=state, webhooks=(Webhook(url=receiver.url, secret=SECRET),), **more)


@asynccontextmanager
async def living(settings: Settings) -> AsyncIterator[Life]:
    server = await start(settings)
    async with httpx.AsyncClient(base_url=server.url, trust_env=False, timeout=10) as http:
        yield Life(server, http)
    await server.close()


async def eventually(look: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(10):
        while not await look():
            await asyncio.sleep(0.02)


async def test_everything_is_as_it_was(state: Path, receiver: Receiver) -> None:
    async with living(lives(state, receiver)) as life:
        first = await life.paid()
        refund = await life.control("refunds", {"session": first["id"], "amount": 100})
        second = await life.paid()
        dispute = await life.control("disputes", {"session": second["id"]})
        made = await life.post("customers", key="one", name="Ada")
        still_open = await life.post("checkout/sessions", **PAGE)
        await life.control("clock", {"advance_s": 3_600}, "PUT")
        await life.control("drain")
        paths = [
            f"checkout/sessions/{first['id']}",
            f"refunds/{refund['id']}",
            f"disputes/{dispute['id']}",
            "events?limit=100",
            "balance",
        ]
        paths += [
            "payment_intents",
            "charges",
            "balance_transactions",
            "webhook_endpoints",
            f"checkout/sessions/{first['id']}/line_items",
        ]
        before = [await life.get(path) for path in paths]
        record, account = (await life.control("record", method="GET")), await life.get("account")
        receipt = (await life.get("charges"))["data"][0]["receipt_url"]
        sent = len(receiver.events)
    async with living(lives(state, receiver)) as life:
        assert [await life.get(path) for path in paths] == before
        assert await life.control("record", method="GET") == record
        assert (await life.get("account"))["id"] == account["id"]
        assert (await life.control("clock", method="GET"))["offset_s"] == 3_600
        # the same key is the same call, the same page can be paid, the same link opens, and a bank's word still counts
        assert await life.post("customers", key="one", name="Ada") == made
        assert (await httpx.AsyncClient(trust_env=False).get(receipt)).status_code == 200
        assert (await httpx.AsyncClient(trust_env=False).get(still_open["url"])).status_code == 200
        assert (await life.control(f"sessions/{still_open['id']}/pay"))["status"] == "complete"
        await life.control(f"disputes/{dispute['id']}", {"action": "won"})
        moved = (await life.get(f"disputes/{dispute['id']}"))["balance_transactions"]
        assert len(moved) == 2
        await life.control("clock", {"advance_s": 3 * 86_400}, "PUT")
        assert [one["status"] for one in (await life.get(f"disputes/{dispute['id']}"))["balance_transactions"]] == [
            "available"
        ] * 2
        await life.control("drain")
        assert len({event["id"] for event in receiver.events}) == len(receiver.events) > sent  # nothing was sent again


async def test_what_was_to_happen_happens(state: Path, receiver: Receiver) -> None:
    slow = Live(async_delay_s=0.5, refund_delay_s=0.5, dispute_delay_s=0.5)
    async with living(lives(state, receiver, live=slow)) as life:
        later = await life.paid("delay")
        assert later["payment_status"] == "unpaid"
        refund = await life.control("refunds", {"session": (await life.paid("refund_fails"))["id"]})
        pending = await life.control("refunds", {"session": (await life.paid("refund_pending"))["id"]})
        disputed = await life.paid("dispute")
        expiring = await life.post("checkout/sessions", **PAGE)
    async with living(lives(state, receiver, live=slow)) as life:

        async def settled() -> bool:
            return "charge.dispute.created" in [event["type"] for event in (await life.get("events?limit=100"))["data"]]

        await eventually(settled)
        assert (await life.get(f"checkout/sessions/{later['id']}"))["payment_status"] == "paid"
        assert (await life.get(f"refunds/{refund['id']}"))["status"] == "failed"
        assert (await life.get(f"refunds/{pending['id']}"))["status"] == "succeeded"
        assert (await life.get(f"disputes?payment_intent={disputed['payment_intent']}"))["data"][0][
            "status"
        ] == "needs_response"
        await life.control("clock", {"advance_s": 2 * 86_400}, "PUT")
        assert (await life.get(f"checkout/sessions/{expiring['id']}"))["status"] == "expired"


async def test_waiting_deliveries_arrive_after_the_restart_signed_anew(state: Path, receiver: Receiver) -> None:
    async with living(lives(state, receiver, live=Live(delivery=Delivery(paused=True)))) as life:
        await life.paid()
        waiting = (await life.control("deliveries", method="GET"))["pending"]
        assert waiting > 3
        assert receiver.events == []
    other = Receiver()
    await other.start()
    moved = Settings(state=state, webhooks=(Webhook(url=other.url, secret="whsec_another"),))
    async with living(moved) as life:
        await life.control("drain")
        assert len(other.events) == waiting
        assert receiver.events == []
        (endpoint,) = (await life.get("webhook_endpoints"))["data"]
        assert endpoint["url"] == other.url
        assert {event["pending_webhooks"] for event in (await life.get("events"))["data"]} == {0}
    await other.stop()


async def test_the_port_stays_and_links_follow_when_it_is_taken(state: Path, receiver: Receiver) -> None:
    async with living(lives(state, receiver)) as life:
        port = life.server.port
        page = await life.paid()
    async with living(lives(state, receiver)) as life:
        assert life.server.port == port
    with socket.create_server(("127.0.0.1", port)):
        async with living(lives(state, receiver)) as life:
            assert life.server.port != port
            charge = (await life.get("charges"))["data"][0]
            assert charge["payment_intent"] == page["payment_intent"]
            assert charge["receipt_url"].startswith(f"{life.server.url}/receipts/")
            assert (await life.http.get(charge["receipt_url"])).status_code == 200


async def test_it_is_written_soon_whole_and_for_nobody_else(state: Path, receiver: Receiver) -> None:
    async with living(lives(state, receiver)) as life:
        made = await life.post("customers", name="Ada")

        async def written() -> bool:
            return made["id"] in json.loads(state.read_bytes())["objects"]["customer"]

        await eventually(written)
        assert state.stat().st_mode & 0o777 == 0o600
        stamp = state.stat().st_mtime_ns
        await life.get("customers")
        await asyncio.sleep(0.5)
        assert state.stat().st_mtime_ns == stamp, "a look is no change"


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": 1}', "\x00", None])
def test_a_file_that_cannot_be_read_is_said_in_one_line(state: Path, content: str | None) -> None:
    state.write_text(content or "") if content is not None else state.mkdir()
    done = command("--state", str(state))
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"stripe sandbox: {state} ")
    assert "move it away" in line
    if content:
        assert state.read_text() == content


def test_a_state_of_another_version_a_folder_that_is_not_there_and_a_seed_are_refused(state: Path) -> None:
    assert "No such file" in command("--state", str(state.parent / "none" / "s.json")).stderr
    assert "--seed" in command("--state", str(state), "--seed", "1").stderr
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = command("--port", str(taken.getsockname()[1]))
        assert done.returncode == 2
        assert len(done.stderr.splitlines()) == 1


async def test_two_simulators_do_not_share_a_file(state: Path, receiver: Receiver) -> None:
    async with living(lives(state, receiver)):
        done = await asyncio.to_thread(command, "--state", str(state))
        assert (done.returncode, done.stderr) == (2, f"stripe sandbox: {state} is in use by another simulator\n")
    async with living(lives(state, receiver)):
        pass


def test_a_killed_simulator_is_as_it_was_a_moment_before(state: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "sandbox.stripe", "--state", str(state)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    url = process.stdout.readline().split()[-1]
    with httpx.Client(base_url=url, trust_env=False, headers=AUTHORIZED) as http:
        made = http.post("/v1/customers", data={"name": "Ada"}).json()
        for _ in range(100):
            if made["id"] in state.read_text():
                break
            time.sleep(0.05)
    process.kill()
    process.communicate()
    again = subprocess.Popen(
        [sys.executable, "-m", "sandbox.stripe", "--state", str(state)], stdout=subprocess.PIPE, text=True
    )
    assert again.stdout is not None
    assert again.stdout.readline().split()[-1] == url
    assert httpx.get(f"{url}/v1/customers/{made['id']}", headers=AUTHORIZED, trust_env=False).json()["name"] == "Ada"
    again.terminate()
    assert again.wait(10) == 0
    again.communicate()


def command(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "sandbox.stripe", *arguments], capture_output=True, text=True, timeout=30, check=False
    )


def test_timers_have_the_names_that_older_files_hold() -> None:
    """Kept worlds name them; whoever moves or renames the function leaves the name."""
    assert set(ACTIONS) == {
        "checkout._expire_in_time",
        "checkout.settled",
        "money._available",
        "payments._arrive",
        "payments._captured",
        "payments._disputed",
        "refunds._come_back",
        "refunds._go_through",
    }

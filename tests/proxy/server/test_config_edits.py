"""A thousand edits of proxy.toml, half of them broken, under load with two workers: never a mixed and never a broken configuration."""

import os
import random
import re
import threading
import time
from pathlib import Path

import psutil

from tests.support import web
from tests.support.customers import new_customer
from tests.support.servers import Tollkeeper, wait_until
from tests.support.timed_load import Load

EDITS = 1_000
BROKEN = [
    "[purchases\ntop_up_url = '/broken'\n",
    "[purchases]\ntop_up_url = '/broken'\n[billing]\ncharging_enabld = false\n",
    "[purchases]\ntop_up_url = '/broken'\n[billing]\nservice_tier = 'ultrafast'\n",
    "[purchases]\ntop_up_url = '/broken'\n[[packages]]\ncode = 'broken'\nusd = '0.0000001'\n",
    "[purchases]\ntop_up_url = '/broken'\n[billing]\nmarkup = '0'\n",
    "[rollout]\npercent = 200\n[purchases]\ntop_up_url = '/broken'\n",
    "",
]


def good(number: int) -> str:
    """An edit whose parts all carry its number, in four sections."""
    return (
        f'[purchases]\ntop_up_url = "/edit-{number}"\n[holds]\nmin_output_tokens = {number + 16}\n'
        f'[billing]\nmarkup = "{number + 1}"\n'
        f'[[packages]]\ncode = "edit-{number}"\nusd = "1"\n'
    )


def write(path: Path, content: str, *, in_place: bool) -> None:
    if in_place:
        with path.open("w") as file:
            for half in (content[: len(content) // 2], content[len(content) // 2 :]):
                file.write(half)
                file.flush()
        return
    beside = path.with_suffix(".new")
    beside.write_text(content)
    os.replace(beside, path)


class Looker(threading.Thread):
    """Reads what is in force, again and again, and holds every part against the others."""

    def __init__(self, server: Tollkeeper, key: str, poor: str) -> None:
        super().__init__()
        self.server, self.key, self.poor = server, key, poor
        self.stop, self.seen, self.faults = threading.Event(), set[int](), list[str]()

    def run(self) -> None:
        while not self.stop.is_set():
            try:
                self._look()
            except Exception as error:  # noqa: BLE001 - reported by the test
                self.faults.append(repr(error))

    def _look(self) -> None:
        me = web.get(f"{self.server.url}/api/billing/me", headers={"Authorization": f"Bearer {self.key}"}).json()
        (package,) = me["packages"]
        number = int(package["code"].removeprefix("edit-"))
        body = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hello"}]}
        answer = web.post(
            f"{self.server.v1}/chat/completions", json=body, headers={"Authorization": f"Bearer {self.poor}"}
        )
        refusal = answer.json()
        if answer.status_code != 402:
            self.faults.append(f"{answer.status_code}: {answer.text[:200]}")
            return
        edit = int(refusal["topUpUrl"].rpartition("/edit-")[2])
        # what is required: 10 tokens of input (counted, with framing) and the least output of that edit, at its markup, rounded up
        required = -(-(10 * 15 + (edit + 16) * 60) * (edit + 1) // 100)
        if round(refusal["requiredCredits"] * 1_000) != required:
            self.faults.append(f"edit {edit}: {refusal['requiredCredits']} credits required, {required} by the file")
        self.seen |= {number, edit}


def test_a_thousand_edits_half_of_them_broken(pair: Tollkeeper) -> None:
    rng = random.Random(20261123)
    customer, poor = new_customer(pair, 10**12), new_customer(pair, 1)
    path = pair.folder / "proxy.toml"
    path.write_text(good(0))
    wait_until(lambda: [row["code"] for row in customer.me()["packages"]] == ["edit-0"], 3, "the first edit applies")
    time.sleep(1)
    looker, valid, number = Looker(pair, customer.api_key, poor.api_key), {0}, 0
    looker.start()
    try:
        with Load(customer, threads=1) as load:
            for turn in range(1, EDITS + 1):
                number = turn
                broken = turn % 2 == 0
                if not broken:
                    valid.add(number)
                write(path, rng.choice(BROKEN) if broken else good(number), in_place=rng.random() < 0.3)
                # some rest long enough to be taken, most do not
                time.sleep(rng.choice((0.0, 0.0, 0.005, 0.01, 0.02)) if turn % 39 else 0.5)
            path.write_text(BROKEN[1])
            time.sleep(2)
            before = [customer.me()["packages"][0]["code"] for _ in range(8)]
            notes = web.get(f"{pair.url}/readyz").json()
            path.write_text(good(EDITS + 1))
            ended = time.monotonic()
            asked = [(time.monotonic() - ended, customer.me()["packages"][0]["code"]) for _ in range(40)]
            time.sleep(2)
            assert {customer.me()["packages"][0]["code"] for _ in range(8)} == {f"edit-{EDITS + 1}"}
            assert [row for row in asked if row[0] > 2 and row[1] != f"edit-{EDITS + 1}"] == [], "later than 2 s"
    finally:
        looker.stop.set()
        looker.join(30)
    assert looker.faults == [], looker.faults[-5:]
    assert looker.seen <= valid | {EDITS + 1}
    assert len(looker.seen) > 5, "few edits were seen: the test shows little"
    assert {reply.status for reply in load.replies} == {200}
    assert len(set(before)) == 1, "a broken edit left the workers apart"
    assert notes["status"] == "ready"
    assert "charging_enabld" in notes["notes"]["config"]
    metrics = web.get(f"{pair.url}/metrics").text
    refused = re.search(r'^tollkeeper_config_reloads_total\{result="refused"\} (\S+)', metrics, re.MULTILINE)
    assert refused is not None
    assert float(refused[1]) >= 3
    wait_until(
        lambda: "tollkeeper_config_valid 1.0" in web.get(f"{pair.url}/metrics").text, 3, "valid again, in every process"
    )
    assert '"the configuration stays as it was' in pair.log()


def test_a_broken_edit_right_after_a_good_one_leaves_no_process_behind(pair: Tollkeeper) -> None:
    """A good edit that stands for a few looks is in force everywhere or nowhere, however soon it is broken and stays so."""
    rng = random.Random(20261127)
    customer, path = new_customer(pair, 1_000), pair.folder / "proxy.toml"
    number = 20_000

    def in_force() -> set[str]:
        return {package["code"] for _ in range(8) for package in customer.me()["packages"]}

    path.write_text(good(number))
    wait_until(lambda: in_force() == {f"edit-{number}"}, 3, "the first edit applies")
    assert pair.process is not None
    (second,) = [child for child in psutil.Process(pair.process.pid).children() if child.name() == "tk-worker-1"]
    time.sleep(rng.uniform(0.05, 0.15))
    second.kill()  # so that the two do not look at the same moments
    for number in range(20_001, 20_016):
        path.write_text(good(number))
        time.sleep(rng.uniform(0.2, 0.45))
        path.write_text(BROKEN[1])
        time.sleep(1)
        assert len(in_force()) == 1, "a broken edit left the workers apart"
    path.write_text(good(number))
    wait_until(lambda: in_force() == {f"edit-{number}"}, 3, "whole again")

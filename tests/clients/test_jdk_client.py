"""The JDK's HttpClient, as it comes: on plain HTTP it offers h2c with every request, body and all."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

from tests.support.clients import START, assert_charged
from tests.support.customers import new_customer
from tests.support.programs import found
from tests.support.servers import Sandbox, Tollkeeper

SOURCE = Path(__file__).parent / "HttpClientCalls.java"


def test_the_jdks_client_is_answered_and_charged_although_it_offers_h2c(
    make_tollkeeper: Callable[..., Tollkeeper], sandbox: Sandbox
) -> None:
    customer = new_customer(make_tollkeeper().start(), START)
    command = [found("java"), str(SOURCE), customer.server.v1, customer.api_key, json.dumps(customer.body)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    lines = done.stdout.splitlines()
    assert [line.split(" ")[:2] for line in lines] == [["200", "HTTP_1_1"]] * 2, done.stdout + done.stderr
    assert all(json.loads(line.split(" ", 2)[2])["object"] == "chat.completion" for line in lines)
    assert len(assert_charged(customer, sandbox)) == 2

"""What operators see: metrics that count exactly what was done, and logs that say who and what but no word of content."""

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import httpx
import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from billing.money.usage_record import Outcome
from billing.payments.stripe.event_types import KINDS
from proxy.observability.metrics import Metrics
from tests.support import web
from tests.support.customers import Customer, new_customer
from tests.support.servers import (
    ROOT,
    UPSTREAM_KEY,
    RedisServer,
    Sandbox,
    Tollkeeper,
    sandbox_says,
    served_over,
    wait_until,
)

Series = dict[tuple[str, tuple[tuple[str, str], ...]], float]
SECRET = "a sentence that must not be found anywhere"


@pytest.fixture(scope="module", params=["embedded", "redis"])
def server(
    request: pytest.FixtureRequest, new_folder: Callable[[str], Path], session_sandbox: Sandbox
) -> Iterator[Tollkeeper]:
    """Alone, and with two workers whose metrics must come as one."""
    home = new_folder(f"metrics-{request.param}")
    environment = {"TOLLKEEPER_UPSTREAM__BASE_URL": session_sandbox.url}
    with served_over(request.param, home, **environment) as server:
        yield server


@pytest.fixture(scope="module")
def customer(server: Tollkeeper) -> Customer:
    return new_customer(server)


def read(server: Tollkeeper) -> Series:
    """Every series, parsed by Prometheus' own parser."""
    answer = web.get(f"{server.url}/metrics", timeout=10)
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=")
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


def settled(server: Tollkeeper) -> Series:
    """The series once every worker has published what earlier tests did (they publish four times a second)."""
    found = [read(server)]

    def unchanged() -> bool:
        time.sleep(0.35)
        found.append(read(server))
        return {key: value for key, value in found[-2].items() if key[0].endswith("_total")} == {
            key: value for key, value in found[-1].items() if key[0].endswith("_total")
        }

    wait_until(unchanged, 10, "the counters stand still")
    return found[-1]


def moved(server: Tollkeeper, work: Callable[[], None], **expected: float) -> Series:
    """How far each series moved by `work`, once those named have moved as far as they must."""
    before = settled(server)
    work()

    def differences() -> Series:
        now = read(server)
        return {key: round(now[key] - before.get(key, 0), 6) for key in now if round(now[key] - before.get(key, 0), 6)}

    def total(name: str, found: Series) -> float:
        return sum(value for (series, _), value in found.items() if series == name)

    def enough() -> Series | None:
        now = differences()
        return now if all(total(name, now) >= value for name, value in expected.items()) else None

    found: Series = wait_until(enough, 5, f"{expected} in {differences()}")
    return found


def post(customer: Customer, **body: Any) -> httpx.Response:
    full = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 5, **body}
    # every request on a connection of its own, so that both workers get some
    return web.post(f"{customer.server.v1}/chat/completions", json=full, headers=customer.headers, timeout=30)


def test_counters_move_by_exactly_what_was_done(customer: Customer) -> None:
    def work() -> None:
        assert [post(customer).status_code for _ in range(10)] == [200] * 10

    found = moved(
        customer.server,
        work,
        tollkeeper_requests_total=10,
        openai_calls_total=10,
        tollkeeper_first_byte_seconds_count=10,
    )
    model = (("model", "gpt-4o-mini"),)
    # 8 input and 5 output tokens each: 1.2 + 3 millicredits, rounded up to 5
    assert found["openai_calls_total", model] == 10
    assert found["openai_tokens_in_total", model] == 80
    assert found["openai_tokens_out_total", model] == 50
    assert found["billing_credits_deducted_total", ()] == 0.05
    assert found["tollkeeper_requests_total", (("endpoint", "/v1/chat/completions"), ("status", "200"))] == 10
    assert found["tollkeeper_usage_source_total", (("source", "upstream"),)] == 10
    assert found["tollkeeper_outcomes_total", (("outcome", "completed"),)] == 10
    assert found["tollkeeper_first_byte_seconds_count", ()] == 10
    assert found["tollkeeper_first_byte_seconds_bucket", (("le", "+Inf"),)] == 10
    # held were 5 output tokens and a token a byte of the input: more than was charged, and less than ten times that
    assert 0.05 < found["tollkeeper_held_credits_total", ()] < 0.5


def test_refusals_and_errors_are_counted_by_their_reason(customer: Customer) -> None:
    poor = new_customer(customer.server, 1)

    def work() -> None:
        assert post(poor).status_code == 402
        assert post(poor).status_code == 402
        assert post(customer, model="gpt-imaginary").status_code == 404
        assert post(customer, messages=[{"role": "user", "content": sandbox_says(status=500)}]).status_code == 500
        assert (
            post(customer, messages=[{"role": "user", "content": sandbox_says(cut="before_headers")}]).status_code
            == 502
        )

    found = moved(customer.server, work, tollkeeper_requests_total=5, tollkeeper_upstream_errors_total=2)
    chat = ("endpoint", "/v1/chat/completions")
    assert found["billing_402_insufficient_credits_total", (("source", "balance"),)] == 2
    assert found["tollkeeper_requests_total", (chat, ("status", "500"))] == 1
    assert found["tollkeeper_requests_total", (chat, ("status", "502"))] == 1
    assert (
        sum(
            value
            for (name, labels), value in found.items()
            if name == "tollkeeper_requests_total" and ("status", "404") in labels
        )
        == 1
    )
    assert found["tollkeeper_upstream_errors_total", (("reason", "status_5xx"),)] == 1
    assert found["tollkeeper_upstream_errors_total", (("reason", "closed"),)] == 1
    assert ("openai_calls_total", (("model", "gpt-4o-mini"),)) not in found
    assert ("billing_credits_deducted_total", ()) not in found


def test_open_holds_are_shown_and_go_back_to_zero(customer: Customer) -> None:
    body = {
        "model": "gpt-4o-mini",
        "stream": True,
        "messages": [{"role": "user", "content": sandbox_says(output_tokens=400, chunk_interval_ms=50)}],
    }
    with web.stream(
        "POST", f"{customer.server.v1}/chat/completions", json=body, headers=customer.headers, timeout=30
    ) as answer:
        assert answer.status_code == 200
        held = float(answer.headers["x-credits-held"])

        def shown() -> bool:
            now = read(customer.server)
            return (
                now["tollkeeper_holds_outstanding", ()] == 1 and now["tollkeeper_holds_outstanding_credits", ()] == held
            )

        wait_until(shown, 5, "the hold is shown")
    wait_until(lambda: read(customer.server)["tollkeeper_holds_outstanding", ()] == 0, 5, "the hold is gone")
    wait_until(lambda: read(customer.server)["tollkeeper_journal_entries", ()] == 0, 5, "the charge is in the ledger")


def test_a_client_cannot_invent_a_series(customer: Customer) -> None:
    before = settled(customer.server)
    with web.client(base_url=customer.server.url, headers=customer.headers) as http:
        for number in range(30):
            http.post(
                "/v1/chat/completions",
                json={"model": f"model-{number}", "messages": [{"role": "user", "content": "x"}]},
            )
            http.post("/v1/chat/completions", json={f"field-{number}": 1})
            http.post(f"/v1/path-{number}", json={})
            http.get(f"/v1/models/model-{number}")
            http.get(f"/page-{number}")
            http.request(f"VERB{number % 5}", "/v1/chat/completions")
            http.post("/v1/chat/completions", json={}, headers={"Authorization": f"Bearer key-{number}"})
            answer = http.post(
                "/v1/chat/completions",
                json={**customer.body, "user": f"user-{number}"},
                headers={"x-client-request-id": f"mine-{number}"},
            )
            assert answer.status_code == 200
    # 120 of these are refused under /v1, and the last one was served
    wait_until(
        lambda: read(customer.server)["openai_calls_total", (("model", "gpt-4o-mini"),)] >= 30,
        5,
        "everything is published",
    )
    after = read(customer.server)
    by_itself = ("finance_", "tollkeeper_job")  # a job ran meanwhile
    assert len([name for name, _ in after.keys() - before.keys() if not name.startswith(by_itself)]) < 15
    text = json.dumps([list(key) for key in after])
    assert not re.search(r"(model|field|path|page|key|user|mine|VERB)-?\d", text)
    models = {dict(labels)["model"] for _, labels in after.keys() - before.keys() if "model" in dict(labels)}
    assert models <= names_of_models()  # a test before this one may have been counted only now


def names_of_models() -> set[str]:
    """Those of the price book, with and without their dates."""
    priced = json.loads((ROOT / "config" / "prices" / "catalogue.json").read_text())["models"]
    return {*priced, *(re.sub(r"-\d{4}-\d{2}-\d{2}$", "", name) for name in priced)}


def test_a_dated_name_that_falls_back_to_its_alias_counts_under_a_name_of_the_price_book(customer: Customer) -> None:
    for name in (
        "gpt-4o-mini-2024-07-18",
        "gpt-4o-mini-2031-01-01",
        "ft:gpt-4o-mini:acme::abc",
        "ft:gpt-4o-mini-2024-07-18:acme:x:def",
    ):
        post(customer, model=name)
    wait_until(lambda: read(customer.server), 5, "metrics are read")
    models = {dict(labels)["model"] for name, labels in read(customer.server) if "model" in dict(labels)}
    assert not any("acme" in model or "2031" in model for model in models)
    assert models <= names_of_models()


def test_every_metric_is_documented_and_nothing_else(server: Tollkeeper) -> None:
    registry = CollectorRegistry()
    Metrics(registry)
    known = {family.name + ("_total" if family.type == "counter" else "") for family in registry.collect()}
    documented = set(
        re.findall(
            r"^\| `(\w+)` \| (?:counter|gauge|histogram) \|", (ROOT / "docs" / "metrics.md").read_text(), re.MULTILINE
        )
    )
    assert documented == known
    assert len(known) > 15
    bare = {re.sub("_(total|bucket|sum|count)$", "", name) for name in known}
    assert {re.sub("_(total|bucket|sum|count)$", "", name) for name, _ in read(server)} <= bare


# -- logs -----------------------------------------------------------------------------------------------------------------


def lines_of(server: Tollkeeper) -> list[dict[str, Any]]:
    """Every line of the log but the one that says where it listens; each must be one JSON object."""
    found = []
    for line in server.log().splitlines():
        if line.startswith("tollkeeper listening on "):
            continue
        value = json.loads(line)
        assert isinstance(value, dict)
        assert value["event"] in {"request", "side_request", "log", "platform_loss"}
        assert isinstance(value["at"], int)
        found.append(value)
    return found


def test_every_request_is_one_json_line_with_its_id_and_its_money(customer: Customer) -> None:
    served = post(customer)
    refused = web.post(
        f"{customer.server.v1}/chat/completions",
        json=customer.body,
        headers={"Authorization": "Bearer nobody", "x-client-request-id": "mine-1"},
    )
    ids = [served.headers["x-request-id"], refused.headers["x-request-id"]]

    def both() -> list[dict[str, Any]] | None:
        found = [line for line in lines_of(customer.server) if line.get("request_id") in ids]
        return found if len(found) == 2 else None

    first, second = sorted(wait_until(both, 5, "two lines"), key=lambda line: ids.index(line["request_id"]))
    assert first.keys() == second.keys()
    assert (first["account"], first["key"], first["model"]) == (customer.account_id, customer.key_id, "gpt-4o-mini")
    assert (first["method"], first["path"], first["status"], first["outcome"]) == (
        "POST",
        "/v1/chat/completions",
        200,
        "completed",
    )
    assert first["charged_millicredits"] == 5
    assert first["held_millicredits"] >= 5
    assert first["duration_ms"] >= 0
    assert (second["status"], second["outcome"], second["account"], second["charged_millicredits"]) == (
        401,
        "invalid_api_key",
        "",
        0,
    )
    assert second["client_request_id"] == "mine-1"


def test_no_content_and_no_key_stands_in_a_log_or_a_metric(customer: Customer) -> None:
    canary = "tk-canary-of-a-client-0123456789"
    text = SECRET + " " + sandbox_says(echo=True)
    assert SECRET in post(customer, messages=[{"role": "user", "content": text}], max_tokens=300).text
    post(customer, messages=[{"role": "user", "content": SECRET}], nonsense=SECRET)
    post(customer, messages=SECRET)
    post(customer, model=SECRET)
    post(customer, messages=[{"role": "user", "content": SECRET + sandbox_says(status=500, body_raw=SECRET)}])
    post(customer, messages=[{"role": "user", "content": SECRET + sandbox_says(cut="after_headers")}])
    with web.client(base_url=customer.server.url) as http:
        http.get(f"/v1/models?key={canary}", headers={"Authorization": f"Bearer {canary}"})
        http.get("/api/billing/me", headers={"Authorization": f"Bearer {canary}"})
        last = http.get("/v1/models/gpt-4o-mini", headers=customer.headers).headers["x-request-id"]
    wait_until(lambda: last in customer.server.log(), 5, "the last line is written")
    lines_of(customer.server)
    metrics = web.get(f"{customer.server.url}/metrics").text
    for written in (customer.server.log(), metrics):
        assert SECRET not in written
        assert customer.api_key not in written
        assert customer.api_key[3:] not in written
        assert canary not in written
        assert UPSTREAM_KEY not in written


@pytest.mark.parametrize("value", ["a b", "x" * 200, 'quo"te', "new\\nline", "é"])
def test_a_client_cannot_write_lines_of_its_own(value: str, customer: Customer) -> None:
    headers = {"Authorization": f"Bearer {customer.api_key}".encode(), "x-client-request-id": value.encode()}
    answer = web.post(f"{customer.server.v1}/chat%0a%7b%22event%22/x", content=b"{}", headers=headers)
    assert answer.status_code == 404
    (line,) = wait_until(
        lambda: [
            line for line in lines_of(customer.server) if line.get("request_id") == answer.headers["x-request-id"]
        ],
        5,
        "its line",
    )
    assert line["client_request_id"] == (value if re.fullmatch(r"[!-~]{1,128}", value) else "")


def test_counters_whose_labels_are_known_are_there_before_anything_happens(server: Tollkeeper) -> None:
    """Of every word that the code counts by: what appears with its first increase, no alert sees."""
    found = {(name, labels[0][1]) for name, labels in read(server) if len(labels) == 1}
    wanted = {("stripe_webhook_events_total", name) for name in (*KINDS, "other")}
    source = "".join(path.read_text() for path in (ROOT / "proxy").rglob("*.py"))
    reasons = re.findall(
        r'UpstreamError\("(\w+)"|connection\.fail\("(\w+)"|self\.fail\("(\w+)"|return "(\w+_timeout)"', source
    )
    wanted |= {("tollkeeper_upstream_errors_total", "".join(reason)) for reason in reasons}
    failures = re.findall(r'self\._count_failure\("(\w+)"\)', source)
    wanted |= {("stripe_webhook_failures_total", reason) for reason in failures}
    wanted |= {("tollkeeper_outcomes_total", outcome) for outcome in get_args(Outcome)}
    assert (len(reasons) > 7, len(failures) > 4, wanted - found) == (True, True, set())
    runs = {
        dict(labels)["result"]
        for name, labels in read(server)
        if name == "tollkeeper_job_runs_total" and ("task", "reconcile") in labels
    }
    assert runs == {"clean", "found", "failed"}


def test_health_and_readiness_have_their_shapes(server: Tollkeeper) -> None:
    for path, expected in (
        ("/healthz", {"status": "alive"}),
        ("/readyz", {"status": "ready", "problems": {}, "notes": {}}),
    ):
        answer = web.get(server.url + path)
        assert (answer.status_code, answer.json()) == (200, expected)
        assert answer.headers["content-type"] == "application/json"
        assert answer.headers["cache-control"] == "no-store"


def test_readiness_names_the_store_that_is_away_and_health_stays(
    make_tollkeeper: Callable[..., Tollkeeper], redis_server: RedisServer
) -> None:
    server = make_tollkeeper(TOLLKEEPER_REDIS__URL=redis_server.url).start()
    redis_server.kill()

    def red() -> dict[str, Any] | None:
        answer = web.get(f"{server.url}/readyz", timeout=2)
        return answer.json() if answer.status_code == 503 else None

    found = wait_until(red, 5, "readiness is red")
    assert found["status"] == "not ready"
    assert "balances" in found["problems"]
    assert isinstance(found["problems"]["balances"], str)
    assert web.get(f"{server.url}/healthz").status_code == 200
    redis_server.start()
    wait_until(lambda: web.get(f"{server.url}/readyz", timeout=2).status_code == 200, 5, "readiness is green again")


def test_the_access_log_can_be_switched_off(make_tollkeeper: Callable[..., Tollkeeper], sandbox: Sandbox) -> None:
    server = make_tollkeeper(TOLLKEEPER_LOG__ACCESS="false").start()
    customer = new_customer(server)
    assert post(customer).status_code == 200
    assert server.stop() == 0  # everything gathered is written at the end
    assert not [line for line in lines_of(server) if line["event"] == "request"]


@pytest.mark.served
def test_what_python_itself_would_print_is_a_line_too() -> None:
    """A warning, a thread that dies, a destructor that raises, and the end of the process: each one JSON object, and no value in it."""
    code = f"""
import threading, warnings
from proxy.observability.log import configure_logging
configure_logging("info")
class Falls:
    def __del__(self): raise ValueError({SECRET!r})
warnings.warn("something is old")
Falls()
def run(): raise KeyError({SECRET!r})
thread = threading.Thread(target=run); thread.start(); thread.join()
raise RuntimeError({SECRET!r})
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 1
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert [(line["logger"], line.get("error")) for line in lines] == [
        ("py.warnings", None),
        ("root", "ValueError"),
        ("root", "KeyError"),
        ("root", "RuntimeError"),
    ]
    assert "something is old" in lines[0]["message"]
    assert SECRET not in done.stderr

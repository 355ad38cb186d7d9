"""W3C Trace Context through the proxy, and spans as a collector of OpenTelemetry's own protocol receives them."""

import gzip
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.support import web
from tests.support.servers import UPSTREAM_KEY, Account, Serve, Tollkeeper, free_port, sandbox_says, wait_until

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
CONTEXT = f"00-{TRACE}-{PARENT}-01"


def ask(account: Account, *headers: tuple[str, str]) -> dict[str, Any]:
    """One request with these headers; the headers that OpenAI got."""
    body = {
        "model": "gpt-4o-mini",
        "max_tokens": 900,
        "messages": [{"role": "user", "content": sandbox_says(echo=True)}],
    }
    sent = [("Authorization", f"Bearer {account.api_key}"), *headers]
    answer = web.post(f"{account.server.v1}/chat/completions", json=body, headers=sent, timeout=30)
    assert answer.status_code == 200, answer.text
    received: dict[str, Any] = json.loads(answer.json()["choices"][0]["message"]["content"])["headers"]
    return received


def lines(server: Tollkeeper) -> list[dict[str, Any]]:
    """The requests' log lines."""
    found = [json.loads(line) for line in server.log().splitlines() if line.startswith("{")]
    return [line for line in found if line["event"] == "request"]


@pytest.mark.parametrize(
    ("sent", "passed", "state", "trace"),
    [
        (
            [("traceparent", CONTEXT), ("tracestate", "congo=t61rcWkgMzE"), ("tracestate", "rojo=1")],
            CONTEXT,
            "congo=t61rcWkgMzE,rojo=1",
            TRACE,
        ),
        ([("traceparent", f"cc{CONTEXT[2:]}-what-comes-later")], CONTEXT, None, TRACE),
        ([("tracestate", "congo=t61rcWkgMzE")], None, None, ""),
        ([("traceparent", CONTEXT), ("traceparent", CONTEXT)], None, None, ""),
        ([("traceparent", CONTEXT.upper())], None, None, ""),
        ([("traceparent", f"ff{CONTEXT[2:]}")], None, None, ""),
        ([("traceparent", f"00-{'0' * 32}-{PARENT}-01")], None, None, ""),
        ([("traceparent", f"00-{TRACE}-{'0' * 16}-01")], None, None, ""),
        ([("traceparent", CONTEXT), ("tracestate", "x=" + "y" * 511)], CONTEXT, None, TRACE),
        ([], None, None, ""),
    ],
)
def test_a_well_formed_context_goes_on_and_into_the_log(
    traced: Account, sent: list[tuple[str, str]], passed: str | None, state: str | None, trace: str
) -> None:
    before = len(lines(traced.server))
    received = ask(traced, *sent)
    assert (received.get("traceparent"), received.get("tracestate")) == (passed, state)
    found = wait_until(lambda: lines(traced.server)[before:], 5, "the request is logged")
    assert [line["trace_id"] for line in found] == [trace]


@pytest.fixture(scope="module")
def traced(new_folder: Callable[[str], Path], session_sandbox: Any) -> Iterator[Account]:
    home = new_folder("traced")
    server = Tollkeeper(
        home, {"TOLLKEEPER_UPSTREAM__BASE_URL": session_sandbox.url, "TOLLKEEPER_BILLING__ALLOW_STORE": "true"}
    ).start()
    yield server.account("100")
    server.kill()


def test_a_stored_responses_routes_pass_it_too(traced: Account) -> None:
    client = OpenAI(base_url=traced.server.v1, api_key=traced.api_key, max_retries=0)
    made = client.responses.create(model="gpt-4o-mini", input="hello", max_output_tokens=50, store=True)
    found = web.get(f"{traced.server.v1}/responses/{made.id}", headers={**traced.headers, "traceparent": CONTEXT})
    assert found.status_code == 200, found.text
    read = wait_until(lambda: [line for line in lines(traced.server) if line["method"] == "GET"], 5, "it is logged")
    assert [line["trace_id"] for line in read] == [TRACE]


# -- OpenTelemetry ---------------------------------------------------------------------------------


class Collector:
    """Receives OTLP over HTTP, and keeps what came."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        self.raw = b""
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                body = gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body
                collector.raw += body
                for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                    for scope in resource.scope_spans:
                        collector.spans.extend(scope.spans)
                self.send_response(200)
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                """Quiet."""

        self.server = ThreadingHTTPServer(("127.0.0.1", free_port()), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


def test_each_request_is_a_span_below_the_clients(make_tollkeeper: Serve) -> None:
    collector = Collector()
    try:
        server = make_tollkeeper(
            TOLLKEEPER_LOG__OPENTELEMETRY="true",
            OTEL_EXPORTER_OTLP_ENDPOINT=f"http://127.0.0.1:{collector.server.server_port}",
            OTEL_SERVICE_NAME="tollkeeper",
        ).start()
        account = server.account("100")
        received = ask(account, ("traceparent", CONTEXT))
        refused = account.chat(model="no-such-model")
        assert refused.status_code == 404
        assert server.stop() == 0  # what was not sent yet is sent now
        spans = {dict_of(span)["tollkeeper.outcome"]: span for span in collector.spans}
        served = spans["completed"]
        assert (served.trace_id.hex(), served.parent_span_id.hex()) == (TRACE, PARENT)
        assert received["traceparent"] == f"00-{TRACE}-{served.span_id.hex()}-01"
        assert served.name == "POST /v1/chat/completions"
        said, row = dict_of(served), account_usage(account)
        assert (said["gen_ai.request.model"], said["http.response.status_code"]) == ("gpt-4o-mini", 200)
        assert (said["gen_ai.usage.input_tokens"], said["gen_ai.usage.output_tokens"]) == (
            row["inputTokens"],
            row["outputTokens"],
        )
        assert said["tollkeeper.charged_millicredits"] == int(row["chargedMillicredits"]) > 0
        other = spans["model_not_found"]
        assert other.parent_span_id == b""
        assert other.trace_id != served.trace_id
        for secret in (UPSTREAM_KEY, account.api_key, "[[sandbox"):
            assert secret.encode() not in collector.raw
    finally:
        collector.server.shutdown()


def dict_of(span: Any) -> dict[str, Any]:
    """A span's attributes."""
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in span.attributes}


def account_usage(account: Account) -> dict[str, Any]:
    """The one usage row, as the ledger has it."""
    (row,) = account.usage()
    return row

"""Why the upstream could not be connected to: in the log and a metric, never in the answer."""

import json
import socket
import threading
from collections.abc import Iterator

import pytest
from websockets.exceptions import InvalidStatus

from tests.support.served import Customer, metric, wait_log
from tests.support.servers import Serve, free_port, wait_until
from tests.support.sockets import opened


@pytest.fixture
def plain() -> Iterator[int]:
    """A port that takes connections and says something that is no TLS."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                connection.recv(1_000)
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")

    threading.Thread(target=serve, daemon=True).start()
    yield listener.getsockname()[1]
    listener.close()


@pytest.mark.parametrize("cause", ["refused", "dns", "tls"])
def test_a_502_says_in_the_log_and_a_metric_why(cause: str, make_tollkeeper: Serve, plain: int) -> None:
    url = {
        "refused": f"http://127.0.0.1:{free_port()}/v1",
        "dns": "http://no-such-host.invalid/v1",
        "tls": f"https://127.0.0.1:{plain}/v1",
    }[cause]
    server = make_tollkeeper(TOLLKEEPER_UPSTREAM__BASE_URL=url).start()
    account = server.account("1000")
    account.wait_balance(1_000_000)
    customer = Customer(server, account.account_id, account.api_key, None)  # type: ignore[arg-type]
    answer = customer.post(customer.body(max_tokens=5))
    assert (answer.status_code, answer.json()["error"]["code"]) == (502, "upstream_connect")
    assert cause not in answer.text
    line = json.loads(wait_log(server, answer.headers["x-request-id"]))
    assert (line["outcome"], line["cause"]) == ("upstream_connect", cause)
    with pytest.raises(InvalidStatus) as refused, opened(customer, "/realtime?model=gpt-realtime-2.1"):
        pass
    assert refused.value.response.status_code == 502
    line = json.loads(wait_log(server, refused.value.response.headers["x-request-id"]))
    assert (line["endpoint"], line["status"], line["cause"]) == ("/v1/realtime", 502, cause)
    name = "tollkeeper_upstream_connect_failures_total"
    wait_until(lambda: metric(server, name, cause=cause) == 2, 5, "both are counted by their cause")
    assert metric(server, "tollkeeper_upstream_errors_total", reason="connect") == 2
    assert customer.held() == 0

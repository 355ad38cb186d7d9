"""The record, the settings, the counts and the command line."""

import asyncio
import json
import signal
import ssl
import subprocess
import sys
from pathlib import Path

import httpx
import openai
import pytest

from sandbox import Settings, start
from tests.support import web

ROOT = Path(__file__).resolve().parents[3]
asyncio_test = pytest.mark.asyncio


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@asyncio_test
async def test_record_of_a_stream(box, settings):
    headers = {"x-client-request-id": "abc", "X-Odd": "One"}
    body = box.stream_body({"text": "Blue whale."}, service_tier="fast")
    answer = await box.http.post("/v1/chat/completions", json=body, headers=headers)
    record = await box.last()
    assert record["seq"] == 1
    assert record["clientRequestId"] == "abc"
    assert record["requestId"] == answer.headers["x-request-id"]
    assert (record["path"], record["model"]) == ("/v1/chat/completions", "gpt-5.4-mini")
    assert (record["stream"], record["status"], record["outcome"]) == (True, 200, "completed")
    assert (record["chunksSent"], record["textSent"]) == (6, "Blue whale.")
    assert record["serviceTier"] == "priority"
    assert record["requestHeaders"]["x-odd"] == "One"
    assert record["requestBody"] == body
    assert record["usage"] == record["usageSent"]
    assert record["usage"]["completion_tokens"] == 16 + 3
    first, last = lines(settings.record)
    assert (first["seq"], first["outcome"], first["usage"]) == (1, "received", None)
    assert last == record


@asyncio_test
async def test_final_line_is_written_before_the_last_byte_arrives(box, settings):
    for _ in range(20):
        await box.events({"text": "Blue whale."})
        assert lines(settings.record)[-1]["outcome"] == "completed"


@asyncio_test
async def test_client_that_leaves_is_billed_for_what_was_generated(box):
    body = box.stream_body({"chunk_interval_ms": 20})
    async with box.http.stream("POST", "/v1/chat/completions", json=body) as answer:
        async for _ in answer.aiter_bytes():
            break
    for _ in range(100):
        record = await box.last()
        if record["outcome"] == "client_gone":
            break
        await asyncio.sleep(0.01)
    assert record["outcome"] == "client_gone"
    assert 1 <= record["chunksSent"] < 20
    assert record["usage"]["completion_tokens"] == 16 + record["chunksSent"] - 1


@asyncio_test
async def test_record_queries(box):
    for name in ("a", "b", "a"):
        await box.http.post("/v1/chat/completions", json=box.body(), headers={"x-client-request-id": name})
    get = box.http.get
    found = (await get("/__sandbox/record", params={"clientRequestId": "a"})).json()
    assert [record["seq"] for record in found["records"]] == [1, 3]
    found = (await get("/__sandbox/record", params={"since": 2, "brief": 1})).json()
    assert [record["seq"] for record in found["records"]] == [3]
    assert "requestBody" not in found["records"][0]
    assert (await get("/__sandbox/record?since=x")).status_code == 400
    assert (await box.http.delete("/__sandbox/record")).json() == {"deleted": 3}
    assert (await get("/__sandbox/record")).json() == {"records": [], "lastSeq": 3}


@asyncio_test
async def test_unreadable_and_large_bodies_are_recorded(box):
    answer = await box.http.post("/v1/chat/completions", content=b"{\xff")
    assert answer.status_code == 400
    record = await box.last()
    assert (record["outcome"], record["requestBody"]) == ("error", None)
    assert record["requestBodyBase64"] == "e/8="
    body = box.body()
    body["messages"].append({"role": "user", "content": "word " * 60_000})
    assert (await box.http.post("/v1/chat/completions", json=body)).status_code == 200
    record = await box.last()
    assert record["requestBody"] is None
    assert record["requestBodyBytes"] > 300_000
    assert len(record["requestBodyBase64"]) < 90_000
    assert record["usage"]["prompt_tokens"] > 60_000


@asyncio_test
async def test_auth_and_unknown_paths(box):
    sample = json.loads((ROOT / "tests/samples/errors.json").read_text())
    for key in ("Bearer wrong", ""):
        answer = await box.http.post("/v1/chat/completions", json=box.body(), headers={"authorization": key})
        assert (answer.status_code, answer.json()) == (401, sample["401"])
    answer = await box.http.get("/v1/unknown")
    assert answer.status_code == 404
    assert list(answer.json()["error"]) == ["message", "type", "param", "code"]
    with pytest.raises(openai.AuthenticationError):
        await box.sdk.with_options(api_key="nope").models.list()
    assert "gpt-5.4-mini" in [model.id async for model in await box.sdk.models.list()]
    assert (await box.sdk.models.retrieve("gpt-4o")).id == "gpt-4o"
    with pytest.raises(openai.NotFoundError):
        await box.sdk.models.retrieve("gpt-none")


@asyncio_test
@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"messages": None}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": [{"content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"model": None}, None),
        ({"n": 0}, "n"),
        ({"n": 129}, "n"),
        ({"max_completion_tokens": "9"}, "max_completion_tokens"),
        ({"max_tokens": 5}, "max_tokens"),
        ({"model": "gpt-4o", "max_tokens": 5, "max_completion_tokens": 5}, "max_tokens"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": "yes"}, "stream"),
        ({"tools": 5}, None),
    ],
)
async def test_bad_requests(box, change, param):
    answer = await box.http.post("/v1/chat/completions", json=box.body() | change)
    assert answer.status_code == 400
    assert list(answer.json()["error"]) == ["message", "type", "param", "code"]
    assert answer.json()["error"]["param"] == param
    assert (await box.last())["usage"] is None


@asyncio_test
async def test_settings_change_while_running(box):
    put = box.http.put
    answer = await put("/__sandbox/settings", json={"output_tokens": 3, "reasoning_tokens": 2})
    assert answer.json()["output_tokens"] == 3
    assert (await box.chat()).json()["usage"]["completion_tokens"] == 5
    await put("/__sandbox/settings", json={"fail_rate": 1, "fail_status": 500})
    assert (await box.chat()).status_code == 500
    await put("/__sandbox/settings", json={"fail_rate": 0, "directive": {"status": 429}})
    assert (await box.chat()).status_code == 429
    assert (await box.chat({"status": 403})).status_code == 403
    for wrong in ({"nope": 1}, {"fail_rate": 2}, {"directive": {"nope": 1}}, {"latency_ms": "x"}):
        assert (await put("/__sandbox/settings", json=wrong)).status_code == 400
    assert (await box.http.get("/__sandbox/settings")).json()["output_tokens"] == 3
    await put("/__sandbox/settings", json={"directive": {}, "context_tokens": 5})
    assert (await box.chat()).json()["error"]["code"] == "context_length_exceeded"


@asyncio_test
async def test_stats(box):
    await box.chat()
    await box.http.get("/v1/models")
    stats = (await box.http.get("/__sandbox/stats")).json()
    assert stats == {"requests": 2, "served": 2, "openConnections": 1, "connectionsTotal": 1}


@asyncio_test
async def test_pipelined_requests_are_answered_in_order(box):
    body = json.dumps(box.body({"text": "one"})).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer sk-sandbox\r\n"
    one = head + b"content-length: %d\r\n\r\n" % len(body) + body
    two = head + b"connection: close\r\ncontent-length: %d\r\n\r\n" % len(body) + body.replace(b"one", b"two")
    reader, writer = await asyncio.open_connection("127.0.0.1", box.server.port)
    writer.write(one + two)
    received = await reader.read(-1)
    writer.close()
    assert received.index(b'"one"') < received.index(b'"two"')


@asyncio_test
async def test_a_thousand_streams_at_once(box, settings):
    body = box.stream_body({"chunk_interval_ms": 40, "output_tokens": 10})
    data = json.dumps(body).encode()
    request = (
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer sk-sandbox\r\n"
        b"connection: close\r\ncontent-length: %d\r\n\r\n" % len(data) + data
    )

    async def one():
        reader, writer = await asyncio.open_connection("127.0.0.1", box.server.port)
        writer.write(request)
        received = await reader.read(-1)
        writer.close()
        return received.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")

    assert all(await asyncio.gather(*(one() for _ in range(1000))))
    last = {record["seq"]: record["outcome"] for record in lines(settings.record)}
    assert list(last.values()) == ["completed"] * 1000


@asyncio_test
async def test_seq_goes_on_after_a_restart(tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_text('{"seq": 41}\n{"seq": 42, "tor')
    server = await start(Settings(record=path))
    try:
        async with httpx.AsyncClient(base_url=server.url) as http:
            await http.post("/chat/completions", json={})
        assert server.records[0]["seq"] == 42
        assert [json.loads(line)["seq"] for line in path.read_text().splitlines()[2:]] == [42, 42]
    finally:
        await server.close()


def spawn(*arguments):
    process = subprocess.Popen(
        [sys.executable, "-m", "sandbox", *arguments], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    line = process.stdout.readline()
    assert line.startswith("sandbox listening on http")
    return process, line.split()[-1]


def test_command_line_and_sigterm(tmp_path):
    path = tmp_path / "r.jsonl"
    process, url = spawn("--api-key", "k1", "--record", str(path), "--output-tokens", "4")
    try:
        client = openai.OpenAI(api_key="k1", base_url=url, max_retries=0)
        messages = [{"role": "user", "content": "Hi"}]
        answer = client.chat.completions.create(model="gpt-4o", messages=messages)
        assert answer.usage.completion_tokens == 4
        stream = client.chat.completions.create(
            model="gpt-4o",
            messages=[{"role": "user", "content": '[[sandbox {"silent": {"after_chunks": 1}}]]'}],
            stream=True,
        )
        next(iter(stream))
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=3) == 0
        assert [record["outcome"] for record in lines(path)] == [
            "received",
            "completed",
            "received",
            "client_gone",
        ]
        assert path.stat().st_mode & 0o777 == 0o600
    finally:
        process.kill()
        process.wait()


def test_record_survives_a_kill(tmp_path):
    path = tmp_path / "r.jsonl"
    process, url = spawn("--record", str(path))
    try:
        body = {"model": "gpt-4o", "messages": [{"role": "user", "content": "Hi"}]}
        headers = {"authorization": "Bearer sk-sandbox"}
        web.post(f"{url}/chat/completions", json=body, headers=headers)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    assert [record["outcome"] for record in lines(path)] == ["received", "completed"]


@asyncio_test
@pytest.mark.parametrize("rst", [False, True])
async def test_command_line_server_cuts_alike(tmp_path, rst):
    """The command line runs on uvloop, the other tests on asyncio's own loop."""
    process, url = spawn("--record", str(tmp_path / "r.jsonl"))
    try:
        directive = {"cut": {"after_chunks": 2}, "rst": rst, "chunk_interval_ms": 1}
        text = f"[[sandbox {json.dumps(directive)}]]"
        message = {"role": "user", "content": text}
        data = json.dumps({"model": "gpt-4o", "stream": True, "messages": [message]}).encode()
        host, _, port = url.removeprefix("http://").removesuffix("/v1").partition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n"
            b"authorization: Bearer sk-sandbox\r\ncontent-length: %d\r\n\r\n" % len(data) + data
        )
        received, reset = b"", False
        try:
            while part := await reader.read(65536):
                received += part
        except ConnectionResetError:
            reset = True
        writer.close()
        assert received.count(b"data: ") == 2
        assert reset is rst
        assert lines(tmp_path / "r.jsonl")[-1]["outcome"] == "cut"
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_help_names_the_ways_to_steer():
    shown = subprocess.run(
        [sys.executable, "-m", "sandbox", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for word in ("--record", "--chunk-interval-ms", "[[sandbox", "/__sandbox/settings"):
        assert word in shown


@pytest.fixture
def certificate(tmp_path):
    certificate, key = tmp_path / "c.pem", tmp_path / "k.pem"
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext subjectAltName=IP:127.0.0.1 -keyout"
    subprocess.run([*command.split(), key, "-out", certificate], check=True, capture_output=True)
    return certificate, key


@asyncio_test
async def test_tls(certificate):
    server = await start(Settings(tls_cert=certificate[0], tls_key=certificate[1]))
    try:
        assert server.url.startswith("https://")
        trust = ssl.create_default_context(cafile=certificate[0])
        headers = {"authorization": "Bearer sk-sandbox"}
        async with httpx.AsyncClient(base_url=server.url, verify=trust) as http:
            assert (await http.get("/models", headers=headers)).status_code == 200
    finally:
        await server.close()


def test_independence_from_proxy_and_billing():
    code = "import sandbox, sandbox.__main__, sys;sys.exit(any(m.split('.')[0] in {'proxy','billing','config'} for m in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0

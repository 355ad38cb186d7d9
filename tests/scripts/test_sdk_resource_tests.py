"""The script that runs the SDK's own tests: whole, with a checkout of three tests and a mock of two answers."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from scripts import sdk_resource_tests as script
from tests.support.servers import ROOT

pytestmark = pytest.mark.served

MOCK = """
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer

class Mock(BaseHTTPRequestHandler):
    def do_GET(self):
        found = self.path.startswith(("/_x-steady/health", "/conversations/conv_123", "/vector_stores/vs_abc123/"))
        body = b'{"id": "conv_123", "object": "conversation"}' if found else b'{"error": "no such path"}'
        self.send_response(200 if found else 404)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_DELETE = do_GET

HTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("-p") + 1])), Mock).serve_forever()
"""
TESTS = """
import os
import httpx
import pytest

client = httpx.Client(base_url=os.environ["TEST_API_BASE_URL"], headers={"Authorization": "Bearer My API Key"})

@pytest.mark.parametrize("time", [1, 2])
def test_delete(time):
    assert client.delete("/conversations/conv_123").status_code == 200

def test_retrieve():
    assert client.get("/conversations/conv_123").json()["id"] == "conv_123"

def test_threads():
    assert client.get("/threads/thread_1").status_code == 200

def test_list():
    assert client.get("/files?limit=0").status_code == 200
"""
BROKEN = """

def test_broken():
    assert client.get("/conversations/another").status_code == 200
"""


OF_STORES = """
import os
import httpx

client = httpx.Client(base_url=os.environ["TEST_API_BASE_URL"], headers={"Authorization": "Bearer My API Key"})

def test_a_batch_of_files():
    assert client.get("/vector_stores/vs_abc123/file_batches/batch_id").status_code == 200
"""


def run(folder: Path, tests: str, more: str = "") -> subprocess.CompletedProcess[str]:
    checkout = folder / "checkout"
    (checkout / "tests" / "api_resources" / "vector_stores").mkdir(parents=True)
    (checkout / "tests" / "api_resources" / "test_some.py").write_text(tests)
    (checkout / "tests" / "api_resources" / "vector_stores" / "test_more.py").write_text(more)
    (checkout / "pytest.ini").write_text("[pytest]\n")
    mock, spec = folder / "mock.py", folder / "spec.yml"
    mock.write_text(MOCK)
    spec.write_text("openapi: 3.1.0\n")
    command = [sys.executable, "-m", "scripts.sdk_resource_tests", str(checkout), "--files"]
    command += ["test_some.py,test_of_a_newer_sdk.py,vector_stores"]
    command += ["--spec", str(spec), "--python", sys.executable, "--mock", f"{sys.executable} {mock}"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)


def test_what_passes_and_what_is_refused_by_design_is_counted_by_file(folder: Path) -> None:
    done = run(folder, TESTS)
    assert done.returncode == 0, done
    assert "test_some.py: 3 passed, 2 refused by design, 0 failed" in done.stdout
    assert "1 refused: 403 endpoint_not_offered" in done.stdout
    assert "1 refused: 400 invalid_value (limit): the example is 0" in done.stdout


def test_what_fails_otherwise_is_named_and_ends_it_with_1(folder: Path) -> None:
    done = run(folder, TESTS + BROKEN)
    assert done.returncode == 1, done
    assert "3 passed, 2 refused by design, 1 failed" in done.stdout
    assert "FAILED test_broken: GET /v1/conversations/another: 404" in done.stdout


def test_an_id_is_of_the_kind_that_its_tests_mean(folder: Path) -> None:
    """`batch_id` is a batch, but among vector stores a batch of files."""
    done = run(folder, TESTS, OF_STORES)
    assert done.returncode == 0, done
    assert "vector_stores/test_more.py: 1 passed, 0 refused by design, 0 failed" in done.stdout


def test_what_is_missing_is_said(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert script.main([str(folder)]) == 2
    assert "api_resources is not there (see CONTRIBUTING.md)" in capsys.readouterr().err


def test_a_failure_that_met_no_refusal_is_no_design() -> None:
    line = {"test": "tests/api_resources/a.py::test_a", "outcome": "failed", "error": "assert 1 == 2"}
    passed_then_broke = {**line, "answers": [{"status": 200}]}
    assert script.result(passed_then_broke).ended == "failed"
    refused = {"method": "GET", "path": "/v1/files", "status": 404, "code": None, "param": None, "message": "x"}
    for code, param, ended in [
        ("endpoint_not_offered", None, "refused"),
        ("invalid_value", "limit", "reasoned"),
        ("invalid_value", "order", "failed"),
        ("unsupported_parameter", "beta", "failed"),
        ("file_not_found", None, "failed"),
    ]:
        answers = [{**refused, "code": code, "param": param}]
        assert script.result({**line, "answers": answers}).ended == ended, json.dumps(answers)


def test_what_the_description_leaves_open_is_asked_of_the_mock() -> None:
    said = (
        "    ImagesResponse:\n      type: object\n      required:\n      - created\n    Other:\n      required:\n      - created\n"
        "      operationId: downloadFile\n      responses:\n          content:\n            application/json:\n"
        "              schema:\n                type: string\n"
        "      operationId: other\n          content:\n            application/json:\n              schema:\n"
    )
    changed = script.completed(said)
    assert changed.count("- data") == 1
    assert changed.index("- data") < changed.index("Other")
    _, downloaded, other = changed.split("operationId: ")
    assert '            text/plain:\n              example: \'{"custom_id"' in downloaded
    assert "application/json" not in downloaded
    assert "application/json" in other

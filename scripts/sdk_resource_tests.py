"""Run the OpenAI SDK's own resource tests with Tollkeeper between them and a mock of OpenAI's published description.

python -m scripts.sdk_resource_tests PATH_OF_CHECKOUT [--files chat,responses] [--spec FILE] [--python FILE]

The checkout is openai-python's; nothing of it is kept here and nothing in it is changed. The mock is the one its own
scripts use (Steady, from npm). Prints, by file of tests: passed, refused by design (by code), failed otherwise. Exits 1
when a test of something that is offered failed for another reason than one that stands in REASONS.
"""

import argparse
import contextlib
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).parent
TOLLKEEPER = Path(sys.executable).parent / "tollkeeper"
NOT_OFFERED = "endpoint_not_offered"
OFFERED = (
    "audio,chat,conversations,realtime,responses,uploads,vector_stores,test_batches.py,test_completions.py,"
    "test_conversations.py,test_decisions.py,test_embeddings.py,test_files.py,test_images.py,test_models.py,"
    "test_moderations.py,test_realtime.py,test_responses.py,test_uploads.py,test_vector_stores.py"
)
"""What holds tests of something that is offered, below tests/api_resources; an older SDK lacks some."""
Ids = dict[str, tuple[str, ...]]
"""Kind of object → ids of it."""
OWNED: Ids = {
    "response": ("response_id", "resp_123", "resp_677efb5139a88190b512bc3fef8e535d", "previous_response_id"),
    "chat_completion": ("completion_id",),
    "conversation": ("conv_123", "string", "conversation_id"),
    "file": ("file_id", "file-abc123", "input_file_id"),
    "batch": ("batch_id",),
    "upload": ("upload_abc123",),
    "vector_store": ("vs_abc123", "vector_store_id"),
    "file_batch": ("vsfb_abc123",),
}
"""Ids that the SDK's tests name; they are the account's own here, else each is the 404 of another's."""
OWNED_IN: dict[str, Ids] = {
    "test_uploads.py": {"upload_part": ("string",)},
    "vector_stores": {"file": ("string",), "file_batch": ("batch_id",)},
}
"""Part of a test's path → ids that are of another kind there."""
CALLS = ("call_id",)
INCOMPLETE = re.compile(r"^ {4}ImagesResponse:\n(?: {6}.*\n)*? {6}required:\n {6}- created\n", re.MULTILINE)
"""The description lets pictures lack; to Tollkeeper an answer without any is none: a 502 that costs nothing."""
CONTENT = re.compile(r"(operationId: downloadFile\n(?:.*\n)*?)( {12})application/json:\n {14}schema:\n")
BATCH_LINE = (
    '{"custom_id": "1", "method": "POST", "url": "/v1/responses", "body": {"model": "gpt-5.4", "input": "hello"}}'
)
"""Content of every file of the mock's: a batch is read line by line before it is made."""


class Reason(NamedTuple):
    """A refusal of something that is offered, by design: where (a pattern), its code and parameter, and why."""

    path: str
    code: str
    param: str | None
    why: str


ZERO = "the example is 0; OpenAI wants 1 or more"
REASONS = (
    Reason("/v1/chat/completions", "invalid_value", "max_completion_tokens", ZERO),
    Reason("/v1/chat/completions", "invalid_value", "limit", ZERO),
    Reason("/v1/files", "invalid_value", "limit", "the example is 0; OpenAI wants 1 to 10,000"),
    Reason("/v1/batches", "invalid_value", "limit", ZERO),
    Reason("/v1/vector_stores", "invalid_value", "limit", ZERO),
    Reason("/v1/uploads", "invalid_value", "bytes", "the example has 0 bytes, which is no file"),
    Reason(
        "/v1/vector_stores/*/file_batches",
        "missing_required_parameter",
        "file_ids",
        "the example names no file, and OpenAI wants some",
    ),
    Reason("/v1/decisions", "model_not_found", "model", "the example's model is called 'model'"),
    Reason(
        "/v1/realtime/client_secrets",
        "invalid_type",
        "session",
        "the example has no session; a secret opens spending, so its model is fixed when it is made (ADR 46)",
    ),
    Reason("/v1/realtime/client_secrets", "prompt_not_found", None, "templates are kept in the shared account"),
    Reason("/v1/images/*", "model_not_found", "model", "the example's model for SVG is called 'x', which is none"),
    Reason("/v1/responses*", "unsupported_parameter", "beta", "the beta resource has no published price"),
    Reason("/v1/responses", "missing_required_parameter", "model", "the example names no model, so it has no price"),
    Reason("/v1/responses", "prompt_not_found", "prompt", "templates are kept in the shared account"),
    Reason("/v1/responses/input_tokens", "missing_required_parameter", "model", "the example names no model"),
    Reason("/v1/responses/input_tokens", "model_not_found", "model", "the example's model is called 'model'"),
)
"""The whole list: a test of something that is offered may fail for nothing else."""


class Result(NamedTuple):
    """One test: its file, how it ended (passed, refused, reasoned, failed), and by what."""

    file: str
    test: str
    ended: str
    by: str


def main(arguments: Sequence[str] | None = None) -> int:
    """Run them; the exit code."""
    options = _options(arguments)
    checkout = options.checkout.resolve()
    spec = options.spec or checkout / "api_reference" / "openapi.transformed.yml"
    python = options.python or checkout / ".venv" / "bin" / "python"
    for needed in (checkout / "tests" / "api_resources", spec, python):
        if not needed.exists():
            print(f"sdk_resource_tests: {needed} is not there (see CONTRIBUTING.md)", file=sys.stderr)
            return 2
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as running:
        home = Path(folder)
        mock = running.enter_context(_mock(shlex.split(options.mock), spec, home))
        run = running.enter_context(_tollkeeper(mock, home))
        run |= {"report": str(home / "report.jsonl")}
        files = [file for file in options.files.split(",") if (checkout / "tests" / "api_resources" / file).exists()]
        _run_tests(checkout, python, files, run)
        if options.keep:
            options.keep.write_bytes((home / "report.jsonl").read_bytes())
        lines = [json.loads(line) for line in (home / "report.jsonl").read_text(encoding="utf-8").splitlines()]
    return report([result(line) for line in lines])


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m scripts.sdk_resource_tests")
    parser.add_argument("checkout", type=Path, help="a checkout of openai-python")
    parser.add_argument("--files", default=OFFERED, help="below tests/api_resources, commas between; '.' is all")
    parser.add_argument("--spec", type=Path, help="OpenAI's description; else the checkout's own")
    parser.add_argument("--python", type=Path, help="has the SDK and what its tests need; else the checkout's .venv")
    parser.add_argument("--mock", default="npx --yes @stdy/cli", help="the command that starts Steady")
    parser.add_argument("--keep", type=Path, help="write every test's answers to this file, a JSON line each")
    return parser.parse_args(arguments)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def _process(command: Sequence[str], answers: str, home: Path, environment: dict[str, str]) -> Iterator[None]:
    """Run a server until the end of the block, from when it answers at that URL."""
    log = home / f"{Path(command[0]).name}.log"
    with log.open("wb") as output:
        # the tools of this run, in a group of their own: npx leaves its child behind
        process = subprocess.Popen(  # noqa: S603
            command, cwd=home, env=environment, stdout=output, stderr=output, start_new_session=True
        )
    try:
        for _ in range(600):
            with contextlib.suppress(OSError, urllib.error.URLError):
                urllib.request.urlopen(answers, timeout=2).close()  # noqa: S310 - of this run
                break
            if process.poll() is not None:
                break
            time.sleep(0.1)
        else:
            process.terminate()
        if process.poll() is not None:
            said = log.read_text(encoding="utf-8", errors="replace")[-2000:]
            raise SystemExit(f"{command[0]} did not start:\n{said}")
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        process.wait(60)


@contextlib.contextmanager
def _mock(command: list[str], spec: Path, home: Path) -> Iterator[str]:
    """Start the mock as the SDK's own scripts do; its URL."""
    port = _free_port()
    shape = [f"--validator-{where}-format=brackets" for where in ("query-array", "form-array", "query-object")]
    complete = home / "description.yml"
    complete.write_text(completed(spec.read_text(encoding="utf-8")), encoding="utf-8")
    full = [*command, "--host", "127.0.0.1", "-p", str(port), "-q", *shape, "--validator-form-object-format=brackets"]
    url = f"http://127.0.0.1:{port}"
    with _process([*full, str(complete)], f"{url}/_x-steady/health", home, dict(os.environ)):
        yield url


def completed(description: str) -> str:
    """OpenAI's description with what it leaves open: pictures have data, files have lines of a batch."""
    text = INCOMPLETE.sub(lambda found: found[0] + "      - data\n", description)
    lines = f"text/plain:\n              example: '{BATCH_LINE}'\n              schema:\n"
    return CONTENT.sub(lambda found: f"{found[1]}{found[2]}{lines}", text)


@contextlib.contextmanager
def _tollkeeper(mock: str, home: Path) -> Iterator[dict[str, Any]]:
    """Serve on the embedded store and SQLite in front of the mock; what the plugin is told of it."""
    port = _free_port()
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("TOLLKEEPER_", "OPENAI_"))}
    environment = clean | {
        "OPENAI_API_KEY": "sk-mock",
        "TOLLKEEPER_UPSTREAM__BASE_URL": mock,
        "TOLLKEEPER_LISTEN__PORT": str(port),
        # the SDK's tests name models that have ended
        "TOLLKEEPER_BILLING__EXTENDED_MODELS": '["*"]',
    }
    base = f"http://127.0.0.1:{port}"
    with _process([str(TOLLKEEPER), "serve"], f"{base}/readyz", home, environment):

        def cli(*words: str) -> dict[str, Any]:
            done = subprocess.run(  # noqa: S603 - our own command
                [str(TOLLKEEPER), *words, "--json"], cwd=home, env=environment, capture_output=True, check=True
            )
            answer: dict[str, Any] = json.loads(done.stdout)
            return answer

        account = cli("account", "create", "sdk")
        cli("grant", account["accountId"], "1000000000", "--reason", "resource tests")
        owned = [
            {"id": one, "kind": kind, "account_id": account["accountId"], "where": where}
            for where, kinds in (("", OWNED), *OWNED_IN.items())
            for kind, ids in kinds.items()
            for one in ids
        ]
        database = str(home / "var" / "tollkeeper.db")
        calls = [{"id": one, "account_id": account["accountId"]} for one in CALLS]
        yield {"key": account["apiKey"], "base": base, "database": database, "owned": owned, "calls": calls}


def _run_tests(checkout: Path, python: Path, files: Sequence[str], run: dict[str, Any]) -> None:
    """Run the checkout's own pytest, one test at a time: they share the owned objects."""
    environment = os.environ | {
        "TEST_API_BASE_URL": f"{run['base']}/v1",
        "TOLLKEEPER_SDK_RUN": json.dumps(run),
        "PYTHONPATH": str(HERE),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    command = [str(python), "-m", "pytest", "-q", "-p", "sdk_resource_plugin", "-p", "no:cacheprovider", "-o"]
    command += ["addopts=", "--tb=no", *(f"tests/api_resources/{file}" for file in files)]
    done = subprocess.run(command, cwd=checkout, env=environment, stdout=subprocess.PIPE, check=False)  # noqa: S603
    if done.returncode not in (0, 1):
        raise SystemExit(f"pytest of the checkout ended with {done.returncode}:\n{done.stdout.decode()[-3000:]}")


def result(line: dict[str, Any]) -> Result:
    """How a test ended, by its line of the plugin's report."""
    file = line["test"].split("::")[0].removeprefix("tests/api_resources/")
    if line["outcome"] != "failed":
        return Result(file, line["test"], line["outcome"], "")
    last = next((answer for answer in reversed(line["answers"]) if answer["status"] >= 400), None)
    if last is None:
        return Result(file, line["test"], "failed", line["error"])
    if last["code"] == NOT_OFFERED and last["status"] in (403, 404):
        return Result(file, line["test"], "refused", f"{last['status']} {NOT_OFFERED}")
    said = f"{last['status']} {last['code']}" + (f" ({last['param']})" if last["param"] else "")
    for reason in REASONS:
        same = (reason.code, reason.param) == (last["code"], last["param"])
        if same and fnmatchcase(last["path"], reason.path):
            return Result(file, line["test"], "reasoned", f"{said}: {reason.why}")
    return Result(file, line["test"], "failed", f"{last['method']} {last['path']}: {said}: {last['message']}")


def report(results: Sequence[Result]) -> int:
    """Print them by file; the exit code."""
    files = sorted({one.file for one in results})
    for file in files:
        ended = Counter(one.ended for one in results if one.file == file)
        print(
            f"{file}: {ended['passed']} passed, {ended['refused'] + ended['reasoned']} refused by design, "
            f"{ended['failed']} failed" + (f", {ended['skipped']} skipped by the SDK" if ended["skipped"] else "")
        )
        by = Counter(one.by for one in results if one.file == file and one.ended in ("refused", "reasoned"))
        for said, count in sorted(by.items()):
            print(f"    {count} refused: {said}")
        for one in results:
            if one.file == file and one.ended == "failed":
                print(f"    FAILED {one.test.split('::', 1)[1]}: {one.by}")
    total = Counter(one.ended for one in results)
    print(
        f"all: {total['passed']} passed, {total['refused']} of what is not offered, {total['reasoned']} refused with a "
        f"reason, {total['failed']} failed, {total['skipped']} skipped by the SDK"
    )
    return 1 if total["failed"] or not results else 0


if __name__ == "__main__":
    sys.exit(main())

"""A seeded random walk over what can be asked and how it can end, each charge compared with the simulator's own bill.

python -m tests.properties.metering_walk [--exchanges 20000] [--seed N]

An exchange is a cell (endpoint × transport × tools × way of ending × oddity of the upstream) with random sizes. The
bill is the simulator's record of what it served, priced here from the catalogue's texts by a formula of this file. For
every exchange:

    it ended           charge == bill
    it was left, cut   charge <= bill of the whole answer, >= bill of what the client has seen (a tenth less: a text
                       counted in one piece has fewer tokens than its pieces)
    it was no answer   nothing is charged
    always             hold >= charge, and no loss of the platform but where the walk makes the upstream exceed its cap

At the end of each batch nothing is held, and the books agree.
"""

import argparse
import asyncio
import base64
import contextlib
import json
import random
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from billing.ledger.accounts import Accounts, KeyRules
from billing.ledger.ledger import Ledger
from billing.money.amounts import parse_credits
from billing.storage.database import Database
from tests.support.served import Customer
from tests.support.servers import ROOT, Sandbox, Tollkeeper, sandbox_says, start_sandbox, wait_until
from tests.support.wire import Wire

CATALOGUE: dict[str, Any] = json.loads((ROOT / "config" / "prices" / "catalogue.json").read_text())
BATCH = 300
THREADS = 6
RICH = "100000"
CHAT, RESPONSES = "/v1/chat/completions", "/v1/responses"
MERGED = Fraction(9, 10)
"""Part of the delivered pieces that their text, counted in one, has at least."""
TOOL_TOKENS, ITEM_TOKENS = 120, 10
"""More that we may count than the upstream: tools as their JSON, and around an item."""
MOST_HOLD_TO_CHARGE = 100_000
"""Of a response with an output cap and a cap on calls: a hosted tool that is offered and not called is held for."""
CLOSED = b"upstream_closed"
"""Error of a request that met a connection which the upstream closed without a word, as the walk has it do."""
WORDS = ("alpha", "beta", "gamma", "delta", "whale", "blue", "a longer sentence about whales", "x" * 40)


@dataclass
class Exchange:
    """One exchange: what was asked, and what came of it. Amounts in millicredits."""

    number: int
    cell: tuple[str, ...]
    request_id: str = ""
    account: str = ""
    """Of a socket, whose charges have ids of their own: an account for it alone."""
    status: int = 0
    ending: str = "ended"
    asked_tokens: int = 0
    seen_tokens: int = 0
    free: bool = False
    """No answer: nothing is charged."""
    exceeds: bool = False
    """The upstream bills more than was agreed."""
    unbilled: bool = False
    """What the upstream says that it used is nothing: its record is no bill."""
    slack_tokens: int = 0
    """Tokens that a counted input may have more than the upstream's: tools are counted as their JSON."""
    error: str = ""


@dataclass
class Findings:
    """What the walk found, and what it did."""

    wrong: list[str] = field(default_factory=list)
    cells: Counter[tuple[str, ...]] = field(default_factory=Counter)
    hold_ratios: list[tuple[float, tuple[str, ...]]] = field(default_factory=list)
    left_ratios: list[tuple[float, tuple[str, ...]]] = field(default_factory=list)

    def report(self) -> str:
        """Exchanges of each cell, and the worst ratios."""
        lines = [f"{number:6}  {' / '.join(cell)}" for cell, number in sorted(self.cells.items())]
        for title, ratios in (
            ("hold / charge", self.hold_ratios),
            ("charge / whole answer, when left", self.left_ratios),
        ):
            worst = sorted(ratios, reverse=True)[:5]
            lines.append(f"highest {title}: " + ", ".join(f"{value:.2f} ({' / '.join(cell)})" for value, cell in worst))
        lines.append(f"{sum(self.cells.values())} exchanges in {len(self.cells)} cells, {len(self.wrong)} wrong")
        return "\n".join(lines + self.wrong[:40])


# -- the bill ---------------------------------------------------------------------------------------


def rate(model: str, part: str, otherwise: str = "input") -> Fraction:
    rates = CATALOGUE["models"][model]["rates"]["default"]["short"]
    return Fraction(rates.get(part, rates.get(otherwise, "0")))


def bill(record: Mapping[str, Any], model: str) -> Fraction:
    """Millicredits of a record: its usage and its tools, by the catalogue."""
    usage, total = record["usage"] or {}, Fraction(0)
    row = CATALOGUE["models"][model]
    if usage.get("type") == "duration":
        return Fraction(row["per_second"]) * 1_000_000 * Fraction(str(usage["seconds"]))
    if "characters" in usage:
        return Fraction(row["per_character"]) * 1_000_000 * usage["characters"]
    inside = (
        usage.get("prompt_tokens_details")
        or usage.get("input_tokens_details")
        or usage.get("input_token_details")
        or {}
    )
    made = (
        usage.get("completion_tokens_details")
        or usage.get("output_tokens_details")
        or usage.get("output_token_details")
        or {}
    )
    tokens_in = usage.get("prompt_tokens", usage.get("input_tokens", 0))
    tokens_out = usage.get("completion_tokens", usage.get("output_tokens", 0))
    cached = inside.get("cached_tokens") or 0
    heard, seen = inside.get("audio_tokens") or 0, inside.get("image_tokens") or 0
    if "audio_input" not in row["rates"]["default"]["short"]:
        heard = 0
    if "image_input" not in row["rates"]["default"]["short"]:
        seen = 0
    spoken = made.get("audio_tokens") or 0
    drawn = tokens_out if row["mode"] == "image_generation" else 0
    if row["mode"] == "audio_speech":
        spoken = tokens_out
    total += (tokens_in - heard - seen - cached) * rate(model, "input") + cached * rate(model, "cached_input")
    total += heard * rate(model, "audio_input") + seen * rate(model, "image_input")
    total += spoken * rate(model, "audio_output", "output") + drawn * rate(model, "image_output", "output")
    total += (tokens_out - spoken - drawn) * rate(model, "output")
    return total + tools_of(record, model)


def tools_of(record: Mapping[str, Any], model: str) -> Fraction:
    """Millicredits of hosted tools."""
    used, total = record.get("toolUsage") or {}, Fraction(0)
    price = {name: Fraction(value) * 1_000_000 for name, value in CATALOGUE["tools"].items()}
    total += (used.get("web_search") or {}).get("num_requests", 0) * price["web_search"]
    total += (used.get("file_search") or {}).get("num_requests", 0) * price["file_search"]
    total += len((used.get("code_interpreter") or {}).get("container_ids", ())) * price["code_interpreter_1g"]
    image = used.get("image_gen") or {}
    total += image.get("input_tokens", 0) * rate("gpt-image-2", "input")
    total += image.get("output_tokens", 0) * rate("gpt-image-2", "image_output", "input")
    return total


def up(amount: Fraction) -> int:
    return -(-amount.numerator // amount.denominator)


# -- the walk ---------------------------------------------------------------------------------------


class Walk:
    """One server, one simulator, many customers."""

    def __init__(self, server: Tollkeeper, sandbox: Sandbox, seed: int) -> None:
        self.server, self.sandbox, self.seed = server, sandbox, seed
        self.found = Findings()
        self._number = 0

    def run(self, exchanges: int) -> Findings:
        """Walk in batches; every batch is judged when everything of it has ended."""
        while self._number < exchanges:
            size = min(BATCH, exchanges - self._number)
            numbers = range(self._number, self._number + size)
            self._number += size
            customers = asyncio.run(make_customers(self.server, self.sandbox, THREADS))
            customers[-1].wait_balance(parse_credits(RICH))
            self.sandbox.clear()
            with ThreadPoolExecutor(THREADS) as pool:
                spans = [numbers[start::THREADS] for start in range(THREADS)]
                done = [one for part in pool.map(self._some, customers, spans) for one in part]
            self._judge(done, customers)
        assert self.server.cli("reconcile")["ok"], "the books do not agree"
        return self.found

    def _some(self, customer: Customer, numbers: range) -> list[Exchange]:
        return [self._one(customer, number) for number in numbers]

    def _one(self, customer: Customer, number: int) -> Exchange:
        dice = random.Random(f"{self.seed} {number}")
        make = dice.choices([kind for kind, _ in KINDS], [weight for _, weight in KINDS])[0]
        exchange = Exchange(number, ())
        try:
            if make in SOCKETS:
                (customer,) = asyncio.run(make_customers(self.server, self.sandbox, 1))
                customer.wait_balance(parse_credits(RICH))
                exchange.account = customer.account_id
            make(customer, dice, exchange)
        except (OSError, AssertionError, TimeoutError, ConnectionClosed, KeyError, ValueError) as error:
            exchange.error = f"{type(error).__name__}: {error}"[:300]
        return exchange

    def _judge(self, done: list[Exchange], customers: list[Customer]) -> None:
        wait_until(lambda: all(customer.held() == 0 for customer in customers), 60, "nothing is held")
        wait_until(
            lambda: all(row["finishedAt"] for row in self.sandbox.record(brief=1) if row["status"]), 60, "all ended"
        )
        records: dict[str, list[dict[str, Any]]] = {}
        for record in self.sandbox.record(brief=1):
            records.setdefault(str(record["clientRequestId"]), []).append(record)
        charged = self._rows(done)
        for one in done:
            self.found.cells[one.cell] += 1
            theirs = charged.get(one.account or one.request_id, [])
            for problem in self._problems(one, records.get(one.request_id, []), theirs):
                self.found.wrong.append(f"#{one.number} seed {self.seed} {' / '.join(one.cell)}: {problem}")

    def _rows(self, done: list[Exchange]) -> dict[str, list[sqlite3.Row]]:
        """Rows of usage, read past our own code, by request and by account."""

        def look() -> dict[str, list[sqlite3.Row]] | None:
            with contextlib.closing(sqlite3.connect(self.server.folder / "var" / "tollkeeper.db")) as database:
                database.row_factory = sqlite3.Row
                rows = database.execute(
                    "SELECT charge_id, account_id, charged_millicredits AS charged, held_millicredits AS held, "
                    "loss_millicredits AS loss, outcome, usage_source FROM usage"
                ).fetchall()
            found: dict[str, list[sqlite3.Row]] = {}
            for row in rows:
                found.setdefault(row["charge_id"], []).append(row)
                found.setdefault(row["account_id"], []).append(row)
            wanted = [one.account or one.request_id for one in done if one.request_id and not (one.free or one.error)]
            return found if all(name in found for name in wanted) else None

        try:
            found: dict[str, list[sqlite3.Row]] = wait_until(look, 20, "all charges are booked")
        except AssertionError:
            return {}
        return found

    def _problems(self, one: Exchange, records: list[dict[str, Any]], rows: list[sqlite3.Row]) -> Iterator[str]:
        """Whatever is wrong with an exchange."""
        if one.error:
            yield one.error
            return
        charge = sum(row["charged"] for row in rows)
        if one.free:
            if charge:
                yield f"charged {charge} for no answer"
            return
        if one.account:
            records = [record for record in records if record["usage"]]  # the socket itself has a record as well
        if one.account and one.ending == "ended":
            owed = sum(up(bill(record, self._model_of(record))) for record in records)
            if charge != owed or len(rows) != len(records):
                yield f"{len(rows)} charges of {charge} in all, {len(records)} bills of {owed}"
            return
        if len(rows) != 1 or len(records) != 1:
            yield f"{len(rows)} charges for {len(records)} records"
            return
        (row,), (record,) = rows, records
        model = self._model_of(record)
        owed, whole = bill(record, model), self._whole(one, record, model)
        if row["loss"] and not one.exceeds:
            yield f"a loss of {row['loss']}"
        if row["held"] < charge and not one.exceeds:
            yield f"held {row['held']}, charged {charge}"
        if charge:
            self.found.hold_ratios.append((row["held"] / charge, one.cell))
        if record["outcome"] == "completed" and one.ending == "ended":
            if row["usage_source"] != "upstream" and "tts-1" not in one.cell:
                yield f"it ended, and was charged by what was {row['usage_source']}"
            if charge != up(owed):
                yield f"charged {charge}, the bill is {up(owed)} ({row['outcome']}, {row['usage_source']}) {record['usage']}"
            return
        least = self._least(one, record, model)
        slack = one.slack_tokens * rate(model, "input") + 1
        if HOSTED["image_generation"]["type"] in one.cell:  # which reads the same input, at most twice
            slack += 2 * one.slack_tokens * rate("gpt-image-2", "input")
        if charge > whole + slack and not one.unbilled:
            yield f"charged {charge}, the whole answer costs {up(whole)} ({row['outcome']}, {row['usage_source']})"
        if charge < least:
            yield f"charged {charge}, what was delivered costs {up(least)} ({row['outcome']}, {row['usage_source']})"
        if whole:
            self.found.left_ratios.append((float(charge / whole), one.cell))

    @staticmethod
    def _model_of(record: Mapping[str, Any]) -> str:
        name = str(record["model"])
        return name if name in CATALOGUE["models"] else name.rsplit("-", 3)[0]

    @staticmethod
    def _whole(one: Exchange, record: Mapping[str, Any], model: str) -> Fraction:
        """Bill of the answer as it was asked for: the record's where it ran to its end unseen."""
        owed = bill(record, model)
        if record["outcome"] == "completed":
            return owed
        usage = record["usage"] or {}
        out = usage.get("completion_tokens", usage.get("output_tokens", 0))
        return owed + max(0, one.asked_tokens - out) * rate(model, "output")

    @staticmethod
    def _least(one: Exchange, record: Mapping[str, Any], model: str) -> Fraction:
        """Bill of what the client has seen, nothing where it saw nothing and the upstream broke."""
        if one.ending == "cut" and not one.seen_tokens:
            return Fraction(0)
        return one.seen_tokens * MERGED * rate(model, "output")


# -- kinds of exchanges -----------------------------------------------------------------------------


def text_of(dice: random.Random) -> str:
    return " ".join(dice.choice(WORDS) for _ in range(dice.randint(1, 30)))


def oddity_of(dice: random.Random, one: Exchange) -> dict[str, Any]:
    """A way in which the upstream may be odd and still right."""
    name, directive = dice.choice(ODDITIES)
    one.cell += (name,)
    return dict(directive)


ODDITIES: list[tuple[str, dict[str, Any]]] = [
    ("plain", {}),
    ("plain", {}),
    ("plain", {}),
    ("CRLF", {"crlf_events": True}),
    ("pieces of 7 bytes", {"split_bytes": 7}),
    ("usage in every event", {"usage_on": "every"}),
    ("until the end of file", {"close_delimited": True}),
    ("no length", {"close_after": True}),
]


def ending_of(dice: random.Random, one: Exchange, *, stream: bool) -> tuple[str, dict[str, Any]]:
    """How it ends, and the directive for it."""
    choices = ["ended"] * 6 + ["error", "half"]
    if stream:
        choices += ["left"] * 3 + ["cut", "cut", "error inside"]
    ending = dice.choice(choices)
    one.ending = ending
    one.cell += (ending,)
    if ending == "error":
        one.free = True
        return ending, {"status": dice.choice((400, 429, 500, 503))}
    if ending == "half":
        one.ending = "cut"
        one.free = not stream
        return ending, {"cut": {"after_chunks": 0}} if stream else {"cut": {"after_chunks": 1}}
    if ending == "cut":
        return ending, {"cut": {"after_chunks": dice.randint(1, 12)}, "chunk_interval_ms": 1}
    if ending == "error inside":
        one.ending = "cut"
        return ending, {"error_after_chunks": dice.randint(1, 12)}
    if ending == "left":
        return ending, {"chunk_interval_ms": 8}
    return ending, {}


def streamed(customer: Customer, body: dict[str, Any], path: str, dice: random.Random, one: Exchange) -> None:
    """Ask for a stream; read it, or leave in the middle."""
    with Wire(customer, {"stream": True, **body}, path) as wire:
        one.status = wire.answer.status
        one.request_id = wire.request_id
        if one.ending == "left" and one.status == 200:
            said = b""
            with contextlib.suppress(AssertionError):  # it was shorter than that: it ended before anyone could leave
                said = wire.read_events(dice.randint(1, 12))
        else:
            said = wire.read_all().data
        one.seen_tokens = said.count(b'"delta":{"content":"') + said.count(b"output_text.delta") // 2
        if one.status == 200 and b'"delta":{"content":""' in said:
            one.seen_tokens -= 1
    one.free = one.free or (one.status == 502 and CLOSED in said)
    assert one.status == 200 or one.free, said[:300]


def whole(customer: Customer, body: Mapping[str, Any] | bytes, path: str, one: Exchange, **headers: str) -> None:
    answer = customer.post(body, path, **headers)
    one.status, one.request_id = answer.status_code, answer.headers["x-request-id"]
    one.free = one.free or (one.status == 502 and CLOSED in answer.content)
    assert answer.status_code == 200 or one.free, answer.text[:300]


CALLED = {"name": "run_sql", "description": "d"}
FORCED: dict[str, dict[str, Any]] = {
    "function called": {
        "tools": [{"type": "function", "function": {**CALLED, "parameters": {"type": "object"}}}],
        "tool_choice": "required",
    },
    "custom tool called": {"tools": [{"type": "custom", "custom": CALLED}], "tool_choice": "required"},
    "legacy function called": {
        "functions": [{**CALLED, "parameters": {"type": "object"}}],
        "function_call": {"name": "run_sql"},
    },
}
"""Calls whose arguments are the directive's `text`."""


def chat(customer: Customer, dice: random.Random, one: Exchange) -> None:
    model = dice.choice(("gpt-4o-mini", "gpt-4.1", "gpt-5.4-mini"))
    stream = dice.random() < 0.6
    tools = dice.choice(("no tools", "no tools", "function", *FORCED))
    one.cell = ("chat", "stream" if stream else "whole", model, tools)
    ending, directive = ending_of(dice, one, stream=stream)
    if ending == "ended":
        directive |= oddity_of(dice, one)
    one.asked_tokens = dice.randint(1, 60)
    if tools in FORCED:
        directive["text"] = "SELECT whale " * dice.randint(1, 12)
    said = sandbox_says(output_tokens=one.asked_tokens, reasoning_tokens=0, **directive)
    body: dict[str, Any] = {"model": model, "messages": [{"role": "user", "content": f"{text_of(dice)} {said}"}]}
    if dice.random() < 0.7:
        body["max_completion_tokens"] = 100
    if tools == "function":
        one.slack_tokens = TOOL_TOKENS
        body["tools"] = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    if tools in FORCED:
        one.slack_tokens = TOOL_TOKENS
        body |= FORCED[tools]
    if stream and dice.random() < 0.5:
        body["stream_options"] = {"include_usage": True}
    ask(customer, body, CHAT, dice, one, stream=stream)


def ask(
    customer: Customer, body: dict[str, Any], path: str, dice: random.Random, one: Exchange, *, stream: bool
) -> None:
    if stream:
        streamed(customer, body, path, dice, one)
    else:
        whole(customer, body, path, one)


HOSTED: dict[str, dict[str, Any]] = {
    "web_search": {"type": "web_search"},
    "file_search": {"type": "file_search", "vector_store_ids": []},
    "image_generation": {"type": "image_generation", "model": "gpt-image-2", "quality": "low", "size": "1024x1024"},
    "code_interpreter": {"type": "code_interpreter", "container": {"type": "auto"}},
}


def responses(customer: Customer, dice: random.Random, one: Exchange) -> None:
    model = dice.choice(("gpt-5.4-mini", "gpt-5.1"))
    stream = dice.random() < 0.5
    tool = dice.choice(("no tools", "function", *HOSTED))
    place = dice.choice(("top", "item", "namespace")) if tool in HOSTED else "top"
    one.cell = ("responses", "stream" if stream else "whole", model, tool, place)
    ending, directive = ending_of(dice, one, stream=stream)
    if ending == "ended":
        directive |= oddity_of(dice, one)
    one.asked_tokens = dice.randint(1, 60)
    if tool in HOSTED:
        directive["calls"] = [tool] * dice.randint(0, 2)
    said = sandbox_says(output_tokens=one.asked_tokens, reasoning_tokens=0, **directive)
    items: list[dict[str, Any]] = [{"role": "user", "content": f"{text_of(dice)} {said}"}]
    body: dict[str, Any] = {"model": model, "input": items, "max_output_tokens": 100, "max_tool_calls": 3}
    offered = HOSTED.get(tool, {"type": "function", "name": "f", "parameters": {"type": "object"}})
    one.slack_tokens = ITEM_TOKENS if tool == "no tools" else TOOL_TOKENS
    if tool != "no tools" and place == "top":
        body["tools"] = [offered]
    elif place == "namespace":
        body["tools"] = [{"type": "namespace", "name": "n", "description": "d", "tools": [offered]}]
    elif place == "item":
        items.insert(0, {"type": "additional_tools", "role": "developer", "tools": [offered]})
    ask(customer, body, RESPONSES, dice, one, stream=stream)


def failed(customer: Customer, dice: random.Random, one: Exchange) -> None:
    """A response that ends in response.failed, without output and without or with usage."""
    stream, usage = dice.random() < 0.5, dice.random() < 0.5
    one.cell = ("responses", "stream" if stream else "whole", "failed", "with usage" if usage else "without usage")
    said = sandbox_says(failed={"usage": usage}, output_tokens=0)
    one.free = True
    body = {"model": "gpt-4.1", "input": f"{text_of(dice)} {said}", "max_output_tokens": 100}
    ask(customer, body, RESPONSES, dice, one, stream=stream)


def without_usage(customer: Customer, dice: random.Random, one: Exchange) -> None:
    """A whole answer whose usage is null, zero, or unbelievable: its text is counted."""
    told = dice.choice((None, {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}, "nonsense"))
    stream = dice.random() < 0.5
    one.cell = ("chat", "stream" if stream else "whole", "usage", "zero" if isinstance(told, dict) else str(told))
    one.asked_tokens = one.seen_tokens = dice.randint(5, 60)
    one.ending, one.unbilled = "left", isinstance(told, dict)
    said = sandbox_says(output_tokens=one.asked_tokens, usage=told)
    body = {"model": "gpt-4.1", "messages": [{"role": "user", "content": f"{text_of(dice)} {said}"}], "max_tokens": 100}
    ask(customer, body, CHAT, dice, one, stream=stream)


def above_the_cap(customer: Customer, dice: random.Random, one: Exchange) -> None:
    one.cell = ("chat", "whole", "above the cap")
    one.exceeds = True
    said = sandbox_says(output_tokens=dice.randint(20, 60), ignore_cap=True)
    body = {"model": "gpt-4.1", "messages": [{"role": "user", "content": f"{text_of(dice)} {said}"}], "max_tokens": 10}
    whole(customer, body, CHAT, one)


def prompts(customer: Customer, dice: random.Random, one: Exchange) -> None:
    if dice.random() < 0.5:
        one.cell = ("embeddings", "whole")
        whole(customer, {"model": "text-embedding-3-small", "input": text_of(dice)}, "/v1/embeddings", one)
        return
    one.cell = ("completions", "whole")
    one.asked_tokens = dice.randint(1, 15)
    said = sandbox_says(output_tokens=one.asked_tokens)
    body = {"model": "gpt-3.5-turbo-instruct", "prompt": f"{text_of(dice)} {said}"}
    whole(customer, body, "/v1/completions", one)


def images(customer: Customer, dice: random.Random, one: Exchange) -> None:
    quality = dice.choice(("low", "medium"))
    one.cell = ("images", "whole", quality)
    body = {"model": "gpt-image-2", "prompt": text_of(dice), "quality": quality, "size": "1024x1024"}
    whole(customer, body, "/v1/images/generations", one)


def speech(customer: Customer, dice: random.Random, one: Exchange) -> None:
    model, form = dice.choice(("gpt-4o-mini-tts", "tts-1")), dice.choice(("mp3", "pcm"))
    one.cell = ("speech", "sound", model, form)
    body = {"model": model, "input": text_of(dice), "voice": "alloy", "response_format": form}
    whole(customer, body, "/v1/audio/speech", one)


def transcription(customer: Customer, dice: random.Random, one: Exchange) -> None:
    model = dice.choice(("whisper-1", "gpt-4o-transcribe", "gpt-transcribe"))
    stream = dice.choice(("", "true", "True", "1", "false"))
    forms = {"whisper-1": ("json", "srt", "verbose_json")}.get(model, ("json",))
    chosen = dice.choice(forms)
    one.cell = ("transcriptions", model, chosen, f"stream={stream}")
    seconds = dice.randint(1, 90)
    fields = {"model": model, "response_format": chosen, "prompt": sandbox_says(seconds=seconds)}
    if stream:
        fields["stream"] = stream
    parts = [f'--b\r\nContent-Disposition: form-data; name="{k}"\r\n\r\n{v}\r\n' for k, v in fields.items()]
    head = '--b\r\nContent-Disposition: form-data; name="file"; filename="a.mp3"\r\n\r\n'
    body = "".join(parts).encode() + head.encode() + b"\xff\xfb\x90\0" * 12_000 + b"\r\n--b--\r\n"
    whole(customer, body, "/v1/audio/transcriptions", one, content_type="multipart/form-data; boundary=b")


def socket_response(customer: Customer, dice: random.Random, one: Exchange) -> None:
    """One response on a WebSocket, read to its end or left; its charge is found by the response's own id."""
    one.cell = ("responses", "socket", lane := dice.choice(("no lane", "", "a lane")))
    leaves = dice.random() < 0.3
    one.cell += ("left" if leaves else "ended",)
    one.ending = "left" if leaves else "ended"
    one.asked_tokens = dice.randint(10, 60)
    said = sandbox_says(output_tokens=one.asked_tokens, chunk_interval_ms=8 if leaves else 0)
    event = {
        "type": "response.create",
        "model": "gpt-4.1",
        "input": f"{text_of(dice)} {said}",
        "max_output_tokens": 100,
    }
    if lane != "no lane":
        event["stream_id"] = lane
    url = customer.server.v1.replace("http://", "ws://") + "/responses"
    limit = dice.randint(3, 10)
    with connect(url, additional_headers=customer.headers, open_timeout=10) as socket:
        assert socket.response is not None
        one.request_id = socket.response.headers["x-request-id"]
        socket.send(json.dumps(event))
        if dice.random() < 0.3:
            socket.send(json.dumps({"type": "response.cancel", **({"stream_id": lane} if lane != "no lane" else {})}))
        while True:
            frame = json.loads(socket.recv(timeout=20))
            one.seen_tokens += frame["type"] == "response.output_text.delta"
            if frame["type"].startswith(("response.completed", "response.incomplete")):
                one.ending = "ended"
                return
            if leaves and one.seen_tokens >= limit:
                return


def realtime(customer: Customer, dice: random.Random, one: Exchange) -> None:
    """A turn of a spoken session, with what it heard transcribed; the sum of its charges is compared."""
    transcriber = dice.choice(("none", "whisper-1", "gpt-4o-transcribe"))
    late = dice.choice((0, 60))
    one.cell = ("realtime", "socket", transcriber, f"transcript after {late} ms")
    sound = base64.b64encode(b"\0" * 48_000 * dice.randint(1, 5)).decode()
    heard = None if transcriber == "none" else {"model": transcriber}
    said = sandbox_says(output_tokens=dice.randint(1, 20), transcription={"latency_ms": late, "text": "hello there"})
    session = {
        "type": "realtime",
        "instructions": said,
        "output_modalities": [dice.choice(("text", "audio"))],
        "audio": {"input": {"transcription": heard, "turn_detection": None}},
    }
    url = customer.server.v1.replace("http://", "ws://") + "/realtime?model=gpt-realtime-2.1"
    with connect(url, additional_headers=customer.headers, open_timeout=10, max_size=None) as socket:
        assert socket.response is not None
        one.request_id = socket.response.headers["x-request-id"]
        wanted = {"response.done"}
        if heard is not None:
            wanted.add("conversation.item.input_audio_transcription.completed")
        for event in (
            {"type": "session.update", "session": session},
            {"type": "input_audio_buffer.append", "audio": sound},
            {"type": "input_audio_buffer.commit"},
            {"type": "response.create"},
        ):
            socket.send(json.dumps(event))
        while wanted:
            frame = json.loads(socket.recv(timeout=20))
            assert frame["type"] != "error", frame
            wanted.discard(frame["type"])


KINDS: list[tuple[Callable[[Customer, random.Random, Exchange], None], int]] = [
    (chat, 36),
    (responses, 26),
    (failed, 3),
    (without_usage, 4),
    (above_the_cap, 2),
    (prompts, 3),
    (images, 3),
    (speech, 4),
    (transcription, 9),
    (socket_response, 6),
    (realtime, 4),
]
SOCKETS = (socket_response, realtime)


async def make_customers(server: Tollkeeper, sandbox: Sandbox, number: int) -> list[Customer]:
    """New accounts with the same credits, made beside the running server."""
    database = Database(f"sqlite+aiosqlite:///{server.folder}/var/tollkeeper.db", 1, 5.0)
    found = []
    try:
        accounts, ledger = Accounts(database), Ledger(database)
        for _ in range(number):
            account_id = await accounts.create("walk")
            _, secret = await accounts.create_key(account_id, KeyRules())
            await ledger.grant(account_id, parse_credits(RICH), f"grant_{account_id}", "test", "test")
            found.append(Customer(server, account_id, secret, sandbox))
    finally:
        await database.close()
    return found


CONFIGURATION = """
[billing]
allowed_tools = ["web_search", "file_search", "image_generation", "code_interpreter"]
"""


@contextlib.contextmanager
def walked(folder: Path, seed: int) -> Iterator[Walk]:
    """A served product over a simulator, ready to be walked."""
    sandbox = start_sandbox()
    server = Tollkeeper(folder, {"TOLLKEEPER_UPSTREAM__BASE_URL": sandbox.url})
    try:
        (folder / "proxy.toml").write_text(CONFIGURATION)
        yield Walk(server.start(), sandbox, seed)
    finally:
        server.kill()
        sandbox.stop()


def main() -> int:
    """Walk, and print what was found; 1 when anything was wrong."""
    options = argparse.ArgumentParser(description="Compare charges with the simulator's own bills on a random walk.")
    options.add_argument("--exchanges", type=int, default=20_000)
    options.add_argument("--seed", type=int, default=int(time.time()))
    given = options.parse_args()
    with tempfile.TemporaryDirectory(prefix="tkw") as name, walked(Path(name), given.seed) as walk:
        found = walk.run(given.exchanges)
    print(found.report())
    return 1 if found.wrong else 0


if __name__ == "__main__":
    sys.exit(main())

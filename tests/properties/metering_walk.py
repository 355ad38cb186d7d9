"""A seeded random walk over what can be asked and how it can end, each charge compared with the simulator's own bill.

python -m tests.properties.metering_walk [--exchanges 20000] [--seed N] [--upstreams 1]

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
import re
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
from tests.support import web
from tests.support.served import Customer
from tests.support.servers import ROOT, UPSTREAM_KEY, Sandbox, Tollkeeper, sandbox_says, start_sandbox, wait_until
from tests.support.voice import COMMIT, OFFER, RESPOND, SPEAK, VOICE, control, hang_up, play, says, secret_of
from tests.support.wire import Wire

CATALOGUE: dict[str, Any] = json.loads((ROOT / "config" / "prices" / "catalogue.json").read_text())
BATCH = 300
THREADS = 6
RICH = "100000"
CHAT, RESPONSES = "/v1/chat/completions", "/v1/responses"
BATCHED, BACKGROUND, CALL = "batch", "background", "call"
JOB_ENDED = ("completed", "incomplete")
MERGED = Fraction(9, 10)
"""Part of the delivered pieces that their text, counted in one, has at least."""
TOOL_TOKENS, ITEM_TOKENS = 120, 10
"""More that we may count than the upstream: tools as their JSON, and around an item."""
MOST_HOLD_TO_CHARGE = 100_000
"""Of a response with an output cap and a cap on calls: a hosted tool that is offered and not called is held for."""
CLOSED = b"upstream_closed"
"""Error of a request that met a connection which the upstream closed without a word, as the walk has it do."""
CUT = b"upstream_cut"
"""Error of a stream that broke off before anything of it could be shown."""
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
    seen_calls: Counter[str] = field(default_factory=Counter)
    """Finished calls of hosted tools that have a fee, which the client has seen, by the names of their prices."""
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


def rate(model: str, part: str, otherwise: str = "input", tier: str = "default") -> Fraction:
    rates = CATALOGUE["models"][model]["rates"][tier]["short"]
    return Fraction(rates.get(part, rates.get(otherwise, "0")))


def bill(record: Mapping[str, Any], model: str) -> Fraction:
    """Millicredits of a record: its usage and its tools, by the catalogue."""
    usage, total = record["usage"] or {}, Fraction(0)
    if usage.get("type") == "search":
        return tools_of(record, model)
    row = CATALOGUE["models"][model]
    if record["serviceTier"] == BATCHED:
        return batch_bill(usage, model)
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
    kept = inside.get("cached_tokens_details") or {}
    cached_heard, cached_seen = kept.get("audio_tokens") or 0, kept.get("image_tokens") or 0
    total += cached_heard * rate(model, "cached_audio_input") + cached_seen * rate(model, "cached_image_input")
    heard, seen, cached = heard - cached_heard, seen - cached_seen, cached - cached_heard - cached_seen
    text = tokens_in - heard - seen - cached - cached_heard - cached_seen
    total += text * rate(model, "input") + cached * rate(model, "cached_input")
    total += heard * rate(model, "audio_input") + seen * rate(model, "image_input")
    total += spoken * rate(model, "audio_output", "output") + drawn * rate(model, "image_output", "output")
    total += (tokens_out - spoken - drawn) * rate(model, "output")
    return total + tools_of(record, model)


def batch_bill(usage: Mapping[str, Any], model: str) -> Fraction:
    """Millicredits of all lines of a batch together."""
    cached = (usage.get("input_tokens_details") or {}).get("cached_tokens", 0)
    total = (usage.get("input_tokens", 0) - cached) * rate(model, "input", tier=BATCHED)
    total += cached * rate(model, "cached_input", tier=BATCHED)
    return total + usage.get("output_tokens", 0) * rate(model, "output", tier=BATCHED)


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

    def __init__(self, server: Tollkeeper, sandbox: Sandbox, seed: int, others: Mapping[str, Sandbox] = {}) -> None:  # noqa: B006 - read only
        """`others`: further upstreams, by their names in usage rows; the first one is "" there."""
        self.server, self.sandbox, self.seed = server, sandbox, seed
        self.places = {"": sandbox, **others}
        self.found = Findings()
        self._number = 0
        self._alone: dict[int, Customer] = {}
        """Customers of what has an account for it alone, by its number."""

    def run(self, exchanges: int) -> Findings:
        """Walk in batches; every batch is judged when everything of it has ended."""
        while self._number < exchanges:
            size = min(BATCH, exchanges - self._number)
            numbers = range(self._number, self._number + size)
            self._number += size
            alone = [number for number in numbers if self._kind(number) in SOCKETS]
            made = asyncio.run(make_customers(self.server, self.sandbox, THREADS + len(alone)))
            made[-1].wait_balance(parse_credits(RICH))
            customers, self._alone = made[:THREADS], dict(zip(alone, made[THREADS:], strict=True))
            for place in self.places.values():
                place.clear()
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
        exchange = Exchange(number, ())
        try:
            if number in self._alone:
                customer = self._alone[number]
                customer.wait_balance(parse_credits(RICH), 20)
                exchange.account = customer.account_id
            self._kind(number)(customer, dice, exchange)
        except (OSError, AssertionError, TimeoutError, ConnectionClosed, KeyError, ValueError) as error:
            exchange.error = f"{type(error).__name__}: {error}"[:300]
        return exchange

    def _kind(self, number: int) -> "Kind":
        """What is made by that number."""
        known = [one for one in KINDS if len(self.places) == 1 or one[0] not in OF_ONE_PLACE]
        dice = random.Random(f"{self.seed} kind {number}")
        return dice.choices([kind for kind, _ in known], [weight for _, weight in known])[0]

    def _judge(self, done: list[Exchange], customers: list[Customer]) -> None:
        wait_until(lambda: all(customer.held() == 0 for customer in customers), 60, "nothing is held")
        try:
            wait_until(lambda: not self._running(), 60, "all ended")
        except AssertionError as error:
            raise AssertionError(f"{error}: {self._running()}") from None
        records: dict[str, list[dict[str, Any]]] = {}
        for record in self._record():
            records.setdefault(str(record["clientRequestId"]), []).append(record)
        charged = self._rows(done)
        for one in done:
            self.found.cells[one.cell] += 1
            theirs = charged.get(one.account or one.request_id, [])
            for problem in self._problems(one, records.get(one.request_id, []), theirs):
                self.found.wrong.append(f"#{one.number} seed {self.seed} {' / '.join(one.cell)}: {problem}")

    def _record(self) -> list[dict[str, Any]]:
        """Everything that the upstreams say they served, and which of them."""
        return [{**row, "place": name} for name, place in self.places.items() for row in place.record(brief=1)]

    def _running(self) -> list[str]:
        """What the upstreams have begun to answer and not ended."""
        shown = ("clientRequestId", "transport", "path", "query", "model", "outcome", "jobStatus", "callId")
        running = (row for row in self._record() if row["status"] and not row["finishedAt"])
        return [" ".join(str(row[name]) for name in shown) for row in running]

    def _rows(self, done: list[Exchange]) -> dict[str, list[sqlite3.Row]]:
        """Rows of usage, read past our own code, by request and by account."""

        def look() -> dict[str, list[sqlite3.Row]] | None:
            with contextlib.closing(sqlite3.connect(self.server.folder / "var" / "tollkeeper.db")) as database:
                database.row_factory = sqlite3.Row
                rows = database.execute(
                    "SELECT charge_id, account_id, charged_millicredits AS charged, held_millicredits AS held, "
                    "loss_millicredits AS loss, outcome, usage_source, upstream FROM usage"
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
        if one.cell[0] == CALL:
            yield from self._left(one, records, rows)
            return
        if one.cell[0] == BATCHED:
            records = [record for record in records if record["serviceTier"] == BATCHED]  # not of its files
        if len(rows) == 1 and len(records) > 1:  # the others were asked before it, and it is charged by who served it
            records = [record for record in records if record["place"] == rows[0]["upstream"]]
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
        ended = record["outcome"] == "completed" and one.ending == "ended"
        if record["jobStatus"] in JOB_ENDED or (ended and record["jobStatus"] is None):
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

    def _left(self, one: Exchange, records: list[dict[str, Any]], rows: list[sqlite3.Row]) -> Iterator[str]:
        """Whatever is wrong with the charges of a call that its browser left, all of them together."""
        charge, loss = sum(row["charged"] for row in rows), sum(row["loss"] for row in rows)
        owed = sum((bill(record, self._model_of(record)) for record in records), Fraction(0))
        whole = owed + one.asked_tokens * rate(VOICE, "audio_output")
        if loss:
            yield f"a loss of {loss}"
        if any(row["held"] < row["charged"] for row in rows):
            yield f"held {[row['held'] for row in rows]}, charged {[row['charged'] for row in rows]}"
        if not 0 < charge <= whole:
            yield f"charged {charge} in all, the whole answers cost {up(whole)}"
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
        if one.ending == "cut" and not one.seen_tokens and not one.seen_calls.total():
            return Fraction(0)
        fees = sum(number * Fraction(CATALOGUE["tools"][name]) for name, number in one.seen_calls.items()) * 1_000_000
        return one.seen_tokens * MERGED * rate(model, "output") + fees


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
    ("CR", {"cr_events": True}),
    ("gzip", {"content_encoding": "gzip"}),
    ("deflate, CR", {"content_encoding": "deflate", "cr_events": True}),
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
        for name, kind in FEES.items():
            one.seen_calls[name] = len(re.findall(rb'"type":"response.output_item.done"[^\n]*"type":"%b"' % kind, said))
        if path == CHAT:
            one.seen_tokens += len(WRITTEN_FOR_A_TOOL.findall(said))
    one.free = one.free or (one.status == 502 and (CLOSED in said or (one.ending == "cut" and CUT in said)))
    assert one.status == 200 or one.free, said[:300]


def whole(customer: Customer, body: Mapping[str, Any] | bytes, path: str, one: Exchange, **headers: str) -> None:
    answer = customer.post(body, path, **headers)
    one.status, one.request_id = answer.status_code, answer.headers["x-request-id"]
    one.free = one.free or (one.status == 502 and CLOSED in answer.content)
    assert answer.status_code == 200 or one.free, answer.text[:300]


FEES = {"web_search": b"web_search_call", "file_search": b"file_search_call"}
"""Prices of calls, and the items that such calls are."""
WRITTEN_FOR_A_TOOL = re.compile(rb'"(?:arguments|input)":"(?:[^"\\]|\\.)+"')
"""Pieces of the arguments of a tool's call, or of its input."""
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
    model = dice.choice(("gpt-5.4-mini", "gpt-5.1", "gpt-4.1"))
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


def stored(customer: Customer, dice: random.Random, one: Exchange) -> None:
    """A response that reads a conversation made for it, once or twice added to, or a file."""
    model, stream = dice.choice(("gpt-5.4-mini", "gpt-4.1")), dice.random() < 0.5
    kind = dice.choice(("conversation", "conversation that grew", "file", "uploaded file"))
    one.cell = ("responses", "stream" if stream else "whole", model, kind)
    ending, directive = ending_of(dice, one, stream=stream)
    if ending == "ended":
        directive |= oddity_of(dice, one)
    one.asked_tokens, one.slack_tokens = dice.randint(1, 60), ITEM_TOKENS * 7
    said = sandbox_says(output_tokens=one.asked_tokens, reasoning_tokens=0, **directive)
    cap = dice.choice((max(16, one.asked_tokens), 100))  # a small one does not cover by chance what is stored
    body: dict[str, Any] = {"model": model, "max_output_tokens": cap}
    url, words = customer.server.v1, [{"type": "input_text", "text": f"{text_of(dice)} {said}"}]
    if kind in ("file", "uploaded file"):
        data = b"%PDF" + dice.randbytes(4_000)
        file = sent_in_parts(customer, data) if kind != "file" else sent_whole(customer, data)
        words.append({"type": "input_file", "file_id": file})
    else:
        long = dice.randint(1, 8)
        items = [
            {"role": "user", "content": " ".join(text_of(dice) for _ in range(long))} for _ in range(dice.randint(1, 3))
        ]
        made = web.post(f"{url}/conversations", headers=customer.headers, timeout=20, json={"items": items}).json()[
            "id"
        ]
        if kind != "conversation":
            web.post(f"{url}/conversations/{made}/items", headers=customer.headers, timeout=20, json={"items": items})
        body["conversation"] = made
    ask(customer, body | {"input": [{"role": "user", "content": words}]}, RESPONSES, dice, one, stream=stream)


def sent_whole(customer: Customer, data: bytes) -> str:
    form = {"files": {"file": ("a.pdf", data)}, "data": {"purpose": "user_data"}}
    name: str = web.post(f"{customer.server.v1}/files", headers=customer.headers, timeout=20, **form).json()["id"]
    return name


def sent_in_parts(customer: Customer, data: bytes) -> str:
    """A file by way of /v1/uploads, in two parts."""
    about = {"filename": "a.pdf", "mime_type": "application/pdf", "purpose": "user_data", "bytes": len(data)}
    upload = customer.post(about, "/v1/uploads").json()["id"]
    parts = []
    for part in (data[:1_000], data[1_000:]):
        at = f"{customer.server.v1}/uploads/{upload}/parts"
        parts.append(web.post(at, headers=customer.headers, timeout=20, files={"data": ("p", part)}).json()["id"])
    name: str = customer.post({"part_ids": parts}, f"/v1/uploads/{upload}/complete").json()["file"]["id"]
    return name


def history(customer: Customer, dice: random.Random, one: Exchange) -> None:
    """A response to a history that holds what is no text: pictures that were drawn, and what only OpenAI can read."""
    model, stream = dice.choice(("gpt-5.1", "gpt-4.1")), dice.random() < 0.6
    item = dice.choice(list(HISTORY))
    one.cell = ("responses", "stream" if stream else "whole", model, f"{item} in the history")
    ending, directive = ending_of(dice, one, stream=stream)
    one.asked_tokens, one.slack_tokens = dice.randint(1, 60), PICTURE_TOKENS
    said = sandbox_says(output_tokens=one.asked_tokens, reasoning_tokens=0, **directive)
    encoded = base64.b64encode(dice.randbytes(dice.randint(10, 20_000))).decode()
    items = [
        {**HISTORY[item], "id": "it_1", ENCODED[item]: encoded},
        {"role": "user", "content": f"{text_of(dice)} {said}"},
    ]
    ask(customer, {"model": model, "input": items, "max_output_tokens": 100}, RESPONSES, dice, one, stream=stream)


PICTURE_TOKENS = 1_500
"""Tokens of a picture of unknown size at most, of which the simulator counts none, and around the items."""
HISTORY: dict[str, dict[str, Any]] = {
    "a picture": {"type": "image_generation_call", "status": "completed"},
    "a thought": {"type": "reasoning", "summary": []},
}
ENCODED = {"a picture": "result", "a thought": "encrypted_content"}


def built_on(customer: Customer, dice: random.Random, one: Exchange) -> None:
    """A request that builds on a stored response: the next response, its compaction, or a count of its tokens."""
    way = dice.choice(("previous", "previous", "item", "compact", "count"))
    stream = way in ("previous", "item") and dice.random() < 0.5
    one.cell = ("responses", "stream" if stream else "whole", f"built on: {way}")
    said = sandbox_says(output_tokens=dice.randint(16, 60), reasoning_tokens=0)
    first = customer.post({"model": "gpt-4.1", "input": f"{text_of(dice)} {said}", "max_output_tokens": 100}, RESPONSES)
    made = first.json()
    if way in ("compact", "count"):
        path = f"{RESPONSES}/{'compact' if way == 'compact' else 'input_tokens'}"
        one.free = way == "count"
        whole(customer, {"model": "gpt-4.1", "previous_response_id": made["id"]}, path, one)
        return
    ending, directive = ending_of(dice, one, stream=stream)
    one.asked_tokens, one.slack_tokens = dice.randint(1, 60), ITEM_TOKENS * 7
    said = sandbox_says(output_tokens=one.asked_tokens, reasoning_tokens=0, **directive)
    body: dict[str, Any] = {"model": "gpt-4.1", "input": f"{text_of(dice)} {said}", "max_output_tokens": 100}
    if way == "previous":
        body["previous_response_id"] = made["id"]
    else:
        body["input"] = [
            {"type": "item_reference", "id": made["output"][0]["id"]},
            {"role": "user", "content": body["input"]},
        ]
    ask(customer, body, RESPONSES, dice, one, stream=stream)


def batch(customer: Customer, dice: random.Random, one: Exchange) -> None:
    """A file of a few lines, of which some fail."""
    path, model = dice.choice((CHAT, RESPONSES)), dice.choice(("gpt-4o-mini", "gpt-4.1", "gpt-5.4-mini"))
    one.cell = (BATCHED, path, model)
    rows = []
    for number in range(dice.randint(2, 6)):
        said = sandbox_says(
            output_tokens=dice.randint(1, 60), **({"status": 500} if number and dice.random() < 0.2 else {})
        )
        text = f"{text_of(dice)} {said}"
        asked = {"input": text} if path == RESPONSES else {"messages": [{"role": "user", "content": text}]}
        body = {
            "model": model,
            **asked,
            **({"max_output_tokens": 100} if path == RESPONSES else {"max_completion_tokens": 100}),
        }
        rows.append(json.dumps({"custom_id": f"l{number}", "method": "POST", "url": path, "body": body}))
    made = web.post(
        f"{customer.server.v1}/files",
        data={"purpose": BATCHED},
        files={"file": ("in.jsonl", "\n".join(rows).encode())},
        headers=customer.headers,
        timeout=20,
    )
    whole(
        customer, {"input_file_id": made.json()["id"], "endpoint": path, "completion_window": "24h"}, "/v1/batches", one
    )


def store_of(customer: Customer, dice: random.Random) -> str:
    """A vector store of the customer's with one file, read by the upstream."""
    sent = web.post(
        f"{customer.server.v1}/files",
        data={"purpose": "assistants"},
        files={"file": ("a.txt", " ".join(text_of(dice) for _ in range(30)).encode())},
        headers=customer.headers,
        timeout=20,
    )
    made = customer.post({"file_ids": [sent.json()["id"]]}, "/v1/vector_stores").json()["id"]
    at = f"{customer.server.v1}/vector_stores/{made}"

    def is_read() -> bool:
        return bool(web.get(at, headers=customer.headers, timeout=10).json()["status"] == "completed")

    wait_until(is_read, 10, "the file is read")
    name: str = made
    return name


def searched(customer: Customer, dice: random.Random, one: Exchange) -> None:
    """A vector store that is searched by itself."""
    queries = [text_of(dice) for _ in range(dice.randint(1, 3))]
    one.cell = ("search", f"{len(queries)} queries")
    store = store_of(customer, dice)
    body = {"query": queries if len(queries) > 1 else queries[0], "max_num_results": dice.randint(1, 50)}
    whole(customer, body, f"/v1/vector_stores/{store}/search", one)


def read_from_a_store(customer: Customer, dice: random.Random, one: Exchange) -> None:
    """A response that reads what it finds in a vector store."""
    stream, calls = dice.random() < 0.5, dice.randint(0, 2)
    one.cell = ("responses", "stream" if stream else "whole", "from a store", f"{calls} searches")
    ending, directive = ending_of(dice, one, stream=stream)
    one.asked_tokens = dice.randint(1, 60)
    tool: dict[str, Any] = {"type": "file_search", "vector_store_ids": [store_of(customer, dice)]}
    if dice.random() < 0.5:
        tool["max_num_results"] = dice.randint(1, 50)
    said = sandbox_says(output_tokens=one.asked_tokens, calls=["file_search"] * calls, **directive)
    body: dict[str, Any] = {"model": "gpt-4.1", "input": f"{text_of(dice)} {said}", "tools": [tool]}
    one.slack_tokens = TOOL_TOKENS
    if dice.random() < 0.5:
        body["include"] = ["file_search_call.results"]
    ask(customer, {**body, "max_output_tokens": 100, "max_tool_calls": 3}, RESPONSES, dice, one, stream=stream)


def failed(customer: Customer, dice: random.Random, one: Exchange) -> None:
    """A response that ends in response.failed, without output and without or with usage."""
    stream, usage = dice.random() < 0.5, dice.random() < 0.5
    one.cell = ("responses", "stream" if stream else "whole", "failed", "with usage" if usage else "without usage")
    said = sandbox_says(failed={"usage": usage}, output_tokens=0)
    one.free = True
    body = {"model": "gpt-4.1", "input": f"{text_of(dice)} {said}", "max_output_tokens": 100}
    ask(customer, body, RESPONSES, dice, one, stream=stream)


UNTOLD: dict[str, Any] = {
    "none": None,
    "nonsense": "nonsense",
    "zero": {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0},
    "no output": {"prompt_tokens": 9, "completion_tokens": 0, "total_tokens": 9},
    "hardly any": {"prompt_tokens": 9, "completion_tokens": 1, "total_tokens": 10},
}


def without_usage(customer: Customer, dice: random.Random, one: Exchange) -> None:
    """An answer whose usage is null, zero, unbelievable, or hardly any: its text is counted."""
    name, told = dice.choice(list(UNTOLD.items()))
    stream = dice.random() < 0.5
    one.cell = ("chat", "stream" if stream else "whole", "usage", name)
    one.asked_tokens = one.seen_tokens = dice.randint(40, 60)
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


def background(customer: Customer, dice: random.Random, one: Exchange) -> None:
    """A background response, whole or as a stream: read to its end, left, resumed, cut or cancelled."""
    stream = dice.random() < 0.75
    way = dice.choice(("read", "left", "left, resumed", "cancelled", "cut") if stream else ("left", "cancelled"))
    model = dice.choice(("gpt-5.4-mini", "gpt-4.1"))
    one.cell = (BACKGROUND, "stream" if stream else "whole", model, way)
    one.asked_tokens, one.slack_tokens = dice.randint(1, 60), ITEM_TOKENS
    pace = {"queued_ms": dice.choice((0, 60)), "background_ms": dice.choice((0, 150, 600))}
    if way == "cancelled":  # while it writes, however slow this machine is
        one.asked_tokens, pace = 60, {"queued_ms": 0, "background_ms": dice.choice((600, 6_000))}
    cut = {"cut": {"after_chunks": dice.randint(2, 12)}} if way == "cut" else {}
    said = sandbox_says(output_tokens=one.asked_tokens, reasoning_tokens=0, **pace, **cut)
    body = {"model": model, "input": f"{text_of(dice)} {said}", "max_output_tokens": 100, "background": True}
    with Wire(customer, {**body, "stream": stream}, RESPONSES) as wire:
        one.status, one.request_id = wire.answer.status, wire.request_id
        seen = b""
        if way in ("read", "cut") or not stream:
            seen = wire.read_all().data
        else:
            wanted = dice.randint(1, 12)
            while seen.count(b"\n\n") < wanted and (part := wire.answer.read1(65_536)):  # it may be shorter than that
                seen += part
        assert one.status == 200, seen[:300]
        named = re.search(rb'"id":"(resp_[0-9a-f]+)"', seen)
        assert named is not None, seen[:300]
        url = f"{customer.server.v1}/responses/{named[1].decode()}"
        if way == "cancelled":
            one.ending = "left"
            web.post(f"{url}/cancel", headers=customer.headers, timeout=20)
            seen += wire.read_all().data if stream else b""
    one.seen_tokens = seen.count(b"event: response.output_text.delta")
    if way == "left, resumed":
        last = int(re.findall(rb'"sequence_number":(\d+)', seen)[-1])
        rest = web.get(f"{url}?stream=true&starting_after={last}", headers=customer.headers, timeout=30).content
        numbers = [int(number) for number in re.findall(rb'"sequence_number":(\d+)', rest)]
        assert numbers == list(range(last + 1, last + 1 + len(numbers))), numbers
        assert b"response.completed" in seen + rest or b"response.incomplete" in seen + rest


def earlier_speech(customer: Customer, dice: random.Random, one: Exchange) -> None:
    """A chat that speaks, and refers to what it said before."""
    stream, model = dice.random() < 0.5, dice.choice(("gpt-audio-1.5", "gpt-audio-mini"))
    one.cell = ("chat", "stream" if stream else "whole", model, "earlier speech")
    spoken = {"modalities": ["text", "audio"], "audio": {"voice": "alloy", "format": "wav"}, "model": model}
    said = sandbox_says(output_tokens=dice.randint(5, 60))
    first = {"messages": [{"role": "user", "content": f"{text_of(dice)} {said}"}], "max_completion_tokens": 400}
    name = customer.post({**spoken, **first}).json()["choices"][0]["message"]["audio"]["id"]
    earlier = [{"role": "assistant", "audio": {"id": name}}] * dice.randint(1, 3)
    said = sandbox_says(output_tokens=dice.randint(1, 60), **oddity_of(dice, one))
    cap = dice.choice((8, 400))  # a small one does not cover by chance what is heard
    body = {**spoken, "messages": [*earlier, {"role": "user", "content": said}], "max_completion_tokens": cap}
    if stream:
        body["audio"] = {"voice": "alloy", "format": "pcm16"}
    ask(customer, body, CHAT, dice, one, stream=stream)


def call(customer: Customer, dice: random.Random, one: Exchange) -> None:
    """A browser's call, turns typed and spoken, until it is hung up or its browser leaves in the middle of an answer."""
    transcriber, said = dice.choice(("none", "whisper-1", "gpt-4o-transcribe")), dice.choice(("text", "audio"))
    leaves = dice.random() < 0.25
    one.cell = (CALL, "sideband", said, transcriber, "browser leaves" if leaves else "hung up")
    heard = {"transcription": None if transcriber == "none" else {"model": transcriber}, "turn_detection": None}
    session = {"type": "realtime", "model": VOICE, "output_modalities": [said], "audio": {"input": heard}}
    headers = {"Authorization": f"Bearer {secret_of(customer, **session)}", "Content-Type": "application/sdp"}
    answer = web.post(f"{customer.server.v1}/realtime/calls", content=OFFER.encode(), headers=headers, timeout=30)
    assert answer.status_code == 201, answer.text
    call_id, one.request_id = answer.headers["location"].rpartition("/")[2], answer.headers["x-request-id"]
    wanted = 0
    for _ in range(dice.randint(1, 3)):
        if dice.random() < 0.5:
            play(customer.sandbox, call_id, *[SPEAK] * dice.randint(1, 4), COMMIT, RESPOND)
            wanted += 1 + (transcriber != "none")
        else:
            play(customer.sandbox, call_id, says(sandbox_says(output_tokens=dice.randint(1, 60))), RESPOND)
            wanted += 1
        wait_until(lambda: len(said_in(customer, one, call_id)) >= wanted, 20, f"{wanted} answers")  # noqa: B023 - at once
    if not leaves:
        hung_up = hang_up(customer, call_id)
        assert hung_up.status_code == 200, hung_up.text
        return
    one.ending = "left"
    play(customer.sandbox, call_id, says(sandbox_says(output_tokens=400, chunk_interval_ms=8)), RESPOND)
    one.asked_tokens = 1_600  # a token of text, and three of sound
    time.sleep(dice.random() / 4)
    web.post(f"{control(customer.sandbox)}/{call_id}/leave", timeout=10)


def said_in(customer: Customer, one: Exchange, call_id: str) -> list[dict[str, Any]]:
    """Finished answers and transcriptions of a call, by the simulator's record."""
    rows = customer.sandbox.record(brief=1, clientRequestId=one.request_id)
    return [row for row in rows if row["callId"] == call_id and row["finishedAt"] and row["usage"]]


Kind = Callable[[Customer, random.Random, Exchange], None]
KINDS: list[tuple[Kind, int]] = [
    (chat, 36),
    (responses, 26),
    (stored, 8),
    (history, 5),
    (built_on, 6),
    (batch, 3),
    (searched, 3),
    (read_from_a_store, 4),
    (failed, 3),
    (without_usage, 4),
    (above_the_cap, 2),
    (prompts, 3),
    (images, 3),
    (speech, 4),
    (transcription, 9),
    (socket_response, 6),
    (realtime, 4),
    (background, 9),
    (earlier_speech, 4),
    (call, 4),
]
SOCKETS = (socket_response, realtime, call)
OF_ONE_PLACE = (call,)
"""Kinds that steer the upstream behind them: which one it is nobody knows before."""


async def make_customers(server: Tollkeeper, sandbox: Sandbox, number: int) -> list[Customer]:
    """New accounts with the same credits, made beside the running server."""
    database = Database(f"sqlite+aiosqlite:///{server.folder}/var/tollkeeper.db", 1, 60.0)  # a busy machine
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
def walked(folder: Path, seed: int, upstreams: int = 1, **more: str) -> Iterator[Walk]:
    """A served product over one simulator, or a pool of several, with `more` in its environment, ready to be walked."""
    sandbox = start_sandbox()
    others = {f"place-{number}": start_sandbox() for number in range(1, upstreams)}
    environment = {
        **more,
        **({} if others else {"TOLLKEEPER_UPSTREAM__BASE_URL": sandbox.url}),
        "TOLLKEEPER_ADVANCED__BATCH_POLL_SECONDS": "0.2",
        # a disk that others share may take its time, and a store that is away is not what is walked over
        "TOLLKEEPER_DATABASE__TIMEOUT_SECONDS": "60",
        "TOLLKEEPER_ADVANCED__EMBEDDED_TIMEOUT_SECONDS": "30",
    }
    server = Tollkeeper(folder, environment)
    try:
        (folder / "proxy.toml").write_text(CONFIGURATION + pool_of(sandbox, others, folder))
        yield Walk(server.start(), sandbox, seed, others)
    finally:
        server.kill()
        for place in (sandbox, *others.values()):
            place.stop()


def pool_of(first: Sandbox, others: Mapping[str, Sandbox], folder: Path) -> str:
    """Entries of a pool of upstreams, all of which take what any model may be asked; nothing for one alone."""
    if not others:
        return ""
    places = {"openai": first, **others}
    (folder / "upstream.key").write_text(UPSTREAM_KEY)
    entry = '[[upstreams]]\nname = "{}"\nbase_url = "{}"\napi_key_file = "{}"\n'
    return "\n" + "\n".join(entry.format(name, place.url, folder / "upstream.key") for name, place in places.items())


def main() -> int:
    """Walk, and print what was found; 1 when anything was wrong."""
    options = argparse.ArgumentParser(description="Compare charges with the simulator's own bills on a random walk.")
    options.add_argument("--exchanges", type=int, default=20_000)
    options.add_argument("--seed", type=int, default=int(time.time()))
    options.add_argument("--upstreams", type=int, default=1)
    given = options.parse_args()
    with tempfile.TemporaryDirectory(prefix="tkw") as name, walked(Path(name), given.seed, given.upstreams) as walk:
        found = walk.run(given.exchanges)
    print(found.report())
    return 1 if found.wrong else 0


if __name__ == "__main__":
    sys.exit(main())

"""State that all requests share: live settings, the key, loaded encodings, stored responses and the dice."""

import asyncio
import random
from pathlib import Path
from typing import Any, Final

import msgspec
import tiktoken

from sandbox.openai.exchange.answer import Answer, Request, json_answer
from sandbox.openai.exchange.batch_job import BatchJob
from sandbox.openai.exchange.bill import Spent
from sandbox.openai.exchange.call import Call
from sandbox.openai.exchange.record import Entry
from sandbox.openai.exchange.replay import read_sample, sample_events
from sandbox.openai.exchange.store import BackgroundJob, Store
from sandbox.openai.requests.errors import ApiError, edge_page, error_object, named_error, status_error
from sandbox.openai.steering.dialects import Deployments, error_body
from sandbox.openai.steering.directives import Directives
from sandbox.openai.steering.settings import Live, Settings
from sandbox.openai.tokens.count import count_text, encoding_name, load_encoding

_GATEWAY_STATUSES: Final = frozenset({502, 504, 520})


class Simulator:
    """Shared state, which makes calls out of requests, and the failures and replays that directives ask for."""

    def __init__(self, settings: Settings) -> None:
        """Load nothing yet: rank files come with the first request that needs them."""
        self.live: Live = settings.live
        self.dialect = settings.dialect
        self.deployments = Deployments(settings.deployments)
        self._key = settings.api_key
        beside = Path(__file__).resolve().parents[3] / "tests" / "samples"
        self._samples = settings.samples or beside
        self._encodings: dict[str, asyncio.Future[tiktoken.Encoding]] = {}
        self.store = Store()
        self._dice = random.Random()  # noqa: S311 - chance failures and ids, not secrets

    def authenticate(self, request: Request) -> None:
        """Raise ApiError 401 unless the request has the key."""
        key = self.live.new_key or self._key
        if self.dialect == "azure":
            if request.headers.get("api-key") != key:
                raise ApiError(401, error_object("Access denied due to invalid subscription key.", "", code="401"))
            return
        if self.dialect == "generic" and not key:
            return
        # Browsers cannot set headers on a socket and send the key as a sub-protocol.
        offered = [name.strip() for name in request.headers.get("sec-websocket-protocol", "").split(",")]
        by_protocol = f"openai-insecure-api-key.{key}" in offered
        if request.headers.get("authorization") != f"Bearer {key}" and not by_protocol:
            raise ApiError(401, status_error(401))

    async def call(
        self, request: Request, body: dict[str, Any], model: str, directives: Directives, store: Store | None = None
    ) -> Call:
        """Gather everything that a handler needs."""
        echo = ""
        if directives.echo:
            echo = msgspec.json.encode({"headers": request.headers, "body": body}).decode()
        return Call(
            encoding=await self.encoding(encoding_name(model)),
            model=model,
            body=body,
            directives=directives,
            live=self.live,
            echo=echo,
            store=store or self.store,
            new_id=self.new_id,
            new_digits=self.new_digits,
        )

    def new_id(self, prefix: str) -> str:
        """Return a fresh id such as resp_0c2f9a51e7."""
        return f"{prefix}_{self.new_digits()}"

    def new_digits(self) -> str:
        """Return fresh digits of an id."""
        return f"{self._dice.getrandbits(96):024x}"

    @staticmethod
    def settle_later(answer: Answer, entry: Entry) -> None:
        """Note the cost of a background job in the record when it ends."""
        job = answer.job
        if isinstance(job, BackgroundJob):
            job.on_end = entry.settle
            # A little later than the last event, so that the clock has passed it.
            asyncio.get_running_loop().call_later(job.total_s + 0.005, entry.settle)
        if isinstance(job, BatchJob):
            asyncio.get_running_loop().call_later(job.total_s + 0.005, entry.settle)

    async def encoding(self, name: str) -> tiktoken.Encoding:
        """Return the encoding of that name; the first use loads it off the loop, once for all who wait."""
        loaded = self._encodings.get(name)
        if loaded is None:
            loop = asyncio.get_running_loop()
            loaded = loop.run_in_executor(None, load_encoding, name)
            self._encodings[name] = loaded
        # A client that leaves while it waits must not cancel the load for the others.
        return loaded.result() if loaded.done() else await asyncio.shield(loaded)

    def refused(self, error: dict[str, Any], status: int) -> Answer:
        """Return an error in the words of the dialect."""
        return json_answer(error_body(self.dialect, error, status), status)

    def standing_failure(self) -> Answer | None:
        """Return the error answer that the directive for all requests asks for."""
        standing = self.live.directive
        return self.failure(msgspec.convert(standing, Directives), dice=False) if standing else None

    def failure(self, directives: Directives, *, dice: bool = True) -> Answer | None:
        """Return the error answer, or the body in place of one, that a directive, or chance, asks for."""
        status = directives.status
        if status is None and directives.body_raw is not None:
            status = 200
        if status is None:
            if not dice or self.live.fail_rate <= 0 or self._dice.random() >= self.live.fail_rate:
                return None
            status = self.live.fail_status
        wanted = directives.error
        if directives.body_raw is not None:
            answer = Answer(status, directives.body_raw.encode(), content_type="text/html")
        elif wanted is None and status in _GATEWAY_STATUSES:
            answer = Answer(status, edge_page(status), content_type="text/html")
        else:
            named = named_error(wanted) if isinstance(wanted, str) else wanted
            answer = self.refused(named or status_error(status), status)
        answer.directives = directives
        return answer

    def replay(
        self, answer: Answer, encoding: tiktoken.Encoding, directives: Directives, *, frames: bool = False
    ) -> None:
        """Swap the made-up output of an answer for a sample file; `frames`: one message per line or event."""
        sample = read_sample(self._samples, str(directives.replay))
        bill = answer.bill
        if bill is not None:
            bill.tokens = bill.reasoning = bill.audio = 0
            if sample.usage is not None:
                bill.directives = msgspec.structs.replace(directives, usage=sample.usage)
        answer.events = None
        if sample.streamed or frames:
            answer.events = sample_events(sample, encoding, frames=frames)
            return
        answer.body, answer.text, answer.usage = sample.body, sample.text, sample.usage
        if bill is not None:
            bill.add(Spent(count_text(encoding, sample.text)))

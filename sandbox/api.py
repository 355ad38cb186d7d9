"""From a request to an answer: routing, authentication, and one handler per endpoint."""

import asyncio
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec
import tiktoken

from sandbox import chat, choices, embeddings, legacy, replay
from sandbox.answer import NO_DIRECTIVES, Answer, Request, json_answer
from sandbox.directives import Directives, read_directives
from sandbox.errors import ApiError, edge_page, error_object, named_error, status_error
from sandbox.record import Entry
from sandbox.settings import Live, Settings
from sandbox.tokens import (
    PromptCount,
    count_chat,
    count_legacy,
    count_text,
    encoding_name,
    load_encoding,
)
from sandbox.usage import Bill, Spent
from sandbox.validate import check_chat, check_legacy, check_model, text_inputs

BILLABLE: Final = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/embeddings"})
_MODEL_NAMES: Final = (
    "gpt-6.2-astra gpt-6.2-sol gpt-6.1-sol gpt-6.1-terra gpt-6-astra gpt-6-sol gpt-6-luna "
    "gpt-5.6 gpt-5.6-sol gpt-5.6-terra gpt-5.6-luna gpt-5.5 gpt-5.5-pro gpt-5.4 gpt-5.4-mini "
    "gpt-5.4-nano gpt-5.2 gpt-5.1 gpt-5 gpt-5-mini gpt-5-nano gpt-5-search-api gpt-4.1 "
    "gpt-4.1-mini gpt-4o gpt-4o-mini o3 chat-latest gpt-audio-1.5 gpt-3.5-turbo-instruct "
    "text-embedding-3-small text-embedding-3-large text-embedding-ada-002"
)
MODELS: Final = tuple(_MODEL_NAMES.split())
_MODELS_CREATED: Final = 1_760_000_000
_GATEWAY_STATUSES: Final = frozenset({502, 504, 520})
_BIG_BODY_BYTES: Final = 200_000


class Api:
    """Makes answers; owns the live settings and the dice."""

    def __init__(self, settings: Settings) -> None:
        """Nothing is loaded yet: rank files come with the first request that needs them."""
        self.live: Live = settings.live
        self._bearer = f"Bearer {settings.api_key}"
        beside = Path(__file__).resolve().parents[1] / "tests" / "samples"
        self._samples = settings.samples or beside
        self._encodings: dict[str, asyncio.Future[tiktoken.Encoding]] = {}
        self._dice = random.Random()  # noqa: S311 - chance failures and ids, not secrets

    async def answer(self, request: Request, entry: Entry | None) -> Answer:
        """The answer to one request on /v1; errors are answers too."""
        try:
            self._authenticate(request)
            if entry is not None:
                return await self._billable(request, entry)
            return self._free(request)
        except ApiError as error:
            return json_answer({"error": error.error}, error.status)
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            # A body of the right syntax and the wrong types, such as `"tools": 5`.
            message = f"Invalid value. ({type(error).__name__}: {error})"
            shown = error_object(message, "invalid_request_error", code="invalid_value")
            return json_answer({"error": shown}, 400)

    def _authenticate(self, request: Request) -> None:
        if request.headers.get("authorization") != self._bearer:
            raise ApiError(401, status_error(401))

    def _free(self, request: Request) -> Answer:
        known = [{"id": name, "object": "model", "created": _MODELS_CREATED, "owned_by": "system"} for name in MODELS]
        if request.method == "GET" and request.path == "/v1/models":
            return json_answer({"object": "list", "data": known})
        if request.method == "GET" and request.path.startswith("/v1/models/"):
            name = request.path.removeprefix("/v1/models/")
            for model in known:
                if model["id"] == name:
                    return json_answer(model)
            raise ApiError(404, status_error(404))
        message = f"Invalid URL ({request.method} {request.path})"
        raise ApiError(404, error_object(message, "invalid_request_error"))

    async def _billable(self, request: Request, entry: Entry) -> Answer:
        body = entry.body
        directives = read_directives(request.body, body, self.live.directive) or NO_DIRECTIVES
        failure = self._failure(directives)
        if failure is not None:
            return failure
        model = check_model(body)
        encoding = await self.encoding(encoding_name(model))
        echo = ""
        if directives.echo:
            received = {"headers": request.headers, "body": body}
            echo = msgspec.json.encode(received).decode()
        context = choices.Context(encoding, model, body, directives, self.live, echo)
        handler: Callable[[choices.Context], Answer] = {
            "/v1/chat/completions": self._chat,
            "/v1/completions": self._legacy,
            "/v1/embeddings": self._embeddings,
        }[request.path]
        if len(request.body) > _BIG_BODY_BYTES:
            # Counting a megabyte takes tens of milliseconds in which other streams would stall.
            answer = await asyncio.get_running_loop().run_in_executor(None, handler, context)
        else:
            answer = handler(context)
        answer.directives = directives
        if directives.replay is not None:
            self._replay(answer, encoding, directives)
        return answer

    async def encoding(self, name: str) -> tiktoken.Encoding:
        """The encoding of that name; the first use loads it off the loop, once for all who wait."""
        loaded = self._encodings.get(name)
        if loaded is None:
            loop = asyncio.get_running_loop()
            loaded = loop.run_in_executor(None, load_encoding, name)
            self._encodings[name] = loaded
        # A client that leaves while it waits must not cancel the load for the others.
        return loaded.result() if loaded.done() else await asyncio.shield(loaded)

    def _failure(self, directives: Directives) -> Answer | None:
        """The error answer that a directive, or chance, asks for."""
        status = directives.status
        if status is None:
            if self.live.fail_rate <= 0 or self._dice.random() >= self.live.fail_rate:
                return None
            status = self.live.fail_status
        wanted = directives.error
        if directives.body_raw is not None:
            answer = Answer(status, directives.body_raw.encode(), content_type="text/html")
        elif wanted is None and status in _GATEWAY_STATUSES:
            answer = Answer(status, edge_page(status), content_type="text/html")
        else:
            named = named_error(wanted) if isinstance(wanted, str) else wanted
            answer = json_answer({"error": named or status_error(status)}, status)
        answer.directives = directives
        return answer

    def _frame(self, context: choices.Context, prefix: str) -> chat.Frame:
        body, directives = context.body, context.directives
        options = body.get("stream_options") or {}
        return chat.Frame(
            id=f"{prefix}-{self._dice.getrandbits(96):024x}",
            created=int(time.time()),
            model=directives.model or context.model,
            service_tier=_tier(body, directives),
            include_usage=options.get("include_usage") is True,
            obfuscate=options.get("include_obfuscation") is not False,
            done=not directives.no_done,
        )

    def _check_context(self, tokens: int) -> None:
        if tokens > self.live.context_tokens:
            named = named_error("400_context")
            raise ApiError(400, named or status_error(400))

    def _chat(self, context: choices.Context) -> Answer:
        body = context.body
        check_chat(context.model, body, reject_max_tokens=self.live.reject_max_tokens)
        prompt = count_chat(context.encoding, context.model, body)
        self._check_context(prompt.total)
        said = choices.chat_choices(context)
        frame = self._frame(context, "chatcmpl")
        spoken = any(choice.kind == "audio" for choice in said)
        bill = Bill("chat", prompt, context.directives, spoken)
        answer = Answer(200, bill=bill, service_tier=frame.service_tier, model=frame.model)
        if body.get("stream"):
            answer.events = chat.ChatStream(frame, said, bill).events()
            return answer
        for choice in said:
            voice = choice.visible * choice.audio_factor
            output = choice.reasoning + choice.name_tokens + choice.visible + voice
            bill.add(Spent(output, choice.reasoning, voice))
        return _finish_json(answer, said, lambda usage: chat.chat_json(frame, said, usage))

    def _legacy(self, context: choices.Context) -> Answer:
        body = context.body
        prompts = check_legacy(body)
        counts = count_legacy(context.encoding, prompts)
        self._check_context(max(counts))
        said = choices.legacy_choices(context, prompts)
        frame = self._frame(context, "cmpl")
        bill = Bill("legacy", PromptCount(sum(counts)), context.directives)
        answer = Answer(200, bill=bill, model=frame.model)
        if body.get("stream"):
            answer.events = legacy.legacy_events(frame, said, bill)
            return answer
        # All best_of candidates are billed, shown or not; unshown ones are taken as equally long.
        candidates = max(body.get("best_of") or 1, body.get("n") or 1)
        produced = sum(choice.visible for choice in said)
        bill.add(Spent(produced * candidates // (body.get("n") or 1)))
        return _finish_json(answer, said, lambda usage: legacy.legacy_json(frame, said, usage))

    def _embeddings(self, context: choices.Context) -> Answer:
        body, model = context.body, context.model
        inputs = text_inputs(body.get("input"), "input")
        counts = count_legacy(context.encoding, inputs)
        length = embeddings.check_embeddings(model, body, counts)
        bill = Bill("embeddings", PromptCount(sum(counts)), context.directives)
        shown = context.directives.model or model
        packed = body.get("encoding_format") == "base64"
        answer = Answer(200, bill=bill, model=shown)
        return _finish_json(
            answer,
            [],
            lambda usage: embeddings.embeddings_json(shown, inputs, length, usage, packed=packed),
        )

    def _replay(self, answer: Answer, encoding: tiktoken.Encoding, directives: Directives) -> None:
        """Swap the made-up output of an answer for a sample file."""
        sample = replay.read_sample(self._samples, str(directives.replay))
        bill = answer.bill
        if bill is not None:
            bill.tokens = bill.reasoning = bill.audio = 0
            if sample.usage is not None:
                bill.directives = msgspec.structs.replace(directives, usage=sample.usage)
        answer.events = None
        if sample.streamed:
            answer.events = replay.sample_events(sample, encoding)
            return
        answer.body, answer.text, answer.usage = sample.body, sample.text, sample.usage
        if bill is not None:
            bill.add(Spent(count_text(encoding, sample.text)))


def _tier(body: dict[str, Any], directives: Directives) -> str | None:
    """The echoed tier: only when the request named one; `fast` is called priority."""
    if directives.service_tier is not msgspec.UNSET:
        return directives.service_tier
    asked = body.get("service_tier")
    if not isinstance(asked, str):
        return None
    return {"auto": "default", "fast": "priority"}.get(asked, asked)


def _finish_json(answer: Answer, said: list[choices.Choice], render: Callable[[Any], bytes]) -> Answer:
    answer.usage = answer.bill.sent() if answer.bill is not None else None
    answer.text = "".join([choice.text for choice in said])
    answer.body = render(answer.usage)
    return answer

"""From a request to an answer: routing, authentication, and one handler per endpoint."""

import asyncio
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec
import tiktoken

from sandbox.openai.chat import choices, embeddings, legacy
from sandbox.openai.chat import completions as chat
from sandbox.openai.exchange import replay
from sandbox.openai.exchange.answer import NO_DIRECTIVES, Answer, Request, json_answer
from sandbox.openai.exchange.bill import Bill, Spent
from sandbox.openai.exchange.call import Call
from sandbox.openai.exchange.record import Entry
from sandbox.openai.exchange.store import Job, Store
from sandbox.openai.media import images, speech
from sandbox.openai.media import transcriptions as transcripts
from sandbox.openai.requests.checks import check_chat, check_context, check_legacy, check_model, text_inputs
from sandbox.openai.requests.errors import ApiError, edge_page, error_object, invalid, named_error, status_error
from sandbox.openai.requests.fields import missing, wrong_type
from sandbox.openai.requests.forms import is_form
from sandbox.openai.responses import create as responses
from sandbox.openai.responses import decisions as judgements
from sandbox.openai.steering.directives import Directives, read_directives
from sandbox.openai.steering.settings import Live, Settings
from sandbox.openai.tokens.count import (
    PromptCount,
    count_chat,
    count_legacy,
    count_text,
    encoding_name,
    load_encoding,
)

_MODEL_NAMES: Final = (
    "gpt-6.2-astra gpt-6.2-sol gpt-6.1-sol gpt-6.1-terra gpt-6-astra gpt-6-sol gpt-6-luna "
    "gpt-5.6 gpt-5.6-sol gpt-5.6-terra gpt-5.6-luna gpt-5.5 gpt-5.5-pro gpt-5.4 gpt-5.4-mini "
    "gpt-5.4-nano gpt-5.2 gpt-5.1 gpt-5 gpt-5-mini gpt-5-nano gpt-5-search-api gpt-4.1 "
    "gpt-4.1-mini gpt-4o gpt-4o-mini o3 chat-latest gpt-audio-1.5 gpt-3.5-turbo-instruct "
    "text-embedding-3-small text-embedding-3-large text-embedding-ada-002 "
    "gpt-image-2.6-sunburst gpt-image-2.6-flare gpt-image-2.5-sunburst gpt-image-2 gpt-image-1.5 "
    "gpt-4o-mini-tts tts-1 tts-1-hd gpt-transcribe gpt-4o-transcribe gpt-4o-mini-transcribe "
    "gpt-4o-transcribe-diarize whisper-1 gpt-realtime-2.1 gpt-realtime-2.1-mini omni-moderation-latest"
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
        self._subprotocol = f"openai-insecure-api-key.{settings.api_key}"
        beside = Path(__file__).resolve().parents[2] / "tests" / "samples"
        self._samples = settings.samples or beside
        self._encodings: dict[str, asyncio.Future[tiktoken.Encoding]] = {}
        self.store = Store()
        self._dice = random.Random()  # noqa: S311 - chance failures and ids, not secrets

    async def answer(self, request: Request, entry: Entry | None) -> Answer:
        """The answer to one request on /v1; errors are answers too."""
        try:
            self.authenticate(request)
            if entry is None:
                return self._free(request)
            if request.method == "POST" and request.path in _ROUTES:
                return await self._create(request, entry)
            return self._by_id(request)
        except ApiError as error:
            return json_answer({"error": error.error}, error.status)
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            # A body of the right syntax and the wrong types, such as `"tools": 5`.
            return json_answer({"error": wrong_body(error)}, 400)

    def authenticate(self, request: Request) -> None:
        """Raise ApiError 401 unless the request has the key."""
        # Browsers cannot set headers on a socket and send the key as a sub-protocol.
        offered = [name.strip() for name in request.headers.get("sec-websocket-protocol", "").split(",")]
        if request.headers.get("authorization") != self._bearer and self._subprotocol not in offered:
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

    def _by_id(self, request: Request) -> Answer:
        """A request on a stored response, steered by the directive of the request that made it."""
        name = request.path.removeprefix("/v1/responses/").partition("/")[0]
        stored = self.store.find(name)
        given = self.live.directive | (stored.later if stored is not None else {})
        directives = msgspec.convert(given, Directives) if given else NO_DIRECTIVES
        failure = self.failure(directives, dice=False)
        if failure is not None:
            return failure
        answer = responses.by_id(self.store, request)
        answer.directives = directives
        return answer

    async def _create(self, request: Request, entry: Entry) -> Answer:
        route, body = _ROUTES[request.path], entry.body
        if entry.form_error is not None:
            raise entry.form_error
        directives = read_directives(request.body, body, self.live.directive) or NO_DIRECTIVES
        failure = self.failure(directives)
        if failure is not None:
            return failure
        model = route.model(body)
        call = await self.call(request, body, model, directives)
        if entry.uploads or is_form(request.headers.get("content-type", "")):
            call = msgspec.structs.replace(call, uploads=entry.uploads, form=True)
        if len(request.body) > _BIG_BODY_BYTES:
            # Counting a megabyte takes tens of milliseconds in which other streams would stall.
            answer = await asyncio.get_running_loop().run_in_executor(None, route.handler, self, call)
        else:
            answer = route.handler(self, call)
        self.settle_later(answer, entry)
        answer.directives = directives
        if directives.replay is not None:
            self.replay(answer, call.encoding, directives)
        return answer

    async def call(self, request: Request, body: dict[str, Any], model: str, directives: Directives, store: Store | None = None) -> Call:
        """All that a handler needs."""
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
        )

    def new_id(self, prefix: str) -> str:
        """A fresh id such as resp_0c2f9a51e7."""
        return f"{prefix}_{self._dice.getrandbits(96):024x}"

    @staticmethod
    def settle_later(answer: Answer, entry: Entry) -> None:
        """Note the cost of a background job in the record when it ends."""
        job = answer.job
        if isinstance(job, Job):
            job.on_end = entry.settle
            # A little later than the last event, so that the clock has passed it.
            asyncio.get_running_loop().call_later(job.total_s + 0.005, entry.settle)

    async def encoding(self, name: str) -> tiktoken.Encoding:
        """The encoding of that name; the first use loads it off the loop, once for all who wait."""
        loaded = self._encodings.get(name)
        if loaded is None:
            loop = asyncio.get_running_loop()
            loaded = loop.run_in_executor(None, load_encoding, name)
            self._encodings[name] = loaded
        # A client that leaves while it waits must not cancel the load for the others.
        return loaded.result() if loaded.done() else await asyncio.shield(loaded)

    def standing_failure(self) -> Answer | None:
        """The error answer that the directive for all requests asks for."""
        standing = self.live.directive
        return self.failure(msgspec.convert(standing, Directives), dice=False) if standing else None

    def failure(self, directives: Directives, *, dice: bool = True) -> Answer | None:
        """The error answer that a directive, or chance, asks for."""
        status = directives.status
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

    def _chat(self, context: choices.Context) -> Answer:
        body = context.body
        check_chat(context.model, body, reject_max_tokens=self.live.reject_max_tokens)
        prompt = count_chat(context.encoding, context.model, body)
        check_context(prompt.total, self.live.context_tokens)
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
        check_context(max(counts), self.live.context_tokens)
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

    def replay(self, answer: Answer, encoding: tiktoken.Encoding, directives: Directives, *, frames: bool = False) -> None:
        """Swap the made-up output of an answer for a sample file; `frames`: one message per line or event."""
        sample = replay.read_sample(self._samples, str(directives.replay))
        bill = answer.bill
        if bill is not None:
            bill.tokens = bill.reasoning = bill.audio = 0
            if sample.usage is not None:
                bill.directives = msgspec.structs.replace(directives, usage=sample.usage)
        answer.events = None
        if sample.streamed or frames:
            answer.events = replay.sample_events(sample, encoding, frames=frames)
            return
        answer.body, answer.text, answer.usage = sample.body, sample.text, sample.usage
        if bill is not None:
            bill.add(Spent(count_text(encoding, sample.text)))


def wrong_body(error: Exception) -> dict[str, Any]:
    """The error object for a body whose values are of types that no check names."""
    message = f"Invalid value. ({type(error).__name__}: {error})"
    return error_object(message, "invalid_request_error", code="invalid_value")


class _Route(msgspec.Struct, frozen=True):
    """One endpoint that makes something."""

    handler: Callable[[Api, Call], Answer]
    default_model: str | None = None
    """Model of a request that names none; None: it has to."""
    checks_model: bool = True
    """The endpoint complains about its model itself, in the newer words."""

    def model(self, body: Any) -> str:
        """The model of a request. Raises ApiError."""
        if not self.checks_model:
            return check_model(body)
        if not isinstance(body, dict):
            raise invalid("We could not parse the JSON body of your request.", None, None)
        model = body.get("model")
        if model is None and self.default_model is not None:
            return self.default_model
        if model is None or model == "":
            raise missing("model")
        if not isinstance(model, str):
            raise wrong_type("model", "a string", model)
        return model


def _plain(handler: Callable[[Call], Answer]) -> Callable[[Api, Call], Answer]:
    return lambda _api, call: handler(call)


_ROUTES: Final[dict[str, _Route]] = {
    "/v1/chat/completions": _Route(Api._chat, checks_model=False),
    "/v1/completions": _Route(Api._legacy, checks_model=False),
    "/v1/embeddings": _Route(Api._embeddings, checks_model=False),
    "/v1/responses": _Route(_plain(responses.create)),
    "/v1/responses/compact": _Route(_plain(responses.compact)),
    "/v1/responses/input_tokens": _Route(_plain(responses.input_tokens), "gpt-6.2-sol"),
    "/v1/moderations": _Route(_plain(judgements.moderate), judgements.DEFAULT_MODEL),
    "/v1/decisions": _Route(_plain(judgements.decide)),
    "/v1/images/generations": _Route(_plain(images.generate), images.DEFAULT_MODEL),
    "/v1/images/edits": _Route(_plain(images.edit), images.DEFAULT_MODEL),
    "/v1/audio/speech": _Route(_plain(speech.speech)),
    "/v1/audio/transcriptions": _Route(_plain(transcripts.transcribe)),
    "/v1/audio/translations": _Route(_plain(transcripts.translate)),
}


def is_recorded(method: str, path: str) -> bool:
    """Whether a request belongs into the record: all that make something, and those on what was made."""
    return (method == "POST" and path in _ROUTES) or path.startswith("/v1/responses/")


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

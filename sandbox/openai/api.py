"""From a request to an answer: authentication, the table of endpoints, and models."""

import asyncio
from collections.abc import Callable
from typing import Any, Final

import msgspec

from sandbox.openai.chat import completions, embeddings, legacy, moderations
from sandbox.openai.exchange.answer import NO_DIRECTIVES, Answer, Request, json_answer
from sandbox.openai.exchange.call import Call
from sandbox.openai.exchange.record import Entry
from sandbox.openai.exchange.simulator import Simulator
from sandbox.openai.media import images, speech, transcriptions
from sandbox.openai.requests.checks import check_model
from sandbox.openai.requests.errors import ApiError, error_object, invalid, status_error, wrong_body
from sandbox.openai.requests.fields import missing, wrong_type
from sandbox.openai.requests.forms import is_form
from sandbox.openai.responses import create, decisions, stored
from sandbox.openai.steering.directives import Directives, read_directives

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
_BIG_BODY_BYTES: Final = 200_000


class _Route(msgspec.Struct, frozen=True):
    """One endpoint that makes something."""

    handler: Callable[[Call], Answer]
    default_model: str | None = None
    """Model of a request that names none; None: it has to."""
    checks_model: bool = True
    """The endpoint complains about its model itself, in the newer words."""

    def model(self, body: Any) -> str:
        """Return the model of a request. Raises ApiError."""
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


_ROUTES: Final[dict[str, _Route]] = {
    "/v1/chat/completions": _Route(completions.complete, checks_model=False),
    "/v1/completions": _Route(legacy.complete, checks_model=False),
    "/v1/embeddings": _Route(embeddings.embed, checks_model=False),
    "/v1/responses": _Route(create.create),
    "/v1/responses/compact": _Route(create.compact),
    "/v1/responses/input_tokens": _Route(create.input_tokens, "gpt-6.2-sol"),
    "/v1/moderations": _Route(moderations.moderate, moderations.DEFAULT_MODEL),
    "/v1/decisions": _Route(decisions.decide),
    "/v1/images/generations": _Route(images.generate, images.DEFAULT_MODEL),
    "/v1/images/edits": _Route(images.edit, images.DEFAULT_MODEL),
    "/v1/audio/speech": _Route(speech.speech),
    "/v1/audio/transcriptions": _Route(transcriptions.transcribe),
    "/v1/audio/translations": _Route(transcriptions.translate),
}


def is_recorded(method: str, path: str) -> bool:
    """Tell the requests that belong into the record: all that make something, and those on something made."""
    return (method == "POST" and path in _ROUTES) or path.startswith("/v1/responses/")


class Api:
    """The paths under /v1."""

    def __init__(self, simulator: Simulator) -> None:
        """Take `simulator`, which holds the state that requests share."""
        self._simulator = simulator

    async def answer(self, request: Request, entry: Entry | None) -> Answer:
        """Answer one request on /v1; errors are answers too."""
        try:
            self._simulator.authenticate(request)
            if entry is None:
                return _list_models(request)
            if request.method == "POST" and request.path in _ROUTES:
                return await self._create(request, entry)
            return self._by_id(request)
        except ApiError as error:
            return json_answer({"error": error.error}, error.status)
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            # A body of the right syntax and the wrong types, such as `"tools": 5`.
            return json_answer({"error": wrong_body(error)}, 400)

    def _by_id(self, request: Request) -> Answer:
        """Answer a request on a stored response, steered by the directive of the request that made it."""
        simulator = self._simulator
        name = request.path.removeprefix("/v1/responses/").partition("/")[0]
        kept = simulator.store.find(name)
        given = simulator.live.directive | (kept.later if kept is not None else {})
        directives = msgspec.convert(given, Directives) if given else NO_DIRECTIVES
        failure = simulator.failure(directives, dice=False)
        if failure is not None:
            return failure
        answer = stored.by_id(simulator.store, request)
        answer.directives = directives
        return answer

    async def _create(self, request: Request, entry: Entry) -> Answer:
        simulator, route, body = self._simulator, _ROUTES[request.path], entry.body
        if entry.form_error is not None:
            raise entry.form_error
        directives = read_directives(request.body, body, simulator.live.directive) or NO_DIRECTIVES
        failure = simulator.failure(directives)
        if failure is not None:
            return failure
        model = route.model(body)
        call = await simulator.call(request, body, model, directives)
        if entry.uploads or is_form(request.headers.get("content-type", "")):
            call = msgspec.structs.replace(call, uploads=entry.uploads, form=True)
        if len(request.body) > _BIG_BODY_BYTES:
            # Counting a megabyte takes tens of milliseconds in which other streams would stall.
            answer = await asyncio.get_running_loop().run_in_executor(None, route.handler, call)
        else:
            answer = route.handler(call)
        simulator.settle_later(answer, entry)
        answer.directives = directives
        if directives.replay is not None:
            simulator.replay(answer, call.encoding, directives)
        return answer


def _list_models(request: Request) -> Answer:
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

"""From a request to an answer: authentication, the table of endpoints, and models."""

import asyncio
from collections.abc import Callable
from itertools import chain
from typing import Any, Final

import msgspec

from sandbox.openai.chat import completions, embeddings, legacy, moderations
from sandbox.openai.exchange.answer import NO_DIRECTIVES, Answer, Event, Request, json_answer
from sandbox.openai.exchange.call import Call
from sandbox.openai.exchange.record import Entry
from sandbox.openai.exchange.simulator import Simulator
from sandbox.openai.media import images, speech, transcriptions
from sandbox.openai.objects.batches import BATCHES_PATH, make_batch
from sandbox.openai.objects.call import ObjectCall
from sandbox.openai.objects.paths import answer_object, is_object
from sandbox.openai.realtime.calls import CALLS_PATH, Calls
from sandbox.openai.requests.checks import check_model
from sandbox.openai.requests.errors import ApiError, error_object, invalid, status_error, wrong_body
from sandbox.openai.requests.fields import missing, wrong_type
from sandbox.openai.requests.forms import Uploads, is_form
from sandbox.openai.responses import create, decisions, stored
from sandbox.openai.steering.dialects import FILTERED, SNAPSHOT, unknown_member, with_filters
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
    beginnings = ("/v1/responses/", CALLS_PATH)
    return (method == "POST" and path in _ROUTES) or path.startswith(beginnings) or is_object(method, path)


class Api:
    """The paths under /v1."""

    def __init__(self, simulator: Simulator, calls: Calls) -> None:
        """Take `simulator`, which holds the state that requests share, and the realtime calls."""
        self._simulator, self._calls = simulator, calls

    async def answer(self, request: Request, entry: Entry | None) -> Answer:
        """Answer one request on /v1; errors are answers too."""
        try:
            self._simulator.authenticate(request)
            if entry is None:
                return _list_models(request)
            if request.method == "POST" and request.path in _ROUTES:
                return await self._create(request, entry)
            if (request.method, request.path) == ("POST", BATCHES_PATH):
                return await self._batch(entry)
            if is_object(request.method, request.path):
                return self._object(request, entry)
            if request.path.startswith(CALLS_PATH):
                return self._simulator.standing_failure() or await self._calls.answer(request, entry)
            return self._by_id(request)
        except ApiError as error:
            return self._simulator.refused(error.error, error.status)
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            # A body of the right syntax and the wrong types, such as `"tools": 5`.
            return self._simulator.refused(wrong_body(error), 400)

    def _object(self, request: Request, entry: Entry) -> Answer:
        """Answer a request on a conversation, a file or a stored chat, steered by the standing directive."""
        simulator = self._simulator
        failure = simulator.standing_failure()
        if failure is not None:
            return failure
        if entry.form_error is not None:
            raise entry.form_error
        body = entry.body if isinstance(entry.body, dict) else {}
        return answer_object(
            ObjectCall(simulator.store.shelf, request, body, entry.uploads, simulator.new_id, simulator.live)
        )

    async def _batch(self, entry: Entry) -> Answer:
        """Run a file of requests, each steered by its own directive."""
        simulator = self._simulator
        failure = simulator.standing_failure()
        if failure is not None:
            return failure
        body = entry.body if isinstance(entry.body, dict) else {}
        job = await make_batch(simulator.store.shelf, body, simulator.live, simulator.new_id, self._run)
        answer = json_answer(job.object())
        answer.job, answer.service_tier, answer.model = job, "batch", job.model
        answer.response_id = msgspec.json.decode(answer.body)["id"]
        simulator.settle_later(answer, entry)
        return answer

    async def _run(self, path: str, raw: bytes, body: dict[str, Any]) -> Answer:
        """Answer one line of a batch."""
        if path not in _ROUTES:
            return json_answer({"error": status_error(404)}, 404)
        try:
            return await self._made(Request("POST", path, "", {}, raw, keep_alive=True, http10=False), body)
        except ApiError as error:
            return json_answer({"error": error.error}, error.status)
        except (TypeError, ValueError, KeyError, AttributeError) as error:
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
        if entry.form_error is not None:
            raise entry.form_error
        answer = await self._made(request, entry.body, entry.uploads)
        self._simulator.settle_later(answer, entry)
        return answer

    async def _made(self, request: Request, body: Any, uploads: Uploads | None = None) -> Answer:
        simulator, route = self._simulator, _ROUTES[request.path]
        directives = read_directives(request.body, body, simulator.live.directive) or NO_DIRECTIVES
        failure = simulator.failure(directives)
        if failure is not None:
            return failure
        model = route.model(body)
        if simulator.dialect != "openai":
            model, body, directives = _in_dialect(simulator, model, body, directives)
        call = await simulator.call(request, body, model, directives)
        if uploads or is_form(request.headers.get("content-type", "")):
            call = msgspec.structs.replace(call, uploads=uploads or {}, form=True)
        if len(request.body) > _BIG_BODY_BYTES:
            # Counting a megabyte takes tens of milliseconds in which other streams would stall.
            answer = await asyncio.get_running_loop().run_in_executor(None, route.handler, call)
        else:
            answer = route.handler(call)
        if request.path == "/v1/chat/completions" and body.get("store") and answer.status == 200:
            _keep_chat(simulator, body, answer)
        answer.directives = directives
        if directives.replay is not None:
            simulator.replay(answer, call.encoding, directives)
        if simulator.dialect == "azure" and answer.events is not None:
            answer.events = chain((Event(FILTERED, counted=False),), map(_filtered, answer.events))
        elif simulator.dialect == "azure" and answer.status == 200:
            answer.body = with_filters(answer.body)
        return answer


def _filtered(event: Event) -> Event:
    """Return an event as Azure sends it."""
    if not event.data.startswith(b"data: {"):
        return event
    return msgspec.structs.replace(event, data=b"data: " + with_filters(event.data[6:].rstrip()) + b"\n\n")


def _in_dialect(
    simulator: Simulator, name: str, body: dict[str, Any], directives: Directives
) -> tuple[str, dict[str, Any], Directives]:
    """Return (the model behind a name, the body with it, the directives of the dialect). Raises ApiError."""
    if unknown := unknown_member(simulator.dialect, body):
        raise ApiError(400, error_object(f"Unrecognized request argument: {unknown}", "invalid_request_error", unknown))
    model = simulator.deployments.model_of(name)
    if model is None:
        message = "The API deployment for this resource does not exist."
        raise ApiError(404, error_object(message, "", code="DeploymentNotFound"))
    changes: dict[str, Any] = {"service_tier": None}
    if simulator.dialect == "azure":
        changes["model"] = f"{model}-{SNAPSHOT}"
    elif body.get("stream"):
        changes["usage"] = None
    return model, {**body, "model": model}, msgspec.structs.replace(directives, **changes)


def _keep_chat(simulator: Simulator, body: dict[str, Any], answer: Answer) -> None:
    """Keep a chat that asked to be stored; of a stream only that it was."""
    if answer.events is None:
        said = msgspec.json.decode(answer.body)
        kept = {**said, "metadata": body.get("metadata") or {}, "messages": body.get("messages") or []}
        simulator.store.shelf.chats[said["id"]] = kept


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

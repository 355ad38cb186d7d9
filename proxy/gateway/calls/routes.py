"""The routes of browser voice.

The app's server, with its key, gets a secret for one browser; the browser opens a call with that secret, or the server
with its key; whose call it is may hang it up. A browser asks (OPTIONS) before it posts from the app's page.
"""

import os
from typing import Any, NamedTuple

import msgspec

from billing.ledger.accounts import ApiKey
from billing.ledger.objects.realtime_calls import SECRET_PREFIX
from billing.money.catalogue.models import Model
from billing.money.errors import StoreUnavailable
from proxy.gateway.admission import admit
from proxy.gateway.authenticate import bearer_of, key_digest
from proxy.gateway.bodies.json_body import mended
from proxy.gateway.bodies.multipart import Form
from proxy.gateway.callers.labels import USER_HEADER
from proxy.gateway.calls.session_config import CallConfig, call_config, check_session
from proxy.gateway.calls.shared_client import SharedClient
from proxy.gateway.calls.upstream_calls import CALL_ID, CallRefused
from proxy.gateway.calls.voice_calls import VoiceCalls
from proxy.gateway.endpoints import CALLS_PATH, HANGUP_PATH, SECRETS_PATH
from proxy.gateway.limits.free_calls import count_free_call
from proxy.gateway.limits.standing import check_standing
from proxy.gateway.plan import sold_model
from proxy.gateway.request import GatewayRequest
from proxy.web.raw_request import first_header, query_pairs
from proxy.web.rejections import Rejection, bad_gateway, invalid, not_found, unavailable

UNKNOWN_SECRET = "This client secret is unknown, expired or used up. Ask your app's server for a new one."  # noqa: S105
CANNOT_WRITE = "This cannot be written down right now. Nothing was charged; try again shortly."
LEAST_SECONDS, MOST_SECONDS, USUAL_SECONDS = 10, 7_200, 600
MOST_SESSION_BYTES = 262_144
PREFLIGHT = (
    (b"access-control-allow-methods", b"POST"),
    (b"access-control-allow-headers", b"*, authorization, content-type"),
    (b"access-control-max-age", b"600"),
)
ANYBODY = [
    (b"access-control-allow-origin", b"*"),
    (b"access-control-expose-headers", b"location, x-request-id, retry-after"),
]
"""A secret decides who may open a call, not a page. No cookie is taken, so no browser can be made to ask in somebody's
name.
"""
CALL_FIELDS = frozenset(("sdp", "session"))
MOST_SDP_BYTES = 262_144


class CallOpener(NamedTuple):
    """Sender of a request for a call. `session`: what a client secret fixed, None for a key."""

    key: ApiKey
    digest: str
    session: Any = None


class FixedSession(msgspec.Struct, frozen=True):
    """Contents of a client secret: the session (JSON), and the end user whose calls it opens."""

    session: msgspec.Raw
    end_user: str = ""


def read_fixed(written: str) -> FixedSession:
    """Return what a secret fixes; one made before end users had a place in it is the session alone."""
    try:
        return msgspec.json.decode(written, type=FixedSession)
    except msgspec.ValidationError:
        return FixedSession(msgspec.Raw(written.encode()))


def is_voice(method: str, path: bytes) -> bool:
    """Tell whether a request is one of these."""
    calls = path == CALLS_PATH or HANGUP_PATH.match(path) is not None
    return (method == "POST" and (calls or path == SECRETS_PATH)) or (method == "OPTIONS" and calls)


async def answer_voice(request: GatewayRequest, calls: VoiceCalls) -> None:
    """Answer one such request on the request's client. Never raises but for cancellation."""
    request.endpoint = SECRETS_PATH.decode() if request.path == SECRETS_PATH else "/v1/realtime/calls"
    if request.path != SECRETS_PATH:
        request.client = SharedClient(request.client, ANYBODY)
    await request.answer_by(_answer(request, calls))


async def _answer(request: GatewayRequest, calls: VoiceCalls) -> None:
    try:
        await _by_path(request, calls)
    except CallRefused as refused:
        await _pass_refusal(request, refused)
    except StoreUnavailable:
        raise unavailable(CANNOT_WRITE, "store_unavailable") from None


async def _by_path(request: GatewayRequest, calls: VoiceCalls) -> None:
    if request.method == "OPTIONS":
        request.status, request.outcome = 204, "completed"
        await request.client.respond(204, list(PREFLIGHT), b"")
    elif request.path == SECRETS_PATH:
        await _make_secret(request, calls)
    elif request.path == CALLS_PATH:
        await _open_call(request, calls)
    else:
        await _hang_up(request, calls)


# -- a secret ---------------------------------------------------------------------------------------


async def _make_secret(request: GatewayRequest, calls: VoiceCalls) -> None:
    services = request.services
    key = request.key = await services.authenticator.authenticate(request.headers, request.peer)
    free = admit(request.settings, key.home_id, services.overloaded)
    await count_free_call(services, key, request.request_id, request.started_ms)
    await check_standing(services, key, request.request_id, request.started_ms, free=free)
    given = await services.bodies.read(await request.client.read_body(), b"", _object)
    if unknown := given.keys() - {"expires_after", "session"}:
        raise invalid(f"Unrecognized parameter: {min(unknown)[:40]}.", min(unknown)[:40], "unknown_parameter")
    seconds = _lifetime(given.get("expires_after"))
    wanted = check_session({} if given.get("session") is None else given["session"])
    # without a model the call names it, and is checked then
    fixed = {"type": "realtime", **wanted} if wanted.get("model") is None else _config(request, key, wanted).session
    session = msgspec.json.encode(fixed)
    if len(session) > MOST_SESSION_BYTES:
        raise invalid(f"`session` must be at most {MOST_SESSION_BYTES} bytes.", "session")
    digest = key_digest(bearer_of(request.headers), request.headers)
    user = key.user.name if key.user is not None else ""
    fixed_for = msgspec.json.encode(FixedSession(session=msgspec.Raw(session), end_user=user)).decode()
    value, expires_at = await calls.store.mint(key.account_id, digest, fixed_for, seconds * 1_000)
    shown = {"id": "sess_" + os.urandom(12).hex(), "object": "realtime.session", **fixed}
    await request.answer_json(
        msgspec.json.encode({"value": value, "expires_at": expires_at // 1_000, "session": shown})
    )


def _lifetime(given: Any) -> int:
    """Seconds that a secret is to live. Raises Rejection."""
    if given is None:
        return USUAL_SECONDS
    if not isinstance(given, dict) or given.get("anchor", "created_at") != "created_at":
        raise invalid("`expires_after` is an object with `anchor` created_at and `seconds`.", "expires_after")
    seconds = given.get("seconds", USUAL_SECONDS)
    if isinstance(seconds, float) and seconds.is_integer():
        seconds = int(seconds)
    if type(seconds) is not int or not LEAST_SECONDS <= seconds <= MOST_SECONDS:
        raise invalid(
            f"`seconds` must be a whole number from {LEAST_SECONDS} to {MOST_SECONDS}.", "expires_after.seconds"
        )
    return seconds


# -- a call -----------------------------------------------------------------------------------------


async def _open_call(request: GatewayRequest, calls: VoiceCalls) -> None:
    caller = await _caller(request, calls)
    request.key = caller.key
    free = admit(request.settings, caller.key.home_id, request.services.overloaded)
    await check_standing(request.services, caller.key, request.request_id, request.started_ms, free=free)
    sdp, session = _offer(request, await request.client.read_body(), caller)
    config = _config(request, caller.key, session)
    call_id, answer = await calls.open(request, caller.key, caller.digest, config, sdp)
    request.status, request.outcome = 201, "completed"
    headers = [
        (b"content-type", b"application/sdp"),
        (b"location", b"/v1/realtime/calls/" + call_id.encode()),
        (b"x-request-id", request.request_id.encode()),
    ]
    await request.client.respond(201, headers, request.services.redactor.redact_key(answer))
    if request.interruption.reason:  # it left before it had the answer: nobody will be connected
        await calls.hang_up(call_id)


async def _caller(request: GatewayRequest, calls: VoiceCalls) -> CallOpener:
    """Authenticate by a client secret, whose key must still be good, or by a key. Raises Rejection."""
    services, token = request.services, bearer_of(request.headers)
    if not token.startswith(SECRET_PREFIX):
        key = await services.authenticator.authenticate(request.headers, request.peer, tokens=True)
        return CallOpener(key, key_digest(token, request.headers))
    opened = await services.authenticator.prove(
        request.headers, request.peer, lambda: calls.store.open(token), UNKNOWN_SECRET
    )
    fixed = read_fixed(opened.session)
    request.headers = [pair for pair in request.headers if pair[0] != USER_HEADER]
    if fixed.end_user:
        request.headers.append((USER_HEADER, fixed.end_user.encode()))
    key = await services.authenticator.check(opened.key_digest, request.headers, request.peer)
    return CallOpener(key, opened.key_digest, msgspec.json.decode(fixed.session))


def _offer(request: GatewayRequest, body: bytes, caller: CallOpener) -> tuple[bytes, Any]:
    """Return (the SDP offer, the session that is wanted). Raises Rejection."""
    query = dict(query_pairs(request.query))
    if query.keys() - {"model"}:
        raise invalid(
            "Only `model` is taken from the query here.", min(query.keys() - {"model"})[:40], "unknown_parameter"
        )
    content_type = first_header(request.headers, b"content-type")
    kind = content_type.partition(b";")[0].strip().lower()
    sdp, session = body, None
    if kind == b"multipart/form-data":
        form = Form(body, content_type)
        form.check(CALL_FIELDS, frozenset(), CALL_FIELDS)
        sdp = (form.text("sdp") or "").encode()
        text = form.text("session")
        session = None if text is None else _object(text.encode(), b"")
    elif kind != b"application/sdp":
        raise Rejection(
            415,
            "unsupported_content_type",
            "Send the SDP offer as application/sdp, or a form with `sdp` and `session`.",
        )
    if not sdp.strip() or len(sdp) > MOST_SDP_BYTES:
        raise invalid("Send the SDP offer of an RTCPeerConnection.", "sdp", "invalid_offer")
    if caller.session is not None:
        if session is not None:
            raise invalid("The client secret fixes the session: leave `session` out.", "session", "unknown_parameter")
        session = caller.session
    named = query.get("model")
    if session is None:
        session = {} if named is None else {"type": "realtime", "model": named}
    elif named is not None and session.get("model") is None:
        session = {**session, "model": named}
    elif named is not None and session.get("model") != named:
        raise invalid("The session has another model than the query names.", "model", "model_change_not_allowed")
    return sdp, session


def _config(request: GatewayRequest, key: ApiKey, session: Any) -> CallConfig:
    """Session that is wanted, checked against what is sold now. Raises Rejection."""
    services, settings = request.services, request.settings

    def sold(name: str, endpoint: str) -> Model:
        prices = services.sold_to(key.home_id, services.terms, request.started_ms).prices
        return sold_model(name, endpoint, key, prices, settings.billing, services.today())

    return call_config(session, sold, settings.holds)


async def _pass_refusal(request: GatewayRequest, refused: CallRefused) -> None:
    """Pass on why OpenAI refused, without our account's identity."""
    redactor = request.services.redactor
    request.status, request.outcome = refused.status, "upstream_error"
    headers = redactor.headers(refused.headers, request.request_id)
    await request.client.respond(refused.status, headers, redactor.redact_identity(refused.body))


async def _hang_up(request: GatewayRequest, calls: VoiceCalls) -> None:
    key = request.key = await request.services.authenticator.authenticate(request.headers, request.peer)
    await request.client.read_body()  # nothing of it is passed on
    found = HANGUP_PATH.match(request.path)
    call_id = found[1].decode() if found is not None else ""
    if not CALL_ID.match(call_id) or await calls.store.owner(call_id) != key.account_id:
        raise not_found("No such call.", "call_not_found")
    if not await calls.hang_up(call_id):
        raise bad_gateway("The upstream did not hang up. Try again.", "upstream_hangup")
    await calls.store.end(call_id)
    request.status, request.outcome = 200, "completed"
    await request.client.respond(200, [(b"x-request-id", request.request_id.encode())], b"")


def _object(body: bytes, _content_type: bytes) -> dict[str, Any]:
    """JSON object of a request. Raises Rejection."""
    try:
        body.decode()  # a parser does not look into what it skips
        found = msgspec.json.decode(mended(body)) if body else {}
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise invalid("The body is not valid JSON.", code="invalid_json") from None
    if not isinstance(found, dict):
        raise invalid("The body must be a JSON object.", code="invalid_json")
    return found

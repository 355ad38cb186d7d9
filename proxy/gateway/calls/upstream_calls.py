"""Calls at OpenAI: created, listened to, hung up, with the operator's key."""

import asyncio
import logging
import os
import re
from typing import Any, NamedTuple

import msgspec
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import InvalidHandshake, InvalidStatus

from proxy.gateway.access_log import report_account
from proxy.gateway.answers.upstream_errors import read_failure
from proxy.gateway.request import GatewayRequest, Headers
from proxy.gateway.services import Services
from proxy.gateway.sockets.upstream_socket import connect_upstream
from proxy.gateway.upstream.interruption import Interruption, UpstreamError
from proxy.gateway.upstream.judgement import failure_in, judge
from proxy.gateway.upstream.member import Member
from proxy.web.rejections import bad_gateway

log = logging.getLogger("tollkeeper.calls")

CALLS_PATH = "/realtime/calls"
CALL_ID = re.compile(r"^[A-Za-z0-9_-]{1,110}$")
MOST_BYTES = 262_144
CREATED = (200, 201)
GONE = (404, 410)
ATTACH_PAUSES = (0.1, 0.3, 0.6, 1.0)
"""Seconds between tries: a call that was created a moment ago may not be found yet."""
HANGUP_PAUSES = (0.2, 0.5)
HANGUP_SECONDS = 4.0
"""For one try."""
HEADERS = b"Content-Type: %s\r\nAccept: application/sdp\r\nX-Client-Request-Id: %s\r\n"
PART = b'--%b\r\nContent-Disposition: form-data; name="%b"\r\nContent-Type: %b\r\n\r\n%b\r\n'


class CreatedCall(NamedTuple):
    """A call that exists at OpenAI and is not connected: nobody has its answer yet."""

    call_id: str
    sdp: bytes


class CallRefused(Exception):
    """OpenAI refused a call, in its own words: pass them on."""

    def __init__(self, status: int, headers: Headers, body: bytes) -> None:
        """`body` is as it came."""
        super().__init__(f"refused with {status}")
        self.status, self.headers, self.body = status, headers, body


class CallNotTaken(Exception):
    """An upstream did not take a call, and nothing of it is there: another may. `error`: what its client is told."""

    def __init__(self, error: Exception) -> None:
        """`error` is raised where no other takes it."""
        super().__init__(str(error))
        self.error = error


async def create_call(request: GatewayRequest, member: Member, session: dict[str, Any], sdp: bytes) -> CreatedCall:
    """Create a call with a session of ours. Raises CallNotTaken, CallRefused, Rejection, UpstreamError.

    A client that leaves meanwhile does not stop it: what was created must be known to be hung up.
    """
    services, boundary = request.services, os.urandom(16).hex().encode()
    parts = (
        PART % (boundary, b"sdp", b"application/sdp", sdp),
        PART % (boundary, b"session", b"application/json", msgspec.json.encode(session)),
    )
    request.interruption.muted = True
    headers = HEADERS % (b"multipart/form-data; boundary=" + boundary, request.request_id.encode())
    body = b"".join(parts) + b"--" + boundary + b"--\r\n"
    sent = headers + request.trace.lines
    try:
        answer = await member.pool.send("POST", CALLS_PATH, sent, body, request.interruption, lambda: None)
    except UpstreamError as error:
        _take_note(services, member, error.reason)
        if error.reason != "busy":
            member.circuit.failed(error.reason, asyncio.get_running_loop().time())
        raise error if error.sent else CallNotTaken(error) from None
    try:
        said = await answer.collect(MOST_BYTES)
    finally:
        answer.close()
    status = answer.head.status
    if status not in CREATED:
        services.metrics.count(services.metrics.upstream_errors, f"status_{status // 100}xx")
        own, account = read_failure(status, said, services.redactor.redact_identity)
        report_account(services, account, status, request.request_id)
        reason = failure_in(status, said, services.redactor)
        judge(member, answer.head, reason, "", asyncio.get_running_loop().time())
        _take_note(services, member, reason)
        refused = own or CallRefused(status, answer.head.headers, said)
        # with a 5xx it may be there all the same
        raise CallNotTaken(refused) if reason and status < 500 else refused
    member.circuit.served()
    services.metrics.count(services.metrics.upstreams.requests, member.name)
    call_id = answer.head.get(b"location").decode("latin-1").partition("?")[0].rstrip("/").rpartition("/")[2]
    if not CALL_ID.match(call_id):
        raise bad_gateway("The upstream made a call without a name. Nothing was charged; try again.", "upstream_error")
    return CreatedCall(call_id, said)


def _take_note(services: Services, member: Member, reason: str) -> None:
    if reason:
        services.metrics.upstreams.count_failed(services.metrics.count, member.name, reason, 0)


async def attach(services: Services, member: Member, call_id: str, request_id: str) -> ClientConnection:
    """Open the sideband of a call. Raises Rejection."""
    for pause in (*ATTACH_PAUSES, 0.0):
        try:
            return await connect_upstream(member, f"/realtime?call_id={call_id}", request_id)
        except InvalidStatus as error:
            if error.response.status_code not in GONE or not pause:
                break
            await asyncio.sleep(pause)
        except (UpstreamError, OSError, TimeoutError, InvalidHandshake):
            break
    services.metrics.count(services.metrics.upstream_errors, "sideband")
    raise bad_gateway(
        "The call could not be metered, so it was not connected. Nothing was charged; try again.", "sideband_failed"
    )


async def hang_up(member: Member, call_id: str) -> bool:
    """End a call; True when it runs no more, as far as OpenAI says."""
    reason = ""
    for pause in (0.0, *HANGUP_PAUSES):
        await asyncio.sleep(pause)
        try:
            async with asyncio.timeout(HANGUP_SECONDS):
                status = await _hang_up_once(member, call_id)
        except (UpstreamError, TimeoutError) as error:
            reason = str(error) or "no answer in time"
        else:
            if status // 100 == 2 or status in GONE:
                return True
            reason = f"status {status}"
    log.error("call %s could not be hung up (%s); it is tried again", call_id, reason)
    return False


async def _hang_up_once(member: Member, call_id: str) -> int:
    answer = await member.pool.send(
        "POST", f"{CALLS_PATH}/{call_id}/hangup", b"Accept: */*\r\n", b"", Interruption(), lambda: None
    )
    try:
        await answer.collect(MOST_BYTES)
    finally:
        answer.close()
    return answer.head.status

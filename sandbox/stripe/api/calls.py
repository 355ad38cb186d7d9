"""One API call: key, version, idempotency, parameters, the work, and the failures a test may order."""

import asyncio
import base64
import binascii
import hashlib
import re
from collections.abc import Mapping
from typing import Final

import msgspec

from sandbox.stripe.account.errors import StripeError, idempotency, invalid, unauthorized
from sandbox.stripe.account.world import Cause, Obj, World, public
from sandbox.stripe.api import forms, lists, params, routes
from sandbox.stripe.api.faults import Fault, Faults

_KEPT_S: Final = 86_400
_MAX_KEY: Final = 255
_VERSION: Final = re.compile(r"\d{4}-\d{2}-\d{2}(\.[a-z]+)?(; .*)?")
# Answers that say nothing about the work are not saved under an idempotency key.
_UNSAVED: Final = (401, 409, 429)


class Answer(msgspec.Struct, frozen=True):
    """Answer to the client."""

    status: int
    body: Obj
    headers: dict[str, str]
    fault: Fault | None = None
    """Failure of the connection, which then does not carry the answer."""


class SavedResult(msgspec.Struct, frozen=True):
    """The first result under an idempotency key."""

    endpoint: str
    fingerprint: str
    status: int
    body: Obj
    request_id: str
    until: float


class Api:
    """The paths under /v1/."""

    def __init__(self, world: World, faults: Faults, api_key: str) -> None:
        """Accept `api_key` as the only one."""
        self._world, self._faults, self._api_key = world, faults, api_key
        self.saved: dict[str, SavedResult] = {}
        self._busy: set[str] = set()
        self.calls = 0

    async def answer(self, method: str, path: str, query: str, headers: Mapping[str, str], body: bytes) -> Answer:
        """Answer a call; every failure of the client becomes an error answer."""
        self.calls += 1
        world = self._world
        request_id = world.new_id("req_")
        shown = {"request-id": request_id, "stripe-version": headers.get("stripe-version", world.api_version)}
        fault = self._faults.take(method, path)
        if fault is not None and not fault.after:
            return self._failed(fault, shown, request_id)
        try:
            status, result, more = await self._checked(method, path, query, headers, body, request_id, fault)
        except StripeError as error:
            status, result, more = error.status, self._error(error, request_id), {}
        answer = Answer(status, result, shown | more)
        if fault is not None and fault.after:
            return self._failed(fault, shown, request_id)
        return answer

    def _failed(self, fault: Fault, shown: dict[str, str], request_id: str) -> Answer:
        error = StripeError(fault.status, fault.error_type, fault.message, fault.code)
        return Answer(fault.status, self._error(error, request_id), shown | fault.headers, fault)

    def _error(self, error: StripeError, request_id: str) -> Obj:
        url = f"https://dashboard.stripe.com/test/logs/{request_id}?t={self._world.now()}"
        return {"error": {"request_log_url": url} | error.error}

    async def _checked(
        self,
        method: str,
        path: str,
        query: str,
        headers: Mapping[str, str],
        body: bytes,
        request_id: str,
        fault: Fault | None,
    ) -> tuple[int, Obj, dict[str, str]]:
        _authenticate(headers.get("authorization"), self._api_key)
        version = _version(headers.get("stripe-version", self._world.api_version))
        found = routes.match(method, path)
        if found is None:
            message = (
                f"Unrecognized request URL ({method}: {path}). Please see https://stripe.com/docs or we can help "
                "at https://support.stripe.com/."
            )
            raise invalid(message, status=404).not_started()
        tree = forms.decode(query if method in {"GET", "DELETE"} and not body else body.decode("utf-8", "replace"))
        key = headers.get("idempotency-key") if method == "POST" else None
        if key is None:
            await self._pause()
            status, result = self._run(*found, tree, version, Cause(request_id))
            return status, result, {}
        return await self._once(key, found, tree, version, Cause(request_id, key), path, fault)

    async def _once(
        self,
        key: str,
        found: tuple[routes.Route, list[str]],
        tree: forms.Tree,
        version: str,
        cause: Cause,
        path: str,
        fault: Fault | None,
    ) -> tuple[int, Obj, dict[str, str]]:
        """Do the work at most once per key."""
        if not key or len(key) > _MAX_KEY:
            raise invalid(f"Idempotency keys must be between 1 and {_MAX_KEY} characters long.").not_started()
        fingerprint = hashlib.sha256(msgspec.json.encode(tree, order="deterministic")).hexdigest()
        saved = self.saved.get(key)
        if saved is not None and saved.until > self._world.time():
            _check_same(key, saved, path, fingerprint)
            replayed = {"idempotency-key": key, "idempotent-replayed": "true", "original-request": saved.request_id}
            return saved.status, saved.body, replayed
        if key in self._busy:
            raise idempotency(
                409,
                "There is currently another in-progress request using this Idempotent Key (that probably means you "
                f"submitted twice, and the other request is still going through): {key}. Please try again later.",
                "idempotency_key_in_use",
            )
        self._busy.add(key)
        request_id = str(cause.request_id)
        try:
            await self._pause()
            try:
                status, result = self._run(*found, tree, version, cause)
            except StripeError as error:
                if not error.started:
                    raise
                status, result = error.status, self._error(error, request_id)
            if fault is not None and fault.saved:
                failed = self._failed(fault, {}, request_id)
                status, result = failed.status, failed.body
            if status not in _UNSAVED:
                self.saved[key] = SavedResult(
                    path, fingerprint, status, result, request_id, self._world.time() + _KEPT_S
                )
        finally:
            self._busy.discard(key)
        return status, result, {"idempotency-key": key, "original-request": request_id}

    async def _pause(self) -> None:
        if self._world.live.api_latency_ms > 0:
            await asyncio.sleep(self._world.live.api_latency_ms / 1000)

    def _run(
        self, route: routes.Route, ids: list[str], tree: forms.Tree, version: str, cause: Cause
    ) -> tuple[int, Obj]:
        """Type the parameters, call the handler, and run the actions that fall due by it."""
        world = self._world
        world.run_due()
        typed = tree if route.params == routes.ANYTHING else params.read(route.params, tree, version)
        paths = typed.pop("expand", [])
        world.cause = cause
        try:
            result = route.handler(world, typed, ids)
        finally:
            world.cause = Cause()
            world.run_due()
        return 200, lists.expand(world, public(result), paths)


def _authenticate(header: str | None, api_key: str) -> None:
    scheme, _, value = (header or "").partition(" ")
    given = value.strip()
    if scheme.lower() == "basic":
        try:
            given = base64.b64decode(given, validate=True).decode("utf-8").partition(":")[0]
        except (binascii.Error, UnicodeDecodeError):
            given = ""
    if not given or scheme.lower() not in {"basic", "bearer"}:
        raise unauthorized(
            "You did not provide an API key. You need to provide your API key in the Authorization header, using "
            "Bearer auth (e.g. 'Authorization: Bearer YOUR_SECRET_KEY'). See "
            "https://stripe.com/docs/api#authentication for details."
        )
    if given != api_key:
        raise unauthorized(f"Invalid API Key provided: {given[:8]}{'*' * max(0, len(given) - 12)}{given[-4:]}")


def _version(given: str) -> str:
    if not _VERSION.fullmatch(given):
        raise invalid(
            f"Invalid Stripe API version: {given}. You are receiving this error because of the Stripe-Version header."
        ).not_started()
    return given


def _check_same(key: str, saved: SavedResult, path: str, fingerprint: str) -> None:
    hint = f"Try using a key other than '{key}' if you meant to execute a different request."
    if saved.endpoint != path:
        where = f"('{path}' vs '{saved.endpoint}')"
        message = (
            "Keys for idempotent requests can only be used for the same endpoint they were first used for "
            f"{where}. {hint}"
        )
        raise idempotency(400, message)
    if saved.fingerprint != fingerprint:
        message = (
            f"Keys for idempotent requests can only be used with the same parameters they were first used with. {hint}"
        )
        raise idempotency(400, message)

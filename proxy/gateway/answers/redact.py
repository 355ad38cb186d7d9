"""Passing an upstream's answer on: headers by allow-list, bodies without our account's key and identity."""

import re
from collections.abc import Iterable

from config.secrets import Secret
from proxy.gateway.answers.convert import converted
from proxy.gateway.answers.identity import redact_names

PASSED_HEADERS = frozenset(
    (b"content-type", b"openai-processing-ms", b"openai-version", b"retry-after", b"retry-after-ms", b"x-should-retry")
)
TELL_WHO_SERVED = frozenset((b"openai-processing-ms", b"openai-version"))
"""Of these, what not every kind of upstream sends."""
HEADER_VALUE = re.compile(rb"^[\x20-\x7e\t]*$")

Headers = list[tuple[bytes, bytes]]


class ResponseRedactor:
    """For the answers of our upstream accounts."""

    __slots__ = ("_keys", "passed")

    def __init__(self, keys: Iterable[Secret]) -> None:
        """`keys` must never be seen."""
        self._keys: tuple[bytes, ...] = ()
        self.passed = PASSED_HEADERS
        """Names of headers that pass."""
        for key in keys:
            self.hide(key)

    def hide(self, key: Secret) -> None:
        """Hide another key, beside those before: an answer may still be on its way that has one of them."""
        if key and key.reveal().encode() not in self._keys:
            self._keys = (*self._keys, key.reveal().encode())

    def headers(self, sent: Headers, request_id: str) -> Headers:
        """Those of the upstream's headers that pass, one of a name, and our request id."""
        by_name = dict(sent)
        names = sorted(self.passed & by_name.keys())
        found = [(name, by_name[name]) for name in names if HEADER_VALUE.match(by_name[name])]
        found.append((b"x-request-id", request_id.encode()))
        return found

    def in_clients_form(self, form: str, sent: Headers, body: bytes, request_id: str) -> tuple[Headers, bytes]:
        """Headers and body to hand over, converted where the upstream was asked for another form than the client."""
        headers = self.headers(sent, request_id)
        changed = converted(form, body) if form else None
        if changed is None:
            return headers, body
        return [(b"content-type", changed[0]), *(pair for pair in headers if pair[0] != b"content-type")], changed[1]

    def redact_identity(self, body: bytes) -> bytes:
        """Return an error's body without the names of our account."""
        return redact_names(self.redact_key(body))

    def redact_key(self, data: bytes) -> bytes:
        """Return the bytes without our keys."""
        for key in self._keys:
            if key in data:
                data = data.replace(key, b"***")
        return data

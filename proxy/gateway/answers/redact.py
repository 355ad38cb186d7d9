"""What of an upstream's answer may be passed on: headers by allow-list, bodies without our account's key and identity."""

import re

from config.secrets import Secret
from proxy.gateway.answers.convert import converted

PASSED_HEADERS = frozenset(
    (b"content-type", b"openai-processing-ms", b"openai-version", b"retry-after", b"retry-after-ms", b"x-should-retry")
)
IDENTITY = re.compile(rb"\b(org-|proj_|sk-)[A-Za-z0-9_*-]{4,}")
HEADER_VALUE = re.compile(rb"^[\x20-\x7e\t]*$")

Headers = list[tuple[bytes, bytes]]


class Passing:
    """For the answer to one request."""

    __slots__ = ("_key", "_request_id")

    def __init__(self, request_id: str, upstream_key: Secret) -> None:
        """`upstream_key` is what must never be seen."""
        self._request_id, self._key = request_id.encode(), upstream_key.reveal().encode()

    def headers(self, sent: Headers) -> Headers:
        """Those of the upstream's headers that pass, and our request id."""
        found = [(name, value) for name, value in sent if name in PASSED_HEADERS and HEADER_VALUE.match(value)]
        found.append((b"x-request-id", self._request_id))
        return found

    def in_clients_form(self, form: str, sent: Headers, body: bytes) -> tuple[Headers, bytes]:
        """The headers and body to hand over, converted where the upstream was asked for another form than the client."""
        headers = self.headers(sent)
        changed = converted(form, body) if form else None
        if changed is None:
            return headers, body
        return [(b"content-type", changed[0]), *(pair for pair in headers if pair[0] != b"content-type")], changed[1]

    def without_identity(self, body: bytes) -> bytes:
        """An error's body without the names of our account."""
        return IDENTITY.sub(rb"\1***", self.without_key(body))

    def without_key(self, data: bytes) -> bytes:
        """Any bytes without our key."""
        return data.replace(self._key, b"***") if self._key and self._key in data else data

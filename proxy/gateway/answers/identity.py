"""Names that must not be seen: ids of our own organisation and project, keys, credentials, ids of what nobody owns."""

import os
import re
from collections.abc import Iterable

NAMES = re.compile(rb"\b(org-|proj_|sk-)[A-Za-z0-9_*-]{4,}")
CREDENTIALS = re.compile(rb"(?i)\b(bearer|basic)(\s+)(?=[\w.~+/=*-]*[\d*])[\w.~+/=*-]{8,}")


def redact_names(data: bytes) -> bytes:
    """Return the bytes with such names blanked."""
    return CREDENTIALS.sub(rb"\1\2***", NAMES.sub(rb"\1***", data))


def without_ids(body: bytes, ids: Iterable[str]) -> bytes:
    """Return JSON with made-up ids in the place of these: they name nothing, and clients need one all the same."""
    for one in ids:
        prefix = re.match(r"[a-z]*[_-]?", one)
        made_up = (prefix[0] if prefix else "") + os.urandom(16).hex()
        body = body.replace(b'"%b"' % one.encode(), b'"%b"' % made_up.encode())
    return body

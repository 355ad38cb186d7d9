"""Labels of a request, which its app says beside what it asks: for whom it is, and tags. Pure."""

from typing import NamedTuple

import msgspec

from billing.ledger.accounts import ApiKey
from proxy.gateway.bodies.parsed import Parsed
from proxy.web.raw_request import has_any

USER_HEADER, TAGS_HEADER = b"tollkeeper-user", b"tollkeeper-tags"
LABEL_HEADERS = (USER_HEADER, TAGS_HEADER)
LONGEST_USER, LONGEST_TAG, MOST_TAGS = 128, 100, 20


class Labels(NamedTuple):
    """End user that the customer's app names for a request, and its tags, one a line."""

    end_user: str = ""
    tags: str = ""


NO_LABELS = Labels()


def labels_of(headers: list[tuple[bytes, bytes]], user: bytes | None, metadata: bytes | None) -> Labels:
    """Labels of a request: by its headers `Tollkeeper-User` and `Tollkeeper-Tags`, by the user that its body names,
    and by the body's metadata, each pair a tag. What cannot be kept is cut or left out; nothing is refused for it.
    """
    tags: list[str] = []
    for name, value in headers if has_any(headers, LABEL_HEADERS) else ():
        if name == USER_HEADER:
            user = value
        elif name == TAGS_HEADER:
            tags += value.decode("utf-8", "replace").split(",")
    if metadata is not None:
        tags += _pairs(metadata)
    if not user and not tags:
        return NO_LABELS
    kept = dict.fromkeys(tag for tag in (_label(tag, LONGEST_TAG) for tag in tags) if tag)
    return Labels(_label(_said(user or b""), LONGEST_USER), "\n".join(list(kept)[:MOST_TAGS]))


def body_labels(headers: list[tuple[bytes, bytes]], parsed: Parsed, key: ApiKey) -> Labels:
    """Labels of a request whose body was parsed. A token says itself whom it is for."""
    named = parsed.tenant_values
    user = named.get("safety_identifier") or named.get("user")
    found = labels_of(headers, user, parsed.members.get("metadata"))
    return found if key.token is None else found._replace(end_user=key.token.end_user)


def named_user(headers: list[tuple[bytes, bytes]]) -> str:
    """End user that the headers name; "" where they name none."""
    found = b""
    for name, value in headers:
        if name == USER_HEADER:
            found = value
    return _label(_said(found), LONGEST_USER)


def _said(raw: bytes) -> str:
    """Return a name as JSON or a form has it."""
    try:
        return msgspec.json.decode(raw, type=str) if raw.startswith(b'"') else raw.decode("utf-8", "replace")
    except (msgspec.DecodeError, UnicodeDecodeError):
        return raw.decode("utf-8", "replace")


def _pairs(metadata: bytes) -> list[str]:
    """Return metadata's pairs as tags; none where it is no text to text."""
    try:
        found = msgspec.json.decode(metadata, type=dict[str, str] | None)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return []
    return [f"{key}:{value}" for key, value in (found or {}).items()]


def _label(text: str, longest: int) -> str:
    """Return a label's printable characters, cut."""
    return "".join(sign for sign in text.strip() if sign.isprintable())[:longest]

"""Details of an account: its name, its app's own id for it, an e-mail address, metadata. Pure."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

from billing.ledger.records.plain_text import is_plain_text
from billing.money.errors import InvalidDetails

LONGEST_NAME = 200
LONGEST_EXTERNAL_ID = 200
LONGEST_EMAIL = 320
MOST_METADATA, LONGEST_METADATA_KEY, LONGEST_METADATA = 50, 40, 500
EMAIL = re.compile(r"[^@\s]+@[^@\s.]+(\.[^@\s.]+)*")
ERASED_NAME = "erased"
FIELDS = ("name", "external_id", "email", "metadata")


class AccountDetails(NamedTuple):
    """Details of an account to be. `metadata`: the app's own, text to text."""

    name: str
    external_id: str | None = None
    email: str | None = None
    metadata: Mapping[str, str] | None = None


def checked_details(details: AccountDetails) -> dict[str, str | None]:
    """Return the columns of these details. Raises InvalidDetails."""
    changes = {name: value for name, value in details._asdict().items() if value is not None}
    found = checked_changes(changes)
    if "metadata" in found:
        found["metadata"] = merged(None, found["metadata"])
    return {name: found.get(name) for name in FIELDS}


def checked_changes(changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the columns of these changes; `metadata` is still to be merged. Raises InvalidDetails."""
    found: dict[str, Any] = {}
    if "name" in changes:
        found["name"] = _text("name", changes["name"] or "", LONGEST_NAME)
    if "external_id" in changes:
        given = changes["external_id"]
        found["external_id"] = (
            None if given is None else _text("externalId", kept_external_id(given), LONGEST_EXTERNAL_ID)
        )
    if "email" in changes:
        found["email"] = None if changes["email"] is None else _email(changes["email"])
    if "metadata" in changes:
        found["metadata"] = None if changes["metadata"] is None else _metadata(changes["metadata"])
    return found


def merged(before: str | None, changes: Mapping[str, str | None] | None) -> str | None:
    """Return the JSON of metadata after changes: a key with None goes, the others stay; changes None: all of it goes.

    Compact and sorted, so that a pair can be searched for. Raises InvalidDetails.
    """
    if changes is None:
        return None
    kept: dict[str, str | None] = msgspec.json.decode(before) if before else {}
    kept.update(changes)
    left = {key: value for key, value in sorted(kept.items()) if value is not None}
    if len(left) > MOST_METADATA:
        raise InvalidDetails("metadata", f"have at most {MOST_METADATA} keys")
    return msgspec.json.encode(left).decode() if left else None


def metadata_pair(key: str, value: str) -> str:
    """Return how a pair is written in the JSON of `merged`: no text inside a value can look like it."""
    return msgspec.json.encode({key: value}).decode()[1:-1]


def kept_external_id(text: str) -> str:
    """Return an external id as accounts have it: without the blanks around it."""
    return text.strip()


def _text(field: str, text: str, longest: int) -> str:
    text = text.strip()
    if not is_plain_text(text, longest):
        raise InvalidDetails(field, f"be 1 to {longest} printable characters")
    return text


def _email(text: str) -> str:
    """Return an address in small letters, as it is searched for."""
    text = _text("email", text, LONGEST_EMAIL).lower()
    if EMAIL.fullmatch(text) is None or len(text) > LONGEST_EMAIL:
        raise InvalidDetails("email", "be one e-mail address")
    return text


def _metadata(given: Mapping[str, str | None]) -> dict[str, str | None]:
    for key, value in given.items():
        if not 0 < len(key) <= LONGEST_METADATA_KEY or not key.isprintable():
            raise InvalidDetails("metadata", f"have keys of 1 to {LONGEST_METADATA_KEY} printable characters")
        if value is not None and (len(value) > LONGEST_METADATA or not value.isprintable()):
            raise InvalidDetails("metadata", f"have values of at most {LONGEST_METADATA} printable characters")
    return dict(given)

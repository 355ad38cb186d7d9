"""Bodies of uploads: a file announced with its size, its parts, and the order in which they make it. Pure."""

from proxy.gateway.bodies.inventory import COMPLETE_FIELDS, PART_FIELDS, UPLOAD_FIELDS, offered
from proxy.gateway.bodies.json_body import whole_number
from proxy.gateway.bodies.multipart import Form
from proxy.gateway.bodies.parsed import references_to
from proxy.gateway.bodies.responses import read_members, whole
from proxy.gateway.unmetered.object_bodies import ObjectBody, check_lifetime, check_purpose
from proxy.web.rejections import invalid

LARGEST = 8 * 1024**3
"""Bytes of one upload, by the API's reference."""
MOST_PARTS = 10_000


def parse_upload(body: bytes, _content_type: bytes) -> ObjectBody:
    """Read what POST /v1/uploads announces. Raises Rejection."""
    asked = whole(read_members(body, UPLOAD_FIELDS).text)
    check_purpose(asked.get("purpose"))
    for name in ("filename", "mime_type"):
        if not isinstance(asked.get(name), str) or not asked[name]:
            raise invalid(f"Missing required parameter: {name!r}.", name, "missing_required_parameter")
    if asked.get("bytes") is None:
        raise invalid("Missing required parameter: 'bytes'.", "bytes", "missing_required_parameter")
    size = whole_number(asked["bytes"], "bytes")
    if not 1 <= size <= LARGEST:
        raise invalid(f"`bytes` must be between 1 and {LARGEST}.", "bytes")
    expires = asked.get("expires_after")
    if expires is not None:
        seconds = expires.get("seconds") if isinstance(expires, dict) else None
        check_lifetime(None if seconds is None else whole_number(seconds, "expires_after"))
    return ObjectBody(body, size_bytes=size)


def parse_part(body: bytes, content_type: bytes) -> ObjectBody:
    """Read the form with one part of an upload. Raises Rejection."""
    form = Form(body, content_type)
    form.check(offered(PART_FIELDS), frozenset(("data",)), frozenset(("data",)))
    files = form.files("data")
    if len(files) != 1:
        raise invalid("Send exactly one `data`.", "data", "missing_required_parameter")
    return ObjectBody(form.body, content_type, size_bytes=files[0].end - files[0].start)


def parse_complete(body: bytes, _content_type: bytes) -> ObjectBody:
    """Read which parts, in which order, a file is made of. Raises Rejection."""
    parts = whole(read_members(body, COMPLETE_FIELDS).text).get("part_ids")
    if not parts:
        raise invalid("Missing required parameter: 'part_ids'.", "part_ids", "missing_required_parameter")
    if not isinstance(parts, list) or len(parts) > MOST_PARTS:
        raise invalid(f"`part_ids` must be a list of at most {MOST_PARTS} ids.", "part_ids", "invalid_type")
    return ObjectBody(body, references=tuple(references_to("upload_part", parts, "part_ids")))

"""multipart/form-data: fields as they came, and files with what a record shows of them."""

import hashlib
import re
from email.message import Message
from email.utils import collapse_rfc2231_value
from typing import Any

import msgspec

from sandbox.openai.requests.errors import invalid


class Upload(msgspec.Struct, frozen=True):
    """One file of a form."""

    filename: str
    content_type: str
    data: bytes

    def shown(self) -> dict[str, Any]:
        """Return its entry in the record."""
        digest = hashlib.sha256(self.data).hexdigest()
        return {"filename": self.filename, "contentType": self.content_type, "bytes": len(self.data), "sha256": digest}


_NAME = re.compile(r"([^\[\]]+)((?:\[[^\[\]]*\])*)")
Uploads = dict[str, list[Upload]]
"""Files by field name, without `[]`."""


def is_form(content_type: str) -> bool:
    """Tell whether a body of that type is a form."""
    return content_type.lower().startswith("multipart/form-data")


def read_form(content_type: str, raw: bytes) -> tuple[dict[str, Any], Uploads]:
    """Return the fields, repeated ones as lists, and the files. Raises ApiError when it is no form."""
    boundary = _parameters("content-type", content_type).get("boundary")
    if not boundary:
        raise invalid("Could not parse multipart form: no boundary.", None, None)
    mark = b"--" + boundary.encode("latin-1")
    pieces = (b"\r\n" + raw).split(b"\r\n" + mark)
    if len(pieces) < 3 or not pieces[-1].startswith(b"--"):
        raise invalid("Could not parse multipart form.", None, None)
    fields: dict[str, Any] = {}
    uploads: Uploads = {}
    for piece in pieces[1:-1]:
        head, _, data = piece.partition(b"\r\n\r\n")
        headers = dict(_header(line) for line in head.decode("utf-8", "replace").split("\r\n") if ":" in line)
        disposition = _parameters("content-disposition", headers.get("content-disposition", ""))
        name = disposition.get("name", "")
        value: Any = data.decode("utf-8", "replace")
        if not data and not disposition.get("filename"):
            continue  # a field that was left empty, a file that nobody chose
        if "filename" in disposition:
            upload = Upload(disposition["filename"], headers.get("content-type", "application/octet-stream"), data)
            uploads.setdefault(name_of(name), []).append(upload)
            value = upload.shown()
        _put(fields, name, value)
    return fields, uploads


def name_of(name: str) -> str:
    """Return the field's own name of `name[]` or `name[member]`."""
    found = _NAME.fullmatch(name)
    return found[1] if found else name


def nested(form: dict[str, Any]) -> dict[str, Any]:
    """Return the form with lists and objects in place of `name[]`, `name[0]`, `name[member][sub]`."""
    body: dict[str, Any] = {}
    for name, value in form.items():
        own = name_of(name)
        steps = name[len(own) :].strip("[]").split("][")
        if own == name:
            body[own] = value
        elif all(step == "" or step.isdigit() for step in steps):
            body.setdefault(own, []).extend(value if isinstance(value, list) else [value])
        else:
            inside = body.setdefault(own, {})
            for step in steps[:-1]:
                inside = inside.setdefault(step, {})
            inside[steps[-1]] = value
    return body


def _put(fields: dict[str, Any], name: str, value: Any) -> None:
    if name not in fields:
        fields[name] = [value] if name.endswith("[]") else value
    elif isinstance(fields[name], list):
        fields[name].append(value)
    else:
        fields[name] = [fields[name], value]


def _header(line: str) -> tuple[str, str]:
    name, _, value = line.partition(":")
    return name.strip().lower(), value.strip()


def _parameters(name: str, value: str) -> dict[str, str]:
    """Return the parameters of a header such as `form-data; name="file"`."""
    message = Message()
    message[name] = value
    given = message.get_params(failobj=[], header=name)
    return {key.lower(): collapse_rfc2231_value(text) for key, text in given}

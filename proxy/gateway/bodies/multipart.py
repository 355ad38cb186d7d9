"""Multipart bodies: parsed to know what is in them, sent on byte for byte but for the fields that we must set.

Lists and objects of a form are written `name[]`, `name[0]`, `name[member]`, `name[member][sub]`: all of them are the
field `name`. A part that is left empty is as absent, and is taken out: upstream reads what we read. Sans I/O.
"""

import re
from typing import NamedTuple

from python_multipart.exceptions import FormParserError, ParseError
from python_multipart.multipart import MultipartParser, parse_options_header

from proxy.web.rejections import Rejection, invalid

MAX_PARTS = 128
MAX_FIELD_BYTES = 262_144


_NAME = re.compile(r"([^\[\]]+)((?:\[[^\[\]]*\])*)")
_QUOTED = re.compile(rb'"(?:\\.|[^"\\])*"')
_PARAMETER = re.compile(rb";\s*([^\s=;]+)\s*=")


class Part(NamedTuple):
    """One field or file: where its value stands in the body."""

    name: str
    filename: str | None
    start: int
    end: int

    @property
    def field(self) -> str:
        """Field that it is, or is an element or a member of; its whole name where that is no way to write one."""
        found = _NAME.fullmatch(self.name)
        return found[1] if found else self.name

    @property
    def is_empty(self) -> bool:
        """True for what was left empty: a field without a value, or a file that nobody chose."""
        return self.start == self.end and not self.filename


class Form:
    """A whole multipart/form-data body."""

    __slots__ = ("_boundary", "body", "parts")

    def __init__(self, body: bytes, content_type: bytes) -> None:
        """Parse it. Raises Rejection for anything malformed, and for more than MAX_PARTS parts."""
        kind, options = parse_options_header(content_type)
        boundary = options.get(b"boundary", b"")
        if kind != b"multipart/form-data" or not boundary:
            raise Rejection(
                415, "unsupported_content_type", "Send this request as multipart/form-data with a boundary."
            )
        self.body, self._boundary = body, boundary
        self.parts = _parts(body, boundary)
        if any(part.is_empty for part in self.parts):
            self.body = _without_empty(body, boundary, self.parts)
            self.parts = _parts(self.body, boundary)
        for part in self.parts:
            if part.filename is None and not _is_text(self.data(part)):
                raise invalid(f"`{part.name[:60]}` is not UTF-8 text.", part.name[:60])
            if part.start == part.end:
                raise invalid(f"The file `{part.name[:60]}` is empty.", part.name[:60])

    def check(self, known: frozenset[str], files: frozenset[str], plain: frozenset[str]) -> None:
        """Raise Rejection for a field that is not known, or that comes otherwise than it is read.

        `files` come as files, one or more; `plain` fields as `name` alone: `n[]` must not slip past where `n` is read.
        """
        for part in self.parts:
            name, shown = part.field, part.name[:60]
            if name not in known:
                raise invalid(
                    f"Unrecognized request argument supplied: {shown}. Remove it.", name[:60], "unknown_parameter"
                )
            if name in files and part.filename is None:
                raise invalid(f"`{shown}` must be a file.", name, "invalid_type")
            if name not in files and part.filename is not None:
                raise invalid(f"`{shown}` must be a plain field, not a file.", shown)
            if name in plain and part.name != name:
                raise invalid(f"`{shown}` is neither a list nor an object: send the field `{name}`.", name)

    def text(self, name: str) -> str | None:
        """Field's value; None when it is absent.

        Raises Rejection when it is given twice, is a file, or is not text.
        """
        values = self.texts(name)
        if len(values) > 1:
            raise invalid(f"The field `{name}` is given twice: send it once.", name, "duplicate_parameter")
        return values[0] if values else None

    def flag(self, name: str) -> tuple[bool, dict[str, bytes]]:
        """(value of a boolean field, the field as upstream must read it too). Raises Rejection.

        Clients write `true`, `True` (Python's requests), `1`, `on`: one reading for upstream and for the meter.
        """
        text = (self.text(name) or "").strip()
        if text.lower() in ("", "false", "0", "off", "no"):
            value = False
        elif text.lower() in ("true", "1", "on", "yes"):
            value = True
        else:
            raise invalid(f"`{name}` is true or false.", name, "invalid_type")
        plain = "true" if value else "false"
        return value, {name: plain.encode()} if text and text != plain else {}

    def texts(self, name: str) -> list[str]:
        """Every value of a field, also as `name[]`. Raises Rejection."""
        found = []
        for part in self.parts:
            if part.name.removesuffix("[]") != name:
                continue
            if part.filename is not None or part.end - part.start > MAX_FIELD_BYTES:
                raise invalid(f"`{name}` must be a plain field of at most {MAX_FIELD_BYTES} bytes.", name)
            found.append(self.body[part.start : part.end].decode())
        return found

    def files(self, name: str) -> list[Part]:
        """Every file of a field, also as `name[]` and `name[0]`."""
        return [part for part in self.parts if part.filename is not None and part.field == name]

    def data(self, part: Part) -> memoryview:
        """Part's bytes, not copied."""
        return memoryview(self.body)[part.start : part.end]

    def with_fields(self, changes: dict[str, bytes]) -> bytes:
        """Body with these fields set: a value is replaced where it stands, a new field is added at the end."""
        pieces, position, left = [], 0, dict(changes)
        for part in self.parts:
            value = changes.get(part.name)
            if value is None:
                continue
            pieces += [self.body[position : part.start], value]
            position = part.end
            left.pop(part.name, None)
        closing = self.body.index(b"--" + self._boundary + b"--", self.parts[-1].end if self.parts else 0)
        pieces.append(self.body[position:closing])
        for name, value in left.items():
            pieces.append(
                b'--%b\r\nContent-Disposition: form-data; name="%b"\r\n\r\n%b\r\n'
                % (self._boundary, name.encode(), value)
            )
        pieces.append(self.body[closing:])
        return b"".join(pieces)


def _parts(body: bytes, boundary: bytes) -> list[Part]:
    found: list[Part] = []
    headers: dict[bytes, bytes] = {}
    name, span, state, empty_at = b"", [-1, -1], {"ended": False}, -1

    def begin() -> None:
        nonlocal empty_at
        headers.clear()
        span[:] = [-1, -1]
        empty_at = -1
        if len(found) >= MAX_PARTS:
            raise invalid(f"The form has more than {MAX_PARTS} parts.")

    def header_name(data: bytes, start: int, end: int) -> None:
        nonlocal name
        name = data[start:end].lower()

    def header_value(data: bytes, start: int, end: int) -> None:
        nonlocal empty_at
        headers[name] = data[start:end]
        empty_at = end + 4 if data.startswith(b"\r\n\r\n", end) else -1

    def some(_data: bytes, start: int, end: int) -> None:
        # the whole body is parsed in one piece, so these are places in it
        span[0] = start if span[0] < 0 else span[0]
        span[1] = end

    def whole() -> None:
        found.append(_part(headers, *(span if span[0] >= 0 else (empty_at, empty_at))))

    def ended() -> None:
        state["ended"] = True

    parser = MultipartParser(
        boundary,
        {
            "on_part_begin": begin,
            "on_header_field": header_name,
            "on_header_value": header_value,
            "on_part_data": some,
            "on_part_end": whole,
            "on_end": ended,
        },
    )
    try:
        parser.write(body)
        parser.finalize()
    except FormParserError as error:
        where = f" near byte {error.offset}" if isinstance(error, ParseError) and error.offset >= 0 else ""
        raise invalid(
            f"The form cannot be read{where}: send well-formed multipart/form-data.", code="invalid_form"
        ) from None
    if not state["ended"]:
        raise invalid("The form ends before its closing boundary.", code="invalid_form")
    return found


def _without_empty(body: bytes, boundary: bytes, parts: list[Part]) -> bytes:
    """Body without the parts that were left empty: each from its own boundary to the next one."""
    pieces, position, line = [], 0, b"--" + boundary + b"\r\n"
    for part in parts:
        if part.is_empty:
            # a header holds no line break, so the last line like it is the boundary
            start = body.rfind(b"\r\n" + line, 0, part.start) + 2
            pieces.append(body[position : start if start > 1 else body.index(line)])
            position = part.end + 2
    return b"".join((*pieces, body[position:]))


def _is_text(value: bytes | memoryview) -> bool:
    try:
        str(value, "utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _part(headers: dict[bytes, bytes], start: int, end: int) -> Part:
    given = headers.get(b"content-disposition", b"")
    disposition, options = parse_options_header(given)
    if disposition != b"form-data" or not options.get(b"name"):
        raise invalid("A part of the form has no name.", code="invalid_form")
    parameters = [found.lower() for found in _PARAMETER.findall(_QUOTED.sub(b"", given))]
    if parameters.count(b"name") > 1 or any(one.startswith(b"name*") for one in parameters):
        raise invalid("A part of the form has more than one name.", code="invalid_form")
    if b"content-transfer-encoding" in headers and headers[b"content-transfer-encoding"].lower() not in (
        b"binary",
        b"8bit",
        b"7bit",
    ):
        raise invalid("The parts of the form must not be encoded.", code="invalid_form")
    if not _is_text(given):
        raise invalid("A name in the form is not UTF-8 text.", code="invalid_form")
    name = options[b"name"].decode("utf-8", "replace")
    if start < 0:
        raise invalid(f"The headers of the field `{name[:60]}` cannot be read.", name[:60], "invalid_form")
    filename = options.get(b"filename")
    if not filename and any(one.startswith(b"filename*") for one in parameters):
        filename = b"file"  # its name is written as in RFC 5987: it is a file, and its name decides nothing here
    return Part(name, None if filename is None else filename.decode("utf-8", "replace"), start, end)

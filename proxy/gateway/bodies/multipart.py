"""Multipart bodies: parsed to know what is in them, sent on byte for byte but for the fields that we must set.

Sans I/O.
"""

from typing import NamedTuple

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from proxy.web.rejections import Rejection, invalid

MAX_PARTS = 128
MAX_FIELD_BYTES = 262_144


class Part(NamedTuple):
    """One field or file: where its value stands in the body."""

    name: str
    filename: str | None
    start: int
    end: int


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

    def field_names(self) -> set[str]:
        """Names of everything in the form, lists without their brackets."""
        return {part.name.removesuffix("[]") for part in self.parts}

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
            try:
                found.append(self.body[part.start : part.end].decode())
            except UnicodeDecodeError:
                raise invalid(f"`{name}` is not UTF-8 text.", name) from None
        return found

    def files(self, name: str) -> list[Part]:
        """Every file of a field, also as `name[]`."""
        return [part for part in self.parts if part.filename is not None and part.name.removesuffix("[]") == name]

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
        closing = self.body.rindex(b"--" + self._boundary + b"--")
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
    name, span, state = b"", [-1, -1], {"ended": False}

    def begin() -> None:
        headers.clear()
        span[:] = [-1, -1]
        if len(found) >= MAX_PARTS:
            raise invalid(f"The form has more than {MAX_PARTS} parts.")

    def header_name(data: bytes, start: int, end: int) -> None:
        nonlocal name
        name = data[start:end].lower()

    def header_value(data: bytes, start: int, end: int) -> None:
        headers[name] = data[start:end]

    def some(_data: bytes, start: int, end: int) -> None:
        # the whole body is parsed in one piece, so these are places in it
        span[0] = start if span[0] < 0 else span[0]
        span[1] = end

    def whole() -> None:
        found.append(_part(headers, span))

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
        raise invalid(
            f"The form cannot be read ({error}): send well-formed multipart/form-data.", code="invalid_form"
        ) from None
    if not state["ended"]:
        raise invalid("The form ends before its closing boundary.", code="invalid_form")
    return found


def _part(headers: dict[bytes, bytes], span: list[int]) -> Part:
    disposition, options = parse_options_header(headers.get(b"content-disposition", b""))
    if disposition != b"form-data" or not options.get(b"name"):
        raise invalid("A part of the form has no name.", code="invalid_form")
    if b"content-transfer-encoding" in headers and headers[b"content-transfer-encoding"].lower() not in (
        b"binary",
        b"8bit",
        b"7bit",
    ):
        raise invalid("The parts of the form must not be encoded.", code="invalid_form")
    name = options[b"name"].decode("utf-8", "replace")
    if span[0] < 0:
        raise invalid(f"The field `{name[:60]}` is empty: leave it out, or give it a value.", name[:60])
    filename = options.get(b"filename")
    return Part(name, None if filename is None else filename.decode("utf-8", "replace"), span[0], span[1])

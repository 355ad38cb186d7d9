"""The size of a picture is the largest that any part of its file says: decoders take it from different places."""

import base64
import io
import struct
import zlib
from functools import cache

import pytest
from PIL import Image

from proxy.gateway.bodies.image_tokens import (
    UNBOUNDED,
    Size,
    dearest_image_tokens,
    image_rule,
    image_tokens,
    size_of,
    size_of_data_url,
)

LARGE, SMALL = (3_000, 3_000), (1, 1)


@cache
def file(form: str, size: tuple[int, int] = LARGE) -> bytes:
    stream, quickly = io.BytesIO(), {"WEBP": {"method": 0}, "PNG": {"compress_level": 1}}
    Image.new("P" if form == "GIF" else "RGB", size).save(stream, form, **quickly.get(form, {}))
    return stream.getvalue()


def shown(data: bytes) -> tuple[int, int]:
    """What a decoder makes of it."""
    with Image.open(io.BytesIO(data)) as picture:
        picture.load()
        return picture.size


@pytest.mark.parametrize("form", ["PNG", "GIF", "JPEG", "WEBP"])
@pytest.mark.parametrize("size", [LARGE, SMALL, (17, 900)])
def test_an_honest_picture_has_its_size(form: str, size: tuple[int, int]) -> None:
    assert size_of(file(form, size)) == Size(*size)


def test_a_screen_smaller_than_its_frame_is_not_believed() -> None:
    lying = bytearray(file("GIF"))
    lying[6:10] = struct.pack("<HH", *SMALL)
    assert shown(bytes(lying)) == LARGE
    assert size_of(bytes(lying)) == Size(*LARGE)


def of_url(data: bytes) -> Size | None:
    return size_of_data_url("data:image/x;base64," + base64.b64encode(data).decode())


def png_chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


@pytest.mark.parametrize("between", [b"", b"x" * 100, b"IDAT" * 25_000], ids=["next", "behind a text", "far behind"])
def test_a_second_header_of_a_png_counts_as_well(between: bytes) -> None:
    """Decoders take the last one before the picture's data."""
    large = file("PNG")
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", *SMALL, 8, 2, 0, 0, 0))
    text = png_chunk(b"tEXt", b"Comment\0" + between) if between else b""
    lying = large[:8] + header + text + large[8:]
    assert shown(lying) == LARGE
    assert of_url(lying) == Size(*LARGE)


def test_a_png_with_much_before_its_data_has_its_size() -> None:
    large = file("PNG")
    text = png_chunk(b"tEXt", b"Comment\0" + b"x" * 100_000)
    assert of_url(large[:33] + text + large[33:]) == Size(*LARGE)


def test_a_png_of_more_parts_than_any_real_one_has_no_known_size() -> None:
    """Looking through all of them would take as long as its sender likes."""
    large, part = file("PNG"), png_chunk(b"tEXt", b"")
    assert of_url(large[:33] + part * 990 + large[33:]) == Size(*LARGE)
    assert of_url(large[:33] + part * 1_010 + large[33:]) is None
    assert of_url(large[:33] + part * 1_000_000 + large[33:]) is None


@pytest.mark.parametrize("marker", [b"\xff\xd0", b"\xff\xd7", b"\xff\x00"], ids=["RST0", "RST7", "a stuffed byte"])
def test_a_marker_without_a_length_hides_no_header_of_a_jpeg(marker: bytes) -> None:
    """Read as a length, the header's own marker would lead to another header, inside of a comment."""
    whole = file("JPEG")
    segments, position = list[bytes](), 2
    while whole[position + 1] != 0xDA:
        length = 2 + struct.unpack(">H", whole[position + 2 : position + 4])[0]
        segments.append(whole[position : position + length])
        position += length
    (header,) = [one for one in segments if one[1] == 0xC0]
    front = b"\xff\xd8" + marker + header + b"".join(one for one in segments if one is not header)
    comment, at = bytearray(65_533), 2 + 2 + 0xFFC0 - len(front) - 4
    small = header[:5] + struct.pack(">HH", *SMALL) + header[9:] + b"\xff\xda"
    comment[at : at + len(small)] = small
    lying = front + b"\xff\xfe\xff\xff" + bytes(comment) + whole[position:]
    assert shown(lying) == LARGE
    assert (size_of(lying), of_url(lying)) == (Size(*LARGE), Size(*LARGE))


def test_a_frame_that_lies_outside_the_screen_counts_up_to_its_end() -> None:
    lying = bytearray(file("GIF", (10, 10)))
    frame = lying.index(b"\x2c")
    lying[frame + 1 : frame + 5] = struct.pack("<HH", 2_000, 1_000)
    assert size_of(bytes(lying)) == Size(2_010, 1_010)


def test_a_frame_far_behind_the_first_one_counts() -> None:
    small, large = file("GIF", (10, 10)), file("GIF")
    comment = b"\x21\xfe" + b"\xff" + b"x" * 255 + b"\0"
    both = small[:-1] + comment * 400 + large[large.index(b"\x2c") :]
    url = "data:image/gif;base64," + base64.b64encode(both).decode()
    assert size_of_data_url(url) == Size(*LARGE)


def test_a_gif_without_a_frame_in_reach_has_no_known_size() -> None:
    plain = file("GIF")
    comment = b"\x21\xfe" + b"\xff" + b"x" * 255 + b"\0"
    behind = plain[: plain.index(b"\x2c")] + comment * 400
    assert size_of(behind[:65_000]) is None


def test_a_canvas_smaller_than_its_picture_is_not_believed() -> None:
    plain = file("WEBP")
    canvas = b"VP8X" + struct.pack("<I", 10) + b"\0" * 10
    lying = b"RIFF" + struct.pack("<I", len(plain) + 10) + b"WEBP" + canvas + plain[12:]
    assert size_of(lying) == Size(*LARGE)


def test_a_jpeg_with_two_frame_headers_counts_as_the_larger() -> None:
    plain = file("JPEG")
    small = b"\xff\xc0" + struct.pack(">HBHHB", 17, 8, 1, 1, 3) + b"\0" * 9
    assert size_of(plain[:2] + small + plain[2:]) == Size(*LARGE)


def test_a_png_whose_header_is_not_its_first_chunk_has_no_known_size() -> None:
    plain = file("PNG")
    first = b"tEXt" + struct.pack(">II", 1, 1)
    text = struct.pack(">I", 8) + first + struct.pack(">I", zlib.crc32(first))
    assert size_of(plain[:8] + text + plain[8:]) is None


@pytest.mark.parametrize("form", ["PNG", "GIF", "JPEG", "WEBP"])
def test_a_picture_cut_anywhere_does_no_harm(form: str) -> None:
    data = file(form, (20, 20))
    for end in range(len(data)):
        size_of(data[:end])


def test_the_dearest_rule_is_at_least_every_rule() -> None:
    models = ("gpt-4o-mini", "gpt-4.1", "gpt-4.1-mini", "gpt-5", "o1", "gpt-5.4", "gpt-5.6-luna")
    for size in (Size(1, 1), Size(2_000, 2_000), Size(20_000, 20)):
        counts = [image_tokens(model, size, None) for model in models]
        assert dearest_image_tokens(size, None) >= max(count or 0 for count in counts)
    assert dearest_image_tokens(None, None) == UNBOUNDED
    assert image_rule("gpt-4.1") is image_rule("gpt-4.1-2025-04-14")
    assert image_rule("gpt-4.1") is not image_rule("gpt-4o-mini")

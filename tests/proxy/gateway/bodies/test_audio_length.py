"""How long a file plays, by what its own parts say: silence is stored in next to nothing."""

import io
import struct
import wave
from typing import Any

import pytest

from proxy.gateway.bodies.audio_length import audio_length
from tests.support.media import wav

FIVE_HOURS = 18_000


def flac(seconds: int, rate: int = 48_000) -> bytes:
    """A FLAC header, and nothing after it."""
    packed = (rate << 44 | 0 << 41 | 15 << 36 | seconds * rate).to_bytes(8, "big")
    return b"fLaC" + b"\x80\0\0\x22" + struct.pack(">HH", 4_096, 4_096) + b"\0" * 6 + packed + b"\0" * 16


def flac_frame(number: int) -> bytes:
    """A frame of fixed size: its header with the right checksum, then some sound."""
    digits = b"\xe0\x00\x00"
    coded = bytes([digits[0] | number >> 12, 0x80 | number >> 6 & 0x3F, 0x80 | number & 0x3F])
    head = b"\xff\xf8\xc9\x18" + coded
    value = 0
    for byte in head:
        value ^= byte
        for _ in range(8):
            value = (value << 1 ^ 0x07) & 0xFF if value & 0x80 else value << 1
    return head + bytes([value]) + b"\0" * 20


def ogg(seconds: int, codec: bytes = b"OpusHead", serial: bytes = b"\0\0\0\1") -> bytes:
    """The first and the last page of a stream."""
    pages = b""
    for granule, body in ((0, codec + b"\0" * 20), (seconds * 48_000, b"\0" * 30)):
        pages += b"OggS\0\0" + struct.pack("<q", granule) + serial + b"\0" * 8 + b"\1" + bytes([len(body)]) + body
    return pages


def mp4(seconds: int) -> bytes:
    header = b"mvhd" + b"\0" * 12 + struct.pack(">II", 1_000, seconds * 1_000)
    return b"\0\0\0\x18ftypM4A " + b"\0" * 12 + struct.pack(">I", len(header) + 4) + header


def webm(seconds: int, unit_ns: int | None = None) -> bytes:
    """As a browser records: no duration, sizes that are not known, a cluster's time."""
    time = seconds * 1_000_000_000 // (unit_ns or 1_000_000)
    unknown = b"\x01" + b"\xff" * 7
    scale = b"" if unit_ns is None else b"\x2a\xd7\xb1\x84" + struct.pack(">I", unit_ns)
    info = b"\x15\x49\xa9\x66" + bytes([0x80 | len(scale)]) + scale
    block = b"\xa3\x85" + b"\x81\0\0\x80\0"
    cluster = b"\x1f\x43\xb6\x75" + unknown + b"\xe7\x84" + struct.pack(">I", time) + block
    head = b"\x1aE\xdf\xa3\x84\x42\x86\x81\x01"
    return head + b"\x18\x53\x80\x67" + unknown + info + cluster


@pytest.mark.parametrize("tag", [b"", b"ID3\x04\0\0\0\0\0\x0a" + b"\0" * 10], ids=["plain", "behind a tag"])
@pytest.mark.parametrize("made", [flac, ogg, mp4, webm, wav], ids=lambda made: str(made.__name__))
def test_hours_of_silence_are_held_for_whatever_they_are_packed_in(made: object, tag: bytes) -> None:
    assert callable(made)
    seconds = 600 if made is wav else FIVE_HOURS
    length = audio_length(tag + made(seconds))
    assert seconds * 1_000 <= length.most <= seconds * 1_000 + 40_000
    assert abs(length.likely - seconds * 1_000) <= 40_000


def box(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body) + 8) + kind + body


def test_a_movie_header_that_says_too_little_is_not_believed() -> None:
    """Its sample table says 843,750 x 1,024 samples at 48 kHz: five hours."""
    times = b"\0" * 12
    head = box(b"ftyp", b"M4A \0\0\0\0")
    movie = box(b"mvhd", times + struct.pack(">II", 1_000, 1_000))
    track = box(b"mdhd", times + struct.pack(">II", 48_000, 48_000)) + box(
        b"stts", b"\0" * 4 + struct.pack(">III", 1, 843_750, 1_024)
    )
    assert audio_length(head + movie + track).most == 18_001_000


@pytest.mark.parametrize("given", ["trex", "tfhd", "each sample"])
def test_fragments_add_up(given: str) -> None:
    """As Safari records: no length in the header, a thousand fragments of ten samples of 1,024 each."""
    head = box(b"ftyp", b"iso5\0\0\0\0") + box(b"mdhd", b"\0" * 12 + struct.pack(">II", 48_000, 0))
    extended = box(b"trex", b"\0" * 12 + struct.pack(">I", 1_024 if given == "trex" else 0) + b"\0" * 8)
    header = box(b"tfhd", struct.pack(">II", 8, 1) + struct.pack(">I", 1_024)) if given == "tfhd" else b""
    run = box(b"trun", struct.pack(">II", 0, 10))
    if given == "each sample":
        run = box(b"trun", struct.pack(">II", 0x100, 10) + struct.pack(">I", 1_024) * 10)
    assert audio_length(head + extended + (header + run) * 1_000).most == 214_000 + 1_000


def test_a_unit_of_time_hidden_in_a_void_is_not_taken_for_the_files_own() -> None:
    plain = webm(18_000, unit_ns=1_000_000_000)
    hidden = b"\xec\x87\x2a\xd7\xb1\x83\x0f\x42\x40"
    at = plain.index(b"\x15\x49\xa9\x66")
    assert audio_length(plain[:at] + hidden + plain[at:]).most >= 18_000_000


def test_samples_are_counted_without_their_header() -> None:
    assert audio_length(wav(10)).likely == 10_000
    noted = wav(10)
    noted = noted[:36] + b"LIST" + struct.pack("<I", 100) + b"\0" * 100 + noted[36:]
    assert audio_length(noted).likely == 10_000


def test_a_flac_header_that_says_too_little_is_not_believed() -> None:
    """Its last frame says when it plays: 5,000 frames of 4,096 samples are some 427 seconds."""
    length = audio_length(flac(1) + flac_frame(12) + flac_frame(4_999))
    assert 426_000 <= length.most <= 429_000


def test_streams_of_an_ogg_file_follow_one_another() -> None:
    assert audio_length(ogg(100) + ogg(200, serial=b"\0\0\0\2")).most == 301_000


def test_a_stream_of_an_ogg_file_may_have_the_number_of_the_one_before() -> None:
    first = bytearray(ogg(100))
    first[5] = 2
    assert audio_length(bytes(first) * 3).most == 301_000


def adts(frames: int, size: int = 9) -> bytes:
    """Frames of AAC at 8 kHz, 128 ms each, in which there is next to nothing."""
    head = (0xFF, 0xF1, 1 << 6 | 11 << 2, 1 << 6 | size >> 11, size >> 3 & 255, (size & 7) << 5 | 0x1F, 0xFC)
    return (bytes(head) + b"\0" * (size - 7)) * frames


def test_frames_of_silence_are_counted_and_not_weighed() -> None:
    assert audio_length(adts(20_000)).most == 2_561_000
    assert audio_length(b"#!AMR\n" + b"\x7c" * 100_000).most >= 2_000_000


def test_of_two_headers_of_a_wav_the_slower_counts() -> None:
    plain = wav(10)
    fast = b"fmt " + struct.pack("<IHHIIHH", 16, 1, 2, 48_000, 192_000, 4, 16)
    assert audio_length(plain[:36] + fast + plain[36:]).most >= audio_length(plain).most


def riff(rate: int, size: int, kind: int = 1, extra: bytes = b"", before: bytes = b"", name: bytes = b"RIFF") -> bytes:
    """One channel of 8 bits, of which so many bytes follow."""
    order = ">" if name == b"RIFX" else "<"
    form = struct.pack(order + "HHIIHH", kind, 1, rate, rate, 1, 8) + extra
    chunks = before + b"fmt " + struct.pack(order + "I", len(form)) + form
    body = b"WAVE" + chunks + b"data" + struct.pack(order + "I", size) + b"\x80" * size
    return name + struct.pack(order + "I", len(body)) + body


PCM_GUID = b"\x16\0\x08\0\x04\0\0\0\x01\0" + bytes.fromhex("000000001000800000aa00389b71")
JUNK = b"JUNK" + struct.pack("<I", 6_000) + b"\0" * 6_000


@pytest.mark.parametrize("rate", [400, 100, 1])
@pytest.mark.parametrize(
    "made",
    [
        {},
        {"kind": 3},
        {"kind": 6},
        {"kind": 7},
        {"kind": 0xFFFE, "extra": PCM_GUID},
        {"before": JUNK},
        {"name": b"RF64"},
        {"name": b"RIFX"},
    ],
    ids=["PCM", "float", "A-law", "mu-law", "extensible", "behind junk", "RF64", "big-endian"],
)
def test_few_samples_a_second_play_for_long(made: dict[str, Any], rate: int) -> None:
    """As `wave` of the standard library says it: 18,000 samples of one a second are five hours."""
    plays = -(-18_000 // rate) * 1_000
    found = audio_length(riff(rate, 18_000, **made))
    assert plays <= found.most <= plays + 2_000
    if not made:
        with wave.open(io.BytesIO(riff(rate, 18_000))) as sound:
            assert sound.getnframes() / sound.getframerate() * 1_000 == pytest.approx(plays)


def test_a_wav_of_a_kind_that_is_not_known_is_bounded_by_its_size() -> None:
    assert audio_length(riff(8_000, 50_000, kind=2)).most >= 100_000


@pytest.mark.parametrize(
    ("kind", "bits", "seconds"), [(2, 4, 36_000), (17, 4, 36_000), (85, 0, 144_000), (1, 4, 36_000)]
)
def test_samples_of_less_than_a_byte_play_for_long_too(kind: int, bits: int, seconds: int) -> None:
    """ADPCM of four bits and one sample a second, and what says no width: a bit a sample at least."""
    slow = bytearray(riff(1, 18_000, kind=kind))
    slow[34:36] = struct.pack("<H", bits)
    assert seconds * 1_000 <= audio_length(bytes(slow)).most <= seconds * 1_000 + 2_000


def test_what_stores_silence_in_nothing_and_does_not_say_its_length_is_an_hour() -> None:
    for head in (b"fLaC" + b"\0" * 100, b"OggS" + b"\0" * 100, b"\x1aE\xdf\xa3", b"\0\0\0\x18ftypisom" + b"moof"):
        assert audio_length(head).most >= 3_600_000


def test_what_has_a_least_rate_is_bounded_by_its_size_and_estimated_by_a_usual_one() -> None:
    """MP3 of 480,000 bytes: a minute at 64 kbit/s, at most 960 seconds at 4."""
    length = audio_length(b"\xff\xfb\x90\0" * 120_000)
    assert (length.most, length.likely) == (961_000, 60_000)


@pytest.mark.parametrize("size", [0, 1, 3, 9, 26, 27, 41])
@pytest.mark.parametrize("head", [b"RIFF\0\0\0\0WAVE", b"fLaC", b"OggS", b"\x1aE\xdf\xa3", b"\0\0\0\0ftyp", b"ID3\4"])
def test_a_file_cut_anywhere_has_some_length(head: bytes, size: int) -> None:
    assert audio_length((head + b"\xff" * 60)[:size]).most >= 1_000


@pytest.mark.parametrize(
    "data",
    [
        b"\0\0\0\x18ftypmp42" + b"trun" * 30_000,
        b"\0\0\0\x18ftypmp42" + b"stts" * 30_000,
        b"\x1aE\xdf\xa3\x80" + b"\xec\x80" * 500_000,
        b"ID3\0\0\0\0\0\0\0" * 400_000,
    ],
    ids=["trun", "stts", "void", "tags"],
)
def test_no_file_is_walked_without_end(data: bytes) -> None:
    """Whoever makes a file of a million parts is held for as unreadable; the test's timeout is the bound."""
    assert audio_length(data).most >= 1_000

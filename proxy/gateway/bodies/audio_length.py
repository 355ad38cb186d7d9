"""How long a sound file plays, by what it says itself. Pure.

Most formats store silence in next to nothing, so a file's size bounds its length only where the format has a least
rate (PCM, MP3). The others are walked: a page, frame or cluster says when it plays, and the last one counts, because
a header alone can say anything.
"""

import re
import struct
from fractions import Fraction
from math import ceil
from typing import NamedTuple

SLOWEST_BYTES_PER_SECOND = 500
"""No audio worth transcribing has fewer (4 kbit/s): what bounds a file whose format has a least rate."""
USUAL_BYTES_PER_SECOND = 8_000
"""64 kbit/s, what speech is usually stored at: the estimate where nothing else tells."""
UNREADABLE_SILENCE_MS = 3_600_000
"""A format that stores silence in nothing and does not say how long it plays: an hour is held for."""
WAV_ORDERS = {b"RIFF": "<", b"RF64": "<", b"BW64": "<", b"RIFX": ">"}
"""First letters of a WAV → the order of its bytes."""
BY_SAMPLE = (1, 3, 6, 7, 0xFFFE)
"""Kinds of a WAV whose samples are of one width: PCM, float, A-law, mu-law, and what says so in more words."""
OPUS_RATE = 48_000
OGG_FIRST_PAGE = 2
"""Flag of a page that begins a stream."""
AMR, AMR_FRAME_MS = b"#!AMR", 20
"""A frame without sound is one byte, and plays as long as any."""
ADTS_HEADER, ADTS_SAMPLES, MOST_FRAMES = 7, 1_024, 200_000
ADTS_RATES = (96_000, 88_200, 64_000, 48_000, 44_100, 32_000, 24_000, 22_050, 16_000, 12_000, 11_025, 8_000, 7_350)
LAST_BYTES = 262_144
"""A file's end that is searched for its last FLAC frame: frames are shorter."""


class AudioLength(NamedTuple):
    """Milliseconds that a file plays: at most, and as far as is known."""

    most: int
    likely: int


def audio_length(data: bytes) -> AudioLength:
    """Length of a sound file. Billed durations are whole seconds, rounded up; `most` has one to spare."""
    body = _without_tag(data)
    exact = _wav(body) if body[:4] in WAV_ORDERS else _of_walk(body)
    if exact is None:
        by_size = -(-len(body) * 1_000 // SLOWEST_BYTES_PER_SECOND)
        if _stores_silence_in_nothing(body):
            by_size = max(by_size, UNREADABLE_SILENCE_MS)
        return AudioLength(_seconds_up(by_size) + 1_000, _seconds_up(len(body) * 1_000 // USUAL_BYTES_PER_SECOND))
    return AudioLength(_seconds_up(exact) + 1_000, _seconds_up(exact))


def _seconds_up(milliseconds: int) -> int:
    return -(-milliseconds // 1_000) * 1_000


def _without_tag(data: bytes) -> bytes:
    """File behind its ID3v2 tags, which players skip."""
    start = 0
    for _ in range(MOST_TAGS):
        if data[start : start + 3] != b"ID3" or len(data) < start + 10:
            break
        size = 0
        for byte in data[start + 6 : start + 10]:
            size = size << 7 | (byte & 0x7F)
        start += 10 + size
    return data[start:] if start else data


def _stores_silence_in_nothing(data: bytes) -> bool:
    return data.startswith((b"fLaC", b"OggS", b"\x1aE\xdf\xa3")) or data[4:8] == b"ftyp" or _is_adts(data)


def _of_walk(data: bytes) -> int | None:
    """Milliseconds by what the file's own parts say; None when they do not."""
    if data.startswith(b"fLaC"):
        return _flac(data)
    if data.startswith(b"OggS"):
        return _ogg(data)
    if data.startswith(b"\x1aE\xdf\xa3"):
        return _webm(data)
    if data.startswith(AMR):
        return len(data) * AMR_FRAME_MS
    if _is_adts(data):
        return _adts(data)
    return _mp4(data) if data[4:8] == b"ftyp" else None


def _wav(data: bytes) -> int | None:
    """By the bits of a second, however few: rate, channels, width of samples; None where none of it is known.

    The header's own byte rate is nothing that decoders look at, so it may say anything.
    """
    if data[8:12] != b"WAVE":
        return None
    seconds, position, order = list[int](), 12, WAV_ORDERS[data[:4]]
    for _ in range(MOST_ELEMENTS):
        if position + 8 > len(data):
            break
        name, length = data[position : position + 4], struct.unpack(order + "I", data[position + 4 : position + 8])[0]
        if name == b"fmt " and position + 24 <= len(data):
            kind, channels, rate, _, _, bits = struct.unpack(order + "HHIIHH", data[position + 8 : position + 24])
            width = bits // 8 * 8 if kind in BY_SAMPLE and bits >= 8 else bits or 1  # else at least a bit is a sample
            second = rate * channels * width
            seconds.append(second if kind in BY_SAMPLE or second < 8 * SLOWEST_BYTES_PER_SECOND else 0)
        elif name == b"data":
            break
        position += 8 + length + length % 2
    samples = max(0, len(data) - position - 8)
    if not any(seconds):
        return None
    second = min(one for one in seconds if one)  # of two headers a decoder may take either
    return -(-samples * 8_000 // (second if all(seconds) else min(second, 8 * SLOWEST_BYTES_PER_SECOND)))


def _flac(data: bytes) -> int | None:
    """By STREAMINFO, or by the last frame where that plays longer."""
    if len(data) < 42 or data[4] & 0x7F:
        return None
    largest = int.from_bytes(data[10:12], "big")
    rate = int.from_bytes(data[18:21], "big") >> 4
    total = int.from_bytes(data[21:26], "big") & 0xFFFFFFFFF
    if not rate:
        return None
    total = max(total, _last_flac_sample(data, largest))
    return -(-total * 1_000 // rate) if total else None


def _last_flac_sample(data: bytes, largest: int) -> int:
    """Count the samples up to the end of the last frame whose header's checksum is right; 0 when none is found."""
    start = max(42, len(data) - LAST_BYTES)
    position = len(data)
    while (position := data.rfind(b"\xff", start, position)) >= 0:
        if data[position + 1 : position + 2] in (b"\xf8", b"\xf9"):
            number, end = _utf8_number(data, position + 4)
            extra = {6: 1, 7: 2}.get(data[position + 2] >> 4, 0) + {12: 1, 13: 2, 14: 2}.get(data[position + 2] & 15, 0)
            end += extra
            if number >= 0 and end < len(data) and _crc8(data[position:end]) == data[end]:
                fixed = data[position + 1] == 0xF8
                return (number + 1) * largest if fixed else number + largest
    return 0


def _utf8_number(data: bytes, position: int) -> tuple[int, int]:
    """Read (a number coded as UTF-8 codes characters, up to 36 bits; the position after it); -1 for none."""
    if position >= len(data):
        return -1, position
    first = data[position]
    count = 0
    while first & (0x80 >> count) and count < 8:
        count += 1
    if count == 0:
        return first, position + 1
    if count == 1 or count > 7 or position + count > len(data):
        return -1, position
    number = first & (0x7F >> count)
    for byte in data[position + 1 : position + count]:
        if byte & 0xC0 != 0x80:
            return -1, position
        number = number << 6 | (byte & 0x3F)
    return number, position + count


def _crc8(data: bytes) -> int:
    value = 0
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = (value << 1 ^ 0x07) & 0xFF if value & 0x80 else value << 1
    return value


def _ogg(data: bytes) -> int | None:
    """By the last granule of each stream; streams follow one another, so their lengths add up.

    One that follows another may have its number again: it is told by its first page.
    """
    rates: dict[tuple[bytes, int], int] = {}
    lasts: dict[tuple[bytes, int], int] = {}
    begun: dict[bytes, int] = {}
    position = 0
    while (position := data.find(b"OggS", position)) >= 0 and position + 27 <= len(data):
        granule = int.from_bytes(data[position + 6 : position + 14], "little", signed=True)
        number, segments = data[position + 14 : position + 18], data[position + 26]
        begun[number] = begun.get(number, 0) + (data[position + 5] & OGG_FIRST_PAGE)
        serial = number, begun[number]
        body = position + 27 + segments
        if serial not in rates:
            rates[serial] = _ogg_rate(data[body : body + 64])
        lasts[serial] = max(lasts.get(serial, 0), granule)
        position = body + sum(data[position + 27 : body])
    if not lasts or not all(rates.values()):
        return None
    return sum(-(-last * 1_000 // rates[serial]) for serial, last in lasts.items()) or None


def _ogg_rate(packet: bytes) -> int:
    """Granules a second by a stream's first packet; 0 for a codec that is not known."""
    if packet.startswith(b"OpusHead"):
        return OPUS_RATE
    if packet.startswith(b"\x01vorbis") and len(packet) >= 16:
        return int.from_bytes(packet[12:16], "little")
    if packet.startswith(b"\x7fFLAC") and len(packet) >= 30:
        return int.from_bytes(packet[27:30], "big") >> 4
    if packet.startswith(b"Speex   ") and len(packet) >= 40:
        return int.from_bytes(packet[36:40], "little")
    return 0


def _webm(data: bytes) -> int | None:
    """By the last cluster's time: what a browser records has no duration in its header."""
    unit, last, position = WEBM_UNIT_NS, -1, 0
    for _ in range(MOST_ELEMENTS):
        if position >= len(data):
            break
        kind, position = _ebml_number(data, position, keep_mark=True)
        size, position = _ebml_number(data, position, keep_mark=False)
        if kind < 0 or size == MALFORMED:
            break
        if kind in WEBM_FOLDERS:
            continue  # what is inside follows; its size may be unknown
        value = int.from_bytes(data[position : position + min(size, 8)], "big")
        if kind == WEBM_UNIT:
            unit = value
        elif kind == WEBM_TIME:
            last = max(last, value)
        if size < 0:
            break
        position += size
    else:
        return None  # more than anybody should walk
    return None if last < 0 or not unit else -(-(last + WEBM_BLOCK_UNITS) * unit // 1_000_000)


def _ebml_number(data: bytes, position: int, *, keep_mark: bool) -> tuple[int, int]:
    """Read (a number of EBML, the position after it); -1 for a size that is not known, MALFORMED for none."""
    first = data[position] if position < len(data) else 0
    count = 9 - first.bit_length()
    if count > 8 or position + count > len(data):
        return MALFORMED, len(data)
    value = int.from_bytes(data[position : position + count], "big")
    bare = value & (1 << 7 * count) - 1
    if not keep_mark and bare == (1 << 7 * count) - 1:
        return -1, position + count
    return value if keep_mark else bare, position + count


MALFORMED = -2
WEBM_FOLDERS = (0x18538067, 0x1549A966, 0x1F43B675)
"""Segment, Info, Cluster."""
WEBM_UNIT, WEBM_TIME = 0x2AD7B1, 0xE7
WEBM_UNIT_NS = 1_000_000
WEBM_BLOCK_UNITS = 32_768
"""A block's time is 16 bits of its cluster's unit."""


def _mp4(data: bytes) -> int | None:
    """By the longest of what headers, sample tables and fragments say of any track."""
    unit, default, found, left = 0, 0, [0], MOST_ENTRIES
    fragments: dict[int, int] = {}
    for number, match in enumerate(MP4_BOXES.finditer(data)):
        if number > MOST_BOXES or left <= 0:
            return None  # more than anybody should walk
        kind, at = match[1], match.start(1) + 4
        wide = data[at : at + 1] == b"\x01"
        if kind in (b"mvhd", b"mdhd"):
            start = at + (20 if wide else 12)
            unit = int.from_bytes(data[start : start + 4], "big")
            length = int.from_bytes(data[start + 4 : start + (12 if wide else 8)], "big")
            found.append(0 if length in MP4_UNKNOWN else _milliseconds_of(length, unit))
        elif kind == b"stts":
            length, left = _stts(data, at, left)
            found.append(_milliseconds_of(length, unit))
        elif kind == b"trex":
            default = int.from_bytes(data[at + 12 : at + 16], "big")
        elif kind == b"tfhd":
            default = _tfhd_duration(data, at) or default
        else:
            length, left = _trun(data, at, default, left)
            fragments[unit] = fragments.get(unit, 0) + length
    found += [_milliseconds_of(length, one) for one, length in fragments.items()]
    return max(found) or None


MP4_BOXES = re.compile(rb"(mvhd|mdhd|stts|trex|tfhd|trun)")
MP4_UNKNOWN = (0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF)
MOST_ENTRIES, MOST_BOXES, MOST_ELEMENTS, MOST_TAGS = 100_000, 20_000, 50_000, 16
"""Of one file: whoever needs more is held for as unreadable, so that no file takes a worker's time."""


def _milliseconds_of(length: int, unit: int) -> int:
    return -(-length * 1_000 // unit) if unit else 0


def _stts(data: bytes, at: int, left: int) -> tuple[int, int]:
    """(units of time of a table of (count, duration) pairs, entries that may still be read)."""
    entries = min(int.from_bytes(data[at + 4 : at + 8], "big"), left, max(0, len(data) - at - 8) // 8)
    pairs = struct.unpack(f">{2 * entries}I", data[at + 8 : at + 8 + 8 * entries])
    return sum(count * duration for count, duration in zip(pairs[::2], pairs[1::2], strict=True)), left - entries


def _tfhd_duration(data: bytes, at: int) -> int:
    """Duration that a fragment's header gives its samples; 0 for none."""
    flags = int.from_bytes(data[at + 1 : at + 4], "big")
    start = at + 8 + 8 * (flags & 1) + 4 * (flags >> 1 & 1)
    return int.from_bytes(data[start : start + 4], "big") if flags & 8 else 0


def _trun(data: bytes, at: int, default: int, left: int) -> tuple[int, int]:
    """(units of time of a run of samples, entries that may still be read)."""
    flags = int.from_bytes(data[at + 1 : at + 4], "big")
    samples = int.from_bytes(data[at + 4 : at + 8], "big")
    if not flags & 0x100:
        return samples * default, left
    start = at + 8 + 4 * (flags & 1) + 4 * (flags >> 2 & 1)
    width = 4 * (1 + sum(flags >> bit & 1 for bit in (9, 10, 11)))
    samples = min(samples, left, max(0, len(data) - start) // width)
    places = range(start, start + samples * width, width)
    return sum(int.from_bytes(data[place : place + 4], "big") for place in places), left - samples


def _adts(data: bytes) -> int | None:
    """By its frames: silence takes no more than their headers. None for more than anybody should walk."""
    milliseconds = Fraction(0)
    counts: dict[int, int] = {}
    position, size = 0, len(data)
    for _ in range(MOST_FRAMES):
        if position + ADTS_HEADER > size or data[position] != 0xFF or data[position + 1] & 0xF6 != 0xF0:
            break
        length = (data[position + 3] & 3) << 11 | data[position + 4] << 3 | data[position + 5] >> 5
        rate = data[position + 2] >> 2 & 15
        counts[rate] = counts.get(rate, 0) + (data[position + 6] & 3) + 1
        position += max(length, ADTS_HEADER)
    else:
        return None
    for rate, blocks in counts.items():
        milliseconds += Fraction(blocks * ADTS_SAMPLES * 1_000, ADTS_RATES[min(rate, len(ADTS_RATES) - 1)])
    rest = max(0, size - position) * 1_000 // SLOWEST_BYTES_PER_SECOND
    return ceil(milliseconds) + rest if counts else None


def _is_adts(data: bytes) -> bool:
    """Tell an AAC frame (its layer bits are 0) from an MP3 one."""
    return len(data) > 1 and data[0] == 0xFF and data[1] & 0xF6 == 0xF0

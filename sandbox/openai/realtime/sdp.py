"""An answer to the SDP offer of a browser: whole enough to be taken. Nobody speaks behind it: no media ever comes."""

import hashlib
import re
from typing import Final

_VERSION: Final = "v=0\r\no=- 1 1 IN IP4 127.0.0.1\r\ns=-\r\nt=0 0\r\n"
_OPUS: Final = re.compile(r"^a=rtpmap:(\d+) opus/48000/2\s*$", re.MULTILINE)
_MID: Final = re.compile(r"^a=mid:(\S+)", re.MULTILINE)
_DIRECTIONS: Final = {"sendrecv": "sendrecv", "sendonly": "recvonly", "recvonly": "sendonly", "inactive": "inactive"}


def answer_to(offer: str) -> str:
    """Answer each section of an offer: the first sound and the first data channel are taken, others refused."""
    digest = hashlib.sha256(offer.encode()).hexdigest()
    taken: set[str] = set()
    mids, sections = [], []
    for section in re.split(r"^(?=m=)", offer, flags=re.MULTILINE)[1:]:
        kind, protocol = section.split(None, 1)[0].removeprefix("m="), section.split()[2]
        mid = found[1] if (found := _MID.search(section)) else ""
        opus = _OPUS.search(section)
        if kind in taken or not (kind == "application" or (kind == "audio" and opus is not None)):
            sections.append(_section(f"m={kind} 0 {protocol} {section.split()[3]}", mid, []))
            continue
        taken.add(kind)
        mids += [mid] if mid else []
        own = ["a=sctp-port:5000", "a=max-message-size:262144"] if opus is None else _sound(section, opus[1])
        form = "webrtc-datachannel" if opus is None else opus[1]
        sections.append(_section(f"m={kind} 9 {protocol} {form}", mid, [*_transport(digest), *own]))
    group = f"a=group:BUNDLE {' '.join(mids)}\r\n" if mids else ""
    return _VERSION + group + "".join(sections)


def _section(head: str, mid: str, lines: list[str]) -> str:
    named = [f"a=mid:{mid}"] if mid else []
    return "".join(f"{line}\r\n" for line in (head, "c=IN IP4 0.0.0.0", *named, *lines))


def _transport(digest: str) -> list[str]:
    fingerprint = ":".join(digest[place : place + 2] for place in range(0, 64, 2)).upper()
    ice = [f"a=ice-ufrag:{digest[:8]}", f"a=ice-pwd:{digest[8:40]}"]
    return [*ice, f"a=fingerprint:sha-256 {fingerprint}", "a=setup:passive"]


def _sound(section: str, payload: str) -> list[str]:
    wanted = next((name for name in _DIRECTIONS if f"a={name}" in section), "sendrecv")
    return [
        f"a={_DIRECTIONS[wanted]}",
        "a=msid:realtimeapi audio",
        "a=rtcp-mux",
        f"a=rtpmap:{payload} opus/48000/2",
        f"a=fmtp:{payload} minptime=10;useinbandfec=1",
    ]

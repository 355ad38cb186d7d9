"""The simulator's SDP answers: a line for each section of the offer, in its order, as a browser demands."""

from sandbox.openai.realtime.sdp import answer_to
from tests.support.voice import OFFER


def test_an_offer_without_names_is_answered_without_names() -> None:
    answer = answer_to(OFFER)
    assert answer.startswith("v=0\r\n")
    assert "m=audio 9 UDP/TLS/RTP/SAVPF 111\r\n" in answer
    assert "a=mid" not in answer
    assert "a=group" not in answer


def test_every_section_is_answered_and_what_is_not_spoken_refused() -> None:
    offer = OFFER.replace("m=audio", "a=group:BUNDLE 0 1 2 3\r\nm=audio").replace(
        "a=rtpmap", "a=mid:0\r\na=recvonly\r\na=rtpmap"
    )
    offer += "m=video 9 UDP/TLS/RTP/SAVPF 96\r\na=mid:1\r\na=rtpmap:96 VP8/90000\r\n"
    offer += "m=audio 9 UDP/TLS/RTP/SAVPF 111\r\na=mid:2\r\na=rtpmap:111 opus/48000/2\r\n"
    offer += "m=application 9 UDP/DTLS/SCTP webrtc-datachannel\r\na=mid:3\r\na=sctp-port:5000\r\n"
    lines = answer_to(offer).split("\r\n")
    assert [line.rpartition(" ")[0] for line in lines if line.startswith("m=")] == [
        "m=audio 9 UDP/TLS/RTP/SAVPF",
        "m=video 0 UDP/TLS/RTP/SAVPF",
        "m=audio 0 UDP/TLS/RTP/SAVPF",
        "m=application 9 UDP/DTLS/SCTP",
    ]
    assert [line for line in lines if line.startswith(("a=mid", "a=group"))] == [
        "a=group:BUNDLE 0 3",
        "a=mid:0",
        "a=mid:1",
        "a=mid:2",
        "a=mid:3",
    ]
    assert "a=sendonly" in lines

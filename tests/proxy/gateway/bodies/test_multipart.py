"""Forms: lists and objects in brackets, parts left empty, files by either way of naming them."""

from collections.abc import Callable
from itertools import pairwise

import pytest

from proxy.gateway.bodies.inventory import IMAGE_FIELDS, TRANSCRIPTION_FIELDS, TRANSLATION_FIELDS, SurfaceEntry
from proxy.gateway.bodies.media import parse_image, parse_transcription, parse_translation
from proxy.gateway.bodies.multipart import Form
from proxy.gateway.bodies.parsed import Parsed
from proxy.web.rejections import Rejection
from tests.support.media import png, wav

FORM = b"multipart/form-data; boundary=b"
Parse = Callable[[bytes, bytes], Parsed]
ENDPOINTS: dict[str, tuple[Parse, dict[str, SurfaceEntry], dict[str, bytes]]] = {
    "transcriptions": (parse_transcription, TRANSCRIPTION_FIELDS, {"model": b"gpt-4o-transcribe"}),
    "translations": (parse_translation, TRANSLATION_FIELDS, {"model": b"whisper-1"}),
    "edits": (parse_image, IMAGE_FIELDS, {"model": b"gpt-image-2", "prompt": b"a cat"}),
}
FILES = {
    "transcriptions": b'name="file"; filename="a.wav"',
    "translations": b'name="file"; filename="a.wav"',
    "edits": b'name="image"; filename="a.png"',
}
DATA = {"transcriptions": wav(2), "translations": wav(2), "edits": png(64, 64)}
READ = {"stream", "response_format"}
BRACKETS = ["[]", "[0]", "[member]", "[member][sub]", "[0][member]", "[member][]"]


def part(disposition: bytes, value: bytes) -> bytes:
    return b"--b\r\nContent-Disposition: form-data; %b\r\n\r\n%b\r\n" % (disposition, value)


def field(name: str, value: bytes = b"x") -> bytes:
    return part(b'name="%b"' % name.encode(), value)


def body(endpoint: str, *more: bytes, file: bytes = b"", leave_out: str = "") -> bytes:
    plain = [field(name, value) for name, value in ENDPOINTS[endpoint][2].items() if name != leave_out]
    return b"".join((*plain, *more, part(file or FILES[endpoint], DATA[endpoint]), b"--b--\r\n"))


def read(endpoint: str, raw: bytes) -> Parsed:
    return ENDPOINTS[endpoint][0](raw, FORM)


def refusal(endpoint: str, raw: bytes) -> Rejection:
    with pytest.raises(Rejection) as caught:
        read(endpoint, raw)
    assert caught.value.status == 400
    assert caught.value.message.endswith(".")
    return caught.value


CASES = [
    (endpoint, name, brackets)
    for endpoint, (_, fields, _) in ENDPOINTS.items()
    for name in fields
    for brackets in BRACKETS
]


@pytest.mark.parametrize(("endpoint", "name", "brackets"), CASES)
def test_lists_and_objects_pass_and_what_is_read_comes_plain(endpoint: str, name: str, brackets: str) -> None:
    raw = body(endpoint, field(name + brackets))
    if ENDPOINTS[endpoint][1][name].meaning == "passes" and name not in READ:
        parsed = read(endpoint, raw)
        assert parsed.source is raw
        assert parsed.sets == read(endpoint, body(endpoint)).sets
    else:
        assert refusal(endpoint, raw).param == name


@pytest.mark.parametrize("endpoint", ENDPOINTS)
@pytest.mark.parametrize(
    "name", ["unknown", "unknown[type]", "prompt[", "[prompt]", "pro]mpt", "prompt[a]b", "prompt[a"]
)
def test_what_is_not_known_is_refused_in_brackets_too(endpoint: str, name: str) -> None:
    refused = refusal(endpoint, body(endpoint, field(name)))
    assert refused.code == "unknown_parameter"


def test_files_in_lists_are_counted() -> None:
    bounds = [read("edits", body("edits")).input_bytes_bound]
    files: list[bytes] = []
    for name in (b"image[]", b"image[1]", b"image"):
        files.append(part(b'name="%b"; filename="b.png"' % name, png(8, 8)))
        bounds.append(read("edits", body("edits", *files)).input_bytes_bound)
    assert len({after - before for before, after in pairwise(bounds)}) == 1
    two = body("transcriptions", part(b'name="file[0]"; filename="b"', wav(1)))
    assert refusal("transcriptions", two).param == "file"


def test_an_overlay_is_a_picture_that_is_counted() -> None:
    plain = read("edits", body("edits")).input_bytes_bound
    overlay = read("edits", body("edits", part(b'name="markup"; filename="m.png"', png(64, 64)))).input_bytes_bound
    mask = read("edits", body("edits", part(b'name="mask"; filename="m.png"', png(64, 64)))).input_bytes_bound
    assert overlay == mask > plain


@pytest.mark.parametrize("name", ["image", "images", "image[]", "images[0][image_url]", "mask", "markup"])
def test_a_picture_of_a_form_is_a_file(name: str) -> None:
    assert "must be a file" in refusal("edits", body("edits", field(name, b"https://a.b/c.png"))).message


def test_the_author_of_an_svg_is_the_one_that_is_held_for() -> None:
    asked = (
        field("output_format", b"svg"),
        field("svg[model]", b"gpt-5.4-pro"),
        field("svg[reasoning][effort]", b"low"),
    )
    author = read("edits", body("edits", *asked)).image_tool
    assert author is not None
    assert author.model == "gpt-5.4-pro"
    default = read("edits", body("edits", asked[0])).image_tool
    assert default is not None
    assert default.model == "gpt-6-luna"
    assert refusal("edits", body("edits", field("svg[other]"))).param == "svg"
    raw = b'{"model":"gpt-image-2","prompt":"x","svg":{"model":"gpt-5.4-pro"}}'
    assert parse_image(raw, b"application/json").image_tool is not None
    assert parse_image(raw, b"application/json").image_tool.model == "gpt-5.4-pro"  # type: ignore[union-attr]
    with pytest.raises(Rejection):
        parse_image(raw.replace(b'{"model":"gpt-5.4-pro"}', b'"gpt-5.4-pro"'), b"application/json")


# -- numbers ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("written", [b"2", b"2.0", b"2e0", b"0.2E1", b"+2"])
def test_a_whole_number_of_a_form_is_taken_however_it_is_written(written: bytes) -> None:
    parsed = read("edits", body("edits", field("n", written), field("partial_images", written)))
    plain = read("edits", body("edits", field("n", b"2"), field("partial_images", b"2")))
    assert (parsed.choices, parsed.explicit_cap) == (2, plain.explicit_cap)
    assert written in parsed.source


@pytest.mark.parametrize(
    "written", [b"1.5", b"1e400", b"nan", b"inf", b"0x2", b"2 ", b"1_0", b"9" * 30, b"two", "２".encode()]
)
def test_any_other_number_of_a_form_is_refused(written: bytes) -> None:
    assert refusal("edits", body("edits", field("n", written))).param == "n"


# -- what was left empty ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("endpoint", "name"), [(endpoint, name) for endpoint in ENDPOINTS for name in ENDPOINTS[endpoint][1]]
)
def test_an_empty_field_is_as_absent(endpoint: str, name: str) -> None:
    without = body(endpoint, leave_out=name)
    for empty in (field(name, b""), part(b'name="%b"; filename=""' % name.encode(), b"")):
        raw = body(endpoint, empty, leave_out=name)
        try:
            expected: Parsed | str = read(endpoint, without)
        except Rejection as refused:
            assert refusal(endpoint, raw).message == refused.message
            continue
        assert isinstance(expected, Parsed)
        found = read(endpoint, raw)
        assert found.source == without
        assert found._replace(form=None) == expected._replace(form=None)


def test_empty_parts_are_taken_out_wherever_they_stand() -> None:
    full = field("model", b"whisper-1") + part(FILES["transcriptions"], wav(1))
    empty = field("language", b"")
    for raw in (empty + full, empty + empty + full + empty, b"\r\n" + empty + full):
        found = parse_transcription(raw + b"--b--\r\n", FORM)
        assert b"language" not in found.source
        assert found.source.endswith(full + b"--b--\r\n")
    hidden = part(b'name="language"; x="--b"', b"")
    assert b"language" not in parse_transcription(hidden + full + b"--b--\r\n", FORM).source


@pytest.mark.parametrize(
    "raw", [b"preamble", b"--b\r\nno header\r\n\r\nx\r\n--b--\r\n", b"--b\r\n: x\r\n\r\nx\r\n--b--\r\n"]
)
def test_a_form_that_cannot_be_read_says_where_it_goes_wrong(raw: bytes) -> None:
    assert "near byte" in refusal("transcriptions", raw).message


def test_an_empty_file_is_named() -> None:
    assert (
        "`file` is empty"
        in refusal(
            "transcriptions", field("model", b"whisper-1") + part(FILES["transcriptions"], b"") + b"--b--\r\n"
        ).message
    )
    nobody_chose = part(b'name="file"; filename=""', b"")
    refused = refusal("transcriptions", field("model", b"whisper-1") + nobody_chose + b"--b--\r\n")
    assert refused.code == "missing_required_parameter"
    assert refusal("transcriptions", nobody_chose + b"--b--\r\n").status == 400


# -- names of files -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "file",
    [
        b"name=\"file\"; filename*=UTF-8''%C3%A9.wav",
        b"filename*=UTF-8''%C3%A9.wav; name=\"file\"",
        b"name=file; filename=a.wav",
        b'name="file"; filename="e.wav"; filename*=UTF-8\'\'%C3%A9.wav',
        b"name=\"file\"; FileName*=utf-8''a%22.wav",
        b"name=\"file\"; filename*0*=UTF-8''%C3%A9; filename*1=.wav",
        b'name="file"; filename="a;name=b.wav"',
        b'name="file"; filename="a\\"; name=\\"b.wav"',
    ],
)
def test_a_file_is_one_however_its_name_is_written(file: bytes) -> None:
    raw = body("transcriptions", file=file)
    parsed = read("transcriptions", raw)
    assert parsed.source is raw
    assert parsed.milliseconds == read("transcriptions", body("transcriptions")).milliseconds


@pytest.mark.parametrize("twice", [b'name="file"; name="model"', b"name=\"prompt\"; name*=UTF-8''model"])
def test_a_part_with_two_names_is_refused(twice: bytes) -> None:
    assert refusal("transcriptions", body("transcriptions", part(twice, b"x"))).code == "invalid_form"


@pytest.mark.parametrize("behind", [b"", b"--b--", b"\r\n--b--\r\n", b"said behind --b-- the end"], ids=repr)
def test_a_field_that_we_add_stands_before_the_end_whatever_is_behind_it(behind: bytes) -> None:
    """Upstream reads nothing behind the end: it would answer in a form that says nothing of what it used."""
    parsed = read("translations", body("translations") + behind)
    assert parsed.form is not None
    sent = parsed.form.with_fields(parsed.sets)
    assert sent.endswith(b"--b--\r\n" + behind)
    upstream = Form(sent[: sent.index(b"--b--") + len(b"--b--\r\n")], FORM)
    assert upstream.text("response_format") == "verbose_json"

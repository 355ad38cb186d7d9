"""Usage: every part inside its whole, each count by itself."""

import pytest

from billing.money.usage import Usage

CONSISTENT = Usage(
    input_tokens=100,
    output_tokens=60,
    cached_tokens=30,
    cache_write_30m_tokens=50,
    cache_write_12h_tokens=20,
    audio_input_tokens=70,
    image_input_tokens=30,
    audio_output_tokens=40,
    image_output_tokens=20,
    reasoning_tokens=60,
    web_searches=3,
    milliseconds=5,
    characters=7,
    calls=(("file_search", 2),),
)
"""Parts that fill their whole to the last token."""


def replaced(**counts: int) -> Usage:
    return Usage(**{**{name: getattr(CONSISTENT, name) for name in CONSISTENT.__struct_fields__}, **counts})


def test_nothing_is_changed_where_every_part_is_inside_its_whole() -> None:
    assert CONSISTENT.normalised() == CONSISTENT
    assert CONSISTENT.is_consistent() is True
    assert CONSISTENT.total_tokens == 160


@pytest.mark.parametrize(
    "part",
    [
        {"cached_tokens": 31},
        {"cache_write_30m_tokens": 51},
        {"cache_write_12h_tokens": 21},
        {"audio_input_tokens": 71},
        {"image_input_tokens": 31},
        {"audio_output_tokens": 41},
        {"image_output_tokens": 21},
        {"reasoning_tokens": 61},
        {"cached_audio_tokens": 1},
        {"cached_image_tokens": 1},
    ],
)
def test_one_token_more_is_not_consistent(part: dict[str, int]) -> None:
    """The split of what was cached is always looked at: `scaled_cost` takes it out of the rest."""
    assert replaced(**part).is_consistent() is False


@pytest.mark.parametrize(
    ("said", "charged"),
    [
        ({"cached_tokens": 101}, {"cached_tokens": 100}),
        # the longer lifetime first: 100 - 80 are left for the shorter one
        ({"cache_write_12h_tokens": 80}, {"cache_write_12h_tokens": 80, "cache_write_30m_tokens": 20}),
        ({"cache_write_12h_tokens": 101}, {"cache_write_12h_tokens": 100, "cache_write_30m_tokens": 0}),
        ({"audio_input_tokens": 101}, {"audio_input_tokens": 100, "image_input_tokens": 0}),
        ({"image_input_tokens": 31}, {"image_input_tokens": 30}),
        ({"audio_output_tokens": 61}, {"audio_output_tokens": 60, "image_output_tokens": 0}),
        ({"image_output_tokens": 21}, {"image_output_tokens": 20}),
        ({"reasoning_tokens": 61}, {"reasoning_tokens": 60}),
        # 30 are cached: 25 of sound leave 5 for pictures
        (
            {"cached_audio_tokens": 25, "cached_image_tokens": 9},
            {"cached_audio_tokens": 25, "cached_image_tokens": 5},
        ),
        ({"cached_audio_tokens": 31}, {"cached_audio_tokens": 30}),
        ({"cached_tokens": 90, "cached_audio_tokens": 80}, {"cached_tokens": 90, "cached_audio_tokens": 70}),
        ({"cached_tokens": 90, "cached_image_tokens": 31}, {"cached_tokens": 90, "cached_image_tokens": 30}),
        ({"cached_tokens": -1}, {"cached_tokens": 0}),
        ({"web_searches": 1_001}, {"web_searches": 1_000}),
        ({"web_searches": -1}, {"web_searches": 0}),
        ({"milliseconds": 2**40 + 1}, {"milliseconds": 2**40}),
        ({"milliseconds": -1}, {"milliseconds": 0}),
        ({"characters": 2**40 + 1}, {"characters": 2**40}),
        ({"characters": -1}, {"characters": 0}),
        ({"input_tokens": 2**40 + 1}, {"input_tokens": 2**40}),
        ({"output_tokens": 2**40 + 1}, {"output_tokens": 2**40}),
        ({"reasoning_tokens": -1}, {"reasoning_tokens": 0}),
    ],
)
def test_a_part_is_cut_to_its_whole_and_everything_else_stays(said: dict[str, int], charged: dict[str, int]) -> None:
    assert replaced(**said).normalised() == replaced(**charged)


def test_negative_wholes_have_no_parts_but_what_is_billed_by_itself() -> None:
    left = replaced(input_tokens=-1, output_tokens=-1).normalised()
    assert left == Usage(web_searches=3, milliseconds=5, characters=7, calls=(("file_search", 2),))


def test_calls_are_cut_by_name() -> None:
    said = Usage(calls=(("file_search", 1_001), ("web_search", -1), ("code_interpreter_1g", 4)))
    cut = (("file_search", 1_000), ("web_search", 0), ("code_interpreter_1g", 4))
    assert said.normalised().calls == cut


def test_what_is_not_said_is_nothing() -> None:
    said = Usage()
    assert {getattr(said, name) for name in said.__struct_fields__ if name != "calls"} == {0}
    assert said.calls == ()

"""Each judgement of an ending by itself, at its bounds: what is believed, what is counted, what stands beside tokens."""

from types import SimpleNamespace
from typing import Any, cast

import pytest

from billing.money.amounts import LIMIT
from billing.money.catalogue.models import Model
from billing.money.pricing import ModelUsage
from billing.money.usage import MAX_TOKENS, Usage
from proxy.gateway.answers.report import NO_REPORT, Report
from proxy.gateway.bodies.parsed import FRAMING_TOKENS, ImageTool
from proxy.gateway.plan import Plan, Tools
from proxy.gateway.services import PricingTerms, Services
from proxy.gateway.settlement import (
    NO_OUTPUT,
    ObservedOutput,
    SettlementDecision,
    count_input,
    count_usage,
    counted_plan,
    decide_settlement,
    falls_short,
    is_billable,
    is_plausible,
    is_worth_counting,
    price_usage,
    with_missing_parts,
    with_possible_tools,
    with_untold_sound,
)
from tests.support.counting import TOKENIZER
from tests.support.plans import EMBEDDINGS, PRICES, plan, sold

DAY_MS = 86_400_000
COUNTED: list[object] = []
"""What is counted in a metric, by its name."""
METRICS = SimpleNamespace(implausible="implausible", count=COUNTED.append)
IMAGE_MODEL = sold("gpt-image-2")


def asked(model: str = "gpt-4o", tools: Tools | None = None, **parsed: Any) -> Plan:
    """A chat of one word to a model, with other figures of its body."""
    found = plan({"model": model, "max_tokens": 100})
    found = found._replace(parsed=found.parsed._replace(**parsed))
    return found if tools is None else found._replace(tools=tools)


def of_model(model: Model, **parsed: Any) -> Plan:
    """The same to a model that no chat would name."""
    return asked(**parsed)._replace(model=model, tier="default")


def told(**usage: Any) -> Report:
    return NO_REPORT._replace(usage=Usage(**usage))


async def settled(found: Plan, report: Report, observed: ObservedOutput = NO_OUTPUT, **more: Any) -> SettlementDecision:
    services = cast("Services", SimpleNamespace(metrics=METRICS, tokenizer=TOKENIZER))
    return await decide_settlement(services, PricingTerms(PRICES, True), found, report, observed, **more)


# -- is_plausible: each input within the window, each output within twice the maximum --------------------


@pytest.mark.parametrize(
    ("most", "loops", "parsed"),
    [
        (128_000, 1, {}),
        (256_000, 2, {}),
        (3 * 128_000, 1, {"inputs": 3}),
        (4 * 128_000, 1, {"compact_at": 1_000}),
        (6 * 128_000, 2, {"compact_at": 1_000}),
    ],
)
def test_each_input_is_within_the_window(most: int, loops: int, parsed: dict[str, Any]) -> None:
    about = asked(**parsed).parsed
    for tokens, believed in ((most, True), (most + 1, False)):
        assert is_plausible(Usage(input_tokens=tokens), sold("gpt-4o"), about, loops) is believed


@pytest.mark.parametrize(
    ("most", "model", "parsed"),
    [
        (2 * 16_384, sold("gpt-4o"), {}),
        (6 * 16_384, sold("gpt-4o"), {"choices": 3}),
        (2 * 16_384, sold("gpt-4o"), {"choices": 0}),
        (4 * 16_384, sold("gpt-4o"), {"compact_at": 1_000}),  # two summaries beside the answer
        (2 * 8_192, sold("text-embedding-3-small"), {}),  # no maximum: its window
        (2 * 70, IMAGE_MODEL, {"explicit_cap": 70}),  # nor that: what was asked for
        (2 * MAX_TOKENS, IMAGE_MODEL, {"explicit_cap": None}),
    ],
)
def test_each_output_is_within_twice_the_most(most: int, model: Model, parsed: dict[str, Any]) -> None:
    about = asked(**parsed).parsed
    for tokens, believed in ((most, True), (most + 1, False)):
        assert is_plausible(Usage(output_tokens=tokens), model, about) is believed


def test_no_sound_plays_longer_than_a_day_or_twice_what_was_sent() -> None:
    whisper = sold("whisper-1")
    for sent, most in ((0, DAY_MS), (DAY_MS // 2, DAY_MS), (DAY_MS, 2 * DAY_MS)):
        about = asked(milliseconds=sent).parsed
        assert is_plausible(Usage(milliseconds=most), whisper, about)
        assert is_plausible(Usage(milliseconds=most + 1), whisper, about) is False


def test_a_model_without_a_window_reads_as_much_as_there_is() -> None:
    for tokens, believed in ((MAX_TOKENS, True), (MAX_TOKENS + 1, False)):
        assert is_plausible(Usage(input_tokens=tokens), IMAGE_MODEL, asked().parsed) is believed


async def test_a_report_beyond_that_is_counted_where_it_can_be_and_each_is_told_of() -> None:
    COUNTED.clear()
    decision = await settled(asked(), told(input_tokens=128_001, output_tokens=5), ObservedOutput(["hello"]))
    assert decision.source == "counted"
    assert (decision.usage.input_tokens, decision.usage.output_tokens) == (await count_input(TOKENIZER, asked()), 1)
    assert COUNTED == ["implausible"]
    believed = await settled(asked(), told(input_tokens=128_000, output_tokens=5))
    assert (believed.source, believed.usage.input_tokens) == ("upstream", 128_000)
    assert COUNTED == ["implausible"]


async def test_calls_of_tools_let_a_model_read_again() -> None:
    with_tool = asked(tools=Tools(calls=1))
    assert (await settled(with_tool, told(input_tokens=256_000))).source == "upstream"
    assert (await settled(with_tool, told(input_tokens=256_001))).source == "counted"


async def test_what_a_model_thought_or_a_file_plays_cannot_be_counted_and_costs_what_was_held_at_most() -> None:
    reasoning = asked("gpt-5")
    beyond = told(input_tokens=10, output_tokens=256_001)
    held = await settled(reasoning, beyond, held=77)
    assert (held.source, held.charge.amount, held.usage.output_tokens) == ("bounded", 77, 256_001)
    free_of_that = await settled(reasoning, beyond)
    assert free_of_that.outcome == "completed"
    # 10 at 1.25 and 256,001 at 10, up to the millicredit
    assert free_of_that.charge.amount == 13 + 2_560_010
    whisper = of_model(sold("whisper-1"), milliseconds=1_000)
    long = await settled(whisper, told(milliseconds=DAY_MS + 1), held=55)
    assert (long.source, long.charge.amount) == ("bounded", 55)
    within = await settled(reasoning, told(input_tokens=10, output_tokens=100), held=5)
    assert (within.source, within.charge.amount) == ("upstream", 13 + 1_000), "a report that is believed is charged"


async def test_pictures_of_a_report_that_is_not_believed_are_those_that_stand_in_it() -> None:
    drawing = of_model(IMAGE_MODEL, picture_tokens=1_000, explicit_cap=100, input_bytes_bound=154)
    drawing = drawing._replace(bounds=drawing.bounds._replace(output_tokens=9_000))
    report = told(input_tokens=10, output_tokens=201)._replace(pictures=0, seen_pictures=2)
    decision = await settled(drawing, report)
    assert (decision.usage.image_output_tokens, decision.source) == (2_000, "counted")
    assert decision.report.pictures == 2
    chat = await settled(asked(), told(input_tokens=128_001)._replace(seen_pictures=2))
    assert chat.report.pictures == 0, "of a chat they stand in the report"
    believed = await settled(drawing, told(input_tokens=10, output_tokens=200)._replace(seen_pictures=2))
    assert (believed.usage.output_tokens, believed.report.pictures) == (200, 0)


# -- with_possible_tools: ten searches a call, twice the tokens of a picture and of what it is drawn by ----


@pytest.mark.parametrize(("calls", "most"), [(0, 10), (1, 10), (3, 30)])
def test_a_call_searches_ten_times_at_most(calls: int, most: int) -> None:
    found = asked(tools=Tools(calls=calls))
    for number, kept in ((most, True), (most + 1, False)):
        report = NO_REPORT._replace(calls=(("web_search", number),), seen_calls=(("web_search", 2),))
        expected = report.calls if kept else report.seen_calls
        assert with_possible_tools(report, found).calls == expected


@pytest.mark.parametrize(
    ("tool", "calls", "most_out", "most_in"),
    [
        (ImageTool("gpt-image-2", 300, 50), 0, 100, 600),
        (ImageTool("gpt-image-2", 300, 50), 2, 200, 1_200),
        (None, 1, 400_000, 2 * MAX_TOKENS),
    ],
)
def test_another_models_work_is_within_twice_what_its_calls_can_take(
    tool: ImageTool | None, calls: int, most_out: int, most_in: int
) -> None:
    found = asked(tools=Tools(calls=calls), image_tool=tool)
    small = ("other", Usage(output_tokens=1))
    for usage, kept in (
        (Usage(output_tokens=most_out, input_tokens=most_in), True),
        (Usage(output_tokens=most_out + 1), False),
        (Usage(input_tokens=most_in + 1), False),
    ):
        report = NO_REPORT._replace(more=(small, ("image", usage)), pictures=1, seen_pictures=4)
        judged = with_possible_tools(report, found)
        assert (judged.more, judged.pictures) == ((report.more, 1) if kept else ((small,), 4))


def test_a_report_without_tools_is_left_as_it_is() -> None:
    report = told(input_tokens=1)._replace(pictures=3, seen_pictures=1)
    assert with_possible_tools(report, asked()) is report


# -- is_billable: in a unit that the model has a price for ------------------------------------------------


@pytest.mark.parametrize(
    ("model", "usage", "billable"),
    [
        ("gpt-4o", Usage(input_tokens=1), True),
        ("gpt-4o", Usage(output_tokens=1), True),
        ("gpt-4o", Usage(), True),
        ("gpt-4o", Usage(milliseconds=5), False),
        ("gpt-4o", Usage(milliseconds=5, input_tokens=1), True),
        ("whisper-1", Usage(input_tokens=1), False),
        ("whisper-1", Usage(output_tokens=1), False),
        ("whisper-1", Usage(milliseconds=5), True),
        ("whisper-1", Usage(milliseconds=5, output_tokens=1), False),
        ("tts-1", Usage(input_tokens=1), True),  # billed by characters, which the request says
        ("gpt-4o-transcribe", Usage(milliseconds=5), True),
        ("gpt-4o-transcribe", Usage(input_tokens=5), True),
    ],
)
def test_a_report_is_billable_in_a_unit_that_has_a_price(model: str, usage: Usage, billable: bool) -> None:
    assert is_billable(usage, of_model(sold(model))) is billable


@pytest.mark.parametrize("priced", ["input", "output", "audio_input"])
def test_one_price_of_a_token_is_enough(priced: str) -> None:
    model = sold("gpt-4o-transcribe")
    rates = model.tiers["default"].short
    only = rates._replace(**{"input": 0, "output": 0, "audio_input": 0, priced: 5})
    one = model._replace(tiers={"default": model.tiers["default"]._replace(short=only)})
    assert is_billable(Usage(input_tokens=1), of_model(one))


# -- falls_short, with_missing_parts -------------------------------------------------------------------

SAID = ObservedOutput(["x" * 640])
"""As much as ten tokens can stand for."""


@pytest.mark.parametrize(
    ("usage", "observed", "short"),
    [
        (Usage(input_tokens=1, output_tokens=10), SAID, False),
        (Usage(input_tokens=1, output_tokens=9), SAID, True),
        (Usage(input_tokens=1, output_tokens=10), SAID._replace(texts=["x" * 640, "x"]), True),
        (Usage(input_tokens=1, output_tokens=10), SAID._replace(running=True), True),
        (Usage(input_tokens=1, output_tokens=10), SAID._replace(early=True), True),
        (Usage(input_tokens=0, output_tokens=10), SAID, True),
        (Usage(input_tokens=1, output_tokens=0), ObservedOutput([], media=1), True),
        (Usage(input_tokens=1, output_tokens=0), ObservedOutput([""]), False),
        (Usage(input_tokens=1), NO_OUTPUT._replace(running=True, early=True), False),
        (Usage(), NO_OUTPUT, True),
        (Usage(milliseconds=5), SAID, False),
    ],
)
def test_a_report_falls_short_of_what_plainly_passed(usage: Usage, observed: ObservedOutput, short: bool) -> None:
    assert falls_short(usage, observed, asked()) is short


READ = FRAMING_TOKENS + 3 * 512
"""Bytes of a request as three tokens can be, beside its framing."""


@pytest.mark.parametrize(
    ("change", "short"),
    [
        ({}, True),
        ({"input_bytes_bound": READ}, False),
        ({"source": b""}, False),
        ({"image_tokens": 1}, False),
        ({"unbounded": True}, False),
        ({"truncates": True}, False),
        ({"compact_at": 5}, False),
        ({"encrypted_tokens": 1}, False),
    ],
)
def test_hardly_any_input_for_so_much_text_is_short_where_all_of_it_is_read(
    change: dict[str, Any], short: bool
) -> None:
    found = asked(**{"input_bytes_bound": READ + 1, **change})
    assert falls_short(Usage(input_tokens=3, output_tokens=1), NO_OUTPUT, found) is short


def test_hardly_any_input_is_short_only_without_stored_context_and_where_texts_are_known() -> None:
    found, usage = asked(input_bytes_bound=READ + 1), Usage(input_tokens=3, output_tokens=1)
    assert not falls_short(usage, NO_OUTPUT, found._replace(context=9))
    assert not falls_short(usage, NO_OUTPUT, found._replace(context=None))
    assert not falls_short(usage, NO_OUTPUT, found._replace(endpoint=found.endpoint._replace(texts=None)))


RUNNING = SAID._replace(running=True)
EARLY = SAID._replace(early=True)


@pytest.mark.parametrize(
    ("usage", "found", "observed", "expected"),
    [
        # no input is no report of it, no output beside some neither
        ((0, 10), (7, 10), SAID, (7, 10)),
        ((5, 0), (7, 9), SAID, (5, 9)),
        ((0, 0), (7, 9), SAID, (7, 9)),
        # nothing of its input: an output that leaves something out falls, too
        ((0, 10), (7, 11), SAID, (7, 11)),
        # one that came to its end with both is believed, whatever is counted
        ((5, 10), (7, 100), SAID, (5, 10)),
        # hardly any tokens for so much text: doubted beyond twice
        ((5, 9), (7, 18), SAID, (5, 9)),
        ((5, 9), (7, 19), SAID, (5, 19)),
        # said before the end: beyond twice
        ((5, 10), (7, 20), EARLY, (5, 10)),
        ((5, 10), (7, 21), EARLY, (5, 21)),
        # from the middle of what did not end: beyond twice, or where more than a tenth of the input is left out
        ((1_000, 60), (7, 100), RUNNING, (1_000, 60)),
        ((1_000, 60), (7, 101), RUNNING, (1_000, 101)),
        ((1_000, 10), (7, 21), RUNNING, (1_000, 21)),
        ((10, 60), (7, 50), RUNNING, (10, 60)),
        ((10, 60), (7, 60), RUNNING, (10, 60)),
    ],
)
def test_missing_parts_fall_to_the_count(
    usage: tuple[int, int], found: tuple[int, int], observed: ObservedOutput, expected: tuple[int, int]
) -> None:
    kept, source = with_missing_parts(
        Usage(input_tokens=usage[0], output_tokens=usage[1]),
        Usage(input_tokens=found[0], output_tokens=found[1], audio_output_tokens=found[1] // 2),
        asked(),
        NO_REPORT,
        observed,
    )
    assert (kept.input_tokens, kept.output_tokens) == expected
    assert kept.audio_output_tokens == (0 if usage[1] == expected[1] else expected[1] // 2)
    assert source == ("upstream" if usage == expected else "counted")


@pytest.mark.parametrize(("counted", "kept"), [(6, 3), (7, 7)])
def test_hardly_any_input_falls_to_the_count_beyond_twice(counted: int, kept: int) -> None:
    found = asked(input_bytes_bound=READ + 1)
    usage, source = with_missing_parts(
        Usage(input_tokens=3, output_tokens=5), Usage(input_tokens=counted, output_tokens=5), found, NO_REPORT, SAID
    )
    assert (usage.input_tokens, source) == (kept, "upstream" if kept == 3 else "counted")


def test_a_pictures_output_is_never_counted_from_texts_and_pictures_without_tokens_are_added() -> None:
    drawing = of_model(IMAGE_MODEL, picture_tokens=100)
    usage, count = Usage(input_tokens=5, output_tokens=40, image_output_tokens=30), Usage(output_tokens=900)
    assert with_missing_parts(usage, count, drawing, NO_REPORT, RUNNING) == (usage, "upstream")
    added, source = with_missing_parts(usage, count, drawing, NO_REPORT._replace(pictures=2), RUNNING)
    assert (added.output_tokens, added.image_output_tokens, source) == (240, 230, "counted")
    unsaid, _ = with_missing_parts(
        Usage(output_tokens=40, image_output_tokens=30),
        Usage(input_tokens=8),
        drawing,
        NO_REPORT._replace(pictures=2),
        SAID,
    )
    assert (unsaid.input_tokens, unsaid.output_tokens, unsaid.image_output_tokens) == (8, 240, 230)
    beside = with_missing_parts(usage, Usage(), asked(picture_tokens=100), NO_REPORT._replace(pictures=2), SAID)
    assert beside == (usage, "upstream"), "of another model, pictures are another line"


# -- what is counted -----------------------------------------------------------------------------------


async def test_the_input_is_counted_with_what_it_builds_on_and_never_beyond_its_bound() -> None:
    found = asked(image_tokens=20)._replace(bounds=plan().bounds._replace(input_tokens=1_000))
    text = await count_input(TOKENIZER, found._replace(parsed=found.parsed._replace(image_tokens=0)))
    assert 0 < text < 20
    assert await count_input(TOKENIZER, found) == text + 20
    assert await count_input(TOKENIZER, found._replace(context=300)) == text + 320
    assert await count_input(TOKENIZER, found._replace(context=None)) == text + 20
    assert await count_input(TOKENIZER, found._replace(context=3_000)) == 1_000


@pytest.mark.parametrize(("estimated", "expected"), [(None, 1_000), (70, 70), (7_000, 1_000)])
async def test_an_input_that_cannot_be_counted_costs_its_estimate_or_its_bound(
    estimated: int | None, expected: int
) -> None:
    found = asked(estimated_input=estimated)._replace(bounds=plan().bounds._replace(input_tokens=1_000))
    without_texts = found._replace(endpoint=found.endpoint._replace(texts=None))
    without_source = found._replace(parsed=found.parsed._replace(source=b""))
    assert [await count_input(TOKENIZER, one) for one in (without_texts, without_source)] == [expected] * 2


async def test_a_plan_is_counted_with_what_nobody_here_can_read() -> None:
    found = asked(encrypted_tokens=50)
    counted = await counted_plan(TOKENIZER, found, PRICES)
    plain = await TOKENIZER.count_body("gpt-4o", found.endpoint.texts, found.parsed.source)  # type: ignore[arg-type]
    assert (counted.input_is_counted, counted.text) == (True, plain + 50)
    nothing = found._replace(endpoint=found.endpoint._replace(texts=None))
    assert await counted_plan(TOKENIZER, nothing, PRICES) is nothing


async def test_output_is_texts_and_sound_within_what_was_held_for() -> None:
    found = asked(estimated_audio=40)
    usage = await count_usage(TOKENIZER, found, 30, ObservedOutput(["hello", "hello"], media=5), NO_REPORT)
    assert usage == Usage(input_tokens=30, output_tokens=7, audio_input_tokens=30, audio_output_tokens=5)
    heard = await count_usage(TOKENIZER, asked(estimated_audio=10), 30, ObservedOutput([], media=500), NO_REPORT)
    assert heard == Usage(input_tokens=30, output_tokens=100, audio_input_tokens=10, audio_output_tokens=100)


async def test_drawn_pictures_are_counted_by_their_size() -> None:
    drawing = of_model(IMAGE_MODEL, picture_tokens=20)
    usage = await count_usage(TOKENIZER, drawing, 3, ObservedOutput(["hello"], media=4), NO_REPORT._replace(pictures=2))
    assert usage == Usage(input_tokens=3, output_tokens=45, image_output_tokens=44)
    many = await count_usage(TOKENIZER, drawing, 3, NO_OUTPUT, NO_REPORT._replace(pictures=9))
    assert many == Usage(input_tokens=3, output_tokens=100, image_output_tokens=100)


@pytest.mark.parametrize(("reported", "estimated", "expected"), [(60, 70, 60), (0, 70, 70), (0, None, 90), (0, 0, 0)])
async def test_sound_is_as_long_as_it_is_said_to_be_else_as_is_likely(
    reported: int, estimated: int | None, expected: int
) -> None:
    whisper = of_model(sold("whisper-1"), milliseconds=90, estimated_milliseconds=estimated)
    usage = await count_usage(TOKENIZER, whisper, 3, SAID, NO_REPORT._replace(milliseconds=reported))
    assert usage == Usage(milliseconds=expected)
    for priced in ("gpt-4o-transcribe", "text-embedding-3-small"):  # the latter has no price of output
        by_tokens = of_model(sold(priced), milliseconds=90)
        assert (await count_usage(TOKENIZER, by_tokens, 3, NO_OUTPUT, NO_REPORT)).input_tokens == 3


@pytest.mark.parametrize(
    ("model", "said", "observed", "spoken"),
    [
        ("gpt-audio", {}, ObservedOutput(["a"], 40), 40),
        ("gpt-audio", {}, ObservedOutput(["a"], 400), 100),
        ("gpt-audio", {"audio_output_tokens": 90}, ObservedOutput(["a"], 40), 90),
        ("gpt-audio", {}, ObservedOutput(["a"]), 0),
        ("gpt-4o", {}, ObservedOutput(["a"], 40), 0),
    ],
    ids=["not told", "more passed than it says", "told", "none passed", "no price of its own"],
)
async def test_sound_that_passed_is_sound_though_a_report_does_not_say_so(
    model: str, said: dict[str, int], observed: ObservedOutput, spoken: int
) -> None:
    """All of its output as text would cost a sixth."""
    found = of_model(sold(model))
    decision = await settled(found, told(input_tokens=10, output_tokens=100, **said), observed)
    assert decision.usage.audio_output_tokens == spoken
    assert decision.source == ("counted" if spoken and not said else "upstream")


@pytest.mark.parametrize(
    ("model", "said", "heard"),
    [
        ("gpt-4o-transcribe", {}, 600),
        ("gpt-4o-transcribe", {"audio_input_tokens": 500}, 500),
        ("gpt-4o", {}, 0),
    ],
    ids=["not told", "told", "no price of its own"],
)
async def test_a_file_of_sound_is_sound_though_a_report_does_not_say_so(
    model: str, said: dict[str, int], heard: int
) -> None:
    """Its text is the prompt: the rest of what was read is the file."""
    sent = {"milliseconds": 61_000, "estimated_input": 68, "estimated_audio": 60}
    found = of_model(sold(model), **sent)
    found = found._replace(endpoint=found.endpoint._replace(texts=None))
    decision = await settled(found, told(input_tokens=608, output_tokens=40, **said), ObservedOutput(["a"]))
    assert decision.usage.audio_input_tokens == heard
    assert decision.source == ("counted" if heard and not said else "upstream")


@pytest.mark.parametrize(("prompt", "read", "heard"), [(None, 100, 100), (8, 100, 92), (8, 8, 0), (8, 5, 0)])
def test_a_file_is_what_was_read_beyond_the_prompt(prompt: int | None, read: int, heard: int) -> None:
    found = of_model(sold("gpt-4o-transcribe"), milliseconds=1_000, estimated_input=prompt)
    usage, source = with_untold_sound(Usage(input_tokens=read), found, NO_OUTPUT)
    assert (usage.audio_input_tokens, source) == (heard, "counted" if heard else "upstream")


async def test_characters_are_known_from_the_request() -> None:
    speech = of_model(sold("tts-1"), characters=12)
    assert await count_usage(TOKENIZER, speech, 3, SAID, NO_REPORT) == Usage()
    decision = await settled(speech, NO_REPORT)
    # 12 at 15 per million
    assert (decision.usage, decision.charge.amount) == (Usage(characters=12), 180)


# -- what stands beside tokens ---------------------------------------------------------------------------


async def test_searches_calls_and_containers_are_charged_by_their_names() -> None:
    found = asked(tools=Tools(calls=2, search="web_search_preview_non_reasoning"))._replace(searches=1)
    report = told(input_tokens=10, output_tokens=10)._replace(calls=(("web_search", 2), ("file_search", 1)))
    searched = await settled(found, report, ObservedOutput(["hello"]), sessions=3)
    assert searched.usage.web_searches == 1
    assert searched.usage.calls == (
        ("web_search_preview_non_reasoning", 2),
        ("file_search", 1),
        ("code_interpreter_1g", 3),
    )
    unsearched = await settled(found, told(input_tokens=10, output_tokens=10), NO_OUTPUT)
    assert (unsearched.usage.web_searches, unsearched.usage.calls) == (0, ())
    plain = await settled(asked(), told(input_tokens=10, output_tokens=10), ObservedOutput(["hello"]))
    assert (plain.usage.web_searches, plain.usage.calls) == (0, ())
    called = await settled(asked(tools=Tools(calls=1)), report, ObservedOutput(["hello"]))
    assert called.usage.calls == (("web_search", 2), ("file_search", 1)), "and no container"
    contained = await settled(asked(), told(input_tokens=10, output_tokens=10), sessions=1)
    assert contained.usage.calls == (("code_interpreter_1g", 1),)


@pytest.mark.parametrize(
    ("asked_12h", "split", "written"), [(True, False, (0, 7)), (True, True, (7, 0)), (False, False, (7, 0))]
)
async def test_a_cache_write_lives_as_long_as_was_asked_where_the_answer_does_not_say(
    asked_12h: bool, split: bool, written: tuple[int, int]
) -> None:
    report = told(input_tokens=10, output_tokens=1, cache_write_30m_tokens=7)._replace(writes_split=split)
    usage = (await settled(asked(cache_write_12h=asked_12h), report)).usage
    assert (usage.cache_write_30m_tokens, usage.cache_write_12h_tokens) == written


async def test_a_cache_write_of_a_request_that_searched_is_one_as_well() -> None:
    searched = asked(cache_write_12h=True)._replace(searches=1)
    report = told(input_tokens=10, output_tokens=1, cache_write_30m_tokens=7)
    usage = (await settled(searched, report, ObservedOutput(["hello"]))).usage
    assert (usage.web_searches, usage.cache_write_30m_tokens, usage.cache_write_12h_tokens) == (1, 0, 7)


async def test_a_write_that_nobody_made_is_none() -> None:
    report = told(input_tokens=10, output_tokens=1, cache_write_12h_tokens=4)
    assert (await settled(asked(cache_write_12h=True), report)).usage.cache_write_12h_tokens == 4


async def test_a_free_endpoint_costs_nothing_whatever_it_reports() -> None:
    free = asked()._replace(endpoint=asked().endpoint._replace(free=True))
    decision = await settled(free, told(input_tokens=10, output_tokens=10))
    assert (decision.usage, decision.charge.amount) == (Usage(), 0)


async def test_another_models_work_is_priced_by_its_name_then_by_the_tools_model_then_by_the_requests() -> None:
    image = asked(tools=Tools(calls=1, image=IMAGE_MODEL))
    plain = asked(tools=Tools(calls=1))
    work = Usage(output_tokens=1_000)
    for found, name, price in (
        (image, "gpt-4o-mini", 600),
        (image, "", 30_000),
        (image, "never-heard-of", 30_000),
        (plain, "", 10_000),
    ):
        decision = await settled(found, told(input_tokens=10, output_tokens=1)._replace(more=((name, work),)))
        assert decision.charge.amount == 25 + 10 + price, (name, price)


async def test_pictures_that_nothing_says_the_tokens_of_are_drawn_by_the_counted_input() -> None:
    tool = ImageTool("gpt-image-2", 5, 5_000)
    found = asked(tools=Tools(calls=2, image=IMAGE_MODEL), image_tool=tool, picture_tokens=100)
    report = told(input_tokens=10, output_tokens=1)._replace(pictures=2)
    # 10 at 2.5 and 1 at 10; 2 pictures of 100 at 30, each drawn by 5 tokens at 5
    assert (await settled(found, report)).charge.amount == 25 + 10 + 2 * 100 * 30 + 2 * 5 * 5
    counted = await count_input(TOKENIZER, found)
    unknown = found._replace(parsed=found.parsed._replace(image_tool=None))
    assert (await settled(unknown, report)).charge.amount == 25 + 10 + 2 * 100 * 30 + 2 * counted * 5
    pictures_alone = IMAGE_MODEL.tiers["default"]._replace(short=IMAGE_MODEL.tiers["default"].short._replace(output=0))
    drawn = IMAGE_MODEL._replace(tiers={"default": pictures_alone})
    by_them = found._replace(tools=Tools(calls=2, image=drawn))
    assert (await settled(by_them, report)).charge.amount == 25 + 10 + 2 * 100 * 30 + 2 * 5 * 5, (
        "as pictures, not texts"
    )
    without = found._replace(tools=Tools(calls=2))
    assert (await settled(without, report)).charge.amount == 25 + 10, "no model draws"


@pytest.mark.parametrize(
    ("model", "tier", "price"),
    [
        ("", None, 2_500),
        ("gpt-4o-mini", None, 150),
        ("never-heard-of", None, 2_500),
        ("", "priority", 4_250),
        ("gpt-4o-mini", "priority", 250),
        ("", "flex", 2_500),
        ("gpt-4o-mini", "flex", 2_500),
        ("", "never-heard-of", 2_500),
    ],
)
def test_the_echo_is_priced_where_it_has_a_price_else_what_was_asked_for(
    model: str, tier: str | None, price: int
) -> None:
    report = NO_REPORT._replace(model=model, service_tier=tier)
    assert price_usage(asked(), PRICES, Usage(input_tokens=1_000), report).amount == price


@pytest.mark.parametrize(
    "echo",
    ["whisper-1", "tts-1", "omni-moderation-latest", "text-embedding-3-small", "gpt-image-2", "gpt-4o-transcribe"],
)
def test_the_echo_of_a_model_that_cannot_have_answered_there_is_not_priced(echo: str) -> None:
    """Its prices are of another unit: an answer in tokens would be free, or dearer than any."""
    usage = Usage(input_tokens=1_000)
    report = NO_REPORT._replace(usage=usage, model=echo)
    assert price_usage(asked(), PRICES, usage, report).amount == 2_500


def test_no_live_answer_is_priced_as_a_batch() -> None:
    usage = Usage(input_tokens=1_000)
    report = NO_REPORT._replace(usage=usage, service_tier="batch")
    assert price_usage(asked(), PRICES, usage, report).amount == 2_500
    assert price_usage(asked()._replace(tier="batch"), PRICES, usage, report).amount == 1_250
    assert price_usage(asked(), PRICES, usage, report._replace(model="gpt-4o-mini")).amount == 150


async def test_another_model_that_is_named_is_priced_where_it_writes() -> None:
    found = of_model(IMAGE_MODEL, image_tool=ImageTool("gpt-4o", 1_000, 5))._replace(tools=Tools(image=sold("gpt-4o")))
    more = (("whisper-1", Usage(input_tokens=1_000)),)
    report = NO_REPORT._replace(usage=Usage(input_tokens=10), more=more)
    assert (await settled(found, report)).charge.amount == 2_500 + 50


def test_other_models_stay_where_the_echo_has_no_price() -> None:
    more = [ModelUsage(IMAGE_MODEL, "default", Usage(output_tokens=100))]
    report = NO_REPORT._replace(service_tier="flex")
    assert price_usage(asked(), PRICES, Usage(input_tokens=1_000), report, more).amount == 2_500 + 3_000
    assert price_usage(asked(), PRICES, Usage(input_tokens=1_000), NO_REPORT, more).amount == 2_500 + 3_000


# -- insurance -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("observed", "report", "insured"),
    [
        (ObservedOutput([], errored=True), NO_REPORT, True),
        (ObservedOutput([""], errored=True), NO_REPORT, True),
        (ObservedOutput([]), NO_REPORT, False),
        (ObservedOutput(["x"], errored=True), NO_REPORT, False),
        (ObservedOutput([], media=1, errored=True), NO_REPORT, False),
        (ObservedOutput([], errored=True), NO_REPORT._replace(calls=(("file_search", 1),)), False),
        (ObservedOutput([], errored=True), NO_REPORT._replace(pictures=1), False),
        (ObservedOutput([], errored=True), NO_REPORT._replace(more=(("", Usage(output_tokens=1)),)), False),
    ],
)
async def test_an_error_is_free_only_where_nothing_billable_passed(
    observed: ObservedOutput, report: Report, insured: bool
) -> None:
    decision = await settled(asked(), report, observed, outcome="upstream_cut")
    assert (decision.outcome, decision.charge.amount == 0) == (
        ("insured", True) if insured else ("upstream_cut", False)
    )


# -- is_worth_counting ------------------------------------------------------------------------------------

LONG = 65_536


def test_a_text_is_worth_counting_unless_it_is_counted_or_cannot_be() -> None:
    found = asked()
    assert is_worth_counting(found, 0, PRICES)
    assert is_worth_counting(found._replace(input_is_counted=True), 0, PRICES) is False
    assert not is_worth_counting(found._replace(endpoint=found.endpoint._replace(texts=None)), 0, PRICES)
    assert is_worth_counting(found._replace(text=LONG), 0, PRICES)
    assert not is_worth_counting(found._replace(text=LONG + 1), 0, PRICES)


def test_a_long_text_is_worth_counting_where_its_fewest_tokens_are_paid_for() -> None:
    # 10,000 tokens at the price of a cache write, 3.125, as each may be one; what is asked for at 10, and of a cap that is
    # ours one token
    for found, output in ((asked(), 1_000), (plan(), 10)):
        long = found._replace(text=8 * 10_000)
        assert is_worth_counting(long, 31_250 + output, PRICES)
        assert not is_worth_counting(long, 31_250 + output - 1, PRICES)


@pytest.mark.parametrize(("inputs", "most"), [(1, 128_000), (0, 128_000), (2, 256_000)])
def test_a_text_that_cannot_fit_the_window_is_not_counted(inputs: int, most: int) -> None:
    found = asked(inputs=inputs)
    assert is_worth_counting(found._replace(text=8 * most), LIMIT, PRICES)
    assert is_worth_counting(found._replace(text=8 * (most + 1)), LIMIT, PRICES) is False
    endless = found._replace(model=found.model._replace(context_window=None), text=8 * (most + 1))
    assert is_worth_counting(endless, LIMIT, PRICES)


def test_embeddings_are_worth_counting_too() -> None:
    assert is_worth_counting(plan(endpoint=EMBEDDINGS), 0, PRICES)

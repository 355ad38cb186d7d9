"""Images, moderations and decisions."""

import base64
import json

import openai
import pytest

from tests.sandbox.openai.sandbox_shapes import KEY, sample, sample_events, shapes, skeleton, steer, typed_events

pytestmark = pytest.mark.asyncio
MODEL = "gpt-image-2.6-sunburst"


def wanted(directive=None, **fields):
    return {"model": MODEL, "prompt": steer("A whale.", directive), **fields}


async def make(box, directive=None, **fields):
    return await box.http.post("/v1/images/generations", json=wanted(directive, **fields))


async def edit(box, directive=None, images=(), **fields):
    files = [("image[]", (f"{index}.png", data, "image/png")) for index, data in enumerate(images)]
    return await box.http.post("/v1/images/edits", data=wanted(directive, **fields), files=files)


def picture(png, width, height):
    return base64.b64decode(png(width, height).partition(",")[2])


async def test_json_answers_have_the_shapes_of_the_samples(box):
    found = (await make(box)).json()
    assert sorted(skeleton(found)) == sorted(skeleton(sample("images_nonstream.json")))
    assert found["usage"]["output_tokens"] == 1056
    assert base64.b64decode(found["data"][0]["b64_json"]).startswith(b"\x89PNG")
    record = await box.last()
    assert (record["usage"], record["usageSent"], record["model"]) == (found["usage"], found["usage"], MODEL)
    found = (await make(box, output_format="svg", svg={"model": "gpt-6.2-sol"})).json()
    assert sorted(skeleton(found)) == sorted(skeleton(sample("images_nonstream_svg.json")))
    assert found["svg_usage"]["model"] == "gpt-6.2-sol"
    assert (await box.last())["extraUsage"] == found["svg_usage"]


async def test_streams_have_the_events_and_shapes_of_the_samples(box, png):
    found = typed_events((await make(box, stream=True, partial_images=2)).text)
    expected = sample_events("images_generation_stream.sse")
    assert [name for name, _ in found] == [name for name, _ in expected]
    assert shapes([data for _, data in found]) == shapes([data for _, data in expected])
    assert found[-1][1]["usage"]["output_tokens"] == 1056 + 2 * 100
    record = await box.last()
    assert record["usage"] == record["usageSent"] == found[-1][1]["usage"]
    found = typed_events((await edit(box, images=[picture(png, 512, 512)], stream="true", partial_images="1")).text)
    expected = sample_events("images_edit_stream.sse")
    assert [name for name, _ in found] == [name for name, _ in expected]
    assert shapes([data for _, data in found]) == shapes([data for _, data in expected])
    assert (await box.last())["stream"] is True


@pytest.mark.parametrize(
    ("fields", "tokens"),
    [
        ({"quality": "low"}, 272),
        ({"quality": "high"}, 4160),
        ({"quality": "max"}, 4160 * 4),
        ({"size": "1024x1536"}, 1584),
        ({"size": "1536x1024", "quality": "low"}, 400),
        ({"size": "2048x2048"}, 1056 * 4),
        ({"n": 3}, 1056 * 3),
        ({"partial_images": 3}, 1056),
    ],
)
async def test_output_tokens_follow_size_quality_and_number(box, fields, tokens):
    found = (await make(box, **fields)).json()
    assert found["usage"]["output_tokens"] == tokens
    assert len(found["data"]) == fields.get("n", 1)


async def test_several_streamed_images_sum_up_to_the_charge(box):
    found = typed_events((await make(box, stream=True, n=2, partial_images=1)).text)
    usages = [data["usage"] for _, data in found if "usage" in data]
    assert len(usages) == 2
    charge = (await box.last())["usage"]
    for name in ("input_tokens", "output_tokens", "total_tokens"):
        assert sum(usage[name] for usage in usages) == charge[name]
    assert charge["output_tokens"] == 2 * 1156


async def test_uploaded_images_cost_by_their_size(box, png):
    # 512 x 512 is one tile; 1024 x 512 two; high fidelity adds 4160 to a square.
    found = (await edit(box, images=[picture(png, 512, 512), picture(png, 1024, 512)])).json()["usage"]
    assert found["input_tokens_details"]["image_tokens"] == (65 + 129) + (65 + 2 * 129)
    body = (await box.last())["requestBody"]
    assert [file["bytes"] for file in body["image[]"]] == [24, 24]
    assert len(body["image[]"][0]["sha256"]) == 64
    found = (await edit(box, images=[picture(png, 1024, 1024)], input_fidelity="high")).json()["usage"]
    assert found["input_tokens_details"]["image_tokens"] == 65 + 129 + 4160
    images = [{"image_url": png(512, 512)}, {"file_id": "file_1"}]
    answer = await box.http.post("/v1/images/edits", json=wanted(images=images))
    assert answer.json()["usage"]["input_tokens_details"]["image_tokens"] == 2 * (65 + 129)


async def test_image_directives(box):
    assert "usage" not in (await make(box, {"usage": None})).json()
    record = await box.last()
    assert (record["usageSent"], record["usage"]["output_tokens"]) == (None, 1056)
    usage = {"input_tokens": 1, "output_tokens": 2, "total_tokens": 3}
    assert (await make(box, {"usage": usage})).json()["usage"] == usage
    assert (await box.last())["usage"] == usage
    assert (await make(box, {"output_tokens": 77})).json()["usage"]["output_tokens"] == 77
    assert "svg_usage" not in (await make(box, {"svg_usage": None}, output_format="svg")).json()
    assert (await make(box, {"status": 400, "error": "400"})).status_code == 400
    found = typed_events((await make(box, {"usage": None}, stream=True)).text)
    assert "usage" not in found[-1][1]
    found = typed_events((await make(box, {"error_after_chunks": 1}, stream=True, partial_images=2)).text)
    assert found[-1][1]["error"]["type"] == "server_error"
    assert (await box.last())["usage"]["output_tokens"] == 1256 // 3
    with pytest.raises(openai.APIConnectionError):
        async for _ in await box.sdk.images.generate(
            **wanted({"cut": {"after_chunks": 2}}, stream=True, partial_images=2)
        ):
            pass
    assert (await box.last())["outcome"] == "cut"
    found = typed_events((await make(box, {"usage_on": "finish"}, stream=True, partial_images=1)).text)
    assert ["usage" in data for _, data in found] == [True, False]


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"n": 11}, "n"),
        ({"n": "2"}, "n"),
        ({"size": "huge"}, "size"),
        ({"quality": "best"}, "quality"),
        ({"partial_images": 4}, "partial_images"),
        ({"stream": True, "output_format": "svg"}, "stream"),
        ({"nope": 1}, "nope"),
        ({"model": 5}, "model"),
    ],
)
async def test_bad_image_requests(box, change, param):
    answer = await box.http.post("/v1/images/generations", json=wanted() | change)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


async def test_bad_edits(box, png):
    assert (await edit(box)).status_code == 400
    files = {"mask": ("a.png", picture(png, 8, 8))}
    answer = await box.http.post("/v1/images/edits", data=wanted(), files=files)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "image")
    answer = await edit(box, images=[b"no picture"])
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_image_file")
    answer = await box.http.post("/v1/images/edits", json=wanted(images=[{}]))
    assert answer.json()["error"]["param"] == "images[0].image_url"
    answer = await edit(box, images=[picture(png, 8, 8)] * 17)
    assert answer.json()["error"]["param"] == "image"


async def test_the_model_may_be_left_out(box):
    answer = await box.http.post("/v1/images/generations", json={"prompt": "A whale."})
    assert answer.status_code == 200
    assert (await box.last())["model"] == MODEL


def strict(box):
    return openai.AsyncOpenAI(api_key=KEY, base_url=box.server.url, max_retries=0, _strict_response_validation=True)


async def test_the_sdk_parses_images_strictly(box, png):
    file = ("a.png", picture(png, 512, 512), "image/png")
    async with strict(box) as sdk:
        assert (await sdk.images.generate(**wanted())).usage.output_tokens == 1056
        assert (await sdk.images.generate(**wanted(output_format="svg"))).svg_usage.total_tokens == 3500
        assert (await sdk.images.edit(**wanted(), image=[file, file], n=2)).usage.output_tokens == 2112
        events = [event async for event in await sdk.images.generate(**wanted(), stream=True, partial_images=1)]
        assert [event.type for event in events] == ["image_generation.partial_image", "image_generation.completed"]
        events = [event async for event in await sdk.images.edit(**wanted(), image=file, stream=True)]
        assert events[-1].type == "image_edit.completed"


# -- moderations and decisions ---------------------------------------------------------------------


async def test_moderations(box):
    answer = await box.http.post("/v1/moderations", json={"input": "Hi"})
    assert skeleton(answer.json()) == skeleton(sample("moderation.json"))
    record = await box.last()
    assert (record["usage"], record["usageSent"], record["path"]) == (None, None, "/v1/moderations")
    async with strict(box) as sdk:
        assert len((await sdk.moderations.create(input=["a", "b"])).results) == 2
        parts = [
            {"type": "text", "text": "a"},
            {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}},
        ]
        found = (await sdk.moderations.create(input=parts)).results[0]
        assert found.category_applied_input_types.violence == ["image", "text"]
    for wrong in (None, 5, [], [5]):
        answer = await box.http.post("/v1/moderations", json={"input": wrong})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "input")
    answer = await box.http.post("/v1/moderations", json={"input": steer("", {"status": 500})})
    assert answer.status_code == 500


QUESTION = {"type": "predicate", "name": "spam", "instructions": "Is it spam?"}


def decision(directive=None, **fields):
    return {"model": "gpt-6-luna", "input": steer("Buy now.", directive), "questions": [QUESTION], **fields}


async def test_decisions(box):
    found = (await box.http.post("/v1/decisions", json=decision())).json()
    assert skeleton(found) == skeleton(sample("decision.json"))
    assert found["usage"]["output_tokens"] == 1
    assert (await box.last())["usage"] == found["usage"]
    details = {"cached_tokens": 3, "cache_write_tokens": 2}
    found = (await box.http.post("/v1/decisions", json=decision({"usage_details": details}))).json()
    assert found["usage"]["input_tokens_details"] == details
    questions = [
        QUESTION,
        {"type": "choice", "instructions": "Which?", "choices": [{"value": "a"}, {"value": True}]},
        {"type": "score", "instructions": "How much?", "levels": [{"label": "low"}, {"label": "high"}]},
    ]
    async with strict(box) as sdk:
        answers = (await sdk.decisions.create(**decision(questions=questions))).answers
        assert [answer.type for answer in answers] == ["predicate", "choice", "score"]
        refused = await sdk.decisions.create(**decision({"refusal": "No."}))
        assert refused.answers[0].type == "refusal"


@pytest.mark.parametrize(
    ("change", "status", "param"),
    [
        ({"model": None}, 400, "model"),
        ({"model": "gpt-4o"}, 404, None),
        ({"input": None}, 400, "input"),
        ({"questions": None}, 400, "questions"),
        ({"questions": []}, 400, "questions"),
        ({"questions": [QUESTION] * 401}, 400, "questions"),
        ({"questions": [{"type": "riddle", "instructions": "x"}]}, 400, "questions[0].type"),
        ({"questions": [{"type": "choice", "instructions": "x"}]}, 400, "questions[0].choices"),
    ],
)
async def test_bad_decisions(box, change, status, param):
    answer = await box.http.post("/v1/decisions", json=decision() | change)
    assert (answer.status_code, answer.json()["error"]["param"]) == (status, param), json.dumps(answer.json())


async def test_every_new_path_wants_the_key(box):
    for path in ("images/generations", "images/edits", "moderations", "decisions", "audio/speech"):
        answer = await box.http.post(f"/v1/{path}", json={}, headers={"authorization": "Bearer no"})
        assert (answer.status_code, answer.json()) == (401, sample("errors.json")["401"])

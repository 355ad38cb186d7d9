"""A rate card becomes active while the server runs; rows keep the rates that applied."""

import base64
import copy
import json
import time
from pathlib import Path

import pytest
from websockets.sync.client import connect

from billing.money.pricing import load_catalogue
from tests.support.customers import new_customer
from tests.support.served import Customer, usd_to_charge
from tests.support.servers import RedisServer, Sandbox, Serve, sandbox_says, wait_until


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_new_card_applies_within_two_seconds_and_requests_keep_the_card_they_began_with(
    workers: str, make_tollkeeper: Serve, sandbox: Sandbox, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    environment = {"TOLLKEEPER_LISTEN__WORKERS": workers}
    if workers != "1":
        redis: RedisServer = request.getfixturevalue("redis_server")
        environment["TOLLKEEPER_REDIS__URL"] = redis.url
    server = make_tollkeeper(**environment).start()
    owner = new_customer(server)
    customer = Customer(server, owner.account_id, owner.api_key, sandbox)
    document = copy.deepcopy(load_catalogue())
    shipped = document["catalogueId"]
    document |= {"catalogueId": "acme-2027", "prices": {"markup": "2"}}
    path = tmp_path / "card.json"
    path.write_text(json.dumps(document))
    assert server.cli("rates", "import", str(path)) == {
        "rateCardId": "acme-2027",
        "new": True,
        "models": len(document["models"]),
        "warning": None,  # no package is sold at a loss by it
    }
    changes = server.cli("rates", "diff", "acme-2027")["changes"]
    assert changes == [{"price": "prices.markup", "before": None, "after": "2"}]

    slow = customer.stream(customer.body({"output_tokens": 100, "chunk_interval_ms": 40}, max_tokens=150))
    with slow as wire:
        wire.read_events(1)
        server.cli("rates", "activate", "acme-2027")
        activated = time.monotonic()
        wait_until(lambda: all(at_double(customer) for _ in range(6)), 10, "every worker follows")
        assert time.monotonic() - activated < 4
        wire.read_all()
        begun = wire.request_id
    record = customer.generation(begun)
    tokens = (record["inputTokens"], "0.15"), (record["outputTokens"], "0.6")
    assert int(record["chargedMillicredits"]) == usd_to_charge(*tokens)
    assert (record["rates"]["rateCardId"], record["rates"]["markup"]) == (shipped, "1")
    newest = customer.generation(customer.post(customer.body(max_tokens=5)).headers["x-request-id"])
    assert (newest["rates"]["rateCardId"], newest["rates"]["markup"]) == ("acme-2027", "2")
    assert server.cli("rates", "show")["active"] == "acme-2027"
    assert server.cli("reconcile") == {"ok": True, "findings": []}


@pytest.mark.parametrize("restarted", [False, True])
def test_a_background_response_ends_by_the_card_it_began_with(
    restarted: bool, make_tollkeeper: Serve, sandbox: Sandbox, tmp_path: Path
) -> None:
    flags = {"TOLLKEEPER_BILLING__ALLOW_STORE": "true", "TOLLKEEPER_BILLING__ALLOW_BACKGROUND": "true"}
    server = make_tollkeeper(TOLLKEEPER_BILLING__MARKUP="3", **flags).start()
    owner = new_customer(server)
    customer = Customer(server, owner.account_id, owner.api_key, sandbox)
    path = tmp_path / "card.json"
    path.write_text(json.dumps({**load_catalogue(), "catalogueId": "acme-2027", "prices": {"markup": "7"}}))
    server.cli("rates", "import", str(path))
    body = {
        "model": "gpt-4.1",
        "max_output_tokens": 50,
        "background": True,
        "input": "hello " + sandbox_says(background_ms=8_000),
    }
    answer = customer.post(body, "/v1/responses")
    assert answer.json()["status"] == "queued"
    if restarted:
        assert server.stop() == 0
    server.cli("rates", "activate", "acme-2027")
    if restarted:
        server.start(TOLLKEEPER_BILLING__MARKUP="5")
    else:
        wait_until(lambda: at_seven(customer), 5, "the new card applies to what begins now")
    record = wait_until(lambda: customer.generation(answer.headers["x-request-id"]), 30, "it is settled")
    (job,) = [
        row["usage"]
        for row in sandbox.record()
        if row.get("responseId") == answer.json()["id"] and row.get("jobStatus") == "completed"
    ]
    assert record["rates"]["rateCardId"] == load_catalogue()["catalogueId"]
    assert int(record["chargedMillicredits"]) == usd_to_charge((job["input_tokens"], "6"), (job["output_tokens"], "24"))


def test_a_card_raised_in_a_realtime_session_is_held_for_with_its_transcription(
    make_tollkeeper: Serve, sandbox: Sandbox, tmp_path: Path
) -> None:
    server = make_tollkeeper().start()
    owner = new_customer(server)
    customer = Customer(server, owner.account_id, owner.api_key, sandbox)
    path = tmp_path / "card.json"
    path.write_text(json.dumps({**load_catalogue(), "catalogueId": "acme-2027", "prices": {"markup": "7"}}))
    server.cli("rates", "import", str(path))
    heard = {"type": "realtime", "audio": {"input": {"transcription": {"model": "whisper-1"}, "turn_detection": None}}}
    spoken = json.dumps({"type": "input_audio_buffer.append", "audio": base64.b64encode(bytes(4_800)).decode()})
    url = customer.server.v1.replace("http://", "ws://") + "/realtime?model=gpt-realtime-2.1"
    with connect(url, additional_headers=customer.headers, open_timeout=10) as socket:
        socket.send(json.dumps({"type": "session.update", "session": heard}))
        socket.send(spoken)
        before = wait_until(customer.held, 10, "the next response is held for")
        server.cli("rates", "activate", "acme-2027")
        wait_until(lambda: at_seven(customer), 5, "the new card applies to what begins now")
        socket.send(spoken)
        # the voice and the model that transcribes, both at seven times the price; each hold is rounded up once
        wait_until(lambda: customer.held() >= 7 * before - 7, 5, "it is held for at the new card's prices")


def at_seven(customer: Customer) -> bool:
    found = customer.generation(customer.post(customer.body(max_tokens=5)).headers["x-request-id"])
    return bool(found["rates"]["rateCardId"] == "acme-2027")


def at_double(customer: Customer) -> bool:
    answer = customer.post(customer.body({"output_tokens": 10}, max_tokens=20))
    usage = answer.json()["usage"]
    once = usd_to_charge((usage["prompt_tokens"], "0.15"), (usage["completion_tokens"], "0.6"))
    twice = usd_to_charge((usage["prompt_tokens"], "0.3"), (usage["completion_tokens"], "1.2"))
    charged = round(float(answer.headers["x-credits-charged"]) * 1_000)
    assert charged in (once, twice)
    return charged == twice


def test_a_bad_card_is_refused_by_the_command(make_tollkeeper: Serve, tmp_path: Path) -> None:
    server = make_tollkeeper()
    path = tmp_path / "card.json"
    path.write_text("{}")
    done = server.cli("rates", "import", str(path), code=2)
    assert "the rate card is not complete" in done["error"]
    assert "no rate card" in server.cli("rates", "activate", "missing", code=1)["error"]


def usage_answer(customer: Customer, body: dict[str, object]) -> tuple[dict[str, object], int]:
    answer = customer.post(body, "/v1/responses")
    assert answer.status_code == 200, answer.text
    return answer.json(), round(float(answer.headers["x-credits-charged"]) * 1_000)


SPECIAL = [
    # gpt-6.2-sol 2 / cached 0.1 / write 2.5 / 12 h write 5 / out 10; above 272,000 of input 4 / 0.2 / 5 / 10 / 15
    ("exactly at the limit", {}, {"input_tokens": 272_000, "output_tokens": 10}, {}, 272_000 * 2 + 100),
    ("one above", {}, {"input_tokens": 272_001, "output_tokens": 10}, {}, 272_001 * 4 + 150),
    (
        "long and cached",
        {},
        {"input_tokens": 300_000, "output_tokens": 10},
        {"cached_tokens": 200_000},
        100_000 * 4 + 200_000 // 5 + 150,
    ),
    (
        "written for 12 hours",
        {"prompt_cache_options": {"ttl": "12h"}},
        {"input_tokens": 3_000, "output_tokens": 10},
        {"cache_write_tokens": 2_000, "cache_write_tokens_details": {"ttl_30m_tokens": 500, "ttl_12h_tokens": 1_500}},
        1_000 * 2 + 500 * 5 // 2 + 1_500 * 5 + 100,
    ),
]


@pytest.mark.parametrize(("name", "fields", "usage", "details", "charge"), SPECIAL, ids=[row[0] for row in SPECIAL])
def test_long_context_and_cache_writes_cost_what_the_sheet_says(
    name: str,
    fields: dict[str, object],
    usage: dict[str, int],
    details: dict[str, object],
    charge: int,
    customer: Customer,
) -> None:
    del name
    said = {
        **usage,
        "total_tokens": sum(usage.values()),
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0, **details},
    }
    body = {
        "model": "gpt-6.2-sol",
        "max_output_tokens": 2_000,
        "input": "x" * 900_000 + sandbox_says(usage=said),
        **fields,
    }
    _, charged = usage_answer(customer, body)
    assert charged == charge


@pytest.mark.parametrize(
    ("asked", "echo", "price_in", "price_out"),
    [
        ("flex", "flex", "1", "5"),
        ("priority", "priority", "4", "20"),
        ("fast", "priority", "4", "20"),
        ("priority", "default", "2", "10"),
        ("default", "default", "2", "10"),
        ("default", "ultrafast", "6", "30"),
    ],
)
def test_the_echoed_tier_is_what_is_charged(
    asked: str, echo: str, price_in: str, price_out: str, customer: Customer
) -> None:
    said = "hello " + sandbox_says(service_tier=echo)
    answer, charged = usage_answer(
        customer, {"model": "gpt-6.2-sol", "input": said, "service_tier": asked, "max_output_tokens": 100}
    )
    usage = answer["usage"]
    assert answer["service_tier"] == echo
    assert isinstance(usage, dict)
    assert charged == usd_to_charge((usage["input_tokens"], price_in), (usage["output_tokens"], price_out))


def test_a_newer_catalogue_becomes_a_draft_with_what_it_changes_and_nothing_applies(
    make_tollkeeper: Serve, tmp_path: Path
) -> None:
    server = make_tollkeeper()
    server.cli("migrate")
    shipped = load_catalogue()
    assert server.cli("rates", "refresh") == {
        "before": shipped["catalogueId"],
        "rateCardId": shipped["catalogueId"],
        "new": False,
        "changes": [],
        "otherwiseChanged": [],
    }
    older = copy.deepcopy(shipped)
    older |= {"catalogueId": "acme-2026", "effectiveFrom": "2026-01-01", "prices": {"markup": "2"}}
    older["models"]["gpt-4o"] |= {"ends": None}
    older["models"]["gpt-6-luna"]["rates"]["default"]["short"]["input"] = "0.2"
    older["models"]["gpt-6-sol"]["maxOutputTokens"] = 64_000
    older["models"]["acme-1"] = older["models"].pop("gpt-5.5")
    (tmp_path / "card.json").write_text(json.dumps(older))
    server.cli("rates", "import", str(tmp_path / "card.json"))
    server.cli("rates", "activate", "acme-2026")

    draft, out = f"{shipped['catalogueId']}.acme-2026", tmp_path / "draft.json"
    found = server.cli("rates", "refresh", "--out", str(out))
    rows = {row["price"]: (row["before"], row["after"]) for row in found["changes"]}
    assert rows.pop("gpt-4o.ends") == (None, "2027-01-14")
    assert rows.pop("gpt-6-luna.default.short.input") == ("0.2", "0.1")
    assert {name.rpartition(".default")[0] or name for name in rows if "gpt-5.5." not in name} == set(), rows
    assert (found["new"], found["otherwiseChanged"]) == (False, ["gpt-6-sol"])
    assert json.loads(out.read_text())["prices"] == {"markup": "2"}
    assert draft not in {row["rateCardId"] for row in server.cli("rates", "show")["cards"]}, "only the file was written"

    assert server.cli("rates", "refresh")["new"] is True
    assert server.cli("rates", "refresh")["new"] is False
    card = server.cli("rates", "show", draft)
    assert (card["models"]["acme-1"], card["effectiveFrom"]) == (older["models"]["acme-1"], shipped["effectiveFrom"])
    assert server.cli("rates", "show")["active"] == "acme-2026"
    said = server.run("rates", "refresh").stdout
    assert "gpt-4o.ends: none → 2027-01-14\n" in said
    assert f"acme-2026 stays active. `tollkeeper rates activate {draft}` makes it apply." in said

    newer = {**shipped, "catalogueId": "openai-2027", "models": {"gpt-7": shipped["models"]["gpt-6-luna"]}}
    (tmp_path / "newer.json").write_text(json.dumps(newer))
    given = server.cli("rates", "refresh", str(tmp_path / "newer.json"), "--id", "acme-2027")
    assert {row["price"].partition(".")[0] for row in given["changes"]} == {"gpt-7"}
    assert (given["rateCardId"], given["new"]) == ("acme-2027", True)
    (tmp_path / "newer.json").write_text("{}")
    assert server.run("rates", "refresh", str(tmp_path / "newer.json")).returncode == 2

"""Each place of CONTRIBUTING.md's recipes has a guard that says what is missing; and what documents name exists.

The recipes: an endpoint, a price unit, a configuration key, a migration, a metric, a command.
"""

import argparse
import ast
import hashlib
import json
import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import msgspec
import pytest
from prometheus_client import CollectorRegistry

from billing.money.model_rates import ModelRates, scaled_cost
from billing.money.pricing import Bounds
from billing.money.pricing import _scaled_ceiling as scaled_ceiling
from billing.money.usage import Usage
from billing.money.usage_record import UsageRecord
from billing.storage.migrate import SCRIPTS
from billing.storage.tables.core import usage as usage_table
from config.settings import Section, Settings
from proxy.cli import main as command_line
from proxy.gateway.endpoints import METERED, REALTIME
from proxy.observability.metrics import Metrics
from proxy.web.rejections import Rejection
from tests.support.servers import ROOT, SAMPLES

DOCS = sorted((ROOT / "docs").rglob("*.md"))
GUIDES = [ROOT / "CONTRIBUTING.md", ROOT / "docs" / "architecture.md", ROOT / "docs" / "openai.md"]
OUTSIDE = {
    "design.md": r"\bdesign\.md",
    "openai/README": r"(?<!sandbox/)\bopenai/README",
    "README ": r"\bREADME [0-9]",
    "act sheet": r"\b[Ff]act sheet",
    "house.md": r"\bhouse\.md",
    "ledger-and-stripe": "ledger-and-stripe",
    "../shared": r"\.\./shared",
}
"""Documents that stand beside the repository: a part of each name that is quickly looked for → the whole."""
FOLDERS = "proxy|billing|config|sandbox|scripts|tests|docs|deploy|bench|requirements"


@cache
def tracked() -> list[Path]:
    """Every file of the repository that is text of ours."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    kinds = {".py", ".md", ".toml", ".lua", ".yml", ".sql", ".html", ".css", ".js", ".mjs", ".txt", ".in"}
    found = [
        ROOT / name for name in listed if Path(name).suffix in kinds or Path(name).name in ("Makefile", "Dockerfile")
    ]
    return [path for path in found if path.is_file()]


@cache
def text_of(path: Path) -> str:
    return path.read_text()


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@cache
def texts_of_tests() -> list[str]:
    """All tests, and what the README's snippets run."""
    parts = [text_of(path) for path in tracked() if name_of(path).startswith("tests/") and path.suffix == ".py"]
    return [*parts, *re.findall(r"```sh[^\n]*\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)]


@cache
def all_tests() -> str:
    return "\n".join(texts_of_tests())


# -- documents ------------------------------------------------------------------------------------------------------


def test_nothing_refers_to_a_document_outside_the_repository() -> None:
    found = [
        f"{name_of(path)}:{number}: {line.strip()[:100]}"
        for path in tracked()
        if path != Path(__file__)
        for part, name in OUTSIDE.items()
        if part in (text := text_of(path))
        for number, line in enumerate(text.splitlines(), 1)
        if re.search(name, line)
    ]
    assert found == [], "cite docs/architecture.md, docs/openai.md, docs/ledger.md or docs/adr instead"


@cache
def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    heads = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.replace("`", "")).strip().lower().replace(" ", "-") for head in heads}


def cited() -> Iterator[tuple[Path, Path, str]]:
    """(file, page, anchor) of every citation: `docs/x.md#y` anywhere, links in Markdown."""
    for path in tracked():
        text = text_of(path)
        if path.suffix == ".md":
            for target, anchor in re.findall(r"\]\(([^)#\s:]*)(?:#([\w-]+))?\)", text):
                yield path, (path.parent / target).resolve() if target else path, anchor
        elif path != Path(__file__):
            for target, anchor in re.findall(r"\b(docs/[\w/-]+\.md)(?:#([\w-]+))?", text):
                yield path, ROOT / target, anchor


def test_every_citation_of_a_document_leads_somewhere() -> None:
    lost = [
        f"{name_of(path)}: {page.name}{'#' if anchor else ''}{anchor}"
        for path, page, anchor in cited()
        if not page.exists() or (anchor and page.suffix == ".md" and anchor not in anchors(page))
    ]
    assert lost == []


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS], ids=name_of)
def test_files_that_a_document_names_exist(page: Path) -> None:
    text = page.read_text()
    named = {*re.findall(rf"`((?:{FOLDERS})/[\w./-]*)`", text), *re.findall(r"\btests/[\w/]+\.py\b", text)}
    assert sorted(path for path in named if not (ROOT / path).exists()) == [], (
        f"{name_of(page)} names files that are gone"
    )


@pytest.mark.parametrize("guide", GUIDES, ids=lambda path: path.name)
def test_what_a_guide_names_exists(guide: Path) -> None:
    """Tests by their function's name, and `name` in `path`."""
    text = guide.read_text()
    tests = set(re.findall(r"`(test_\w+)(?:\[[^]]*\])?`", text))
    assert [name for name in sorted(tests) if f"def {name}(" not in all_tests()] == [], "no such test"
    missing = []
    for names, path in re.findall(rf"((?:`\w+`(?:, | and ))*`\w+`) (?:of `\w+` )?in `((?:{FOLDERS})/[\w./-]*)`", text):
        where = ROOT / path
        files = [where] if where.is_file() else [found for found in tracked() if found.is_relative_to(where)]
        source = "\n".join(found.read_text() for found in files)
        missing += [
            f"{name} in {path}" for name in re.findall(r"`(\w+)`", names) if not re.search(rf"\b{name}\b", source)
        ]
    assert missing == [], f"{guide.name} names what is not there"


def test_each_invariant_names_its_code_and_its_tests() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    parts = re.split(r"^### (I\d) ", text, flags=re.MULTILINE)[1:]
    named = dict(zip(parts[::2], parts[1::2], strict=True))
    assert list(named) == [f"I{number}" for number in range(1, 10)]
    for name, part in named.items():
        assert re.search(r"^- Code: .*`", part, re.MULTILINE), f"{name} names no code"
        assert re.search(r"^- Tests: .*`test_", part, re.MULTILINE), f"{name} names no test"


# -- a command --------------------------------------------------------------------------------------------------------


def commands(parser: argparse.ArgumentParser, before: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every command of `tollkeeper`, as the words that are typed."""
    groups = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not groups:
        yield before
    for group in groups:
        for name, inner in group.choices.items():
            yield from commands(inner, (*before, name))


COMMANDS = list(commands(command_line._parser()))


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_command_is_documented_and_has_a_test(words: tuple[str, ...]) -> None:
    typed = r"\s+".join(map(re.escape, words))
    pages = [ROOT / "README.md", *DOCS]
    assert any(re.search(rf"tollkeeper {typed}(?![\w-])", text_of(page)) for page in pages), (
        f"`tollkeeper {' '.join(words)}` stands in no document: README.md, or the page of its subject in docs/"
    )
    called = r"""["'\s]""" + r"""(?:["'],\s*["']|\s+)""".join(map(re.escape, words)) + r"""(?:["'\s`])"""
    assert any(words[-1] in text and re.search(called, text) for text in texts_of_tests()), (
        f"no test calls `tollkeeper {' '.join(words)}`"
    )


# -- a configuration key ------------------------------------------------------------------------------------------------


def test_every_key_of_the_configuration_is_used() -> None:
    """That each stands in proxy.toml with its default and a comment, and can be set from the environment: tests/config."""
    sources = [path for path in tracked() if name_of(path).startswith(("proxy/", "billing/", "config/"))]
    code = [text_of(path) for path in sources if path.suffix == ".py" and path.name != "settings.py"]
    read = {name for text in code for name in re.findall(r"\.(\w+)", text)}
    unused = [
        f"{section.name}.{key.name}"
        for section in msgspec.structs.fields(Settings)
        if isinstance(section.type, type) and issubclass(section.type, Section)
        for key in msgspec.structs.fields(section.type)
        if key.name not in read
    ]
    assert unused == [], "nothing reads these keys"


# -- a migration --------------------------------------------------------------------------------------------------------

MIGRATIONS = sorted((SCRIPTS / "versions").glob("[0-9]*_*.py"))
RELEASED: dict[str, str] = {
    "0001": "1437d8a834d5894e",
    "0002": "2188c967b9a04ff0",
    "0003": "d48853a471356027",
    "0004": "37d32475dcbbb744",
    "0005": "ae72d6e11b22fabd",
    "0006": "e59f1ef55535a823",
    "0007": "e72073fb9b6d7a83",
    "0008": "1f33149a9135288c",
    "0009": "d21de931b2134ccb",
    "0010": "78667e64e37ad4b0",
    "0011": "022c14048bb43c71",
    "0012": "4d7aad1e39fc361c",
    "0013": "d6d4eea2feec2897",
    "0014": "8d2afa572226f095",
    "0015": "bd2e0edfeebc2fc4",
    "0016": "9823deab2868d2ca",
    "0017": "2fbe5075c5cfa3e6",
    "0018": "867c8863e1c01d44",
    "0019": "3bbfa351ff3aa86c",
    "0020": "51a128ce0fc81e62",
    "0021": "ffb80810a261cb36",
    "0022": "b709b5392a689c4b",
    "0023": "812be6204ca0e6a8",
    "0024": "713215898e600a03",
    "0025": "8ceafba19a60f29b",
    "0026": "de1b9efc2eca23fa",
    "0027": "6ac3ac1007578cec",
    "0028": "dd938a3097193d5e",
    "0029": "8eaaa32bd6191126",
}
"""Revision → fingerprint of what it does. A database that has run one is not told of an edit: never edit, add another."""


def fingerprint(path: Path) -> str:
    """What a migration does, whatever its comments and its layout."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
        elif isinstance(node, ast.Module | ast.FunctionDef):
            node.body = list(node.body)
    return hashlib.sha256(ast.unparse(tree).encode()).hexdigest()[:16]


def value_of(path: Path, name: str) -> object:
    (found,) = (
        ast.literal_eval(node.value)
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name
    )
    return found


def test_migrations_are_numbered_without_gaps() -> None:
    numbers = [path.name.partition("_")[0] for path in MIGRATIONS]
    assert numbers == [f"{number:04}" for number in range(1, len(numbers) + 1)]
    for path, number in zip(MIGRATIONS, numbers, strict=True):
        before = f"{int(number) - 1:04}" if number != "0001" else None
        assert (value_of(path, "revision"), value_of(path, "down_revision")) == (number, before), path.name
        assert ast.get_docstring(ast.parse(path.read_text())), f"{path.name} does not say what it is for"


def test_a_released_migration_is_never_edited() -> None:
    now = {path.name.partition("_")[0]: fingerprint(path) for path in MIGRATIONS}
    assert {number: now.get(number) for number in RELEASED} == RELEASED, "undo the edit, and add a migration"
    assert now.keys() == RELEASED.keys(), f"add to RELEASED here: {[(n, now[n]) for n in now.keys() - RELEASED.keys()]}"


def test_migrations_are_run_on_both_databases() -> None:
    """`test_migrations_make_the_tables` takes a fixture of both: of its own file, else of the nearest conftest.py."""
    name = "test_migrations_make_the_tables"
    (path,) = (path for path in tracked() if path.suffix == ".py" and f"def {name}(" in path.read_text())
    taken = next(node for node in functions(path) if node.name == name).args.args[0].arg
    places = [path, *(folder / "conftest.py" for folder in path.parents if folder.is_relative_to(ROOT))]
    fixtures = [node for place in places if place.is_file() for node in functions(place) if node.name == taken]
    assert fixtures, f"{name_of(path)}: no fixture {taken}"
    params = ast.unparse(fixtures[0].decorator_list[0])
    assert "'sqlite'" in params, params
    assert "'postgresql'" in params, params


def functions(path: Path) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    nodes = ast.parse(path.read_text()).body
    return [node for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


# -- a metric -----------------------------------------------------------------------------------------------------------


def metric_names() -> list[str]:
    registry = CollectorRegistry()
    Metrics(registry)
    return [family.name + ("_total" if family.type == "counter" else "") for family in registry.collect()]


def test_every_metric_is_watched_or_listed_as_not_watched() -> None:
    """Documented, and moved by what it is there for: test_every_metric_is_documented_and_nothing_else, test_every_metric_moves."""
    watching = [*(ROOT / "deploy" / "dashboards").glob("*.json"), *(ROOT / "deploy" / "alerts").glob("*.yml")]
    text = "\n".join(path.read_text() for path in watching)
    shown = {name for name in metric_names() if re.search(rf"\b{name}(?:_bucket|_sum|_count)?\b", text)}
    page = (ROOT / "docs" / "metrics.md").read_text().partition("\n## In no panel and no alert\n")[2]
    listed = set(re.findall(r"^- `(\w+)`: \S", page, re.MULTILINE))
    assert set(metric_names()) - shown - listed == set(), (
        "neither on a dashboard, nor in an alert, nor listed in docs/metrics.md"
    )
    assert listed & shown == set(), "listed in docs/metrics.md as not watched, but it is"
    assert listed <= set(metric_names()), "listed in docs/metrics.md, but there is no such metric"


# -- an endpoint --------------------------------------------------------------------------------------------------------

ENDPOINTS = {row.name: row for row in (*METERED.values(), REALTIME)}
SAMPLE_OF = {
    "/v1/chat/completions": "chat_nonstream.json",
    "/v1/completions": "completions_legacy_stream_include_usage.sse",
    "/v1/embeddings": "embeddings.json",
    "/v1/responses": "responses_stream_completed.sse",
    "/v1/responses/compact": "responses_compact.json",
    "/v1/responses/input_tokens": "responses_input_tokens.json",
    "/v1/images/generations": "images_nonstream.json",
    "/v1/images/edits": "images_edit_stream.sse",
    "/v1/audio/speech": "speech_sse.sse",
    "/v1/audio/transcriptions": "transcription_tokens.json",
    "/v1/audio/translations": "transcription_verbose_whisper.json",
    "/v1/moderations": "moderation.json",
    "/v1/decisions": "decision.json",
    "/v1/realtime": "realtime_server_events.jsonl",
}
"""Endpoint → one answer of OpenAI's, replayed by a test that compares its charge with one worked out by hand."""


def test_every_endpoint_has_a_sample_that_is_charged() -> None:
    assert ENDPOINTS.keys() - SAMPLE_OF.keys() == set(), "add a sample of its answer here and to tests/behaviour"
    behaviour = "\n".join(path.read_text() for path in (ROOT / "tests" / "behaviour").glob("*.py"))
    for name, sample in SAMPLE_OF.items():
        assert (SAMPLES / sample).is_file(), f"{name}: tests/samples/{sample} is missing"
        assert sample in behaviour, f"{name}: no test of tests/behaviour replays {sample}"


@pytest.mark.parametrize("name", ENDPOINTS)
def test_every_endpoint_is_complete(name: str) -> None:
    """Priced models, and its row in docs/endpoints.md: test_a_row_without_a_price_fails_the_build."""
    row = ENDPOINTS[name]
    assert row.unit, f"{name} does not say what it is billed by"
    known = (ROOT / "docs" / "openai.md").read_text()
    assert f"`{row.upstream_path}`" in known, f"{name}: docs/openai.md does not say where its usage comes from"
    simulated = [path for path in tracked() if name_of(path).startswith("sandbox/") and path.suffix == ".py"]
    assert any(name in path.read_text() for path in simulated), f"{name}: the sandbox does not serve it"
    report = row.read(b'{"output": [], "choices": []}').report
    assert row.free or report.usage is None, f"{name}: an answer without usage must be counted, never be taken as 0"
    if row is not REALTIME:
        assert not refused_by_name("POST", name), f"{name} stands in refused.json as well"
        with pytest.raises(Rejection) as refused:
            row.parse(*UNKNOWN_FIELD["/v1/audio/tr" in name])
        assert refused.value.status == 400, f"{name}: what is not known must be refused, with what to do about it"
        assert "tollkeeper_unknown" in refused.value.message, f"{name}: the refusal does not name what is not known"


UNKNOWN_FIELD = {
    False: (b'{"model": "gpt-4o", "tollkeeper_unknown": 1}', b"application/json"),
    True: (
        b'--x\r\nContent-Disposition: form-data; name="tollkeeper_unknown"\r\n\r\n1\r\n--x--\r\n',
        b"multipart/form-data; boundary=x",
    ),
}
"""A request with a member that nobody knows, as JSON or as a form."""


def refused_by_name(method: str, path: str) -> bool:
    rows = json.loads((ROOT / "proxy" / "gateway" / "refused.json").read_text())
    return any((row["method"], row["path"]) == (method, path) for row in rows)


# -- a price unit -------------------------------------------------------------------------------------------------------

RATES = [name for name, kind in ModelRates.__annotations__.items() if kind is int or kind == "int"]
COUNTS = [field.name for field in msgspec.structs.fields(Usage)]
UNIT_ROW = re.compile(r"^\| (?:`(\w+)`|-) \| `(\w+)` \| (?:`(\w+)`|in `\w+`) \|", re.MULTILINE)


def price_units() -> list[tuple[str, str, str]]:
    """(rate, count, column of the usage row) as docs/openai.md has them; "" where there is none of its own."""
    page = (ROOT / "docs" / "openai.md").read_text().partition("\n### Price units\n")[2].partition("\n#")[0]
    return UNIT_ROW.findall(page)


def test_every_price_unit_is_documented_with_its_place_in_the_usage_row() -> None:
    rows = price_units()
    assert {rate for rate, _, _ in rows if rate} == {*RATES, "call"}, "docs/openai.md, Price units: rates of ModelRates"
    assert {count for _, count, _ in rows} == set(COUNTS), "docs/openai.md, Price units: fields of Usage"


@pytest.mark.parametrize("row", price_units(), ids=lambda row: row[0] or row[1])
def test_every_price_unit_reaches_the_customer_and_the_checks(row: tuple[str, str, str]) -> None:
    column = row[2]
    if not column:
        return
    assert column in UsageRecord.__struct_fields__, f"UsageRecord has no {column}"
    assert column in usage_table.c, f"the table `usage` has no {column}: it needs a migration"
    camel = re.sub(r"_(\w)", lambda found: found[1].upper(), column)
    assert f'"{camel}"' in (ROOT / "proxy" / "customer_api" / "openapi.json").read_text(), (
        f"openapi.json has no {camel}"
    )
    repricing = (ROOT / "billing" / "money" / "repricing.py").read_text()
    assert re.search(rf"\b{column}\b", repricing), (
        f"reprice() leaves out {column}: reconciliation would find every such row"
    )


def card_with(**rates: int) -> ModelRates:
    return ModelRates(
        **{**dict.fromkeys(RATES, 0), "tier": "default", "context": "short", "snapshot": msgspec.Raw(b"{}"), **rates}
    )


USED = Usage(
    input_tokens=100,
    output_tokens=100,
    cached_tokens=40,
    cache_write_30m_tokens=5,
    cache_write_12h_tokens=6,
    audio_input_tokens=20,
    image_input_tokens=20,
    cached_audio_tokens=10,
    cached_image_tokens=10,
    audio_output_tokens=30,
    image_output_tokens=30,
    web_searches=2,
    milliseconds=7,
    characters=8,
)
MOST = Bounds(100, 100, 20, True, True, 2, 7, 8)


@pytest.mark.parametrize("rate", RATES)
def test_every_rate_is_charged_and_held_for(rate: str) -> None:
    """A dearer rate makes what used it dearer, and the hold covers it. Cached input is never dearer than plain."""
    apart = {"input": 1, "audio_input": 2, "image_input": 3}  # so that sound and pictures are priced apart
    cheap, dear = card_with(**apart), card_with(**{**apart, rate: 1_000})
    assert scaled_cost(dear, USED) > scaled_cost(cheap, USED), f"scaled_cost leaves out {rate}"
    if rate.startswith("cached"):
        dear = card_with(**{name: 1_000 + number for name, number in apart.items()}, **{rate: 1_000})
    assert scaled_ceiling(dear, MOST) >= scaled_cost(dear, USED), f"the hold's ceiling leaves out {rate}"


def test_the_usage_that_is_charged_above_uses_every_count() -> None:
    own = {"calls", "reasoning_tokens"}  # priced by the tool's name; a part of the output
    assert [name for name in COUNTS if name not in own and not getattr(USED, name)] == []
    assert USED.is_consistent() or USED.normalised() == USED

"""Build the documentation as a site with search, and the files that machines read: `make docs`.

    python -m scripts.build_site [FOLDER]      default: build/site

The pages are docs/*.md and a few files beside it. A link to a file that is no page becomes the file's name; the API's
reference is made of proxy/customer_api/openapi.json. mkdocs --strict fails on a link or heading that leads nowhere.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
MKDOCS = ROOT / ".venv-tools" / "bin" / "mkdocs"
OUTPUT = ROOT / "build" / "site"
PICTURES = ROOT / "docs" / "images"
OPENAPI = ROOT / "proxy" / "customer_api" / "openapi.json"
BESIDE = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
    "deploy/README.md": "deploy.md",
}
"""Files outside docs/ that are pages, and what they are called there."""
SECTIONS: Mapping[str, tuple[str, ...]] = {
    "Start": ("index.md", "compare.md", "import.md", "integrate.md", "events.md"),
    "Serve": ("endpoints.md", "voice.md", "storage.md", "api.md"),
    "Operate": (
        "runbook.md", "deploy.md", "operations.md", "upstreams.md", "upgrade.md", "jobs.md", "metrics.md", "alerts.md",
        "stripe.md", "privacy.md",
    ),
    "Trust": ("security.md", "performance.md", "scale.md", "proof.md", "ledger.md", "architecture.md", "openai.md"),
    "Work on it": ("contributing.md", "sandbox.md", "changelog.md"),
}  # fmt: skip
"""The navigation; a page that is not there yet is left out, one that is not named here is an error."""
QUIET = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
LINK = re.compile(r"\[([^\]]*)\]\(([^)#\s]*)(#[^)\s]*)?\)")
FENCE = re.compile(r"^(```\w+) [\w-]+$", re.MULTILINE)
CONFIG = {
    "site_name": "Tollkeeper",
    "site_description": "A prepaid meter in front of the OpenAI API.",
    "use_directory_urls": False,
    "theme": {
        "name": "material",
        "font": False,
        "features": ["navigation.tabs", "navigation.top", "search.suggest", "search.highlight", "content.code.copy"],
    },
    "plugins": ["search"],
    "markdown_extensions": ["admonition", "tables", "attr_list", {"toc": {"permalink": True}}, "pymdownx.superfences"],
    "validation": {
        "nav": {"omitted_files": "warn", "not_found": "warn"},
        "links": {"not_found": "warn", "anchors": "warn", "absolute_links": "warn", "unrecognized_links": "warn"},
    },
}


def main(words: list[str]) -> int:
    """Build the site into a folder; return mkdocs' exit code."""
    output = Path(words[0]).absolute() if words else OUTPUT
    if not MKDOCS.exists():
        print("mkdocs is not installed: run `make docs`, which installs it", file=sys.stderr)
        return 2
    source = output.parent / f"{output.name}-pages"
    shutil.rmtree(source, ignore_errors=True)
    pages = dict(site_pages())
    for name, text in pages.items():
        place = source / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text, encoding="utf-8")
    shutil.copytree(PICTURES, source / PICTURES.name)
    config = {**CONFIG, "docs_dir": str(source), "site_dir": str(output), "nav": navigation(pages)}
    file = output.parent / f"{output.name}.yml"
    file.write_text(json.dumps(config), encoding="utf-8")  # JSON is YAML
    # our own tool, on our own files
    command = [str(MKDOCS), "build", "--strict", "-f", str(file)]  # not --quiet: it hides warnings from --strict too
    done = subprocess.run(command, check=False, env=QUIET, capture_output=True, text=True)  # noqa: S603
    if done.returncode:
        print(done.stdout + done.stderr, file=sys.stderr)
    if done.returncode == 0:
        (output / "llms.txt").write_text(llms_txt(pages), encoding="utf-8")
        shutil.copy(OPENAPI, output / "openapi.json")
    return done.returncode


def site_pages() -> Iterator[tuple[str, str]]:
    """Yield each page's name in the site and its text."""
    places = {ROOT / "docs" / page.relative_to(ROOT / "docs") for page in (ROOT / "docs").rglob("*.md")}
    named = {path: path.relative_to(ROOT / "docs").as_posix() for path in places}
    named |= {ROOT / name: page for name, page in BESIDE.items() if (ROOT / name).exists()}
    for path, name in sorted(named.items(), key=lambda item: item[1]):
        yield name, FENCE.sub(r"\1", _with_links(path, name, named))
    yield "adr/index.md", _decisions(named)
    yield "api.md", api_page(json.loads(OPENAPI.read_text(encoding="utf-8")))


def _decisions(named: Mapping[Path, str]) -> str:
    """Return the list of the decisions."""
    listed = sorted((name, path) for path, name in named.items() if name.startswith("adr/"))
    titles = [(name.removeprefix("adr/"), path.read_text(encoding="utf-8").partition("\n")[0]) for name, path in listed]
    return "\n".join(["# Decisions", "", *(f"- [{title.lstrip('# ')}]({name})" for name, title in titles), ""])


def _with_links(path: Path, name: str, named: Mapping[Path, str]) -> str:
    """Return a page's text with its links as the site has them."""
    up = "../" * name.count("/")

    def moved(found: re.Match[str]) -> str:
        words, target, anchor = found[1], found[2], re.sub("-+", "-", found[3] or "")  # as mkdocs names headings
        if re.match(r"[a-z]+:", target):
            return found[0]
        if not target:
            return f"[{words}]({anchor})"
        goal = (path.parent / target).resolve()
        if goal in named:
            return f"[{words}]({up}{named[goal]}{anchor})"
        if goal.parent == PICTURES:
            return f"[{words}]({up}{PICTURES.name}/{goal.name})"
        if goal == ROOT / "docs" / "adr":
            return f"[{words}]({up}adr/index.md)"
        return f"{words} (`{goal.relative_to(ROOT)}` in the repository)" if goal.exists() else found[0]

    return LINK.sub(moved, path.read_text(encoding="utf-8"))


def navigation(pages: Mapping[str, str]) -> list[Any]:
    """Return mkdocs' navigation. Raises KeyError for a page that has no place in it."""
    placed = {name for names in SECTIONS.values() for name in names}
    lost = sorted(name for name in pages if name not in placed and not name.startswith("adr/"))
    if lost:
        raise KeyError(f"no place in the navigation: {', '.join(lost)} (SECTIONS in scripts/build_site.py)")
    nav: list[Any] = [{section: [name for name in names if name in pages]} for section, names in SECTIONS.items()]
    return [*nav, {"Decisions": sorted(name for name in pages if name.startswith("adr/"))}]


def llms_txt(pages: Mapping[str, str]) -> str:
    """Return llms.txt: each page with its first sentence, for programs that read documentation."""
    lines = ["# Tollkeeper", "", "> A prepaid meter in front of the OpenAI API: hold, forward, stream, meter, charge."]
    for section, names in SECTIONS.items():
        lines += ["", f"## {section}", ""]
        lines += [_listed(name, pages[name]) for name in names if name in pages]
    lines += ["", "## API", "", "- [OpenAPI](openapi.json): the side API, as a running server has it at /openapi.json"]
    return "\n".join(lines) + "\n"


def _listed(name: str, text: str) -> str:
    title, _, body = text.partition("\n")
    words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", " ".join(body.split()))
    first = re.match(r"[^#|].*?[.:](?= |$)", words)
    return f"- [{title.lstrip('# ')}]({name.removesuffix('.md')}.html)" + (f": {first[0]}" if first else "")


def api_page(document: Mapping[str, Any]) -> str:
    """Return the reference of the side API: each operation with its parameters, body and answers."""
    lines = ["# The side API", "", document["info"]["description"], ""]
    lines += ["A running server has this document at `/openapi.json`.", ""]
    for path, item in document["paths"].items():
        shared = item.get("parameters", [])
        for method, operation in item.items():
            if method not in ("get", "post", "put", "patch", "delete"):
                continue
            lines += [f"## `{method.upper()} {path}`", "", operation.get("summary", ""), ""]
            lines += [operation["description"], ""] if "description" in operation else []
            lines += _parameters(document, [*shared, *operation.get("parameters", [])])
            lines += _body(document, operation.get("requestBody", {}))
            lines += ["| status | answer |", "|---|---|"]
            for status, answer in operation["responses"].items():
                said = _resolved(document, answer).get("description", "")
                lines.append(f"| {status} | {_cell(said)} |")
            lines.append("")
    return "\n".join(lines)


def _parameters(document: Mapping[str, Any], parameters: list[Any]) -> list[str]:
    rows = [_resolved(document, parameter) for parameter in parameters]
    if not rows:
        return []
    table = [f"| `{row['name']}` | {row['in']} | {_cell(row.get('description', ''))} |" for row in rows]
    return ["| parameter | in | what |", "|---|---|---|", *table, ""]


def _body(document: Mapping[str, Any], body: Mapping[str, Any]) -> list[str]:
    content = _resolved(document, body).get("content", {}).get("application/json", {})
    schema = _resolved(document, content.get("schema", {}))
    if not schema.get("properties"):
        return []
    needed = schema.get("required", [])
    rows = []
    for name, field in schema["properties"].items():
        must = " (required)" if name in needed else ""
        rows.append(f"| `{name}`{must} | {_cell(_resolved(document, field).get('description', ''))} |")
    return ["| field of the body | what |", "|---|---|", *rows, ""]


def _resolved(document: Mapping[str, Any], node: Mapping[str, Any]) -> Mapping[str, Any]:
    if "$ref" not in node:
        return node
    found: Any = document
    for step in node["$ref"].removeprefix("#/").split("/"):
        found = found[step]
    return dict(found)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

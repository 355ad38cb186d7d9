"""The site that `make docs` builds: strict, with search, every page in its place, and the files for machines."""

import json
import re
import shutil
from pathlib import Path

import pytest

from scripts import build_site
from tests.support import web
from tests.support.openapi import DOCUMENT, fits
from tests.support.servers import ROOT, Tollkeeper


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("site") / "site"
    assert build_site.main([str(output)]) == 0
    return output


@pytest.mark.served
def test_the_site_has_every_page_search_and_no_address_of_others(site: Path) -> None:
    for page in (ROOT / "docs").glob("*.md"):
        assert (site / f"{page.stem}.html").exists(), page
    assert json.loads((site / "search" / "search_index.json").read_text())["docs"]
    loaded = re.findall(r'(?:src|href)="(https?://[^"]+)"', (site / "index.html").read_text())
    assert not [url for url in loaded if url.endswith((".css", ".js", ".woff2"))]  # it works without a network


@pytest.mark.served
def test_every_link_inside_the_site_leads_somewhere(site: Path) -> None:
    """mkdocs looks at links of the sources; this looks at the pages themselves, headings too."""
    ids = {page: set(re.findall(r'\sid="([^"]+)"', page.read_text())) for page in site.rglob("*.html")}
    broken = []
    for page in ids:
        for target in re.findall(r'<a [^>]*href="([^":]+)"', page.read_text()):
            path, _, anchor = target.partition("#")
            goal = (page.parent / path).resolve() if path else page
            goal = goal / "index.html" if goal.is_dir() else goal
            if page.name != "404.html" and (not goal.exists() or (anchor and goal in ids and anchor not in ids[goal])):
                broken.append((page.name, target))
    assert broken == []


@pytest.mark.served
def test_machines_find_the_pages_and_the_api(site: Path) -> None:
    listed = re.findall(r"^- \[[^\]]+\]\(([^)]+)\)", (site / "llms.txt").read_text(), re.MULTILINE)
    assert len(listed) > 15
    assert all((site / name).exists() for name in listed)
    assert json.loads((site / "openapi.json").read_text()) == DOCUMENT
    reference = (site / "api.html").read_text()
    for path, item in DOCUMENT["paths"].items():
        for method in item.keys() & {"get", "post", "put", "patch", "delete"}:
            assert f"{method.upper()} {path}" in reference


@pytest.mark.served
def test_a_broken_link_fails_the_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = tmp_path / "root"
    shutil.copytree(ROOT / "docs", copy / "docs")
    monkeypatch.setattr(build_site, "ROOT", copy)
    monkeypatch.setattr(build_site, "BESIDE", {})
    page = copy / "docs" / "voice.md"
    page.write_text(page.read_text() + "\n[gone](gone.md) and [no heading](storage.md#nowhere)\n")
    assert build_site.main([str(tmp_path / "site")]) != 0


def test_a_page_without_a_place_is_an_error() -> None:
    with pytest.raises(KeyError, match=r"lost\.md"):
        build_site.navigation({"index.md": "", "lost.md": ""})


def test_a_server_describes_its_api(running_server: Tollkeeper) -> None:
    answer = web.get(f"{running_server.url}/openapi.json")
    assert fits(answer, "/openapi.json") == DOCUMENT
    assert "access-control-allow-origin" not in answer.headers


@pytest.fixture
def running_server(embedded: Tollkeeper) -> Tollkeeper:
    return embedded

"""A real Chromium, and what every visit is checked for: nothing the content policy refused, no error, nothing axe finds."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, ConsoleMessage, Page, sync_playwright

from tests.support.programs import node

NODE = Path(__file__).parent / "node"
UNPACKED = NODE / "chromium"
AXE = NODE / "node_modules" / "axe-core" / "axe.min.js"
SWITCHES = [
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-quic",
]
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
TIME_ZONE, DESKTOP, PHONE = "Asia/Kathmandu", {"width": 1200, "height": 900}, {"width": 360, "height": 740}
# refusals that a test asks for are shown as pages; Chromium notes their status as a console error
EXPECTED = "Failed to load resource: the server responded with a status of"
# fills window.refused with whatever the content security policy forbids
LISTEN = """window.refused = [];
document.addEventListener("securitypolicyviolation", (event) => window.refused.push(`${event.violatedDirective} ${event.blockedURI}`));"""


def chromium() -> tuple[str, dict[str, str]]:
    """The browser and its environment: from PATH, else the one that `make install-dev` unpacked. Fails when there is neither."""
    found = shutil.which("chromium")
    if found is not None:
        return found, dict(os.environ)
    packed = UNPACKED / "chromium"
    assert packed.exists(), "no chromium on PATH and none in tests/browser/node: run `make install-dev`"
    libraries = f"{UNPACKED / 'lib'}:{os.environ.get('LD_LIBRARY_PATH', '')}".rstrip(":")
    # its own fonts: a machine may have none, and a text without a font is taken for hidden
    return str(packed), {**os.environ, "LD_LIBRARY_PATH": libraries, "FONTCONFIG_FILE": str(UNPACKED / "fonts.conf")}


@contextmanager
def opened_browser(*switches: str) -> Iterator[Browser]:
    """Chromium without a window, with these switches as well."""
    path, environment = chromium()
    os.environ.setdefault("PLAYWRIGHT_NODEJS_PATH", node())  # its own node needs libatomic, which a fresh Debian lacks
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=[*SWITCHES, *switches], env=environment)
        yield browser
        browser.close()


@dataclass
class Visits:
    """Windows of one test, each a browser of its own as far as cookies go; `ours` is where our pages are."""

    browser: Browser
    ours: str
    errors: list[str] = field(default_factory=list)
    closers: list[Callable[[], None]] = field(default_factory=list)

    def window(self, **options: Any) -> Page:
        """A fresh window in a zone that is neither ours nor UTC."""
        wanted = {"viewport": DESKTOP, "timezone_id": TIME_ZONE, "locale": "en-GB", **options}
        context = self.browser.new_context(**wanted)
        context.set_default_timeout(10_000)
        context.add_init_script(LISTEN)
        page = context.new_page()
        page.on("console", self._noted)
        page.on("pageerror", lambda error: self.errors.append(f"{page.url}: {error}"))
        self.closers.append(context.close)
        return page

    def _noted(self, message: ConsoleMessage) -> None:
        if message.type == "error" and not message.text.startswith(EXPECTED):
            self.errors.append(f"{message.location.get('url')}: {message.text}")

    def close(self) -> None:
        """Everything; fails on what went wrong unseen."""
        for close in self.closers:
            close()
        assert self.errors == []


def look(page: Page) -> None:
    """What every page in every state must stand up to: axe, the policy, the width of the window."""
    assert page.evaluate("window.refused") == []
    if not page.evaluate("typeof window.axe === 'object'"):
        page.evaluate(AXE.read_text(encoding="utf-8"))
    found = page.evaluate(
        "async (rules) => (await axe.run(document, {runOnly: rules, resultTypes: ['violations']})).violations"
        ".map((one) => `${one.id}: ${one.nodes.map((node) => node.target.join(' ') + ' ' + node.failureSummary).join('; ')}`)",
        RULES,
    )
    assert found == [], f"{page.url}: {found}"
    fits(page)


def fits(page: Page) -> None:
    """Nothing has to be scrolled sideways."""
    wide, room = page.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
    assert wide <= room, f"{page.url} is {wide} wide in {room}"


def tab_stops(page: Page, most: int = 200) -> list[str]:
    """What the Tab key reaches from the top, in order, by tag and name; fails where the focus cannot be seen."""
    page.evaluate("document.activeElement.blur(); window.scrollTo(0, 0)")
    found: list[str] = []
    for _ in range(most):
        page.keyboard.press("Tab")
        stop = page.evaluate(
            """() => {
              const one = document.activeElement;
              if (one === document.body || one === null) return null;
              const style = getComputedStyle(one), box = one.getBoundingClientRect();
              return {
                label: `${one.localName} ${one.getAttribute("aria-label") || one.labels?.[0]?.innerText || one.innerText || ""}`.trim(),
                seen: style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2 && box.width > 0 && box.height > 0,
              };
            }"""
        )
        if stop is None:
            return found
        assert stop["seen"], f"the focus is not to be seen on {stop['label']!r}"
        found.append(" ".join(stop["label"].split()))
    raise AssertionError(f"more than {most} stops: {found}")


def tab_to(page: Page, name: str, most: int = 200) -> None:
    """Press Tab until the focus is on the element of that accessible label."""
    for _ in range(most):
        page.keyboard.press("Tab")
        if page.evaluate(
            """(name) => {
              const one = document.activeElement;
              const label = one.getAttribute("aria-label") || one.labels?.[0]?.innerText || one.innerText || "";
              return label.trim().replace(/\\s+/g, " ") === name;
            }""",
            name,
        ):
            return
    raise AssertionError(f"Tab does not reach {name!r}")

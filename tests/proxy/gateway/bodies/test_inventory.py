"""The inventory names every member of the pinned SDK's types, and what it says is what is done."""

import pytest

from proxy.gateway.bodies import inventory
from proxy.gateway.bodies.inventory import TOOLS, SurfaceEntry, named, offered
from scripts import surface
from scripts.surface import SURFACE, SdkUnion, difference, usage_fields


@pytest.mark.parametrize("union", SURFACE, ids=lambda union: str(union.name))
def test_every_member_of_the_sdk_has_an_entry_and_every_entry_a_member(union: SdkUnion) -> None:
    assert difference(union) == (set(), set()), "classify it in proxy/gateway/bodies/inventory.py"


def test_every_figure_of_usage_has_an_entry() -> None:
    assert usage_fields() - inventory.USAGE_FIELDS.keys() == set()


def test_a_member_without_an_entry_is_found(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The walk sees the SDK's unions: what is taken out of the inventory is missed, and the command says so."""
    without = {name: entry for name, entry in TOOLS.items() if name != "web_search"}
    tools = next(union for union in SURFACE if union.name == "tools")
    assert difference(tools._replace(entries=without)) == ({"web_search"}, set())
    monkeypatch.setattr(surface, "SURFACE", (tools._replace(entries=without),))
    assert surface.main() == 1
    assert "web_search is new in the SDK" in capsys.readouterr().out


def test_what_is_refused_says_why_and_what_is_hosted_is_bounded() -> None:
    everything: list[tuple[str, SurfaceEntry]] = [
        pair for union in SURFACE for pair in union.entries.items() if pair[1].meaning == "refused"
    ]
    assert everything
    assert [name for name, entry in everything if not entry.why] == []
    assert [name for name in named(TOOLS, "hosted") if not TOOLS[name].tokens] == []
    assert offered(inventory.SOCKET_CLIENT) == {"response.create", "response.cancel"}

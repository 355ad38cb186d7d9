"""`tollkeeper smoke` against the served product: whole, and broken on purpose."""

from tests.launch.conftest import Live
from tests.support.command import cli


def steps(found: dict) -> dict[str, tuple[str, str]]:
    return {row["name"]: (row["state"], row["fix"]) for row in found["checks"]}


def test_whole(live: Live) -> None:
    found = cli(live.server, "smoke")
    assert found["ok"]

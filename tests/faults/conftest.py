"""A served Tollkeeper whose commands run in the test's own process: these tests call many, and starting Python takes a second."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Serve
from tests.support import command
from tests.support.servers import Sandbox, Tollkeeper


class Served(Tollkeeper):
    """See the module."""

    def cli(self, *arguments: str, code: int | None = 0) -> Any:
        if code is not None:
            return command.cli(self, *arguments, code=code)
        return command.run(self, *arguments, "--json")


@pytest.fixture
def make_tollkeeper(folder: Path, sandbox: Sandbox) -> Iterator[Serve]:
    """As the fixture of all tests, with such servers."""
    made: list[Served] = []

    def make(**environment: str) -> Served:
        home = folder / f"tk{len(made)}"
        home.mkdir()
        server = Served(home, {"TOLLKEEPER_UPSTREAM__BASE_URL": sandbox.url, **environment})
        made.append(server)
        return server

    yield make
    for server in made:
        server.kill()

"""What `make prove-mutants` leaves out is explained, and still stands in the source."""

import re

import pytest

from tests.properties.proof.mutants.__main__ import explained
from tests.properties.proof.mutants.selection import ALL, OWN, own_tests_of
from tests.support.servers import ROOT

NAME = re.compile(r"(?P<file>\S+\.py) (?P<inside>\S+): (?P<before>.+) -> (?P<after>.*)")


@pytest.mark.parametrize("file", OWN)
def test_a_file_that_is_mutated_and_its_tests_exist(file: str) -> None:
    assert (ROOT / file).is_file()
    assert [test for test in (*own_tests_of(file), *ALL) if not (ROOT / test).exists()] == []


def test_every_mutant_that_is_explained_has_a_reason_and_changes_a_line_that_is_there() -> None:
    gone = []
    for name, why in explained().items():
        found = NAME.fullmatch(name)
        assert found is not None, name
        assert found["file"] in OWN, name
        assert len(why) > 20, name
        plain = " ".join((ROOT / found["file"]).read_text().split())
        if found["before"] not in plain:
            gone.append(name)
    assert gone == []

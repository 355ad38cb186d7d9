"""Headers of a message as they were sent: the first of a name counts, and names are lower case."""

from proxy.web.raw_request import first_header, has_any

HEADERS = [(b"host", b"a"), (b"origin", b"https://one.example"), (b"origin", b"https://two.example")]


def test_the_first_of_a_name_is_found_and_nothing_where_there_is_none() -> None:
    assert first_header(HEADERS, b"origin") == b"https://one.example"
    assert first_header(HEADERS, b"host") == b"a"
    assert first_header(HEADERS, b"accept") == b""
    assert first_header([], b"accept", b"text/html") == b"text/html"


def test_any_of_several_names_will_do() -> None:
    assert has_any(HEADERS, (b"accept", b"origin"))
    assert not has_any(HEADERS, (b"accept", b"cookie"))
    assert not has_any([], (b"accept",))

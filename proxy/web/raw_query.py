"""The query of a request's target as it was sent, for handlers that no framework reads it for."""

from urllib.parse import parse_qsl

from proxy.web.rejections import invalid

MOST_FIELDS = 32


def query_pairs(raw: bytes, most: int = MOST_FIELDS) -> list[tuple[str, str]]:
    """Names and values in their order. Raises Rejection for more than `most` fields, and for what is no UTF-8."""
    if raw.count(b"&") >= most:
        raise invalid(f"The query has more than {most} parameters.", code="too_many_parameters")
    try:
        return parse_qsl(raw.decode("ascii"), keep_blank_values=True, max_num_fields=most, errors="strict")
    except ValueError:
        raise invalid("The query cannot be read: percent-encode it, in UTF-8.", code="invalid_query") from None

"""Answers against proxy/customer_api/openapi.json."""

import json
from typing import Any

import httpx
from jsonschema import Draft202012Validator

from tests.support.servers import ROOT

DOCUMENT = json.loads((ROOT / "proxy" / "customer_api" / "openapi.json").read_text())


def fits(answer: httpx.Response, path: str) -> Any:
    """The JSON of an answer, after checking it against what the document says of that path and status."""
    described = DOCUMENT["paths"][path][answer.request.method.lower()]["responses"][str(answer.status_code)]
    if "$ref" in described:
        described = DOCUMENT["components"]["responses"][described["$ref"].rpartition("/")[2]]
    (content_type,) = described["content"]
    assert answer.headers["content-type"].partition(";")[0] == content_type
    schema = {**described["content"][content_type]["schema"], "components": DOCUMENT["components"]}
    if content_type != "application/json":
        return answer.text
    found = answer.json()
    Draft202012Validator(schema, format_checker=Draft202012Validator.FORMAT_CHECKER).validate(found)
    return found

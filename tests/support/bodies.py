"""Bodies with a text in each place where a model reads one."""

import json
from typing import Any

TEXT = "all work and no play makes jack a dull boy. " * 2_000


def chat(**message: Any) -> bytes:
    return json.dumps({"model": "gpt-4.1", "messages": [{"role": "assistant", **message}]}).encode()


def response(item: dict[str, Any], **fields: Any) -> bytes:
    return json.dumps({"model": "gpt-4.1", "input": [item], **fields}).encode()

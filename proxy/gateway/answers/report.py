"""An answer about itself, and a whole answer read: what settling needs of either. Pure."""

import re

from billing.money.usage import Usage, Value
from proxy.gateway.answers.decode import decode_object
from proxy.gateway.answers.usage import read_tokens, read_usage

USAGE_OBJECT = re.compile(rb'"usage"\s*:\s*(\{(?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*\})')
"""As deep as usage goes: how long cache writes live stands in the details of its input."""
FAILED, NO_ANSWER = "failed", "no_answer"
"""Why a 200 is no answer: it is an error, or nothing that could be one."""


class Report(Value, frozen=True):
    """An answer about itself.

    `more` is what other models did, by name ("" = the one that the request named); `calls` are finished calls of hosted
    tools, `pictures` those that nothing says the tokens of; `containers` and `items` are what it made in the upstream
    account, and `drawn` how many of these are pictures; `status` is a response's own. `milliseconds`: the length of its
    sound, beside a usage in tokens. `writes_split`: it says how long what it wrote to the cache lives. `seen_calls` and
    `seen_pictures` are those that stand in its output, whatever it says of them.
    """

    usage: Usage | None
    model: str
    service_tier: str | None
    upstream_id: str
    more: tuple[tuple[str, Usage], ...] = ()
    containers: tuple[str, ...] = ()
    items: tuple[str, ...] = ()
    status: str = ""
    calls: tuple[tuple[str, int], ...] = ()
    pictures: int = 0
    drawn: int = 0
    milliseconds: int = 0
    writes_split: bool = False
    seen_calls: tuple[tuple[str, int], ...] = ()
    seen_pictures: int = 0
    sounds: tuple[tuple[str, int], ...] = ()
    """Speech that is kept upstream: (id, Unix second at which it is gone; 0 = not said)."""


NO_REPORT = Report(None, "", None, "")


class WholeAnswer(Value, frozen=True):
    """A whole answer, read.

    `sound_bytes`: of speech in it; `produced`: it holds output, or ended as an answer does; `refusal`: why it is no
    answer at all, "" for one that is.
    """

    report: Report
    texts: list[str]
    sound_bytes: int = 0
    produced: bool = True
    refusal: str = ""


def unreadable(body: bytes) -> WholeAnswer:
    """Read what no reader takes as JSON: usage that stands in it all the same, else all of it as text.

    An empty body, and one that does not even begin as an object does, is no answer.
    """
    if not body.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{"):
        return WholeAnswer(NO_REPORT, [], produced=False, refusal=NO_ANSWER)
    for found in reversed(USAGE_OBJECT.findall(body)):
        usage = read_usage(raw := decode_object(found)) or read_tokens(raw)
        if usage is not None:
            return WholeAnswer(NO_REPORT._replace(usage=usage), [])
    return WholeAnswer(NO_REPORT, [body.decode("utf-8", "replace")])

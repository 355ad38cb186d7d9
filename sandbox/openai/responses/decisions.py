"""POST /v1/decisions."""

from typing import Any, Final

import msgspec

from sandbox.openai.exchange.answer import Answer, json_answer
from sandbox.openai.exchange.bill import Bill, Spent
from sandbox.openai.exchange.call import Call
from sandbox.openai.requests.checks import check_context
from sandbox.openai.requests.errors import ApiError, invalid, status_error
from sandbox.openai.requests.fields import ANY, OBJECT, TEXT, Field, Fields, check_fields, missing, one_of
from sandbox.openai.responses.input import count_input, input_items
from sandbox.openai.tokens.count import count_text

_DECISION: Final[Fields] = {
    "model": TEXT,
    "input": ANY,
    "questions": Field("array", required=True, longest=400),
    "prompt_cache_key": TEXT,
    "prompt_cache_options": OBJECT,
    "safety_identifier": TEXT,
}
_QUESTION: Final[Fields] = {
    "type": msgspec.structs.replace(one_of("predicate", "choice", "score"), required=True),
    "instructions": Field("any", required=True),
    "name": TEXT,
    "choices": Field("array"),
    "levels": Field("array"),
}
_DECIDERS: Final = ("gpt-6-luna",)


def decide(call: Call) -> Answer:
    """Answer each question."""
    body = call.body
    check_fields(body, _DECISION)
    if body.get("input") is None:
        raise missing("input")
    if not body["questions"]:
        raise invalid(
            "Invalid 'questions': empty array. Expected an array with minimum length 1.", "questions", "empty_array"
        )
    if call.model not in _DECIDERS:
        raise ApiError(404, status_error(404))
    for index, question in enumerate(body["questions"]):
        _check_question(question, f"questions[{index}]")
    prompt = count_input(call.encoding, call.model, {}, input_items(body["input"], call.new_id))
    prompt.text += count_text(call.encoding, msgspec.json.encode(body["questions"]).decode())
    check_context(prompt.total, call.live.context_tokens)
    bill = Bill("decisions", prompt, call.directives)
    # One token per answer, as in the sample; no price list charges it.
    bill.add(Spent(len(body["questions"])))
    shown: dict[str, Any] = {"model": call.directives.model or call.model}
    shown["answers"] = [
        _answer(question, refused=call.directives.refusal is not None) for question in body["questions"]
    ]
    usage = bill.sent()
    answer = json_answer(shown if usage is None else shown | {"usage": usage})
    answer.bill, answer.usage, answer.model = bill, usage, shown["model"]
    return answer


def _check_question(question: Any, where: str) -> None:
    if not isinstance(question, dict):
        raise invalid(f"Invalid type for '{where}': expected an object.", where, "invalid_type")
    check_fields(question, _QUESTION, inside=f"{where}.")
    needed = {"choice": "choices", "score": "levels"}.get(question["type"])
    if needed is not None and not question.get(needed):
        raise missing(f"{where}.{needed}")


def _answer(question: dict[str, Any], *, refused: bool) -> dict[str, Any]:
    kind = "refusal" if refused else question["type"]
    head: dict[str, Any] = {"type": kind}
    if question.get("name") is not None:
        head["name"] = question["name"]
    if kind == "refusal":
        return head
    if kind == "predicate":
        return head | {"probability": 0.03}
    if kind == "choice":
        values = [choice["value"] for choice in question["choices"]]
        odds = [{"value": value, "probability": 1.0 if index == 0 else 0.0} for index, value in enumerate(values)]
        return head | {"choice": values[0], "confidence": 1.0, "probabilities": odds}
    labels = [level["label"] for level in question["levels"]]
    odds = [
        {"label": label, "value": index, "probability": 1.0 if index == 0 else 0.0}
        for index, label in enumerate(labels)
    ]
    return head | {"score": 0.0, "confidence": 1.0, "probabilities": odds}

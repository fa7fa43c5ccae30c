"""Documents in JSON objects."""

from __future__ import annotations

import math
from typing import Any

from llm_jax.core.tables import InputError, nearest
from llm_jax.data.documents import Conversation, Document, Example, Labelled, Preference, Text
from llm_jax.text.calls import Call, to_json
from llm_jax.text.chat import Message
from llm_jax.text.tokenizer import check_text


def document_of(record: Any, field: str, where: str) -> Document:
    """The document in a JSON object.

    Raises:
      InputError: it holds none; the message says `where` and the nearest name that it does hold.
    """
    if not isinstance(record, dict):
        raise InputError(f"{where} is not a JSON object but {str(record)[:40]!r}")
    if field in record:
        text = _text_in(record, field, where)
        return Labelled(text, _label_in(record, where)) if "label" in record else Text(text)
    if "chosen" in record and "rejected" in record:
        return _preference(record, where)
    if "messages" in record:
        return _conversation(record, where)
    if "prompt" in record and "answer" in record:
        return Example(_text_in(record, "prompt", where), _text_in(record, "answer", where))
    if "instruction" in record and "output" in record:
        answer = Message("assistant", _text_in(record, "output", where))
        return Conversation((asked(record, where), answer))
    raise InputError(f"{where} has no field {field!r}: {nearest(field, record)}")


MOST = 1e9  # of a margin: a float32 holds it, and an infinite one says nothing


def _preference(record: dict[str, Any], where: str) -> Preference:
    if "messages" in record:
        before = _conversation(record, where).messages
    else:
        before = (Message("user", _text_in(record, "prompt", where)),)
    if "tools" in record:
        raise InputError(f"{where}: pairs to compare have no place for 'tools'")
    margin = record.get("margin", math.nan)
    if not isinstance(margin, (int, float)) or isinstance(margin, bool) or abs(margin) > MOST:
        raise InputError(f"{where}: 'margin' must be a number, not {str(margin)[:40]!r}")
    chosen, rejected = (_text_in(record, name, where) for name in ("chosen", "rejected"))
    try:
        return Preference(before, chosen, rejected, float(margin))
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def asked(record: dict[str, Any], where: str) -> Message:
    """An instruction, as Stanford's Alpaca has them."""
    return Message.asked(
        _text_in(record, "instruction", where), _text_in(record, "input", where) if record.get("input") else ""
    )


def _text_in(record: dict[str, Any], field: str, where: str) -> str:
    if not isinstance(value := record.get(field), str):
        raise InputError(f"{where}: the field {field!r} must be text, not {str(value)[:40]!r}")
    check_text(value, f"{where}: the field {field!r}")
    return value


def _label_in(record: dict[str, Any], where: str) -> int:
    if type(label := record["label"]) is not int or not 0 <= label < 2**24:
        raise InputError(
            f"{where}: the field 'label' must be the number of a class, from 0 on, not {str(label)[:40]!r}"
        )
    return label


def _list_in(record: dict[str, Any], field: str, where: str) -> list[Any]:
    """Empty where there is no such field, or nothing in it."""
    if not isinstance(value := record.get(field, []), list) and (value is not None or field == "messages"):
        raise InputError(f"{where}: {field!r} must be a list, not {str(value)[:40]!r}")
    return value or []


def _object(value: Any, where: str, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InputError(f"{where} is not {what} but {str(value)[:40]!r}")
    return value


def _conversation(record: dict[str, Any], where: str) -> Conversation:
    """Messages in OpenAI's format."""
    messages: list[Message] = []
    waiting: list[str | None] = []  # the calls that no tool has answered, by their ids
    for i, value in enumerate(_list_in(record, "messages", where)):
        here = f"{where}, message {i}"
        said = _object(value, here, "an object with a role and a content")
        messages.append(_message(said, here))
        if messages[-1].role == "tool":
            _answers(said.get("tool_call_id"), waiting, here)
        waiting += [call.get("id") for call in _list_in(said, "tool_calls", here)]
    tools = [_tool(value, f"{where}, tool {i}") for i, value in enumerate(_list_in(record, "tools", where))]
    return Conversation(tuple(messages), tuple(tools))


def _tool(value: Any, where: str) -> str:
    return to_json(_object(value, where, "an object that describes a tool"), where)


def _message(record: dict[str, Any], where: str) -> Message:
    calls = [_call(value, f"{where}, call {i}") for i, value in enumerate(_list_in(record, "tool_calls", where))]
    role = _text_in(record, "role", where)
    content = "" if calls and record.get("content") is None else _text_in(record, "content", where)
    try:
        return Message(role, content, tuple(calls))
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def _call(value: Any, where: str) -> Call:
    """`{"function": {"name", "arguments"}}`, or that function alone; arguments may be an object, or its text."""
    record = _object(value, where, "an object with a function")
    function = _object(record.get("function", record), where, "an object with a function")
    name, arguments = _text_in(function, "name", where), function.get("arguments", {})
    try:
        return Call(
            name, arguments if isinstance(arguments, str) else to_json(arguments, f"what {name} is called with")
        )
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def _answers(call: Any, waiting: list[str | None], where: str) -> None:
    """Takes the first of `waiting`: which call an answer belongs to is told by their order alone."""
    if not waiting and call is None:
        return
    if call not in (None, *waiting):
        raise InputError(f"{where}: no call before it waits for an answer with tool_call_id {call!r}")
    first = waiting.pop(0)
    if call is not None and first is not None and call != first:
        raise InputError(f"{where}: answers must be in the order of the calls, and {first!r} is the first without one")

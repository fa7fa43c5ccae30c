"""Documents in JSON objects."""

from __future__ import annotations

import dataclasses
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
    if "prompt" in record and "answer" in record:
        return Example(_text_in(record, "prompt", where), _text_in(record, "answer", where))
    if "instruction" in record and "output" in record:
        answer = Message("assistant", _text_in(record, "output", where))
        return Conversation((asked(record, where), answer))
    if "messages" in record or "prompt" in record:
        if unread := [name for name in JUDGED + REPLIES * ("prompt" in record) if name in record]:
            raise InputError(
                f"{where}: {unread[0]!r} would not be read: a reply to a prompt is its 'completion', RatedReplies "
                f"reads ratings, and a 'label' is that of a text in the field {field!r}"
            )
        return replied(record, where) if "completion" in record else said_before(record, where)
    raise InputError(f"{where} has no field {field!r}: {nearest(field, record)}; other records are {SHAPES}")


SHAPES = (
    "{messages}, {prompt}, {prompt, completion}, {prompt, answer}, {instruction, input, output}, "
    "{prompt, chosen, rejected} and, to RatedReplies, {prompt, completion, rating}"
)
JUDGED, REPLIES = ("rating", "label"), ("chosen", "output", "rejected", "reply", "response", "target")
MOST = 1e9  # of a margin or a rating: a float32 holds it, and an infinite one says nothing


def _preference(record: dict[str, Any], where: str) -> Preference:
    """Of replies, or of whole conversations that differ in the last message alone (trl's format)."""
    if "tools" in record:
        raise InputError(f"{where}: pairs to compare have no place for 'tools'")
    begun = isinstance(record["chosen"], list) and not {"messages", "prompt"} & record.keys()
    before = () if begun else said_before(record, where).messages
    both = [_whole(before, _reply_in(record, name, where)) for name in ("chosen", "rejected")]
    common = min(map(len, both)) - 1
    if not common or both[0][:common] != both[1][:common] or any(len(said) > common + 1 for said in both):
        raise InputError(f"{where}: 'chosen' and 'rejected' must have a beginning in common, and then a reply each")
    margin = number_in(record, "margin", where) if "margin" in record else None
    return compared(both[0][:common], both[0][-1], both[1][-1], margin, where)


def compared(
    before: tuple[Message, ...], chosen: Message, rejected: Message, margin: float | None, where: str
) -> Preference:
    """The preference for one of two replies.

    Raises:
      InputError: one is blank, or not the assistant's; the message says `where`.
    """
    if {chosen.role, rejected.role} != {"assistant"}:
        raise InputError(f"{where}: replies to compare must be the assistant's")
    try:
        return Preference(before, chosen.text(), rejected.text(), margin)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def number_in(record: dict[str, Any], field: str, where: str) -> float:
    """The number in a field; not so large that a float32 does not hold it.

    Raises:
      InputError: there is none, or something else is there.
    """
    number = record.get(field)
    if not isinstance(number, (int, float)) or isinstance(number, bool) or not abs(number) <= MOST:
        raise InputError(f"{where}: {field!r} must be a number, not {str(number)[:40]!r}")
    return float(number)


def said_before(record: dict[str, Any], where: str) -> Conversation:
    """What is said before a reply: `messages`, or a `prompt`, which is messages too or the text that a user says.

    Raises:
      InputError: it is neither, or both are there.
    """
    if "messages" in record and "prompt" in record:
        raise InputError(f"{where} has 'messages' and a 'prompt': leave one of them out")
    field = "messages" if "messages" in record else "prompt"
    if field == "prompt" and not isinstance(record.get("prompt"), list):
        return Conversation((Message("user", _text_in(record, "prompt", where)),))
    return _conversation(record, where, field)


def replied(record: dict[str, Any], where: str) -> Conversation:
    """A conversation that ends with a `completion`; where there is none, with the last of the `messages`.

    Raises:
      InputError: there is no reply of the assistant at its end.
    """
    before = said_before(record, where)
    if "completion" in record:
        before = dataclasses.replace(before, messages=_whole(before.messages, _reply_in(record, "completion", where)))
    if len(before.messages) < 2 or before.messages[-1].role != "assistant":
        raise InputError(f"{where} must end with a reply of the assistant: a 'completion', or the last message")
    return before


def _reply_in(record: dict[str, Any], field: str, where: str) -> tuple[Message, ...]:
    """A reply that is text, or messages."""
    if isinstance(record.get(field), list):
        return _conversation({field: record[field]}, f"{where}, {field}", field).messages
    return (Message("assistant", _text_in(record, field, where)),)


def _whole(before: tuple[Message, ...], said: tuple[Message, ...]) -> tuple[Message, ...]:
    """The conversation, of which what was `said` may repeat the beginning."""
    return said if before and said[: len(before)] == before else (*before, *said)


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


def _conversation(record: dict[str, Any], where: str, field: str = "messages") -> Conversation:
    """Messages in OpenAI's format."""
    messages: list[Message] = []
    waiting: list[str | None] = []  # the calls that no tool has answered, by their ids
    for i, value in enumerate(_list_in(record, field, where)):
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

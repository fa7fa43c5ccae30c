"""Messages in OpenAI's format: what is said, reasoned and called, and by whom."""

from __future__ import annotations

from typing import Any

from llm_jax.core.errors import InputError
from llm_jax.data.fields import OF_MESSAGES, Record
from llm_jax.text.calls import Call, to_json
from llm_jax.text.chat import Message

REASONING = ("reasoning_content", "thinking", "reasoning")  # one field, under the names that it has in the wild
TURN = ("role", "content", "tool_calls", "weight", *REASONING)


def messages_in(record: Record, field: str = "messages") -> tuple[Message, ...]:
    """The messages in a field, in OpenAI's format, with the reasoning of the assistant and its `weight`.

    Raises:
      InputError: one is no message, or has a field that would change what is trained, if it were read.
    """
    messages: list[Message] = []
    waiting: list[tuple[str | None, str]] = []  # the calls that no tool has answered: their ids, and what is called
    for i, value in enumerate(record.items(field)):
        said = record.part(value, f"{record.where}, message {i}", "an object with a role and a content", " of messages")
        answers = said.values.get("role") == "tool" and (waiting or "tool_call_id" in said)
        said.only((*TURN, "tool_call_id", "name") if answers else TURN, OF_MESSAGES)
        messages.append(message := _message(said))
        if answers:
            _answer(said, waiting)
        ids = [call.get("id") for call in said.items("tool_calls")]
        waiting += [(call_id, call.name) for call_id, call in zip(ids, message.calls, strict=True)]
    return tuple(messages)


def tools_in(record: Record) -> tuple[str, ...]:
    """The descriptions of tools in the field `tools`, each as the text of a JSON object, with all that it says.

    Raises:
      InputError: one is no JSON object.
    """
    described = []
    for i, value in enumerate(record.items("tools")):
        where = f"{record.where}, tool {i}"
        record.part(value, where, "an object that describes a tool", " of tools")
        described.append(to_json(value, where))
    return tuple(described)


def _message(said: Record) -> Message:
    where = said.where
    calls = tuple(_call(said, value, f"{where}, call {i}") for i, value in enumerate(said.items("tool_calls")))
    role = said.text("role")
    content = "" if calls and "content" not in said else said.text("content")
    thought = {said.text(name) for name in REASONING if said.says(name)}
    if len(thought) > 1:
        raise InputError(f"{where} has different texts in {' and '.join(filter(said.says, REASONING))}: leave one")
    if "weight" in said and role != "assistant":
        raise InputError(f"{where}: only what the assistant says has a weight, not what the {role} does")
    weight = said.number("weight") if "weight" in said else 1
    if weight not in (0, 1):
        raise InputError(f"{where}: the weight of a message is 0 or 1, not {weight:g}")
    try:
        return Message(role, content, calls, reasoning=thought.pop() if thought else "", weight=int(weight))
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def _call(said: Record, value: Any, where: str) -> Call:
    """`{"function": {"name", "arguments"}}`, or that function alone; arguments may be an object, or its text."""
    what = "an object with a function"
    call = said.part(value, where, what, " of calls")
    if "function" in call:
        call.only(("id", "type", "function"), OF_MESSAGES)
    function = call.part(call.values.get("function", call.values), where, what, " of calls")
    function.only(("name", "arguments", "id", "type"), OF_MESSAGES)
    name, arguments = function.text("name"), function.values.get("arguments", {})
    try:
        return Call(
            name, arguments if isinstance(arguments, str) else to_json(arguments, f"what {name} is called with")
        )
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def _answer(said: Record, waiting: list[tuple[str | None, str]]) -> None:
    """Takes the first of `waiting`: which call an answer belongs to is told by their order alone."""
    call, where = said.values.get("tool_call_id"), said.where
    if call is not None and call not in [known for known, _ in waiting]:
        raise InputError(f"{where}: no call before it waits for an answer with tool_call_id {call!r}")
    first, called = waiting.pop(0)
    if call is not None and first is not None and call != first:
        raise InputError(f"{where}: answers must be in the order of the calls, and {first!r} is the first without one")
    if said.values.get("name", called) != called:
        raise InputError(f"{where}: it answers a call of {called!r}, and is named {said.values['name']!r}")

"""Documents in JSON objects. What is read of each shape of record is a closed list; `fields.py` has the others."""

from __future__ import annotations

import dataclasses
from typing import Any

from llm_jax.core.errors import InputError, nearest
from llm_jax.data.documents import Conversation, Document, Example, Labelled, MultiLabelled, Preference, Text, TextPair
from llm_jax.data.fields import OF_RECORDS, OF_TEXTS, Record, Unread
from llm_jax.data.messages import messages_in, tools_in
from llm_jax.text.chat import Message

ANSWERS = ("answer", "solution", "ground_truth")  # what is known to be right, under the names that it has in the wild
BEFORE = ("messages", "prompt", "system")
NUMBERS = ("target", "label", "rating")  # beside a prompt that nobody replied to, a number of these is for rewards
SHAPES = (
    "{messages}, {prompt}, {prompt, completion}, {prompt, answer}, {instruction, input, output}, "
    "{prompt, chosen, rejected} and, to RatedReplies, {prompt, completion, rating}"
)
WHOLE = (
    ("messages",),
    ("instruction", "output"),
    ("chosen", "rejected"),
    ("prompt", "completion"),
    ("prompt", "answer"),
)


def document_of(
    value: Any, field: str, where: str, unread: Unread | None = None, pair: str = "text_pair"
) -> Document:  # fmt: skip
    """The document in a JSON object: a text in `field`, with another one in `pair` where there is one, or what it holds
    under names of its own. What nobody reads of it is counted in `unread`.

    Where a text in the field "text" stands beside a whole record of another shape, it repeats it, as in Alpaca's file.

    Raises:
      InputError: it holds none, or what is not read would change what is trained; the message says `where`, and the
        nearest name or what to do.
    """
    record = Record.of(value, where, unread)
    if field in record and not (field == "text" and any(record.says(*names) for names in WHOLE)):
        record.only((field, pair, "label", "labels"), OF_TEXTS)
        if "labels" in record:
            if "label" in record or pair in record:
                raise InputError(f"{where}: 'labels' are the classes of one text: leave out 'label' and {pair!r}")
            return MultiLabelled(record.text(field), _labels_in(record))
        text = record.text(field)
        if pair in record:
            return TextPair(text, record.text(pair), _label_in(record) if "label" in record else None)
        return Labelled(text, _label_in(record)) if "label" in record else Text(text)
    if "chosen" in record and "rejected" in record:
        return _preference(record)
    if "instruction" in record and "output" in record:
        read = ("instruction", "input", "output", "system", "text", *ANSWERS)
        columns = record.columns(read, OF_RECORDS, keep=ANSWERS)
        messages = (*_system(record), asked(record), Message("assistant", record.text("output")))
        return Conversation(messages, answer=_answer_in(record), columns=columns)
    if isinstance(record.values.get("prompt"), str) and "answer" in record and "completion" not in record:
        columns = record.columns(("prompt", "answer"), OF_RECORDS, keep=ANSWERS)
        return Example(record.text("prompt"), record.text("answer"), columns=columns)
    if "messages" in record or "prompt" in record:
        said = replied(record) if "completion" in record else said_before(record)
        decisive = OF_RECORDS if said.asked != said.messages else _beside_a_prompt(record)
        columns = record.columns((*BEFORE, "completion", "tools", *ANSWERS), decisive, keep=ANSWERS)
        return dataclasses.replace(said, answer=_answer_in(record), columns=columns)
    raise InputError(f"{where} has no field {field!r}: {nearest(field, record.values)}; other records are {SHAPES}")


def _beside_a_prompt(record: Record) -> dict[str, str]:
    """The fields that are refused beside a prompt without a reply: a number is for rewards, since no reply is one."""
    numbers = {name for name in NUMBERS if isinstance(record.values.get(name), int | float)}
    return {name: advice for name, advice in OF_RECORDS.items() if name not in numbers}


def _answer_in(record: Record) -> str | None:
    """The answer that is known beside the messages.

    Raises:
      InputError: there are several.
    """
    names = [name for name in ANSWERS if name in record]
    if len(names) > 1:
        raise InputError(f"{record.where} has {' and '.join(map(repr, names))}: leave one of them")
    return record.text(names[0]) if names else None


def _preference(record: Record) -> Preference:
    """Of replies, or of whole conversations that differ in the last message alone (trl's format)."""
    if record.says("tools"):
        raise InputError(f"{record.where}: pairs to compare have no place for 'tools'")
    columns = record.columns((*BEFORE, "chosen", "rejected", "margin"), OF_RECORDS, keep=ANSWERS)
    begun = isinstance(record.values["chosen"], list) and "messages" not in record and "prompt" not in record
    before = _system(record) if begun else said_before(record).messages
    both = [_whole(before, _reply_in(record, name)) for name in ("chosen", "rejected")]
    common = min(map(len, both)) - 1
    if not common or both[0][:common] != both[1][:common] or any(len(said) > common + 1 for said in both):
        raise InputError(
            f"{record.where}: 'chosen' and 'rejected' must have a beginning in common, and then a reply each"
        )
    margin = record.number("margin") if "margin" in record else None
    pair = compared(both[0][:common], both[0][-1], both[1][-1], margin, record.where)
    return dataclasses.replace(pair, columns=columns)


def compared(
    before: tuple[Message, ...], chosen: Message, rejected: Message, margin: float | None, where: str
) -> Preference:
    """The preference for one of two replies.

    Raises:
      InputError: one is blank, not the assistant's, or has reasoning or a weight; the message says `where`.
    """
    if {chosen.role, rejected.role} != {"assistant"}:
        raise InputError(f"{where}: replies to compare must be the assistant's")
    if chosen.reasoning or rejected.reasoning:
        raise InputError(
            f"{where}: replies to compare have no place for reasoning: write it in the content, between <think> and "
            "</think>"
        )
    if not (chosen.weight and rejected.weight):
        raise InputError(f"{where}: a reply to compare cannot have the weight 0: leave the record out")
    try:
        return Preference(before, chosen.text(), rejected.text(), margin)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def said_before(record: Record) -> Conversation:
    """What is said before a reply: `messages`, or a `prompt`, which is messages too or the text that a user says.

    Where there is a text `system`, it is what the system says first.

    Raises:
      InputError: it is neither, both are there, or the system is there twice.
    """
    if "messages" in record and "prompt" in record:
        raise InputError(f"{record.where} has 'messages' and a 'prompt': leave one of them out")
    system = _system(record)
    field = "messages" if "messages" in record else "prompt"
    if field == "prompt" and not isinstance(record.values.get("prompt"), list):
        return Conversation((*system, Message("user", record.text("prompt"))), tools_in(record))
    messages = messages_in(record, field)
    if system and messages[:1] and messages[0].role == "system":
        raise InputError(
            f"{record.where} has 'system', and {field!r} that begin with the system: leave one of them out"
        )
    return Conversation((*system, *messages), tools_in(record))


def _system(record: Record) -> tuple[Message, ...]:
    return (Message("system", record.text("system")),) if record.says("system") else ()


def replied(record: Record) -> Conversation:
    """A conversation that ends with a `completion`; where there is none, with the last of the `messages`.

    Raises:
      InputError: there is no reply of the assistant at its end.
    """
    before = said_before(record)
    if "completion" in record:
        before = dataclasses.replace(before, messages=_whole(before.messages, _reply_in(record, "completion")))
    if len(before.messages) < 2 or before.messages[-1].role != "assistant":
        raise InputError(f"{record.where} must end with a reply of the assistant: a 'completion', or the last message")
    return before


def _reply_in(record: Record, field: str) -> tuple[Message, ...]:
    """A reply that is text, or messages."""
    if isinstance(record.values.get(field), list):
        return messages_in(dataclasses.replace(record, where=f"{record.where}, {field}"), field)
    return (Message("assistant", record.text(field)),)


def _whole(before: tuple[Message, ...], said: tuple[Message, ...]) -> tuple[Message, ...]:
    """The conversation, of which what was `said` may repeat the beginning."""
    return said if before and said[: len(before)] == before else (*before, *said)


def asked(record: Record) -> Message:
    """An instruction, as Stanford's Alpaca has them."""
    return Message.asked(record.text("instruction"), record.text("input") if record.values.get("input") else "")


def _labels_in(record: Record) -> tuple[int | str, ...]:
    """The classes of a text, by name or by number."""
    labels = record.values["labels"]
    kinds = {type(label) for label in labels} if isinstance(labels, list) else {list}
    sound = kinds <= {str} or (kinds == {int} and min(labels) >= 0)  # of [] there are none
    if not sound or len(set(labels)) < len(labels) or not all(str(label).strip() for label in labels):
        raise InputError(
            f"{record.where}: the field 'labels' must be a list of the classes of the text, all by name or all by "
            f"number from 0 on, each once, not {str(labels)[:40]}: of the vector [0.0, 1.0, 1.0] that is [1, 2]"
        )
    return tuple(labels)


def _label_in(record: Record) -> int | float | str:
    """The name of a class, its number, or another number."""
    label = record.values["label"]
    if isinstance(label, str) and label.strip():
        return record.text("label")
    if isinstance(label, bool) or not isinstance(label, int | float):
        raise InputError(
            f"{record.where}: the field 'label' must be the name of a class or a number, not {str(label)[:40]!r}"
        )
    record.number("label")
    return label

"""Documents in JSON objects."""

from __future__ import annotations

import math
from typing import Any

from llm_jax.core.tables import InputError, nearest
from llm_jax.data.documents import Conversation, Document, Example, Preference, Text
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
        return Text(_text_in(record, field, where))
    if "chosen" in record and "rejected" in record:
        return _preference(record, where)
    if "messages" in record:
        return Conversation(_messages(record, where))
    if "prompt" in record and "answer" in record:
        return Example(_text_in(record, "prompt", where), _text_in(record, "answer", where))
    raise InputError(f"{where} has no field {field!r}: {nearest(field, record)}")


def _preference(record: dict[str, Any], where: str) -> Preference:
    before = _messages(record, where) if "messages" in record else (Message("user", _text_in(record, "prompt", where)),)
    margin = record.get("margin", math.nan)
    if not isinstance(margin, (int, float)) or isinstance(margin, bool):
        raise InputError(f"{where}: 'margin' must be a number, not {str(margin)[:40]!r}")
    chosen, rejected = (_text_in(record, name, where) for name in ("chosen", "rejected"))
    try:
        return Preference(before, chosen, rejected, float(margin))
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def _messages(record: dict[str, Any], where: str) -> tuple[Message, ...]:
    if not isinstance(messages := record["messages"], list):
        raise InputError(f"{where}: 'messages' must be a list, not {str(messages)[:40]!r}")
    return tuple(_message(m, f"{where}, message {i}") for i, m in enumerate(messages))


def _text_in(record: dict[str, Any], field: str, where: str) -> str:
    if not isinstance(value := record.get(field), str):
        raise InputError(f"{where}: the field {field!r} must be text, not {str(value)[:40]!r}")
    check_text(value, f"{where}: the field {field!r}")
    return value


def _message(record: Any, where: str) -> Message:
    if not isinstance(record, dict):
        raise InputError(f"{where} is not an object with a role and a content but {str(record)[:40]!r}")
    role, content = _text_in(record, "role", where), _text_in(record, "content", where)
    try:
        return Message(role, content)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None

"""Documents in JSON objects."""

from __future__ import annotations

from typing import Any

from llm_jax.core.tables import InputError, nearest
from llm_jax.data.documents import Conversation, Document, Example, Labelled, Text
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
    if "messages" in record:
        if not isinstance(messages := record["messages"], list):
            raise InputError(f"{where}: 'messages' must be a list, not {str(messages)[:40]!r}")
        return Conversation(tuple(_message(m, f"{where}, message {i}") for i, m in enumerate(messages)))
    if "prompt" in record and "answer" in record:
        return Example(_text_in(record, "prompt", where), _text_in(record, "answer", where))
    raise InputError(f"{where} has no field {field!r}: {nearest(field, record)}")


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


def _message(record: Any, where: str) -> Message:
    if not isinstance(record, dict):
        raise InputError(f"{where} is not an object with a role and a content but {str(record)[:40]!r}")
    role, content = _text_in(record, "role", where), _text_in(record, "content", where)
    try:
        return Message(role, content)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None

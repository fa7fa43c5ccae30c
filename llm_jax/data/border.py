"""Checks of what a user's own sources, splits, recipes, templates and collators give back, once, where it comes in.

Without them a mask that is too short would shift those of all later documents, and anything else be an error far away.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, get_args

import numpy as np

from llm_jax.core.arrays import HostBatch
from llm_jax.core.errors import InputError
from llm_jax.core.returned import unusable
from llm_jax.data.documents import Document, Ids
from llm_jax.data.packing import Plan, WindowPlan
from llm_jax.text.chat import Message
from llm_jax.text.tokenizer import Tokenizer

KINDS = get_args(Document)
TEXT, TEXT_OR_NONE, MESSAGES = "str", "str | None", "tuple[Message, ...]"  # the types of their fields, as written
A_DOCUMENT = "documents, such as Text(...), Example(...) or Conversation(...), of llm_jax.data.documents"


def documents(part: Any, method: str, given: Any) -> list[Document]:
    """What a source, or one side of a split, gives: a list of documents.

    Raises:
      InputError: it is anything else.
    """
    name = f"{type(part).__name__}.{method}()"
    if isinstance(given, str | bytes | dict) or not isinstance(given, Iterable):
        raise unusable(name, given, A_DOCUMENT)
    found = list(given)
    for document in found:
        if not _is_document(document):
            raise unusable(f"an element of what {name} gave, which", document, A_DOCUMENT)
        if isinstance(document, KINDS):
            _check_content(name, document)
    return found


def _is_document(value: Any) -> bool:
    return isinstance(value, KINDS) or all(hasattr(value, name) for name in ("text", "parts", "number", "group"))


def _check_content(name: str, document: Document) -> None:
    """Nothing, if a document of a kind of ours is made of texts and messages."""

    def demand(holder: object, value: object, kind: type, wanted: str) -> None:
        if not isinstance(value, kind):
            shown = f"{str(value)[:40]!r} ({type(value).__name__})"
            raise InputError(f"{name} gave a {type(holder).__name__} that holds {shown}, where there must be {wanted}")

    for field in dataclasses.fields(document):
        value: Any = getattr(document, field.name)
        if field.type == TEXT or (field.type == TEXT_OR_NONE and value is not None):
            demand(document, value, str, "text")
        elif field.type == MESSAGES:
            demand(document, value, tuple, "a tuple of Messages")
            for message in getattr(document, field.name):
                demand(document, message, Message, "a Message")
                demand(message, message.content, str, "text")


def split(part: Any, given: Any) -> tuple[list[Document], list[Document]]:
    """What a split makes of documents: those to train on, and those held out.

    Raises:
      InputError: it is anything else.
    """
    if not (isinstance(given, tuple | list) and len(given) == 2):
        raise unusable(f"{type(part).__name__}()", given, "two lists: the documents to train on, and those held out")
    train, held_out = (documents(part, "__call__", side) for side in given)
    return train, held_out


def tokenizer(recipe: Any, given: Any) -> Tokenizer:
    """What a recipe trains.

    Raises:
      InputError: it is no Tokenizer.
    """
    if not isinstance(given, Tokenizer):
        raise unusable(f"{type(recipe).__name__}.train()", given, "a Tokenizer of llm_jax.text.tokenizer")
    return given


def parts(document: Document, vocabulary: int, given: Any) -> list[Ids]:
    """The texts of a document as token ids and which of them are learnt, as `Document.parts` gives them.

    Raises:
      InputError: they are anything else, by a class of document of the user's own.
    """
    if type(document).__module__.startswith("llm_jax."):
        return given
    name = f"{type(document).__name__}.parts()"
    wanted = f"pairs: token ids from 0 to {vocabulary - 1}, and as many booleans, which of them are learnt"
    if not isinstance(given, Sequence):
        raise unusable(name, given, wanted)
    for part in given:
        pair = isinstance(part, tuple | list) and len(part) == 2 and all(isinstance(side, Sequence) for side in part)
        if not pair or len(part[0]) != len(part[1]):
            raise unusable(name, part, wanted)
        if not all(isinstance(i, int) and 0 <= i < vocabulary for i in part[0]):
            raise unusable(name, part[0], wanted)
    return list(given)


def batch(presentation: Any, given: Any, rows: int, like: HostBatch | None = None) -> HostBatch:
    """A batch of so many rows; with the names, dtypes and axes of `like`, which the same collator made of padding.

    Raises:
      InputError: it is anything else.
    """
    name = f"the collator {type(presentation).__name__}"
    if not isinstance(given, dict):
        raise unusable(name, given, "the batch: a dict of NumPy arrays")
    for key, array in given.items():
        if not isinstance(array, np.ndarray) or array.dtype.kind not in "biuf" or array.shape[:1] != (rows,):
            raise unusable(f"{name}, as {key!r},", array, f"a NumPy array of numbers whose first axis is {rows} rows")
    if like is not None and given.keys() != like.keys():
        raise unusable(name, sorted(given), f"the same arrays for every batch: of padding it made {sorted(like)}")
    for key, model in (like or {}).items():
        found, wanted = (f"{a.dtype} {list(a.shape[1:])} a row" for a in (given[key], model))
        if found != wanted:
            raise unusable(f"{name}, as {key!r},", found, f"the same for every batch: of padding it made {wanted}")
    return given


def plan(packing: Any, given: Any) -> Plan | WindowPlan:
    """The rows of an epoch.

    Raises:
      InputError: they are anything else.
    """
    if not isinstance(given, Plan | WindowPlan):
        raise unusable(f"{type(packing).__name__}.plan()", given, "a Plan of llm_jax.data.packing")
    return given

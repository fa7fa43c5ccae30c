"""The fields of JSON objects: those that are read, and what becomes of the others. None is dropped without a word."""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections.abc import Collection, Mapping
from typing import Any

from absl import logging

from llm_jax.core.errors import InputError
from llm_jax.text.tokenizer import check_text

MOST = 1e9  # of a margin or a rating: a float32 holds it, and an infinite one says nothing
EMPTY = ("", [], {})  # values that say nothing

OFF = frozenset({"prefix"})  # what changes nothing where it is false

# What an object may say of itself without anyone reading it.
HARMLESS = frozenset((
    "id", "idx", "index", "uuid", "conversation_id", "message_id", "prompt_id", "source", "dataset", "origin", "url",
    "license", "language", "lang", "date", "timestamp", "created", "created_at", "author", "model", "category", "tags",
    "split", "meta", "metadata",
))  # fmt: skip


def _advice(names: str, advice: str) -> dict[str, str]:
    return dict.fromkeys(names.split(), advice)


# What would change what is trained, if it were read, and where it belongs: of a text, of a message, of other records.
OF_TEXTS = {
    **_advice(
        "weight weights sample_weight loss_weight loss_mask",
        "a message of the assistant has a 'weight', 0 or 1, and nothing else has",
    ),
    **_advice(
        "image images audio audios video videos", "text alone is read here: leave the field out, or the whole record"
    ),
}
OF_MESSAGES = {
    **OF_TEXTS,
    **_advice("mask train train_detail", "a message of the assistant has a 'weight', 0 or 1"),
    **_advice(
        "tools functions tool_calls function_call parameters args",
        "'tools' stand beside 'messages', 'tool_calls' in a message of the assistant, 'arguments' in a call",
    ),
    **_advice(
        "reasoning reasoning_content reasoning_details thinking thoughts rationale chain_of_thought",
        "a message of the assistant has its reasoning in 'reasoning_content'",
    ),
    **_advice("refusal prefix", "the 'content' of a message is all that it says"),
}
OF_RECORDS = {
    **OF_MESSAGES,
    **_advice("system history instruction input", "write it as one of the 'messages'"),
    **_advice(
        "rating label chosen completion output rejected reply response target",
        "a reply to a prompt is its 'completion', RatedReplies reads ratings, and a 'label' is that of a text",
    ),
}


class Unread:
    """The fields of a source that nobody reads, and the columns that only rewards read: how often each stands there."""

    def __init__(self, source: object = ""):
        self.source = source
        self.counts: collections.Counter[str] = collections.Counter()
        self.columns: collections.Counter[str] = collections.Counter()

    def tell(self) -> None:
        """Warns of them; of the same once in a process, however often the source is read."""
        for counts, what in (
            (self.counts, "are not read"),
            (self.columns, "no text is made of; a reward reads those that it asks for by name"),
        ):
            if counts:
                named = ", ".join(f"{name} ({count:,} times)" for name, count in sorted(counts.items()))
                _warn(f"{self.source} has fields that {what}: {named}")


@functools.cache
def _warn(message: str) -> None:
    logging.warning("%s", message)


@dataclasses.dataclass(frozen=True)
class Record:
    """A JSON object.

    Attributes:
      values: its fields, but for those that are null, which is the same as none.
      where: where it stands, for messages.
      unread: counts the fields that nobody reads.
      within: what it is a part of, as `Unread` says it.
    """

    values: Mapping[str, Any]
    where: str
    unread: Unread
    within: str = ""

    @classmethod
    def of(cls, value: Any, where: str, unread: Unread | None, what: str = "a JSON object", within: str = "") -> Record:
        """The object that a JSON value is.

        Raises:
          InputError: it is something else than `what`.
        """
        if not isinstance(value, dict):
            raise InputError(f"{where} is not {what} but {str(value)[:40]!r}")
        said = {name: each for name, each in value.items() if each is not None}
        return cls(said, where, Unread() if unread is None else unread, within)

    def part(self, value: Any, where: str, what: str, within: str) -> Record:
        """The object that is a part of this one.

        Raises:
          InputError: it is something else than `what`.
        """
        return Record.of(value, where, self.unread, what, within)

    def __contains__(self, name: str) -> bool:
        return name in self.values

    def says(self, *names: str) -> bool:
        """Whether it has these fields, and they are not all empty."""
        return all(name in self for name in names) and any(self.values[name] not in EMPTY for name in names)

    def only(self, read: Collection[str], decisive: Mapping[str, str]) -> None:
        """Counts the fields besides those that are `read`, harmless or empty.

        Raises:
          InputError: a `decisive` one is among them; the message says where it belongs.
        """
        for name, value in self.values.items():
            if name in read or name in HARMLESS or value in EMPTY:
                continue
            if name in decisive and not (name in OFF and value is False):
                raise InputError(f"{self.where}: {name!r}{self.within} would not be read: {decisive[name]}")
            self.unread.counts[f"{name!r}{self.within}"] += 1

    def columns(
        self, read: Collection[str], decisive: Mapping[str, str], keep: Collection[str] = ()
    ) -> dict[str, Any]:  # fmt: skip
        """The fields besides those that are `read`, and those to `keep` although they are; what is empty is one too.

        They are counted as `only` counts, but for what is harmless, and refused as it refuses.
        """
        found = {name: value for name, value in self.values.items() if name in keep or name not in read}
        counted = Unread()
        dataclasses.replace(self, unread=counted).only(read, decisive)
        self.unread.columns += counted.counts
        return found

    def text(self, name: str) -> str:
        """The text in a field.

        Raises:
          InputError: there is none, or something else.
        """
        if not isinstance(value := self.values.get(name), str):
            raise InputError(f"{self.where}: the field {name!r} must be text, not {str(value)[:40]!r}")
        check_text(value, f"{self.where}: the field {name!r}")
        return value

    def number(self, name: str) -> float:
        """The number in a field; not so large that a float32 does not hold it.

        Raises:
          InputError: there is none, or something else.
        """
        number = self.values.get(name)
        if not isinstance(number, (int, float)) or isinstance(number, bool) or not abs(number) <= MOST:
            raise InputError(f"{self.where}: {name!r} must be a number, not {str(number)[:40]!r}")
        return float(number)

    def items(self, name: str) -> list[Any]:
        """The list in a field; empty where there is none.

        Raises:
          InputError: something else is there.
        """
        if not isinstance(value := self.values.get(name, []), list):
            raise InputError(f"{self.where}: {name!r} must be a list, not {str(value)[:40]!r}")
        return value

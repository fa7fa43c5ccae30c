"""Replies that people, or a judge, have rated: pairs to compare are made of them."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator

from llm_jax.core.errors import InputError
from llm_jax.core.parts import Rate
from llm_jax.data.documents import Preference
from llm_jax.data.fields import OF_RECORDS, Record, Unread
from llm_jax.data.files import Source, json_records
from llm_jax.data.records import BEFORE, compared, replied
from llm_jax.data.split import is_held_out
from llm_jax.text.chat import Message


@dataclasses.dataclass(frozen=True)
class RatedReplies(Source):
    """Pairs of replies to the same prompt, the better rated chosen; the margin is the difference of the ratings.

    A JSON object a line, or a list of them: `{"prompt" or "messages", "completion", "rating"}`, where without a
    completion the last of the messages is the reply. Every two replies to a prompt are a pair, unless they are rated
    or read the same. By the hash of how it begins a prompt is held out with all its replies (`held_out`, a share of the
    prompts) or trained on: the same ones as `ByHash` of that share holds out.

    Raises:
      InputError: a record is of another kind, or no prompt has two replies that are rated differently, or none of
        those is left to train on or to hold out.
    """

    path: str
    held_out: Rate = 0.1

    def documents(self) -> Iterator[Preference]:
        return iter(self._pairs(held_out=False))

    def validation(self) -> Iterator[Preference]:
        return iter(self._pairs(held_out=True))

    def _pairs(self, held_out: bool) -> list[Preference]:
        asked: dict[tuple[Message, ...], list[tuple[float, Message, str]]] = {}
        unread = Unread(self.path)
        for value, where in json_records(self.path):
            if not isinstance(value, dict) or (record := Record.of(value, where, unread)).says("tools"):
                raise InputError(f"{where} must be an object with a prompt, a completion and a rating, and no tools")
            record.only((*BEFORE, "completion", "rating"), OF_RECORDS)
            *before, reply = replied(record).messages
            asked.setdefault(tuple(before), []).append((record.number("rating"), reply, where))
        unread.tell()
        pairs = {before: _compared(before, rated) for before, rated in asked.items()}
        if not any(pairs.values()):
            raise InputError(f"{self.path} has no prompt with two replies that are rated differently")
        found = [
            pair for made in pairs.values() for pair in made if is_held_out(pair.group(), self.held_out) == held_out
        ]
        if not found:
            part = "validation" if held_out else "training"
            raise InputError(
                f"RatedReplies(held_out={self.held_out:g}) leaves no {part} prompts of {self.path}: change held_out"
            )
        return found


def _compared(before: tuple[Message, ...], rated: list[tuple[float, Message, str]]) -> list[Preference]:
    found = []
    for pair in itertools.combinations(rated, 2):
        (more, chosen, where), (less, rejected, _) = sorted(pair, key=lambda each: -each[0])
        if more > less and chosen != rejected:
            found.append(compared(before, chosen, rejected, more - less, where))
    return found


RATINGS = dict(RatedReplies=RatedReplies)

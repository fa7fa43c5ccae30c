"""Where documents come from: files, packaged corpora, checked downloads, and mixtures of them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

from llm_jax.core.errors import InputError
from llm_jax.core.parts import Positive
from llm_jax.data.documents import Document, Text, check_weights
from llm_jax.data.downloads import (
    DOWNLOADS,
    Download,
    EnglishJapanese,
    GoogleAnalogies,
    InstructionPreferences,
    Instructions,
    MakemoreNames,
    SmsSpam,
    TinyShakespeare,
)
from llm_jax.data.files import FILES, ArrayRecord, JsonLines, Source, TextFiles
from llm_jax.data.packaged import PACKAGED, ChatterBot, Conversations, KingJames, PythonHelp, RatedConversations, Verses
from llm_jax.data.ratings import RATINGS, RatedReplies

__all__ = [
    "SOURCES", "ArrayRecord", "ChatterBot", "Conversations", "Download", "EnglishJapanese", "GoogleAnalogies",
    "InstructionPreferences", "Instructions", "JsonLines", "KingJames", "MakemoreNames", "Mixture", "PlainTexts",
    "PythonHelp", "RatedConversations", "RatedReplies", "SmsSpam", "Source", "TextFiles", "TinyShakespeare", "Verses",
]  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Mixture(Source):
    """Sources in proportion to `weights`: of any long run of rows, that share comes from each, whatever its size."""

    sources: tuple[Source, ...]
    weights: tuple[Positive, ...]

    def __post_init__(self) -> None:
        if not self.sources or len(self.sources) != len(self.weights):
            raise InputError(f"Mixture has {len(self.sources)} sources and {len(self.weights)} weights: give one each")
        if not all(0 < weight < math.inf for weight in self.weights):
            raise InputError(f"Mixture.weights must be finite and greater than 0, not {self.weights}")

    def documents(self) -> Iterator[Document]:
        for source in self.sources:
            yield from source.documents()

    def components(self) -> tuple[tuple[Source, float], ...]:
        return tuple(
            (inner, weight / sum(self.weights) * share / sum(s for _, s in source.components()))
            for source, weight in zip(self.sources, self.weights, strict=True)
            for inner, share in source.components()
        )


@dataclasses.dataclass(frozen=True)
class PlainTexts(Source):
    """The documents of another source as plain texts: what conversations say, without who says it.

    Raises:
      InputError: a message has the weight 0, and all of a plain text is learnt.
    """

    source: Source

    def documents(self) -> Iterator[Document]:
        return map(_plain, self.source.documents())

    def validation(self) -> Iterator[Document] | None:
        held_out = self.source.validation()
        return None if held_out is None else map(_plain, held_out)

    def components(self) -> tuple[tuple[Source, float], ...]:
        return tuple((PlainTexts(inner), weight) for inner, weight in self.source.components())


def _plain(document: Document) -> Text:
    check_weights([document], "PlainTexts")
    return Text(document.text(), part_of=document.group())


MIXTURES = dict(Mixture=Mixture, PlainTexts=PlainTexts)
SOURCES = FILES | RATINGS | PACKAGED | DOWNLOADS | MIXTURES

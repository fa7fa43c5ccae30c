"""Where documents come from: files, packaged corpora, checked downloads, and mixtures of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from llm_jax.core.tables import InputError
from llm_jax.data.documents import Document
from llm_jax.data.downloads import (
    DOWNLOADS,
    Download,
    EnglishJapanese,
    GoogleAnalogies,
    MakemoreNames,
    SmsSpam,
    TinyShakespeare,
)  # fmt: skip
from llm_jax.data.files import FILES, ArrayRecord, JsonLines, Source, TextFiles
from llm_jax.data.packaged import PACKAGED, Conversations, KingJames, PythonHelp, Verses

__all__ = [
    "SOURCES", "ArrayRecord", "Conversations", "Download", "EnglishJapanese", "GoogleAnalogies", "JsonLines",
    "KingJames", "MakemoreNames", "Mixture", "PythonHelp", "SmsSpam", "Source", "TextFiles", "TinyShakespeare",
    "Verses",
]  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Mixture(Source):
    """Sources in proportion to `weights`: of any long run of rows, that share comes from each, whatever its size."""

    sources: tuple[Source, ...]
    weights: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.sources or len(self.sources) != len(self.weights):
            raise InputError(f"Mixture has {len(self.sources)} sources and {len(self.weights)} weights: give one each")
        if min(self.weights) <= 0:
            raise InputError(f"Mixture.weights must be greater than 0, not {self.weights}")

    def documents(self) -> Iterator[Document]:
        for source in self.sources:
            yield from source.documents()

    def components(self) -> tuple[tuple[Source, float], ...]:
        return tuple(
            (inner, weight / sum(self.weights) * share / sum(s for _, s in source.components()))
            for source, weight in zip(self.sources, self.weights, strict=True)
            for inner, share in source.components()
        )


MIXTURES = dict(Mixture=Mixture)
SOURCES = FILES | PACKAGED | DOWNLOADS | MIXTURES

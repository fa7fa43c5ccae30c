"""Which documents are trained on and which are held out."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from llm_jax.core.files import digest
from llm_jax.core.parts import Part, Size
from llm_jax.core.tables import InputError
from llm_jax.data.documents import Document, Picture, Text


class Split(Part):
    """Parts documents into those trained on and those held out for validation."""

    def __call__(self, documents: Sequence[Document]) -> tuple[list[Document], list[Document]]:
        raise NotImplementedError


def _check(split: Split, validation: float) -> None:
    if not 0 <= validation < 1:
        raise InputError(f"{type(split).__name__}.validation is a fraction from 0 to below 1, not {validation}")


@dataclasses.dataclass(frozen=True)
class ByHash(Split):
    """A document goes where the hash of its text says, so adding or reordering documents moves none of the others.

    Of a picture the pixels are hashed.
    """

    validation: float = 0.05

    def __post_init__(self) -> None:
        _check(self, self.validation)

    def __call__(self, documents: Sequence[Document]) -> tuple[list[Document], list[Document]]:
        parts: tuple[list[Document], list[Document]] = [], []
        for document in documents:
            told = document.identity() if isinstance(document, Picture) else document.text()
            parts[int(digest(told)[:12], 16) < self.validation * 16**12].append(document)
        return parts


@dataclasses.dataclass(frozen=True)
class LastDocuments(Split):
    """The last documents, in the order of the source, are held out."""

    validation: float = 0.1

    def __post_init__(self) -> None:
        _check(self, self.validation)

    def __call__(self, documents: Sequence[Document]) -> tuple[list[Document], list[Document]]:
        cut = int(len(documents) * (1 - self.validation))
        return list(documents[:cut]), list(documents[cut:])


@dataclasses.dataclass(frozen=True)
class WithinText(Split):
    """The last characters of every text are held out: for a corpus that is one long text.

    Raises:
      InputError: a document is a conversation or an example, which cannot be cut in two.
    """

    validation: float = 0.1

    def __post_init__(self) -> None:
        _check(self, self.validation)

    def __call__(self, documents: Sequence[Document]) -> tuple[list[Document], list[Document]]:
        parts: tuple[list[Document], list[Document]] = [], []
        for document in documents:
            if not isinstance(document, Text):
                raise InputError(f"WithinText cannot cut a {type(document).__name__}: use ByHash or LastDocuments")
            cut = int(len(document.content) * (1 - self.validation))
            for part, content in zip(parts, (document.content[:cut], document.content[cut:]), strict=True):
                if content:
                    part.append(dataclasses.replace(document, content=content))
        return parts


@dataclasses.dataclass(frozen=True)
class Few(Split):
    """Of the documents that `rest` leaves for training only the first `documents`; what it holds out stays the same."""

    documents: Size = 200
    rest: Split = ByHash()

    def __call__(self, documents: Sequence[Document]) -> tuple[list[Document], list[Document]]:
        train, held_out = self.rest(documents)
        return train[: self.documents], held_out


SPLITS = dict(ByHash=ByHash, Few=Few, LastDocuments=LastDocuments, WithinText=WithinText)

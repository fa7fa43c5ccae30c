"""Which documents are trained on and which are held out: all that share a prompt (`group`) together."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence

from absl import logging

from llm_jax.core.errors import InputError
from llm_jax.core.files import digest
from llm_jax.core.parts import Part, Rate, Size
from llm_jax.data.documents import Document, Text


class Split(Part):
    """Parts documents into those trained on and those held out for validation.

    Documents of one `group` (several replies to a prompt, captions of an image, the same text twice) stay together, and
    so do pairs of texts that share one, with all that are connected so.
    Where all have the same prompt they are parted by their texts, and a warning says so.
    """

    def __call__(self, documents: Sequence[Document]) -> tuple[list[Document], list[Document]]:
        raise NotImplementedError


def _check(split: Split, validation: float) -> None:
    if not 0 <= validation < 1:
        raise InputError(f"{type(split).__name__}.validation is a fraction from 0 to below 1, not {validation}")


def is_held_out(group: str, share: float) -> bool:
    """Whether a group is among the `share` of all groups that their hashes hold out."""
    return int(digest(group)[:12], 16) < share * 16**12


def keys_of(document: Document) -> tuple[str, ...]:
    """All that it may share with others which must stay together with it; a user's own kind says only its group."""
    several = getattr(document, "groups", None)
    return (document.group(),) if several is None else several()


def connected(keys: Sequence[tuple[str, ...]]) -> list[str]:
    """Per tuple of keys, the first of all keys (in their order as texts) that it is connected with by shared keys."""
    first: dict[str, str] = {}

    def find(key: str) -> str:
        while (above := first.setdefault(key, key)) != key:
            first[key] = first[above]  # the way is halved, so that long chains are not walked again and again
            key = above
        return key

    for one, *others in keys:
        for other in others:
            a, b = sorted((find(one), find(other)))
            first[b] = a
    return [find(key) for key, *_ in keys]


def groups_of(documents: Sequence[Document]) -> list[str]:
    """What must stay together, per document: its group; its text, where all are of one group."""
    groups = connected([keys_of(document) for document in documents])
    if len(documents) < 2 or len(set(groups)) > 1:
        return groups
    logging.warning(
        "all %d documents have the same prompt, so they are parted by their texts: held out are new replies to it, and "
        "no new prompts", len(documents),
    )  # fmt: skip
    return [document.text() for document in documents]


@dataclasses.dataclass(frozen=True)
class ByHash(Split):
    """A document goes where the hash of its group says, so adding or reordering documents moves none of the others.

    What is hashed is the text; the prompt, where a document has one (all that is said before the first reply that is
    learnt); of a picture, the pixels; of pairs that share texts, the first of these in alphabetical order.
    """

    validation: Rate = 0.05

    def __post_init__(self) -> None:
        _check(self, self.validation)

    def __call__(self, documents: Sequence[Document]) -> tuple[list[Document], list[Document]]:
        parts: tuple[list[Document], list[Document]] = [], []
        for document, group in zip(documents, groups_of(documents), strict=True):
            parts[is_held_out(group, self.validation)].append(document)
        return parts


@dataclasses.dataclass(frozen=True)
class LastDocuments(Split):
    """The last documents, in the order of the source, are held out.

    A document stays with the first one of its group. Of several groups at least one is trained on.
    """

    validation: Rate = 0.1

    def __post_init__(self) -> None:
        _check(self, self.validation)

    def __call__(self, documents: Sequence[Document]) -> tuple[list[Document], list[Document]]:
        group_of = groups_of(documents)
        sizes = Counter(group_of)  # in the order of the first of each
        room = len(documents) * (1 - self.validation) + 1e-9  # 5 * (1 - 0.8) is a little less than 1
        trained: set[str] = set()
        for group, size in sizes.items():
            room -= size
            if room < 0 and (trained or len(sizes) == 1):
                break
            trained.add(group)
        parts: tuple[list[Document], list[Document]] = [], []
        for document, group in zip(documents, group_of, strict=True):
            parts[group not in trained].append(document)
        return parts


@dataclasses.dataclass(frozen=True)
class WithinText(Split):
    """The last characters of every text are held out: for a corpus that is one long text.

    Raises:
      InputError: a document is a conversation or an example, which cannot be cut in two.
    """

    validation: Rate = 0.1

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
                    part.append(dataclasses.replace(document, content=content, part_of=None))
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

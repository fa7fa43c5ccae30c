"""The names of classes, in an order that gives the numbers of documents and the scores of a model their meaning."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from llm_jax.core.errors import InputError, nearest
from llm_jax.data.documents import MultiLabelled

Labels = tuple[str, ...]  # the names of the classes, in the order of their numbers


def names_of(components: Sequence[tuple[Labels | None, Sequence[Any]]]) -> Labels | None:
    """The names of all classes: as the sources list them, or those of the documents in alphabetical order.

    Args:
      components: of each source, the names that it lists (None: none), and its documents to train on.

    Returns:
      None where documents have their classes by number alone.

    Raises:
      InputError: they do not go together: several lists, numbers beside names, or names that no list has.
    """
    lists = {listed for listed, _ in components if listed is not None}
    if len(lists) > 1:
        raise InputError(f"the sources list their classes as {' and '.join(map(str, sorted(lists)))}: set data.labels")
    found = {label for listed, part in components if listed is None for document in part for label in _labels(document)}
    named = {label for label in found if isinstance(label, str)}
    if (named or lists) and (numbers := found - named):
        raise InputError(
            f"some documents have classes by name, and some by number ({min(numbers):g}): set data.labels, the names "
            "in the order of the numbers"
        )
    (names,) = lists or {tuple(sorted(named))}
    if unknown := named - set(names):
        raise InputError(
            f"a document is of the class {min(unknown)!r}, which another source does not list: "
            f"{nearest(min(unknown), names)}; data.labels names them"
        )
    return names or None


def numbered(documents: Sequence[Any], labels: Labels, source: Any) -> list[Any]:
    """The documents of a source with the numbers of their classes among `labels`.

    Raises:
      InputError: a document is of a class that has no place there.
    """
    listed: Labels = source.class_names() or labels
    return [_numbered(document, labels, listed, source) for document in documents]


def _numbered(document: Any, labels: Labels, listed: Labels, source: object) -> Any:
    found = _labels(document)
    numbers = tuple(_number(label, labels, listed, source) for label in found)
    if numbers == found:
        return document
    if isinstance(document, MultiLabelled):
        return dataclasses.replace(document, labels=numbers)
    return dataclasses.replace(document, label=numbers[0])


def _number(label: Any, labels: Labels, listed: Labels, source: object) -> Any:
    if not isinstance(label, str) and (listed == labels or not 0 <= label < len(listed)):
        return label
    name = label if isinstance(label, str) else listed[int(label)]
    if labels.count(name) != 1:
        fault = "none" if name not in labels else "the name of several"
        raise InputError(
            f"{source}: the class {name!r} is {fault} of the classes: {nearest(name, labels)}; data.labels names them"
        )
    return labels.index(name)


def _labels(document: Any) -> tuple[Any, ...]:
    """The classes of a document."""
    if isinstance(document, MultiLabelled):
        return document.labels
    label = getattr(document, "label", None)
    return () if label is None else (label,)

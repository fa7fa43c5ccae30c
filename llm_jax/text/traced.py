"""Text that knows where each of its characters comes from, whatever a template does with it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any, SupportsIndex

TEMPLATE, UNKNOWN, OTHER = range(3)  # what a template wrote; not known; content that is no turn's own


def content_of(turn: int) -> int:
    """The origin of what is said in a turn."""
    return OTHER + 1 + 2 * turn


def calls_of(turn: int) -> int:
    """The origin of the calls of tools in a turn."""
    return OTHER + 2 + 2 * turn


class Traced(str):
    """A text with the origin of each character. It equals, and is cut and joined as, the text alone.

    So a program that is handed such texts does what it would do with plain ones: it may compare, slice, split or
    replace them. What comes of an operation that is not followed (`%`, `center`) is of UNKNOWN origin, never of a
    wrong one.

    Attributes:
      _origin: a text as long as this one, whose characters are numbers: it is sliced and joined as fast.
    """

    __slots__ = ("_origin",)
    _origin: str

    def __new__(cls, text: str = "", origin: int | str = UNKNOWN) -> Traced:
        self = super().__new__(cls, str.__str__(text))
        self._origin = origin if isinstance(origin, str) else chr(origin) * len(self)
        return self

    @classmethod
    def of(cls, text: str) -> Traced:
        """The text, which is a Traced one or of unknown origin. A number is the template's: it counts turns, say."""
        if isinstance(text, cls):
            return text
        return cls(text, TEMPLATE if text.isdecimal() else UNKNOWN)

    def __str__(self) -> str:  # or what is written out would be plain
        return self

    def __add__(self, other: str) -> Traced:
        if not isinstance(other, str) or hasattr(other, "__html__"):
            return NotImplemented
        after = Traced.of(other)
        return Traced(str.__add__(self, after), self._origin + after._origin)

    def __radd__(self, other: str) -> Traced:
        if not isinstance(other, str):
            return NotImplemented
        return Traced.of(other) + self

    def __mul__(self, times: SupportsIndex) -> Traced:
        return Traced(str.__mul__(self, times), self._origin * times)

    def __rmul__(self, times: SupportsIndex) -> Traced:
        return self * times

    def __getitem__(self, key: Any) -> Traced:
        return Traced(str.__getitem__(self, key), self._origin[key])

    def __iter__(self) -> Iterator[Any]:
        return (self[at] for at in range(len(self)))

    def lstrip(self, chars: str | None = None, /) -> Traced:
        return self[len(self) - len(str.lstrip(self, chars)) :]

    def rstrip(self, chars: str | None = None, /) -> Traced:
        return self[: len(str.rstrip(self, chars))]

    def strip(self, chars: str | None = None, /) -> Traced:
        return self.lstrip(chars).rstrip(chars)

    def removeprefix(self, prefix: str, /) -> Traced:
        return self[len(prefix) :] if prefix and self.startswith(prefix) else self

    def removesuffix(self, suffix: str, /) -> Traced:
        return self[: -len(suffix)] if suffix and self.endswith(suffix) else self

    def _found(self, pieces: Iterable[str], apart: str | None) -> list[Any]:
        """These pieces of the text, which follow one another with this between them (None: white space)."""
        found, at = [], 0
        for piece in pieces:
            at = str.find(self, piece, at)
            found.append(self[at : at + len(piece)])
            at += len(piece) + len(apart or "")
        return found

    def split(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[Any]:
        return self._found(str.split(self, sep, maxsplit), sep)

    def rsplit(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[Any]:
        return self._found(str.rsplit(self, sep, maxsplit), sep)

    def splitlines(self, keepends: bool = False) -> list[Any]:
        whole = self._found(str.splitlines(self, True), "")
        return [line[: len(text)] for line, text in zip(whole, str.splitlines(self, keepends), strict=True)]

    def partition(self, sep: str, /) -> tuple[Any, Any, Any]:
        before, found, after = str.partition(self, sep)
        return self[: len(before)], self[len(before) :][: len(found)], self[len(self) - len(after) :]

    def rpartition(self, sep: str, /) -> tuple[Any, Any, Any]:
        before, found, after = str.rpartition(self, sep)
        return self[: len(before)], self[len(before) :][: len(found)], self[len(self) - len(after) :]

    def replace(self, old: str, new: str, count: SupportsIndex = -1, /) -> Traced:
        if not old:
            return Traced(str.replace(self, old, new, count))
        return Traced.of(new).join(self.split(old, count))

    def join(self, pieces: Iterable[str], /) -> Traced:
        traced = [Traced.of(piece) for piece in pieces]
        return Traced(str.join(self, traced), self._origin.join(piece._origin for piece in traced))

    def recased(self, text: str) -> Traced:
        """Letters in another case, which stand where these did, unless one became two."""
        return Traced(text, self._origin if len(text) == len(self) else UNKNOWN)

    def upper(self) -> Traced:
        return self.recased(str.upper(self))

    def lower(self) -> Traced:
        return self.recased(str.lower(self))

    def title(self) -> Traced:
        return self.recased(str.title(self))

    def capitalize(self) -> Traced:
        return self.recased(str.capitalize(self))


def origins(text: Traced) -> str:
    """A text as long as `text`: the code of each character is the origin of the one in `text`."""
    return text._origin


def joined(pieces: Iterable[str]) -> Traced:
    """The pieces, one after another."""
    return Traced("", TEMPLATE).join(pieces)


def trace(value: Any, origin: int) -> Any:
    """A JSON value in which every text that is not yet Traced is of this origin, keys too."""
    if isinstance(value, dict):
        return {trace(key, origin): trace(each, origin) for key, each in value.items()}
    if isinstance(value, list):
        return [trace(each, origin) for each in value]
    return Traced(value, origin) if isinstance(value, str) and not isinstance(value, Traced) else value


def to_json(value: Any, indent: int | None, separators: Any, sort_keys: bool) -> Traced:
    """The value as JSON. All of it counts as content where it holds any, whose ever that is."""
    text = json.dumps(value, ensure_ascii=False, indent=indent, separators=separators, sort_keys=sort_keys)
    found = _within(value) - {chr(TEMPLATE)}
    return Traced(text, TEMPLATE if not found else ord(found.pop()) if len(found) == 1 else OTHER)


def _within(value: Any) -> set[str]:
    if isinstance(value, dict):
        return _within([*value.keys(), *value.values()])
    if isinstance(value, (list, tuple)):
        return set().union(*map(_within, value))
    return {*Traced.of(value)._origin} if isinstance(value, str) else set()

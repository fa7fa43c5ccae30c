"""Keeps the contents of a conversation apart from its template, while a stranger's template writes both as one text.

Contents go into the template between marks that nobody can guess, and with every special token that they spell broken
up. What comes out is taken apart again: text, special tokens that the template itself wrote, and the marks.
"""

from __future__ import annotations

import dataclasses
import functools
import re
import secrets
from collections.abc import Iterable, Iterator, Mapping
from typing import Literal

from llm_jax.text.special import SPECIAL

Kind = Literal["text", "token", "begin", "end"]
ROLE_NAMES = frozenset((*SPECIAL, "unk"))  # what special tokens do; other names are how they are written
_BEGIN, _END, _BORDER, _CHARACTER, _TOKEN = range(5)
_MARK = "\ue000([0-9]{20})([0-4])([0-9]{7})"  # of digits, so that a template may change the case


@dataclasses.dataclass(frozen=True)
class Piece:
    """Text; a special token, with its name; the beginning or the end of what the assistant says."""

    kind: Kind
    text: str = ""
    token: int = 0


class Guard:
    """The marks of one rendering: `special` are tokens that only the template may write, `marks` the assistant too."""

    def __init__(self, special: Mapping[str, int], marks: Mapping[str, int]):
        self._names = {**special, **marks}
        self._spelt = {True: _spelt(tuple(special)), False: _spelt(tuple(self._names))}
        self._finder = _finder(tuple(self._names))
        self._secret = f"{secrets.randbelow(10**20):020d}"

    def _mark(self, kind: int, value: int = 0) -> str:
        return f"\ue000{self._secret}{kind}{value:07d}"

    def content(self, text: str, assistant: bool) -> str:
        """The content as the template gets it: a template may trim it, or look whether there is anything in it."""
        body = text.strip()
        if not body:
            return text
        before, _, after = text.partition(body)
        broken = self._spelt[assistant].sub(lambda found: self._mark(_CHARACTER, ord(found[0])), body)
        begin, end = (_BEGIN, _END) if assistant else (_BORDER, _BORDER)
        return f"{before}{self._mark(begin)}{broken}{self._mark(end)}{after}"

    def token(self, token: int) -> str:
        """What a template writes for a special token."""
        return self._mark(_TOKEN, token)

    def pieces(self, written: str) -> Iterator[Piece]:
        """What a template wrote, taken apart."""
        by_id = {i: name for name, i in self._names.items()}
        at = 0
        for found in self._finder.finditer(written):
            if found.start() > at:
                yield Piece("text", written[at : found.start()])
            at = found.end()
            if (token := self._names.get(found[0])) is not None:
                yield Piece("token", found[0], token)
            elif found[1] != self._secret:  # a mark that somebody made up
                yield Piece("text", found[0])
            elif (kind := int(found[2])) == _CHARACTER:
                yield Piece("text", chr(int(found[3])))
            elif kind == _TOKEN:
                yield Piece("token", by_id.get(int(found[3]), ""), int(found[3]))
            elif kind != _BORDER:
                yield Piece("begin" if kind == _BEGIN else "end")
        if at < len(written):
            yield Piece("text", written[at:])


def _any(names: Iterable[str]) -> list[str]:
    return [re.escape(name) for name in sorted(names, key=len, reverse=True)]


@functools.lru_cache(maxsize=16)
def _spelt(names: tuple[str, ...]) -> re.Pattern[str]:
    """The first character of every special token that a content spells."""
    return re.compile(f"(?=(?:{'|'.join(_any(names))}))." if names else "(?!)", re.DOTALL)


@functools.lru_cache(maxsize=16)
def _finder(names: tuple[str, ...]) -> re.Pattern[str]:
    """All that is not text in what a template wrote."""
    return re.compile("|".join([_MARK, *_any(names)]))

"""Keeps the contents of a conversation apart from its template, while a stranger's template writes both as one text.

Contents go into the template between marks that nobody can guess, and with every special token that they spell broken
up. What comes out is taken apart again: text, special tokens that the template itself wrote, and the marks.
"""

from __future__ import annotations

import dataclasses
import functools
import re
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

from llm_jax.core.tables import InputError
from llm_jax.text.calls import Call, read
from llm_jax.text.special import SPECIAL

Kind = Literal["text", "token", "begin", "end"]
ROLE_NAMES = frozenset((*SPECIAL, "unk"))  # what special tokens do; other names are how they are written
_BEGIN, _END, _BORDER, _CHARACTER, _TOKEN, _TURN = range(6)
_MARK = "\ue000([0-9]{20})([0-5])([0-9]{7})"  # of digits, so that a template may change the case


@dataclasses.dataclass(frozen=True)
class Piece:
    """Text; a special token, with its name; the beginning or the end of what the assistant says."""

    kind: Kind
    text: str = ""
    token: int = 0


class Guard:
    """The marks of one rendering: `special` are tokens that only the template may write, `marks` the assistant too."""

    def __init__(self, special: Mapping[str, int], marks: Mapping[str, int]):
        self._template = frozenset(special)
        self._names = {**special, **marks}
        self._spelt = {True: _spelt(tuple(special)), False: _spelt(tuple(self._names))}
        self._finder = _finder(tuple(self._names))
        self._secret = f"{secrets.randbelow(10**20):020d}"

    def _mark(self, kind: int, value: int = 0) -> str:
        return f"\ue000{self._secret}{kind}{value:07d}"

    def content(self, text: str, assistant: bool, told: bool, turn: int | None = None) -> str:
        """The content as the template gets it: a template may trim it, or look whether there is anything in it.

        `assistant`: whose it is. `told`: whether `pieces` tells where it begins and ends. `turn`: the turn in which
        `turn` is to find it.
        """
        body = text.strip()
        if not body:
            return text
        before, _, after = text.partition(body)
        begin, end = (self._mark(kind) for kind in ((_BEGIN, _END) if told else (_BORDER, _BORDER)))
        if turn is not None:
            begin = end = self._mark(_TURN, turn)
        return f"{before}{begin}{self._broken(body, assistant)}{end}{after}"

    def _broken(self, text: str, assistant: bool) -> str:
        return self._spelt[assistant].sub(lambda found: self._mark(_CHARACTER, ord(found[0])), text)

    def value(self, value: Any, assistant: bool = False) -> Any:
        """The same for all texts in a JSON value, which templates write as JSON or compare with texts of their own."""
        if isinstance(value, dict):
            return {self.value(key, assistant): self.value(each, assistant) for key, each in value.items()}
        if isinstance(value, list):
            return [self.value(each, assistant) for each in value]
        return self._broken(value, assistant) if isinstance(value, str) else value

    def name(self, name: str, turn: int) -> str:
        """The name of a tool that is called in a turn."""
        return f"{self._mark(_TURN, turn)}{self._broken(name, True)}{self._mark(_TURN, turn)}"

    def turn(self, written: str, turn: int, calls: Sequence[Call], before: str | None) -> str:
        """The same, with marks around what the assistant says in a turn with reasoning, or that ends with these calls.

        It begins where `before` ends, which is what is written for a reply in its place (None: no marks are wanted),
        and ends before the first special token after the content and the calls.

        Raises:
          InputError: the calls are not in it, it does not begin and end so, or they are not read back from it.
        """
        mark = self._mark(_TURN, turn)
        what = "calls of tools" if calls else "what the assistant says after its reasoning"
        if mark not in written:
            raise InputError(f"the chat template has no place for {what}")
        if before is None:
            return written
        if not written.startswith(before):
            before = before.rstrip()
        if not written.startswith(before) or mark in before:
            raise InputError(f"the chat template rewrites what comes before {what}: it cannot be learnt")
        begin, last = len(before), written.rindex(mark) + len(mark)
        for found in self._finder.finditer(written, last):
            kind = self._kind(found)
            if found[0] in self._template or kind == _TOKEN:
                end = found.start()
                said = "".join(piece.text for piece in self.pieces(written[begin:end]))
                if calls and read(said)[1][-len(calls) :] != tuple(calls):  # before them, the content may spell another
                    raise InputError(
                        "the chat template writes calls of tools in a form that is not read back from what a model "
                        "says: set data.rendering.template to one that writes them as ChatML() does"
                    )
                return f"{written[:begin]}{self._mark(_BEGIN)}{written[begin:end]}{self._mark(_END)}{written[end:]}"
            if kind in (_BEGIN, _BORDER, _TURN):
                break
        raise InputError(f"the chat template has no special token at the end of {what}: it cannot be learnt")

    def _kind(self, found: re.Match[str]) -> int | None:
        """Of a mark of ours."""
        return int(found[2]) if found[1] == self._secret else None

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
            elif (kind := self._kind(found)) is None:  # a mark that somebody made up
                yield Piece("text", found[0])
            elif kind == _CHARACTER:
                yield Piece("text", chr(int(found[3])))
            elif kind == _TOKEN:
                yield Piece("token", by_id.get(int(found[3]), ""), int(found[3]))
            elif kind in (_BEGIN, _END):
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

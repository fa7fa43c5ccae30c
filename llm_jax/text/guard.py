"""Special tokens in what a template wrote: those that it wrote itself, and none that a content spells."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Iterator, Mapping, Sequence, Set

from llm_jax.core.errors import InputError
from llm_jax.text.special import SPECIAL
from llm_jax.text.tokenizer import Tokenizer
from llm_jax.text.traced import TEMPLATE, UNKNOWN, Traced, origins

ROLE_NAMES = frozenset((*SPECIAL, "unk"))  # what special tokens do; other names are how they are written


@dataclasses.dataclass(frozen=True)
class Found:
    """A special token in a text: where it stands, its name and its id. `mark`: a model may write it within its turn."""

    begin: int
    end: int
    name: str
    token: int
    mark: bool


class Names:
    """How special tokens are spelt: `special`, which only the template may write, and `marks`, the assistant too."""

    def __init__(self, special: Mapping[str, int], marks: Mapping[str, int]):
        published = {name: i for name, i in special.items() if name not in ROLE_NAMES}
        self._marks = marks
        self._names = {**published, **marks}
        spelt = {i: name for name, i in self._names.items()}
        self.roles: dict[str, str] = {}  # how those that have a role are written
        for role in ROLE_NAMES & special.keys():
            self.roles[role] = spelt.get(special[role], f"\ue000{role}\ue001")  # unnamed: as no template writes it
            self._names.setdefault(self.roles[role], special[role])

    def find(self, written: Traced, assistant: Set[int]) -> Iterator[Found]:
        """The special tokens in what a template wrote, in their order.

        Args:
          assistant: the origins of what the assistant says, in which marks are found.

        Raises:
          InputError: one is spelt in part by the template and in part of unknown origin.
        """
        text, known = str.__str__(written), origins(written)
        for run in _RUNS.finditer(known):
            ours = run[1] is None
            if not ours and ord(run[1]) not in assistant:
                continue
            for found in _finder(tuple(self._names if ours else self._marks)).finditer(text, *run.span()):
                if UNKNOWN in map(ord, {*known[found.start() : found.end()]}):
                    raise InputError(
                        f"the chat template makes {found[0]!r} in a way in which its own special tokens cannot be told "
                        "from a text that spells them: write it with + or ~"
                    )
                name = found[0]
                yield Found(*found.span(), name, self._names[name], name in self._marks)


# What the template wrote, with what is of unknown origin beside it; or what is all of one other origin.
_RUNS = re.compile(f"[{chr(TEMPLATE)}{chr(UNKNOWN)}]+|([^{chr(TEMPLATE)}{chr(UNKNOWN)}])\\1*", re.DOTALL)


@functools.lru_cache(maxsize=16)
def _finder(names: tuple[str, ...]) -> re.Pattern[str]:
    """Any of them, the longest first."""
    return re.compile("|".join(map(re.escape, sorted(names, key=len, reverse=True))) or "(?!)")


def encoded(
    tokenizer: Tokenizer, text: str, tokens: Sequence[Found], lstrip: Sequence[str], rstrip: Sequence[str],
    first: bool = True,
) -> Iterator[tuple[int, int]]:  # fmt: skip
    """The ids of a text with these special tokens in it, and the place of each: of its last character, or -1.

    Args:
      lstrip, rstrip: the names of those that swallow the white space before, or after, them.
      first: whether nothing comes before the text.
    """
    at, before = 0, ""
    for token in (*tokens, None):
        piece = text[at : token.begin if token else len(text)]
        if token and token.name in lstrip:
            piece = piece.rstrip()
        start = at + (len(piece) - len(piece.lstrip()) if before in rstrip else 0)
        if piece := piece[start - at :]:
            ids, ends = tokenizer.spans(piece, first)
            yield from ((i, start + end - 1 if end else -1) for i, end in zip(ids, ends, strict=True))
            first = first and not ids
        if token:
            yield token.token, token.begin
            first, at, before = False, token.end, token.name

"""Where the assistant's turns stand in what a template wrote.

Most templates write a content as it is, and then a turn is that content and the special token after it. Some rewrite
it (Qwen 3 writes what is between `<think>` and `</think>` anew, or leaves it out): there a turn goes from where a reply
would begin to the special token that ends it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

from absl import logging

from llm_jax.core.errors import InputError
from llm_jax.text.calls import Call, read
from llm_jax.text.guard import Found
from llm_jax.text.traced import OTHER, Traced, calls_of, content_of, origins


class Turns:
    """The assistant's turns in one rendering.

    Args:
      written: the whole conversation.
      tokens: the special tokens in it.
      opening: what the template writes at the end for a reply to begin.
      before: what it writes of the messages before one, with the opening of a reply in its place.
    """

    def __init__(
        self, written: Traced, tokens: Sequence[Found], opening: Traced, before: Callable[[int], Traced]
    ):  # fmt: skip
        self._text, self._origins = str.__str__(written), origins(written)
        self._written, self._tokens, self._opening = written, tokens, opening
        self._before = before

    def content(self, turn: int, content: str, strict: bool) -> tuple[int, int]:
        """From where to where the assistant says a content, with the token that ends it; nowhere where it is not told.

        Raises:
          InputError: that cannot be told, and must be (`strict`).
        """
        own = chr(content_of(turn))
        first, last = self._origins.find(own), self._origins.rfind(own) + 1
        said = self._text[max(first, 0) : last]
        verbatim = first >= 0 and said.strip() == content.strip() and {*self._origins[first:last]} == {own}
        if verbatim and self._opens(first):
            return first, self._ended(self._closed(last), strict)
        begin = self._begin(turn, content) if strict else None
        if begin is None or (0 <= first < begin):
            if verbatim:
                return first, self._ended(self._closed(last), strict)
            if strict:
                raise InputError("the chat template rewrites what the assistant says, and what comes before: it cannot "
                                 "be learnt")  # fmt: skip
            return 0, 0
        last = max(last, begin)
        if not _squeezed(self._text[begin:last]).endswith(_squeezed(content)):
            say_once(
                "the chat template leaves out some of what the assistant says (what it thought, in some turns): only "
                "what the template writes is learnt"
            )
        if end := self._end(last):
            return begin, end.end
        alone = not any(ord(origin) >= OTHER for origin in {*self._origins[last:]})
        return begin, self._ended(len(self._text) if alone else self._closed(last), strict)

    def calls(self, turn: int, calls: Sequence[Call], strict: bool) -> tuple[int, int]:
        """The same of a turn that ends with these calls of tools.

        Raises:
          InputError: the calls are not in it, or (`strict`) it does not begin where a reply would or end with a special
            token, or they are not read back from it.
        """
        called = chr(calls_of(turn))
        last = self._origins.rfind(called) + 1
        if not last:
            raise InputError("the chat template has no place for calls of tools")
        if not strict:
            return 0, 0
        before = self._before(turn)
        begin = len(before) if shared(self._written, before) == len(before) else len(before.rstrip())
        if shared(self._written, before) < begin or called in self._origins[:begin]:
            raise InputError("the chat template rewrites what comes before calls of tools: they cannot be learnt")
        self._asks(before)
        if (end := self._end(last)) is None:
            raise InputError(
                "the chat template has no special token at the end of calls of tools: they cannot be learnt"
            )
        said = self._text[begin : end.begin]
        if read(said)[1][-len(calls) :] != tuple(calls):  # before them, the content may spell another
            raise InputError(
                "the chat template writes calls of tools in a form that is not read back from what a model "
                "says: set data.rendering.template to one that writes them as ChatML() does"
            )
        return begin, end.end

    def _opens(self, at: int) -> bool:
        """Whether a reply would begin here, or nothing says otherwise."""
        begin = at - len(self._opening)
        return begin >= 0 and shared(self._written[begin:at], self._opening) == len(self._opening)

    def _asks(self, before: Traced) -> None:
        """Says so where a model is asked for a reply in another way than it learns one."""
        if not self._text.startswith(str.__str__(before)):
            say_once(
                f"the chat template asks for a reply with {str.__str__(self._opening)!r}, and writes something else "
                "before a reply that is learnt (it may do so in earlier turns alone): a model is asked in a way that "
                "training does not show it. Set data.rendering.template to a copy whose generation prompt is what it "
                "writes before such replies, or give them the weight 0"
            )

    def _ended(self, end: int, strict: bool) -> int:
        """The end of a turn; says so where it has no special token, from which a model would learn to stop."""
        if strict and not any(token.end == end and not token.mark for token in self._tokens):
            say_once(
                "the chat template writes no special token after a reply (it may lack after the last one alone): in "
                "training its end is not learnt, and a model does not learn to stop there. Set data.rendering.template "
                "to a copy that ends with {% if not add_generation_prompt %}{{ '<|user|>' }}{% endif %}, or the token "
                "that ends its other replies, and has that token in `needs`"
            )
        return end

    def _begin(self, turn: int, content: str) -> int | None:
        """Where a reply would begin: all that comes before it is written so in either case, but for its opening."""
        try:
            before = self._before(turn)
        except InputError:
            return None
        same = shared(self._written, before)
        if same < len(before) - len(self._opening) and before[same:].strip():
            return None
        if content.strip() and self._opening.strip():
            self._asks(before)
        # two special tokens may begin alike
        return next((token.begin for token in self._tokens if token.begin < same < token.end), same)

    def _end(self, at: int) -> Found | None:
        """The token that ends a turn whose last text is before `at`: no other content is between."""
        found = next((token for token in self._tokens if token.begin >= at and not token.mark), None)
        between = self._origins[at : found.begin if found else None]
        return None if any(ord(origin) >= OTHER for origin in {*between}) else found

    def _closed(self, at: int) -> int:
        """The end of a turn whose text ends here: with the special token that follows, or white space alone."""
        found = next((token for token in self._tokens if token.begin >= at), None)
        stop = found.begin if found else len(self._text)
        content = next((i for i in range(at, stop) if ord(self._origins[i]) >= OTHER), None)
        if content is not None:
            found, stop = None, content
        if self._text[at:stop].strip():
            return at
        return found.end if found else stop


def shared(text: Traced, other: Traced) -> int:
    """How many characters both begin with, of the same origin too."""
    low, high = 0, min(len(text), len(other))
    a, b, from_a, from_b = str.__str__(text), str.__str__(other), origins(text), origins(other)
    if a[:high] == b[:high] and from_a[:high] == from_b[:high]:
        return high
    while low < high - 1:  # that many are alike, and `high` are not
        middle = (low + high) // 2
        alike = a[:middle] == b[:middle] and from_a[:middle] == from_b[:middle]
        low, high = (middle, high) if alike else (low, middle)
    return low


def _squeezed(text: str) -> str:
    return "".join(text.split())


@functools.cache
def say_once(warning: str) -> None:
    logging.warning("%s", warning)

"""Special tokens in prompts: text that spells one is ordinary text, unless who asks trusts the prompt."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np

from llm_jax.core.errors import InputError, nearest
from llm_jax.text.chat import ChatTemplate, Jinja
from llm_jax.text.guard import ROLE_NAMES, Found, Names, encoded
from llm_jax.text.tokenizer import Tokenizer, check_text
from llm_jax.text.traced import TEMPLATE, Traced

MASK = "[MASK]"
SpecialTokens = Literal["text", "parse"]  # what is made of a special token that a prompt spells


def check_special_tokens(value: str) -> None:
    """Nothing, if the value is one of `SpecialTokens`.

    Raises:
      InputError: it is not.
    """
    if value not in ("text", "parse"):
        raise InputError(f"special_tokens must be 'text' or 'parse': {nearest(str(value), ('text', 'parse'))}")


def spelt(tokenizer: Tokenizer, text: str) -> list[Found]:
    """The special tokens that the text spells, in order: as they are published, and `MASK` where that has no name."""
    published = {name: i for name, i in tokenizer.special.items() if name not in ROLE_NAMES}
    if (mask := tokenizer.special.get("mask")) not in (None, *published.values()):
        published.setdefault(MASK, mask)
    return [*Names(published, tokenizer.marks).find(Traced(text, TEMPLATE), set())]


def parse(tokenizer: Tokenizer, text: str, template: ChatTemplate, first: bool = True) -> list[int]:
    """The ids of a text that is trusted: the special tokens that it spells are read as these, as `transformers` does.

    Args:
      template: of the tokenizer: it knows which special tokens swallow the white space beside them.
      first: whether nothing comes before the text.

    Raises:
      InputError: the text cannot be encoded.
    """
    check_text(text, "the prompt")
    lstrip, rstrip = (template.lstrip, template.rstrip) if isinstance(template, Jinja) else ((), ())
    return [token for token, _ in encoded(tokenizer, text, spelt(tokenizer, text), lstrip, rstrip, first)]


def token_ids(prompt: Any, vocabulary: int) -> list[int]:
    """A prompt of token ids, which are below `vocabulary`, as a list.

    Raises:
      InputError: it is none.
    """
    try:
        ids = np.asarray(prompt)
    except ValueError:  # NumPy makes no array of lists that differ in length
        ids = np.empty((0, 0))
    if ids.ndim != 1 or (ids.size and not np.issubdtype(ids.dtype, np.integer)):
        raise InputError(
            "a prompt must be a text, a conversation or a list of token ids, not "
            f"{type(prompt).__name__} of shape {list(ids.shape)}: of one prompt, write [prompt]"
        )
    found = [int(i) for i in ids]
    if wrong := [i for i in found if not 0 <= i < vocabulary]:
        raise InputError(f"token id {wrong[0]} is not in the vocabulary, which has ids 0 to {vocabulary - 1}")
    return found


def notice(tokenizer: Tokenizer, texts: Iterable[str]) -> str | None:
    """What to tell of texts that spell special tokens and are read as ordinary text; None: there is no such text."""
    found = [token.name for text in texts for token in spelt(tokenizer, text)]
    if not found:
        return None
    names, several = _listed([*dict.fromkeys(found)]), len(found) > 1
    return (
        f"{len(found)} special token{'s' * several} spelt in text ({names}) {'are' if several else 'is'} read as "
        "ordinary text, so that no text can forge one: give a conversation for the chat template to write (a "
        "Conversation, or the verb chat), token ids, or special_tokens='parse' (--special_tokens=parse) for a text "
        "that you trust"
    )


def _listed(names: Sequence[str], most: int = 4) -> str:
    return ", ".join(names[:most]) + f" and {len(names) - most} more" * (len(names) > most)

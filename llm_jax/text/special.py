"""Special tokens: ids that no text is encoded to. They structure documents and conversations."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from llm_jax.core.errors import InputError

ROLES = ("system", "user", "assistant", "tool")
SPECIAL = ("bos", "eos", "pad", "mask", *ROLES, "end_of_turn")
ENDS = ("bos", "eos", "end_of_turn")  # what ends a text; no other token that structures texts is ever drawn


def sentinel(number: int) -> str:
    """The special token that stands for a span which was taken from a text; named as T5's are."""
    return f"<extra_id_{number}>"


def is_sentinel(name: str) -> bool:
    """Whether a special token is a `sentinel`. Those are content, which a model that has learnt them writes."""
    return re.fullmatch(r"<extra_id_\d+>", name) is not None


def specials_from(first: int, sentinels: int = 0, further: Sequence[str] = ()) -> dict[str, int]:
    """An id for every special token, from `first` on: after the vocabulary that text is encoded with."""
    names = dict.fromkeys((*SPECIAL, *map(sentinel, range(sentinels)), *further))
    return {name: first + i for i, name in enumerate(names)}


def frame(special: Mapping[str, int], name: str, wanted: bool) -> list[int]:
    """The special token `name`, which is `bos` or `eos`, to put at that end of a text where it is `wanted`.

    Raises:
      InputError: the tokenizer has none.
    """
    if wanted and name not in special:
        raise InputError(f"this tokenizer has no special token {name!r} for texts: set rendering.{name}=False")
    return [special[name]] if wanted else []

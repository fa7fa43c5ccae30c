"""Special tokens: ids that no text is encoded to. They structure documents and conversations."""

ROLES = ("system", "user", "assistant", "tool")
SPECIAL = ("bos", "eos", "pad", "mask", *ROLES, "end_of_turn")


def specials_from(first: int) -> dict[str, int]:
    """An id for every special token, from `first` on: after the vocabulary that text is encoded with."""
    return {name: first + i for i, name in enumerate(SPECIAL)}

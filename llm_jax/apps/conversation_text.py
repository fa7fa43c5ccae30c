"""Conversations as texts that keep their special tokens, and that no other text can be mistaken for."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence

from llm_jax.text.guard import ROLE_NAMES
from llm_jax.text.tokenizer import Tokenizer

BEGIN, OPEN, CLOSE = "\ue002", "\ue000", "\ue001"  # a conversation begins so; around the name of a special token in it


def without_marks(text: str) -> str:
    """The text with U+FFFD for the characters that mark special tokens here, so that it cannot forge one."""
    return re.sub(f"[{BEGIN}{OPEN}{CLOSE}]", "\ufffd", text)


class ConversationText:
    """Token ids of a conversation to a text and back, exactly.

    Attributes:
      names: how each special token is written, by its id: as it is published, if it is.
    """

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        named = {**tokenizer.special, **tokenizer.marks}
        self._ids = {name: i for name, i in named.items() if i in tokenizer.beside}
        by_role = sorted(self._ids, key=lambda name: name not in ROLE_NAMES)
        self.names = {self._ids[name]: name for name in by_role}
        self._special = re.compile(f"{OPEN}({'|'.join([*map(re.escape, self._ids), '#[0-9]+'])}){CLOSE}")

    def write(self, ids: Sequence[int]) -> str:
        pieces = [BEGIN]
        for apart, group in itertools.groupby(ids, key=self.names.__contains__):
            run = list(group)
            text = None if apart else self._spelt(run, first=len(pieces) == 1)
            names = (self.names.get(i, f"#{i}") for i in run)
            pieces.append("".join(f"{OPEN}{name}{CLOSE}" for name in names) if text is None else text)
        return "".join(pieces)

    def _spelt(self, run: list[int], first: bool) -> str | None:
        """The text that has these tokens; None if there is none (what was unknown, say)."""
        whole = b"".join(map(self._tokenizer.bytes_of, run)).decode(errors="replace")
        texts = [self._tokenizer.decode(run), whole]  # without the space that some vocabularies begin with, and with it
        return next((text for text in texts if self._tokenizer.spans(text, first)[0] == run), None)

    def read(self, text: str) -> list[int]:
        """The ids of what `write` wrote, and of text that was put after it."""
        ids: list[int] = []
        for number, piece in enumerate(self._special.split(text.removeprefix(BEGIN))):
            if number % 2:
                ids.append(self._ids[piece] if piece in self._ids else int(piece[1:]))
            elif piece:
                ids += self._tokenizer.spans(piece, first=not ids)[0]
        return ids

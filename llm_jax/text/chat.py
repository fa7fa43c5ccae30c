"""Conversations as tokens, and which of those tokens the assistant says."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from llm_jax.core.parts import Part
from llm_jax.core.tables import InputError, lookup, nearest
from llm_jax.text.special import ROLES
from llm_jax.text.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Message:
    """What one side says. `role` is system, user, assistant or tool.

    Raises:
      InputError: there is no such role.
    """

    role: str
    content: str

    def __post_init__(self):
        if self.role not in ROLES:
            raise InputError(f"no role named {self.role!r} in a conversation: {nearest(self.role, ROLES)}")


@dataclasses.dataclass(frozen=True)
class ChatTemplate(Part):
    """`bos`, then for each message the token of its role, its content, `end_of_turn`.

    All of these are special tokens, so no content can end its turn or take another role.
    """

    def render(
        self, tokenizer: Tokenizer, messages: Sequence[Message], reply: bool = False
    ) -> tuple[list[int], list[bool]]:
        """The tokens, and which of them are to be learnt: the assistant's contents and the `end_of_turn` after each.

        With `reply` the assistant's role token comes last, for a model to go on from.

        Raises:
          InputError: the tokenizer lacks one of the special tokens.
        """

        def special(name: str) -> int:
            return lookup(tokenizer.special, name, "special token of this tokenizer")

        ids, learn = [special("bos")], [False]
        contents = tokenizer.encode_batch([message.content for message in messages])
        for message, content in zip(messages, contents, strict=True):
            said = [*content, special("end_of_turn")]
            ids += [special(message.role), *said]
            learn += [False] + [message.role == "assistant"] * len(said)
        if reply:
            ids, learn = [*ids, special("assistant")], [*learn, False]
        return ids, learn

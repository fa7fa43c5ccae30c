"""Completions of prompts by the model in training: written, scored, and laid out as rows of a batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np

from llm_jax.core.arrays import HostBatch
from llm_jax.core.errors import InputError
from llm_jax.core.parts import conform
from llm_jax.data.documents import Conversation, Document, Example, Preference, Rendering
from llm_jax.data.presentation import blank
from llm_jax.inference.generate import Generation, prepare, row_keys
from llm_jax.inference.language_model import LanguageModel
from llm_jax.inference.sampling import Sampler
from llm_jax.models.model import Generator
from llm_jax.objectives.reward import Reward, scores
from llm_jax.text.chat import Message, rendered
from llm_jax.text.special import frame
from llm_jax.text.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Prompt:
    """What is to be gone on from. `anew`: what follows is a turn of its own, not more of the same text."""

    document: Document
    ids: tuple[int, ...]
    text: str
    anew: bool = False

    @classmethod
    def of(cls, document: Document, tokenizer: Tokenizer, rendering: Rendering) -> Prompt:
        """An example's prompt, or a conversation without a reply at its end; or up to replies to compare.

        Raises:
          InputError: it is none of these, or nothing is said before the reply.
        """
        if isinstance(document, Example):
            before = frame(tokenizer.special, "bos", rendering.settled.bos)
            after = frame(tokenizer.special, "eos", rendering.settled.prompt_eos)
            return cls(document, (*before, *tokenizer.encode(document.prompt), *after), document.prompt)
        if isinstance(document, Conversation):
            if not document.asked:
                raise InputError("a conversation in which nothing precedes a reply is no prompt: leave it out")
            return cls._turn(document, document.asked, tokenizer, rendering, document.tools)
        if isinstance(document, Preference):
            return cls._turn(document, document.messages, tokenizer, rendering)
        raise InputError(f"prompts are of examples and conversations: a {type(document).__name__} has none")

    @classmethod
    def _turn(
        cls, document: Document, before: Sequence[Message], tokenizer: Tokenizer, rendering: Rendering,
        tools: Sequence[str] = (),
    ) -> Prompt:  # fmt: skip
        ids, _ = rendered(rendering.settled.template, tokenizer, before, reply=True, tools=tools)
        return cls(document, tuple(ids), before[-1].content, anew=True)

    @classmethod
    def among(
        cls, documents: Iterable[Document], tokenizer: Tokenizer, rendering: Rendering, most: float,
        limit: int | None = None, once: bool = False,
    ) -> tuple[list[Prompt], int]:  # fmt: skip
        """The first `limit` (None: all) prompts of 1 to `most` tokens, and how many on the way have another length.

        `once`: what has the tokens of an earlier prompt does not count.
        """
        found: list[Prompt] = []
        seen: set[tuple[int, ...]] = set()
        left_out = 0
        for document in documents:
            if isinstance(document, Conversation) and not document.asked:
                continue
            if isinstance(document, (Conversation, Example, Preference)):
                prompt = cls.of(document, tokenizer, rendering)
                if once and prompt.ids in seen:
                    continue
                seen.add(prompt.ids)
                if fits := 0 < len(prompt.ids) <= most:
                    found.append(prompt)
                left_out += not fits
            if len(found) == limit:
                break
        return found, left_out


@dataclasses.dataclass
class Completions:
    """What was written, for each prompt: the ids, with that which ended the text where one did, and the text.

    Attributes:
      logps: the sampler's log-probability of each of the ids, where it was asked for (`write`).
    """

    prompts: Sequence[Prompt]
    ids: list[list[int]]
    texts: list[str]
    ended_B: np.ndarray
    logps: list[list[float]] = dataclasses.field(default_factory=list)

    def scored(self, reward: Reward) -> np.ndarray:
        """float64 [B]: what the reward gives to each, told all that is known of them."""
        told = dict(completion_lengths=[len(ids) for ids in self.ids], completion_ended=self.ended_B.tolist())
        prompts, documents = [prompt.text for prompt in self.prompts], [prompt.document for prompt in self.prompts]
        return scores(reward, prompts, self.texts, documents, told)

    def sizes(self) -> np.ndarray:
        """[B]: how many tokens each has, but for one that ended it."""
        return np.array([len(ids) for ids in self.ids]) - self.ended_B

    def truncated(self) -> float:
        """The share of them that did not end."""
        return 1 - float(self.ended_B.mean())

    def laid(self, length: int, pad: int, bytes_V: np.ndarray, reads_end: bool = False) -> HostBatch:
        """Rows of `length` tokens, one completion each; the targets that were drawn have weight 1.

        `reads_end`: the last token has a place among the inputs too, where there is room, without a target.
        """
        batch = blank(len(self.ids), length, pad)
        del batch["number_B"]
        for row, (prompt, written) in enumerate(zip(self.prompts, self.ids, strict=True)):
            whole = np.array([*prompt.ids, *written], np.int32)
            size = len(whole) - 1
            read = min(size + 1, length) if reads_end else size
            batch["tokens_BT"][row, :read], batch["targets_BT"][row, :size] = whole[:read], whole[1:]
            batch["weight_BT"][row, len(prompt.ids) - 1 : size] = 1
            batch["bytes_BT"][row, :size] = bytes_V[whole[1:]]
            batch["segment_BT"][row, :read], batch["position_BT"][row, :read] = 0, np.arange(read)
        return batch | dict(ended_B=self.ended_B.astype(np.float32))


def write(
    model: Generator, params: Any, tokenizer: Tokenizer, prompts: Sequence[Prompt], *,
    max_tokens: int, sampler: Sampler, key_B: jax.Array, dtype: Any, logps_at: float | None = None,
) -> Completions:  # fmt: skip
    """One completion for each prompt, of at most `max_tokens`, an end included. `params` as in training.

    `logps_at` is the temperature at which log-probabilities are kept (None: none are).
    """
    generation = Generation(
        model, prepare(model, params, dtype), [prompt.ids for prompt in prompts], max_tokens=max_tokens,
        sampler=sampler, key_B=key_B, stops=tokenizer.ends, never=tokenizer.unsaid, vocabulary=tokenizer.vocabulary,
        dtype=dtype, logps_at=logps_at,
    )  # fmt: skip
    ids: list[list[int]] = [[] for _ in prompts]
    while not generation.finished:
        for row, new in enumerate(generation.advance()):
            ids[row] += new
    texts = [_text(tokenizer, prompt, written) for prompt, written in zip(prompts, ids, strict=True)]
    ended_B = generation.end_B >= 0
    for row in np.flatnonzero(ended_B):
        ids[row].append(int(generation.end_B[row]))
    return Completions(prompts, ids, texts, ended_B, generation.logps)


def replies(
    lm: LanguageModel, prompts: Sequence[Prompt], *, max_tokens: int, sampler: Sampler, seed: int, batch: int
) -> Completions:
    """One completion for each prompt, written in batches: what a row says depends on its prompt, number and `seed`."""
    model, parts = conform(lm.model, Generator, "model"), []
    for first in range(0, len(prompts), batch):
        some = prompts[first : first + batch]
        key_B = row_keys(seed, range(first, first + len(some)))
        parts.append(write(
            model, lm.params, lm.tokenizer, some, max_tokens=max_tokens, sampler=sampler, key_B=key_B, dtype=lm.dtype
        ))  # fmt: skip
    ids, texts = ([one for part in parts for one in getattr(part, name)] for name in ("ids", "texts"))
    return Completions(prompts, ids, texts, np.concatenate([part.ended_B for part in parts]))


def _text(tokenizer: Tokenizer, prompt: Prompt, ids: Sequence[int]) -> str:
    stream = tokenizer.stream()
    for token in () if prompt.anew else prompt.ids:
        stream.push(token)
    return "".join([*map(stream.push, ids), stream.flush()])

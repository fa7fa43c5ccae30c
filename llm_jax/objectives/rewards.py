"""How good a completion is: plain functions of texts, which policies are trained on and reports measure."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from llm_jax.core.parts import Part
from llm_jax.core.tables import InputError
from llm_jax.data.documents import Document, Example, Rendering
from llm_jax.text.tokenizer import Tokenizer


class Reward(Part):
    """`reward(prompts, completions, examples) -> scores`. An experiment may make its own: subclass, and score."""

    def __call__(self, prompts: Sequence[str], completions: Sequence[str], examples: Sequence[Document]) -> np.ndarray:
        """float64 [N]: a score for each completion, the higher the better.

        Args:
          prompts: what was to be gone on from.
          completions: what was written, without the token that ends it.
          examples: the document that each prompt is of, with what else is known of it.
        """
        raise NotImplementedError

    def ready(self, tokenizer: Tokenizer, rendering: Rendering, frozen: Any) -> Reward:
        """The reward as a training asks it: one that reads texts as a model does is given what that needs."""
        return self


@dataclasses.dataclass(frozen=True)
class ExactAnswer(Reward):
    """1 where the completion, without white space around it, is the answer of the example; else 0.

    Raises:
      InputError: a document is no example.
    """

    def __call__(self, prompts, completions, examples):
        wanted = [e.answer for e in examples if isinstance(e, Example)]
        if len(wanted) < len(examples):
            raise InputError("ExactAnswer needs examples with a prompt and an answer: no other document has one answer")
        return np.array([c.strip() == w.strip() for c, w in zip(completions, wanted, strict=True)], np.float64)


REWARDS = dict(ExactAnswer=ExactAnswer)

"""The recipe of a tokenizer that is not made of texts."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

from llm_jax.core.errors import InputError
from llm_jax.text.recipes import TokenizerRecipe
from llm_jax.text.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Kept(TokenizerRecipe):
    """The tokenizer that is in the run's folder already: it came with the model."""

    def train(self, texts: Iterable[str], special: Sequence[str] = ()) -> Tokenizer:
        raise InputError(
            "tokenizer=Kept() stands for one that comes with a model: set init_from to the folder of a run that has it"
        )

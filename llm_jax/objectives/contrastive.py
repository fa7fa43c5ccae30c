"""Sentence vectors, learnt by finding the text that belongs to another among those of the batch."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from llm_jax.core.auxiliary import ASIDE, heard
from llm_jax.core.dims import contract
from llm_jax.core.errors import InputError
from llm_jax.core.parts import Positive, conform
from llm_jax.layers.moe import routing
from llm_jax.layers.tokens import PADDING, Tokens
from llm_jax.models.encoder import Encoder
from llm_jax.objectives.objective import Relating, cross_entropy


@dataclasses.dataclass(frozen=True)
class Contrastive(Relating):
    """InfoNCE (van den Oord et al. 2018) of pairs of texts: which of the batch's second texts belongs to each first?

    Scores are cosines, divided by `temperature`, of the vectors that an Encoder's `pooling` gives; the second texts of
    the other rows are what the true one is told from (Gao et al. 2021, SimCSE; with a text as its own second, the two
    differ by dropout alone). A row with the same first or the same second text is none of them: its answer is right
    too. All rows of the batch count, whatever `microbatches` and the layout are. Evaluation is among the rows of a
    batch too. A row that has no other to be told from has no weight: its loss would be 0, and its answer right,
    whatever the model. Sums: weight (rows), loss (nats) and, in evaluation, correct; of a mixture of experts those of
    `routing`, means over the two texts.

    Raises:
      InputError: the model is no Encoder, or the batch has no two texts.
    """

    likelihood: ClassVar[bool] = False
    together: ClassVar[int] = 2

    temperature: Positive = 0.05

    def represent(self, model, params, frozen, batch, key):
        conform(model, Encoder, "model")
        if "source_BS" not in batch or "targets_BT" in batch:
            raise InputError("Contrastive needs two texts a row: set data.presentation=TwoTexts()")
        keys = (None, None) if key is None else jax.random.split(key)

        def vectors(tokens_BT: jax.Array, at: Tokens, key: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
            pooled: Any = model.apply({"params": params}, tokens_BT, at, key, method=_pooled, mutable=[ASIDE])
            wide_BD = pooled[0].astype(jnp.float32)
            unit_BD = wide_BD * jax.lax.rsqrt(jnp.maximum((wide_BD * wide_BD).sum(-1, keepdims=True), 1e-24))
            return unit_BD, heard(pooled[1])

        return (
            vectors(batch["source_BS"], Tokens(batch["source_position_BS"], batch["source_segment_BS"]), keys[0]),
            vectors(batch["tokens_BT"], Tokens(batch["position_BT"], batch["segment_BT"]), keys[1]),
        )

    def relate(self, vectors, batch, key):
        (first_BD, first_said), (second_ND, second_said) = vectors
        there_B = (batch["segment_BT"] != PADDING).any(1)
        score_BN = contract("BD,ND->BN", first_BD, second_ND) / self.temperature
        own_B = jnp.arange(len(first_BD))
        alike_BN = (_alike(batch["source_BS"]) | _alike(batch["tokens_BT"])) & (own_B[:, None] != own_B[None])
        rival_BN = there_B[None] & ~alike_BN  # nor is a row of padding a rival
        score_BN = jnp.where(rival_BN, score_BN, -1e30)
        told_B = there_B & (rival_BN.sum(1) > 1)  # one of them is the row itself
        weight_B = told_B.astype(jnp.float32)
        sums = dict(weight=weight_B.sum(), loss=jnp.where(told_B, cross_entropy(score_BN, own_B), 0).sum())
        if key is None:
            sums["correct"] = jnp.where(score_BN.argmax(-1) == own_B, weight_B, 0).sum()
        for name, value in routing(first_said, weight_B / 2).items():
            sums[name] = value + routing(second_said, weight_B / 2)[name]
        return sums


def _pooled(model: Encoder, tokens_BT: jax.Array, at: Tokens, key: Any) -> jax.Array:
    return model.pooled(model.vectors(tokens_BT, at, dropout_key=key), at)


def _alike(token_BT: jax.Array) -> jax.Array:
    """[B, B]: whether two rows have the same tokens."""
    return (token_BT[:, None] == token_BT[None]).all(-1)


OBJECTIVES = dict(Contrastive=Contrastive)

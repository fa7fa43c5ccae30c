"""Saying which tokens were masked (Devlin et al. 2019, BERT)."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp

from llm_jax.core.auxiliary import ASIDE, heard
from llm_jax.core.errors import InputError
from llm_jax.core.parts import conform
from llm_jax.layers.moe import routing
from llm_jax.layers.tokens import Tokens
from llm_jax.models.encoder import Encoder
from llm_jax.objectives.objective import Objective, cross_entropy


@dataclasses.dataclass(frozen=True)
class MaskedTokens(Objective):
    """Cross-entropy in nats of the token that stands in each place, summed by the weights that `Masked` gives them.

    The model is an Encoder with a `head`. Sums: weight, loss and, in evaluation, correct; of a mixture of experts those
    of `routing`. The perplexity is that of a masked token, given all others; there are no bits per byte of it.

    Raises:
      InputError: the model is none, or nothing in the batch was masked by a presentation.
    """

    def __call__(self, model, params, frozen, batch, key):
        conform(model, Encoder, "model")
        if "bytes_BT" in batch or "targets_BT" not in batch:
            raise InputError("MaskedTokens needs texts with masked tokens: set data.presentation=Masked()")
        at = Tokens(batch["position_BT"], batch["segment_BT"])
        scored: Any = model.apply({"params": params}, batch["tokens_BT"], at, key, method=_scores, mutable=[ASIDE])
        score_BTV, said = scored
        target_BT, weight_BT = batch["targets_BT"], batch["weight_BT"]
        sums = dict(weight=weight_BT.sum(), loss=(cross_entropy(score_BTV, target_BT) * weight_BT).sum())
        if key is None:
            sums["correct"] = jnp.where(score_BTV.argmax(-1) == target_BT, weight_BT, 0).sum()
        return sums | routing(heard(said), weight_BT.sum(1))


def _scores(model: Encoder, tokens_BT: Any, at: Tokens, key: Any) -> Any:
    return model.score(model.vectors(tokens_BT, at, dropout_key=key))


OBJECTIVES = dict(MaskedTokens=MaskedTokens)

"""Predicting the next token."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from llm_jax.core.auxiliary import ASIDE, heard
from llm_jax.core.errors import InputError
from llm_jax.core.parts import Rate, conform
from llm_jax.layers.moe import routing
from llm_jax.models.model import Generator
from llm_jax.objectives.objective import Objective, cross_entropy, smoothed


@dataclasses.dataclass(frozen=True)
class NextToken(Objective):
    """Cross-entropy in nats, summed over the targets by their weights.

    Sums: weight, loss, bytes (of text that the weighted targets stand for) and, in evaluation, correct; of a mixture of
    experts those of `routing`. A target that a mask shows to earlier tokens (`Prefix`, of prefix language models) has
    weight 0. `smoothing` is the share of each target that is spread over the vocabulary (Szegedy et al. 2016);
    evaluation measures without it, and in training the sum `cross_entropy` is without it.

    Raises:
      InputError: a mask shows all of them (`Full`), or the batch is not made of texts to write.
    """

    smoothing: Rate = 0.0

    def __call__(self, model, params, frozen, batch, key):
        conform(model, Generator, "model")
        weight_BT, target_BT = weights(model, batch), batch["targets_BT"]
        predicted: Any = model.apply({"params": params}, batch, key, method="predict", mutable=[ASIDE])
        score_BTV, said = predicted
        loss_BT = smoothed(score_BTV, target_BT, 0.0 if key is None else self.smoothing)
        sums = dict(
            weight=weight_BT.sum(),
            loss=(loss_BT * weight_BT).sum(),
            bytes=(batch["bytes_BT"].astype(jnp.float32) * weight_BT).sum(),
        )
        if key is not None and self.smoothing:
            sums["cross_entropy"] = (cross_entropy(score_BTV, target_BT) * weight_BT).sum()
        if key is None:
            sums["correct"] = jnp.where(score_BTV.argmax(-1) == target_BT, weight_BT, 0).sum()
        return sums | routing(heard(said), weight_BT.sum(1))


def weights(model: Any, batch: Mapping[str, jax.Array]) -> jax.Array:
    """[B, T]: the weights of a batch's targets, 0 where a mask of the model's shows them to tokens before.

    Raises:
      InputError: a mask shows all of them; or no target is the token after (`Masked`), or not all are to be learnt
        (`Pairs`).
    """
    if not {"targets_BT", "weight_BT", "bytes_BT"} <= batch.keys() or "margin_B" in batch:
        raise InputError(
            "the batch does not say what to write next: set data.presentation=AsIs(), or SourceAndTarget() or "
            "Denoising() for a model that reads sources"
        )
    ahead = model.ahead()
    return jnp.where(batch["position_BT"] + 1 < ahead, 0, batch["weight_BT"]) if ahead else batch["weight_BT"]


OBJECTIVES = dict(NextToken=NextToken)

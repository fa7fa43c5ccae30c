"""Telling which class a text or an image is of."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax.numpy as jnp

from llm_jax.core.aside import ASIDE, heard
from llm_jax.core.parts import Rate
from llm_jax.core.tables import InputError
from llm_jax.layers.moe import routing
from llm_jax.objectives.objective import Objective, cross_entropy, smoothed


@dataclasses.dataclass(frozen=True)
class Classification(Objective):
    """Cross-entropy in nats of the classes `label_B`, summed over the rows; a row whose label is negative has none.

    The model's `classify(batch, key)` gives the scores [B, O]. Sums: weight (rows), loss and, in evaluation, correct.
    `smoothing` is the share of each target that is spread over all classes (Szegedy et al. 2016); evaluation measures
    without it, and in training the sum `cross_entropy` is without it. Of a mixture of experts there are the sums of
    `routing` too.

    Raises:
      InputError: the model does not classify or lacks a class, or the batch has no labels.
    """

    smoothing: Rate = 0.0

    def check(self, model, documents):
        classes = getattr(model, "classes", math.inf)
        labels = [getattr(document, "label", document.number) for document in documents]
        most = max((label for label in labels if label is not None), default=-1)
        if most >= classes:
            raise InputError(
                f"a document is of class {most:g}, and the model's classes are 0 to {classes - 1}: set model.classes"
            )

    def __call__(self, model, params, frozen, batch, key):
        if not hasattr(model, "classify"):
            raise InputError(f"{type(model).__name__} does not classify: use an ImageClassifier or a Classifier")
        if "label_B" not in batch:
            raise InputError("Classification needs labels: use data=Images(...), or data.presentation=WithLabel()")
        label_B = batch["label_B"]
        classified: Any = model.apply({"params": params}, batch, key, method="classify", mutable=[ASIDE])
        score_BO, said = classified
        weight_B = (label_B >= 0).astype(jnp.float32)
        loss_B = smoothed(score_BO, label_B, 0.0 if key is None else self.smoothing)
        sums = dict(weight=weight_B.sum(), loss=jnp.where(label_B >= 0, loss_B, 0).sum())
        if key is not None and self.smoothing:
            sums["cross_entropy"] = jnp.where(label_B >= 0, cross_entropy(score_BO, label_B), 0).sum()
        if key is None:
            sums["correct"] = jnp.where(score_BO.argmax(-1) == label_B, weight_B, 0).sum()
        return sums | routing(heard(said), weight_B)


OBJECTIVES = dict(Classification=Classification)

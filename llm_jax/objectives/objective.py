"""What an objective is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from llm_jax.core.arrays import Batch
from llm_jax.core.parts import Part
from llm_jax.core.returned import unusable
from llm_jax.data.documents import Document
from llm_jax.data.pipeline import Data
from llm_jax.text.tokenizer import Tokenizer

Sums = dict[str, jax.Array]
ProblemType = Literal["regression", "single_label_classification", "multi_label_classification"]  # transformers'


class Objective(Part):
    """`objective(model, params, frozen, batch, key) -> sums`, of which `"weight"` is one: the step divides by it, once.

    So microbatches, evaluation and data parallelism agree. `"auxiliary"`, where there is such a sum, is no part of the
    loss that is logged, but training lowers it with the loss. Every other sum is logged as a mean: over `weight`, or
    over the sum `x_weight` for a sum `x` of other things. `frozen` holds what is not trained: what `prepare` made, and
    where `keeps_reference`, `"reference"`, the parameters that training began with. `key` is for dropout; None means
    evaluation.

    Attributes:
      likelihood: whether the loss is the negative log-likelihood of data, in nats: then it has a perplexity.
      together: how many rows training must compute at once, at least, where a row is compared with others.
      problem_type: what it makes the scores of a classifier mean; None: it does not train classifiers.
    """

    likelihood: ClassVar[bool] = True
    together: ClassVar[int] = 1
    problem_type: ClassVar[ProblemType | None] = None

    def check(self, model: Any, documents: Sequence[Document]) -> None:
        """Nothing, if the model can learn this from these, before any of it is tokenised.

        Raises:
          InputError: it cannot.
        """

    def prepare(self, data: Data, tokenizer: Tokenizer | None) -> Any:
        """What `frozen` is at the beginning of a run, as NumPy arrays: the same for the same data and tokenizer."""
        return None

    def keeps_reference(self) -> bool:
        """Whether it compares the model with what training began with."""
        return False

    def __call__(self, model: nn.Module, params: Any, frozen: Any, batch: Batch, key: Any) -> Sums:
        raise NotImplementedError


def check_sums(objective: Any, sums: Any) -> Sums:
    """What an objective returned, while it is traced: scalars, with a loss and a weight.

    Raises:
      InputError: it is anything else.
    """
    wanted = "sums, a dict of scalars, with 'loss' and 'weight': the step divides by the weight, and sums over batches"
    name = f"the objective {type(objective).__name__}"
    if not isinstance(sums, dict) or not {"loss", "weight"} <= sums.keys():
        raise unusable(name, sums, wanted)
    for key, value in sums.items():
        if not isinstance(value, jax.Array | np.ndarray | np.generic | int | float) or np.shape(value) != ():
            raise unusable(f"{name}, as {key!r},", value, wanted)
    return sums


class Relating(Objective):
    """An objective that compares the rows of a batch with each other: it is no sum over pieces of the batch.

    `represent` makes vectors of rows, each of its own row alone, and `relate` the sums of all vectors together. So the
    step can go through the model by microbatches and yet relate all rows of the batch, on whichever device they are.
    """

    def represent(self, model: nn.Module, params: Any, frozen: Any, batch: Batch, key: Any) -> Any:
        """Arrays [B, ...] in float32."""
        raise NotImplementedError

    def relate(self, vectors: Any, batch: Batch, key: Any) -> Sums:
        raise NotImplementedError

    def __call__(self, model, params, frozen, batch, key):
        return self.relate(self.represent(model, params, frozen, batch, key), batch, key)


def cross_entropy(score_BTV: jax.Array, target_BT: jax.Array) -> jax.Array:
    """-log softmax(score)[target], [B, T] nats."""
    chosen_BT = jnp.take_along_axis(score_BTV, target_BT[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(score_BTV, axis=-1) - chosen_BT


def smoothed(score: jax.Array, target: jax.Array, smoothing: float) -> jax.Array:
    """`cross_entropy` [...] with a target of which the share `smoothing` is spread over all there is to choose from."""
    loss = cross_entropy(score, target)
    if not smoothing:
        return loss
    return (1 - smoothing) * loss + smoothing * (jax.nn.logsumexp(score, axis=-1) - score.mean(-1))

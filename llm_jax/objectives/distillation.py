"""Learning to write as another model does (Hinton et al. 2015)."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp

from llm_jax.core.auxiliary import ASIDE, heard
from llm_jax.core.errors import InputError
from llm_jax.core.parts import Positive, Share, conform
from llm_jax.layers.moe import routing
from llm_jax.models.model import Generator
from llm_jax.models.pretrained import Pretrained
from llm_jax.objectives.next_token import weights
from llm_jax.objectives.objective import Objective, cross_entropy


@dataclasses.dataclass(frozen=True)
class Distillation(Objective):
    """The divergence of the model's next-token probabilities from those of a `teacher`, which is not trained.

    "forward" is KL(teacher || model), which the model lowers by covering all that the teacher may say; "reverse" is
    KL(model || teacher), by saying nothing that it would not (Gu et al. 2024, MiniLLM). Both are softened by
    `temperature`, and multiplied by its square, so that gradients keep their size. The share `hard` of the loss is the
    cross-entropy of the texts. Sums: weight, loss, kl and cross_entropy (nats; as they are, without temperature) and,
    in evaluation, correct; of a mixture of experts those of `routing`. Weights are those of NextToken.

    Raises:
      InputError: the model and the teacher have not as many words, or begin texts otherwise; or as NextToken.
    """

    likelihood: ClassVar[bool] = False

    teacher: Pretrained
    direction: Literal["forward", "reverse"] = "forward"
    temperature: Positive = 1.0
    hard: Share = 0.0

    def __call__(self, model, params, frozen, batch, key):
        conform(model, Generator, "model")
        conform(self.teacher.model, Generator, "objective.teacher.model")
        if model.words() != (known := self.teacher.model.words()):
            raise InputError(f"the model has {model.words()} words and its teacher {known}: they cannot be compared")
        begun, begins = (len(each.opening() or ()) for each in (self.teacher.model, model))
        if begun != begins:  # a teacher that writes more has another need of rows (`check_openings`)
            raise InputError(
                f"the teacher begins a text with {begun} tokens of its own and the model with {begins}: set "
                "objective.teacher to a run whose model has as many"
            )
        weight_BT, target_BT = weights(model, batch), batch["targets_BT"]
        predicted: Any = model.apply({"params": params}, batch, key, method="predict", mutable=[ASIDE])
        score_BTV, said = predicted
        told = {"params": self.teacher.params(frozen)}
        taught: Any = self.teacher.model.apply(told, batch, None, method="predict")
        taught_BTV = jax.lax.stop_gradient(taught)
        hard_BT = cross_entropy(score_BTV, target_BT)
        soft_BT = self.temperature**2 * self._divergence(taught_BTV / self.temperature, score_BTV / self.temperature)
        loss_BT = self.hard * hard_BT + (1 - self.hard) * soft_BT
        sums = dict(
            weight=weight_BT.sum(),
            loss=(loss_BT * weight_BT).sum(),
            kl=(self._divergence(taught_BTV, score_BTV) * weight_BT).sum(),
            cross_entropy=(hard_BT * weight_BT).sum(),
        )
        if key is None:
            sums["correct"] = jnp.where(score_BTV.argmax(-1) == target_BT, weight_BT, 0).sum()
        return sums | routing(heard(said), weight_BT.sum(1))

    def _divergence(self, taught_BTV: jax.Array, score_BTV: jax.Array) -> jax.Array:
        """[B, T] nats."""
        pair = jax.nn.log_softmax(taught_BTV), jax.nn.log_softmax(score_BTV)
        p_BTV, q_BTV = pair if self.direction == "forward" else reversed(pair)
        return (jnp.exp(p_BTV) * (p_BTV - q_BTV)).sum(-1)


OBJECTIVES = dict(Distillation=Distillation)

"""Proximal policy optimisation: a policy gradient by token, with a critic."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np

from llm_jax.core.auxiliary import ASIDE
from llm_jax.core.errors import InputError
from llm_jax.core.parts import NonNegative, Positive, conform
from llm_jax.models.actor_critic import ActorCritic
from llm_jax.objectives.divergence import Divergence, FixedKl
from llm_jax.objectives.policy import Credit, PolicyGradient, Share, clipped


@dataclasses.dataclass(frozen=True)
class Ppo(PolicyGradient):
    """Proximal policy optimisation (Schulman et al. 2017) of tokens, as for language (Ziegler et al. 2019).

    Each token is rewarded by its divergence from the reference (`kl`), the last one by the completion's reward too.
    Advantages are generalised estimates (Schulman et al. 2016) by the values of the model's critic, `whiten`ed over
    the rollout. Policy and value are clipped; `value` weighs the value's loss. Sums besides: value_loss.

    Attributes:
      bootstrap: whether a completion that was cut off is worth what the critic expects of it, in place of what the
        rewards say of it as it stands (Pardo et al. 2018).

    Raises:
      InputError: the model is no ActorCritic, or with `bootstrap` the data says what a completion that was cut off is
        worth.
    """

    kl: Divergence = FixedKl()
    clip: Share = 0.2
    clip_value: Positive = 0.2
    value: NonNegative = 0.1
    discount: Share = 1.0
    trace: Share = 0.95  # lambda
    whiten: bool = True
    bootstrap: bool = False

    def reads_end(self):
        return self.bootstrap

    def prepare(self, data, tokenizer):
        if self.bootstrap and getattr(data, "unended", None) is not None:
            raise InputError(
                f"data.unended={data.unended:g} says what a completion that was cut off is worth, and "
                "objective.bootstrap asks the critic: set one of them alone, data.unended=None or "
                "objective.bootstrap=False"
            )
        return super().prepare(data, tokenizer)

    def first_coefficient(self):
        return self.kl.coefficient

    def read(self, model, params, frozen, batch):
        actor_critic = conform(model, ActorCritic, "model")
        read = super().read(actor_critic, params, frozen, batch)
        valued: Any = actor_critic.apply({"params": params}, batch, method="values", mutable=[ASIDE])
        said = {ASIDE: {**read.said.get(ASIDE, {}), **valued[1].get(ASIDE, {})}}  # of actor and critic
        return read._replace(value_BT=valued[0], said=said)

    def credit(self, rollout, coefficient):
        weight_BT = rollout.weight_BT
        reward_BT = -coefficient * (rollout.old_BT - rollout.reference_BT) * weight_BT
        row_B, last_B = np.arange(len(weight_BT)), weight_BT.shape[1] - 1 - weight_BT[:, ::-1].argmax(1)
        end_B, after_B = rollout.reward_B, np.zeros(len(row_B))
        if self.bootstrap and rollout.ended_B is not None:
            cut_B = rollout.ended_B == 0
            end_B = np.where(cut_B, 0, end_B)
            behind_B = np.minimum(last_B + 1, weight_BT.shape[1] - 1)  # a row of a cut completion has room for it
            after_B = np.where(cut_B, rollout.value_BT[row_B, behind_B], 0)
        reward_BT[row_B, last_B] += end_B
        advantage_BT = advantages(reward_BT, rollout.value_BT, weight_BT, self.discount, self.trace, after_B)
        return_BT = (advantage_BT + rollout.value_BT) * weight_BT
        if self.whiten:
            advantage_BT = _whitened(advantage_BT, weight_BT)
        return Credit(advantage_BT, return_BT, self.kl.after(coefficient, float(rollout.divergence_B.mean())))

    def counted(self, weight_BT):
        return weight_BT.sum(1)

    def lose(self, read, kl_BT, batch, frozen):
        weight_BT, return_BT = batch["weight_BT"], batch["return_BT"]
        ratio_BT = jnp.exp(read.logp_BT - batch["old_BT"])
        loss_BT, clipped_BT = clipped(ratio_BT, batch["advantage_BT"], self.clip, self.clip)
        change_BT = jnp.clip(read.value_BT - batch["value_BT"], -self.clip_value, self.clip_value)
        near_BT = batch["value_BT"] + change_BT
        value_BT = jnp.maximum((read.value_BT - return_BT) ** 2, (near_BT - return_BT) ** 2) / 2
        sums = dict(
            loss=((loss_BT + self.value * value_BT) * weight_BT).sum(),
            value_loss=(value_BT * weight_BT).sum(),
        )
        return sums, ((clipped_BT * weight_BT).sum(), weight_BT.sum())


def advantages(
    reward_BT: np.ndarray, value_BT: np.ndarray, weight_BT: np.ndarray, discount: float, trace: float,
    after_B: np.ndarray | None = None,
) -> np.ndarray:  # fmt: skip
    """[B, T]: generalised advantage estimates; what follows the last target with a weight is worth `after_B` (0)."""
    advantage_BT = np.zeros_like(reward_BT)
    later_B, value_B = np.zeros(len(reward_BT)), np.zeros(len(reward_BT)) if after_B is None else after_B
    for t in reversed(range(reward_BT.shape[1])):
        error_B = reward_BT[:, t] + discount * value_B - value_BT[:, t]
        later_B = (error_B + discount * trace * later_B) * weight_BT[:, t]
        advantage_BT[:, t], value_B = later_B, np.where(weight_BT[:, t] > 0, value_BT[:, t], value_B)
    return advantage_BT


def _whitened(x_BT: np.ndarray, weight_BT: np.ndarray) -> np.ndarray:
    count = weight_BT.sum()
    mean = (x_BT * weight_BT).sum() / count
    variance = ((x_BT - mean) ** 2 * weight_BT).sum() / count
    return (x_BT - mean) / np.sqrt(variance + 1e-8) * weight_BT


OBJECTIVES = dict(Ppo=Ppo)

"""Proximal policy optimisation: a policy gradient by token, with a critic."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np

from llm_jax.core.aside import ASIDE
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

    Raises:
      InputError: the model is no ActorCritic.
    """

    kl: Divergence = FixedKl()
    clip: Share = 0.2
    clip_value: Positive = 0.2
    value: NonNegative = 0.1
    discount: Share = 1.0
    trace: Share = 0.95  # lambda
    whiten: bool = True

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
        last_B = weight_BT.shape[1] - 1 - weight_BT[:, ::-1].argmax(1)
        reward_BT[np.arange(len(last_B)), last_B] += rollout.reward_B
        advantage_BT = advantages(reward_BT, rollout.value_BT, weight_BT, self.discount, self.trace)
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
    reward_BT: np.ndarray, value_BT: np.ndarray, weight_BT: np.ndarray, discount: float, trace: float
) -> np.ndarray:
    """[B, T]: generalised advantage estimates; after the last target with a weight there is nothing to come."""
    advantage_BT = np.zeros_like(reward_BT)
    later_B = value_B = np.zeros(len(reward_BT))
    for t in reversed(range(reward_BT.shape[1])):
        error_B = reward_BT[:, t] + discount * value_B - value_BT[:, t]
        later_B = (error_B + discount * trace * later_B) * weight_BT[:, t]
        advantage_BT[:, t], value_B = later_B, value_BT[:, t] * weight_BT[:, t]
    return advantage_BT


def _whitened(x_BT: np.ndarray, weight_BT: np.ndarray) -> np.ndarray:
    count = weight_BT.sum()
    mean = (x_BT * weight_BT).sum() / count
    variance = ((x_BT - mean) ** 2 * weight_BT).sum() / count
    return (x_BT - mean) / np.sqrt(variance + 1e-8) * weight_BT


OBJECTIVES = dict(Ppo=Ppo)

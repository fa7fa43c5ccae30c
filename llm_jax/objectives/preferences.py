"""Learning from pairs of which one is preferred: a reward model, or the policy itself without one.

All take batches of `Pairs`. Dropout is left out, as is usual: it would only blur what is compared.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from llm_jax.core.arrays import Batch
from llm_jax.core.auxiliary import ASIDE, heard
from llm_jax.core.errors import InputError
from llm_jax.core.parts import NonNegative, Positive, Rate, conform
from llm_jax.layers.moe import routing
from llm_jax.layers.tokens import Tokens
from llm_jax.models.heads import Scorer
from llm_jax.models.model import Generator
from llm_jax.objectives.objective import Objective, Sums, cross_entropy

Texts = dict[str, jax.Array]  # arrays [N, T] by their names in a batch; texts 2i and 2i + 1 are a pair


def apart(batch: Batch) -> Texts:
    """The texts of a batch [B, 2T] as [2B, T]: each row's chosen, then its rejected.

    Raises:
      InputError: the batch does not hold pairs.
    """
    if "margin_B" not in batch:
        raise InputError("preferences are learnt from pairs: set data.presentation=Pairs() and data.packing=One()")
    return {name: x.reshape(-1, x.shape[1] // 2) for name, x in batch.items() if name.endswith("_BT")}


def _sums(loss_B: jax.Array, reward_BO: jax.Array, real_B: jax.Array) -> Sums:
    """Over the pairs: weight, loss, correct (the chosen has the higher reward), and the rewards of both [B, 2]."""
    margin_B = reward_BO[:, 0] - reward_BO[:, 1]
    of_pairs = dict(
        weight=jnp.ones_like(loss_B), loss=loss_B, correct=(margin_B > 0).astype(jnp.float32), reward_margin=margin_B,
        reward_chosen=reward_BO[:, 0], reward_rejected=reward_BO[:, 1],
    )  # fmt: skip
    return {name: jnp.where(real_B, x, 0).sum() for name, x in of_pairs.items()}


def _real(texts: Texts) -> jax.Array:
    """[B]: whether the row holds a pair, and not padding."""
    return (texts["weight_BT"] > 0).any(1).reshape(-1, 2).all(1)


@dataclasses.dataclass(frozen=True)
class BradleyTerry(Objective):
    """A reward model: the probability that the chosen is preferred is sigmoid(r_chosen - r_rejected - margin).

    `margin` times the pair's own margin is asked for (Touvron et al. 2023, Llama 2; 0: none). The model is a `Scorer`.

    A pair says nothing of where rewards lie, only how far they are from each other. `center_rewards_coefficient` times
    (r_chosen + r_rejected)^2 is added to the loss, which keeps them around 0 (Eisenstein et al. 2023; they use 0.01).

    Raises:
      InputError: the model is none, or the batch does not hold pairs.
    """

    likelihood = False
    margin: NonNegative = 0.0
    center_rewards_coefficient: NonNegative = 0.0

    def __call__(self, model, params, frozen, batch, key):
        conform(model, Scorer, "model")
        texts = apart(batch)
        at = Tokens(texts["position_BT"], texts["segment_BT"])
        scored: Any = model.apply({"params": params}, texts["tokens_BT"], at, method="reward", mutable=[ASIDE])
        reward_BO, real_B = scored[0].reshape(-1, 2), _real(texts)
        margin_B = reward_BO[:, 0] - reward_BO[:, 1] - self.margin * batch["margin_B"]
        loss_B = jax.nn.softplus(-margin_B)
        if self.center_rewards_coefficient:
            loss_B += self.center_rewards_coefficient * reward_BO.sum(1) ** 2
        return _sums(loss_B, reward_BO, real_B) | _routing(scored[1], real_B)


def _routing(said: Any, real_B: jax.Array) -> Sums:
    """What a mixture of experts said of the texts, each of which is half a pair."""
    return routing(heard(said), jnp.repeat(real_B.astype(jnp.float32) / 2, 2))


@flax.struct.dataclass
class Likelihoods:
    """Of each row's two replies, the chosen and the rejected [B, 2]: what the policy makes of them.

    `drift` is `Kto`'s estimate of how far the policy is from the reference.
    """

    log_BO: jax.Array  # log-probability of the reply, summed over its tokens
    reference_BO: jax.Array  # the same by the reference; 0 where an objective has none
    count_BO: jax.Array  # tokens, at least 1
    drift: jax.Array | float = 0.0

    def ratio_BO(self) -> jax.Array:
        return self.log_BO - self.reference_BO

    def mean_ratio_BO(self) -> jax.Array:
        """The ratio's logarithm per token."""
        return self.ratio_BO() / self.count_BO

    def mean_BO(self) -> jax.Array:
        """Log-probability per token."""
        return self.log_BO / self.count_BO


def read(model: Generator, params: Any, texts: Texts) -> tuple[jax.Array, jax.Array, Any]:
    """[N] log-probability of each text's learnt tokens, [N] how many, and what layers said on the side."""
    ahead = model.ahead()
    predicted: Any = model.apply({"params": params}, texts, None, method="predict", mutable=[ASIDE])
    weight_NT = texts["weight_BT"]
    weight_NT = jnp.where(texts["position_BT"] + 1 < ahead, 0, weight_NT) if ahead else weight_NT
    log_NT = -cross_entropy(predicted[0], texts["targets_BT"])
    return jnp.where(weight_NT > 0, log_NT, 0).sum(1), (weight_NT > 0).sum(1).astype(jnp.float32), predicted[1]


@dataclasses.dataclass(frozen=True)
class _Direct(Objective):
    """Trains a policy on pairs directly. A member says what the loss and the implicit rewards are of likelihoods.

    The reference is read without gradients: it costs a forward pass, and its scores [2B, T, V] only until they are
    summed; no activations of it are kept.

    Sums, over the pairs: weight, loss, correct, reward_margin, reward_chosen and reward_rejected.
    """

    likelihood = False

    def __call__(self, model, params, frozen, batch, key):
        model = conform(model, Generator, "model")
        texts = apart(batch)
        log_N, count_N, said = read(model, params, texts)
        reference_N = self._reference(model, frozen, texts)
        pairs = Likelihoods(*(x.reshape(-1, 2) for x in (log_N, reference_N, jnp.maximum(count_N, 1))))
        real_B = _real(texts)
        if (estimate := self.drift(model, params, frozen, texts, real_B)) is not None:
            pairs = dataclasses.replace(pairs, drift=estimate[0])
        sums = _sums(*self.judge(pairs), real_B) | _routing(said, real_B)
        if estimate is None:
            return sums
        drift, known = estimate
        weight = jnp.where(known, sums["weight"], 0)
        return sums | dict(kl=drift * weight, kl_weight=weight)

    def _reference(self, model: Generator, frozen: Any, texts: Texts) -> jax.Array:
        """[N] log-probabilities by the reference; 0 where there is none."""
        if not self.keeps_reference():
            return jnp.zeros(len(texts["weight_BT"]), jnp.float32)
        return jax.lax.stop_gradient(read(model, frozen["reference"], texts)[0])

    def drift(
        self, model: Generator, params: Any, frozen: Any, texts: Texts, real_B: jax.Array
    ) -> tuple[jax.Array, jax.Array] | None:  # fmt: skip
        """What `judge` wants to know of the batch besides, and whether the batch tells it; None: nothing."""
        return None

    def judge(self, pairs: Likelihoods) -> tuple[jax.Array, jax.Array]:
        """[B] loss of each pair, [B, 2] the rewards that the policy implies."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Dpo(_Direct):
    """Direct preference optimisation (Rafailov et al. 2023): the reward is beta log(policy / reference).

    `smoothing` is the probability that a label is wrong (cDPO, Mitchell 2023).
    """

    beta: Positive = 0.1
    smoothing: Rate = 0.0

    def keeps_reference(self):
        return True

    def judge(self, pairs):
        reward_BO = self.beta * self.ratio_BO(pairs)
        margin_B = reward_BO[:, 0] - reward_BO[:, 1]
        loss_B = (1 - self.smoothing) * jax.nn.softplus(-margin_B) + self.smoothing * jax.nn.softplus(margin_B)
        return loss_B, reward_BO

    def ratio_BO(self, pairs: Likelihoods) -> jax.Array:
        """[B, 2]: what the reward is beta times."""
        return pairs.ratio_BO()


@dataclasses.dataclass(frozen=True)
class DpoNorm(Dpo):
    """Length-normalised DPO (Lambert et al. 2024, Tulu 3; after Meng et al. 2024): `Dpo` of log-ratios per token.

    It is `dpo_norm` of open-instruct and `sigmoid_norm` of trl. A sum over tokens grows with a reply's length, and with
    it how much a long pair weighs in `Dpo`. Means are smaller than sums, so that `beta` is larger: Tulu 3 has 5.
    """

    beta: Positive = 5.0

    def ratio_BO(self, pairs):
        return pairs.mean_ratio_BO()


@dataclasses.dataclass(frozen=True)
class Ipo(_Direct):
    """Identity preference optimisation (Azar et al. 2023): a margin of 1 / (2 beta), and no more, in log-ratios.

    The log-ratios are per token, as the authors have it and not the paper.
    """

    beta: Positive = 0.1

    def keeps_reference(self):
        return True

    def judge(self, pairs):
        ratio_BO = pairs.mean_ratio_BO()
        return (ratio_BO[:, 0] - ratio_BO[:, 1] - 1 / (2 * self.beta)) ** 2, self.beta * ratio_BO


@dataclasses.dataclass(frozen=True)
class Kto(_Direct):
    """Kahneman-Tversky optimisation (Ethayarajh et al. 2024): each reply alone is better or worse than is usual.

    What is usual is the policy's divergence from the reference, logged as `kl`. As published, it is estimated on the
    rows at hand, from prompts with a reply to another one: so microbatches see each their own, and no others. It counts
    in `kl` where there are any: not in a last batch of evaluation with one pair.
    """

    together = 2

    beta: Positive = 0.1
    desirable: Positive = 1.0
    undesirable: Positive = 1.0

    def keeps_reference(self):
        return True

    def drift(self, model, params, frozen, texts, real_B):
        texts = mismatched(texts)
        ratio_N = read(model, params, texts)[0] - self._reference(model, frozen, texts)
        real_N = jnp.repeat(real_B, 2) & (texts["weight_BT"] > 0).any(1)
        mean = jnp.where(real_N, ratio_N, 0).sum() / jnp.maximum(real_N.astype(jnp.float32).sum(), 1)
        return jax.lax.stop_gradient(jnp.maximum(mean, 0)), real_N.any()

    def judge(self, pairs):
        ratio_BO = pairs.ratio_BO()
        chosen_B = self.desirable * jax.nn.sigmoid(-self.beta * (ratio_BO[:, 0] - pairs.drift))
        rejected_B = self.undesirable * jax.nn.sigmoid(-self.beta * (pairs.drift - ratio_BO[:, 1]))
        return (chosen_B + rejected_B) / 2, self.beta * ratio_BO


def mismatched(texts: Texts) -> Texts:
    """Each prompt with the reply of the text before it of the same kind: chosen to chosen, rejected to rejected."""
    tokens_NT, weight_NT = texts["tokens_BT"], texts["weight_BT"]
    place_T = jnp.arange(tokens_NT.shape[1])[None]
    opens_N1 = (weight_NT > 0).argmax(1)[:, None]  # the last token of the prompt, whose target begins the reply
    count_N1 = (weight_NT > 0).sum(1)[:, None]
    from_N1, count_N1 = jnp.roll(opens_N1, 2, 0), jnp.roll(count_N1, 2, 0)
    nth_NT = place_T - opens_N1  # of the reply, the token that is to come here
    inside_NT = (nth_NT >= 0) & (nth_NT < count_N1)
    index_NT = jnp.clip(from_N1 + nth_NT, 0, tokens_NT.shape[1] - 1)
    target_NT = jnp.take_along_axis(jnp.roll(texts["targets_BT"], 2, 0), index_NT, 1)
    said_NT = jnp.roll(jnp.where(inside_NT, target_NT, 0), 1, 1)  # what was a target is read at the next place
    real_NT = place_T <= opens_N1 + count_N1
    return dict(
        tokens_BT=jnp.where(nth_NT <= 0, tokens_NT, said_NT),
        targets_BT=jnp.where(inside_NT, target_NT, 0),
        weight_BT=inside_NT.astype(jnp.float32),
        segment_BT=jnp.where(real_NT, 0, -1),
        position_BT=jnp.where(real_NT, place_T, 0),
    )


@dataclasses.dataclass(frozen=True)
class Orpo(_Direct):
    """Odds ratio preference optimisation (Hong et al. 2024): learns the chosen reply, and to prefer it, in one.

    Likelihoods are per token, and the reply's alone: nothing is learnt of prompts. There is no reference.
    """

    beta: Positive = 0.1

    def judge(self, pairs):
        mean_BO = pairs.mean_BO()
        below_BO = jnp.minimum(mean_BO, -1e-6)  # the odds of what is certain are infinite
        odds_BO = below_BO - _log_complement(below_BO)
        preferred_B = jax.nn.softplus(odds_BO[:, 1] - odds_BO[:, 0])
        return self.beta * preferred_B - mean_BO[:, 0], self.beta * mean_BO


def _log_complement(log: jax.Array) -> jax.Array:
    """log(1 - p) of log p, exact at either end (Maechler 2012)."""
    return jnp.where(log > -0.6931472, jnp.log(-jnp.expm1(log)), jnp.log1p(-jnp.exp(log)))


@dataclasses.dataclass(frozen=True)
class SimPo(_Direct):
    """Simple preference optimisation (Meng et al. 2024): the reward is beta times the log-probability per token.

    The chosen's is to be `gamma` higher at least. There is no reference.
    """

    beta: Positive = 2.0
    gamma: NonNegative = 1.0

    def judge(self, pairs):
        reward_BO = self.beta * pairs.mean_BO()
        return jax.nn.softplus(self.gamma - (reward_BO[:, 0] - reward_BO[:, 1])), reward_BO


OBJECTIVES = dict(BradleyTerry=BradleyTerry, Dpo=Dpo, DpoNorm=DpoNorm, Ipo=Ipo, Kto=Kto, Orpo=Orpo, SimPo=SimPo)

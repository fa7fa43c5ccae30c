"""Policy gradients: completions that were rewarded become likelier, those that were not less likely.

Completions come from `Rollouts`, with what was known when they were drawn: rewards, log-probabilities then and under
the reference, values. `credit` makes advantages of that, once for each rollout; the objective itself is the loss of a
batch. The policy is the distribution that was drawn from: at the temperature, among the tokens that a model may write.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from llm_jax.core.auxiliary import ASIDE, heard
from llm_jax.core.errors import InputError
from llm_jax.core.parts import NonNegative, Share, conform, show, walk
from llm_jax.layers.moe import MoE, routing
from llm_jax.models.actor_critic import ActorCritic
from llm_jax.models.model import Generator, Translator
from llm_jax.objectives.divergence import K3, Divergence, FixedKl, KlEstimator
from llm_jax.objectives.objective import Objective, Sums

NEVER = -1e30  # the score of a token that is not drawn


@dataclasses.dataclass(frozen=True)
class Rollout:
    """What is known of completions, those of one prompt side by side, `group` of them. NumPy, float64.

    weight_BT is 1 where the target was drawn. value_BT is the critic's before each target, 0 where there is none; where
    `reads_end` is asked for, that at the place behind the last target is of the whole completion. `ended_B` is 1 where
    a completion ended by itself.
    """

    reward_B: np.ndarray
    weight_BT: np.ndarray
    old_BT: np.ndarray
    reference_BT: np.ndarray
    value_BT: np.ndarray
    group: int
    ended_B: np.ndarray | None = None  # None: all did

    @property
    def divergence_B(self) -> np.ndarray:
        """[B]: the estimate of the divergence from the reference that each completion gives, in nats."""
        return ((self.old_BT - self.reference_BT) * self.weight_BT).sum(1)

    def grouped(self, x_B: np.ndarray) -> np.ndarray:
        """[prompts, group]."""
        return x_B.reshape(-1, self.group)

    def spread_B(self) -> np.ndarray:
        """[B]: the standard deviation of the rewards of each completion's group, as estimated of a sample (n - 1)."""
        reward = self.grouped(self.reward_B)
        return np.repeat(reward.std(1, ddof=1) if self.group > 1 else np.zeros(len(reward)), self.group)

    def tied_B(self) -> np.ndarray:
        """[B]: 1.0 where all rewards of a completion's group are the same, so that their comparison tells nothing."""
        reward = self.grouped(self.reward_B)
        return np.repeat((reward.max(1) == reward.min(1)).astype(np.float64), self.group)


class Credit(NamedTuple):
    """What a rollout is worth: [B, T] for each target, and the coefficient of the divergence for the next rollout."""

    advantage_BT: np.ndarray
    return_BT: np.ndarray
    coefficient: float


# -------------------------------------------------------------------------------------------------------- the family


class Read(NamedTuple):
    """What a model makes of a batch: [B, T] for each target."""

    logp_BT: jax.Array
    entropy_BT: jax.Array
    value_BT: jax.Array
    said: Any  # aside
    logp_BTV: jax.Array  # of every token that a model has


class PolicyGradient(Objective, abc.ABC):
    """What policy gradients share. The model is read without dropout, which would be noise in the ratio.

    Sums: weight and loss; with weights of their own reward, `reward_spread` (the deviation within a group) and
    `reward_zero_std` (the share of completions whose group has none; trl's `frac_reward_zero_std`), entropy (nats a
    token), length, truncated (completions without an end), `sampling_logp_difference` (between sampler and training,
    see `Rollouts`; a mean over rollouts, as its `_max` is), `prompts_left_out` (the share of prompts that leave no room
    for an answer); in training clip_fraction, kl (nats a token from the reference, as `kl_estimator()` has it) and
    kl_per_reply (nats a completion). Of the greedy answers of an evaluation that is no estimate: `Rewarded` measures
    the divergence. In evaluation the loss is the reward, negated.

    Raises:
      InputError: the batch has no completions, or the model does not write; or it has experts without room for all.
    """

    likelihood: ClassVar[bool] = False

    def reads_end(self) -> bool:
        """Whether the last token of a completion is read too, of which nothing is learnt: for its value."""
        return False

    def prepare(self, data, tokenizer):
        if not hasattr(data, "temperature"):
            raise InputError(f"{type(self).__name__} learns from completions: set data=Rollouts(...)")
        rollouts: Any = data
        self.check_sizes(rollouts.group, rollouts.batch * rollouts.batches)
        assert tokenizer is not None
        allowed_V = np.ones(tokenizer.vocabulary, bool)
        allowed_V[list(tokenizer.unsaid)] = False
        return dict(
            allowed_V=allowed_V,
            temperature=np.float32(rollouts.temperature),
            max_tokens=np.float32(rollouts.max_tokens),
        )

    def keeps_reference(self):
        return True

    def first_coefficient(self) -> float:
        """Of the divergence, for the first rollout; 0 where rewards have no part in it."""
        return 0.0

    def check_sizes(self, group: int, completions: int) -> None:
        """Checks that a rollout has enough completions, `group` to a prompt, to learn something from.

        Raises:
          InputError: each is compared with itself alone.
        """

    def check(self, model, documents):
        path, writer = ("model.actor", model.actor) if isinstance(model, ActorCritic) else ("model", model)
        if isinstance(writer, Translator):
            raise InputError(
                f"{path} is an {type(writer).__name__}, which reads prompts apart from what it writes, and rollouts "
                f"are of models that go on from a text: set {path} to a Decoder"
            )
        if isinstance(writer, Generator) and writer.beside():
            raise InputError(
                f"{path} is a {type(writer).__name__}, which reads {' and '.join(writer.beside())} beside each prompt, "
                f"and rollouts are of models that read text alone: set {path} to a Decoder"
            )
        for where, part in walk(writer, path):
            if isinstance(part, MoE) and part.dispatch.drops(part.top_k, part.experts):
                raise InputError(
                    f"{where}.dispatch={show(part.dispatch, whole=True)} drops in training what generation does not, "
                    "so that another policy would be trained than the one that wrote: set it to Dropless(), or to "
                    f"Capacity(factor={-(-part.experts // part.top_k)}), which drops nothing; the parameters are the "
                    "same (of an Inherited() model: set model=llm_jax.load(RUN, assignments=[...]).model)"
                )

    @abc.abstractmethod
    def credit(self, rollout: Rollout, coefficient: float) -> Credit:
        """What the completions are worth, where a nat of divergence from the reference costs `coefficient`."""
        raise NotImplementedError

    def read(self, model: Any, params: Any, frozen: Mapping[str, Any], batch: Mapping[str, jax.Array]) -> Read:
        conform(model, Generator, "model")
        predicted: Any = model.apply({"params": params}, batch, None, method="predict", mutable=[ASIDE])
        score_BTV, said = predicted
        unsaid = score_BTV.shape[-1] - frozen["allowed_V"].shape[0]  # ids that a model has beyond its tokenizer
        allowed_V = jnp.pad(frozen["allowed_V"], (0, unsaid))
        score_BTV = jnp.where(allowed_V[None, None], score_BTV / frozen["temperature"], NEVER)
        logp_BTV = jax.nn.log_softmax(score_BTV, axis=-1)
        logp_BT = jnp.take_along_axis(logp_BTV, batch["targets_BT"][..., None], axis=-1)[..., 0]
        drawn_BT = batch["weight_BT"] > 0
        entropy_BT = -(jnp.exp(logp_BTV) * logp_BTV).sum(-1)
        return Read(jnp.where(drawn_BT, logp_BT, 0), entropy_BT, jnp.zeros_like(logp_BT), said, logp_BTV)

    def recall(self, model: Any, params: Any, frozen: Any, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """What a rollout remembers of its targets: [B, T] under the policy that drew them, and under the reference."""
        now, reference = (self.read(model, p, frozen, batch) for p in (params, frozen["reference"]))
        return dict(old_BT=now.logp_BT, reference_BT=reference.logp_BT, value_BT=now.value_BT)

    def __call__(self, model, params, frozen, batch, key):
        if "old_BT" not in batch:
            raise InputError(f"{type(self).__name__} learns from completions: set data=Rollouts(...)")
        read = self.read(model, params, frozen, batch)
        weight_BT = batch["weight_BT"]
        row_B = (weight_BT > 0).any(1).astype(jnp.float32)
        logged = dict(
            entropy=((read.entropy_BT * weight_BT).sum(), weight_BT.sum()),
            length=(weight_BT.sum(), row_B.sum()),
            truncated=(((1 - batch["ended_B"]) * row_B).sum(), row_B.sum()),
        )
        of_rows = [name for name in batch if name.startswith(("reward", "kl_coefficient", "sampling_", "prompts_"))]
        logged |= {name.removesuffix("_B"): ((batch[name] * row_B).sum(), row_B.sum()) for name in of_rows}
        counted_B = row_B if key is None else self.counted(weight_BT)
        if key is None:
            sums = dict(loss=-logged["reward"][0])
        else:
            kl_BT = self._kl(read, model, frozen, batch)
            sums, logged["clip_fraction"] = self.lose(read, kl_BT, batch, frozen)
            kl = (kl_BT * weight_BT).sum()
            logged |= dict(kl=(kl, weight_BT.sum()), kl_per_reply=(kl, row_B.sum()))
        for name, (total, divisor) in logged.items():
            sums |= {name: total, f"{name}_weight": divisor}
        return sums | dict(weight=counted_B.sum()) | routing(heard(read.said), counted_B)

    def counted(self, weight_BT: jax.Array) -> jax.Array:
        """[B]: how much each completion counts in the loss, whose weight is the sum: by default alike."""
        return (weight_BT > 0).any(1).astype(jnp.float32)

    def kl_estimator(self) -> KlEstimator:
        """How the divergence from the reference is estimated: in the metrics, and in a loss that it is part of."""
        return K3()

    def _kl(self, read: Read, model: Any, frozen: Mapping[str, Any], batch: Mapping[str, jax.Array]) -> jax.Array:
        """[B, T]: nats from the reference at each token drawn."""
        estimator = self.kl_estimator()
        if not estimator.exact:
            return estimator(read.logp_BT, batch["reference_BT"])
        reference = self.read(model, frozen["reference"], frozen, batch)
        return estimator(read.logp_BT, batch["reference_BT"], read.logp_BTV, reference.logp_BTV)

    @abc.abstractmethod
    def lose(
        self, read: Read, kl_BT: jax.Array, batch: Mapping[str, jax.Array], frozen: Any
    ) -> tuple[Sums, tuple[jax.Array, jax.Array]]:
        """The loss, a sum over what is `counted`, with other sums; and how many ratios are clipped, of how many.

        Args:
          kl_BT: nats from the reference at each token drawn, by `kl_estimator()`.
        """
        raise NotImplementedError


def clipped(ratio: jax.Array, advantage: jax.Array, low: float, high: float) -> tuple[jax.Array, jax.Array]:
    """The surrogate to be minimised (Schulman et al. 2017), and 1 where it has no gradient."""
    surrogate = jnp.minimum(ratio * advantage, jnp.clip(ratio, 1 - low, 1 + high) * advantage)
    outside = ((ratio < 1 - low) & (advantage < 0)) | ((ratio > 1 + high) & (advantage > 0))
    return -surrogate, outside.astype(jnp.float32)


# ------------------------------------------------------------------------------------------------------------- groups


def check_group(objective: PolicyGradient, group: int) -> None:
    """Checks that a prompt has several completions, for an objective that compares these.

    Raises:
      InputError: it has one alone, of which nothing could be learnt.
    """
    if group < 2:
        name = type(objective).__name__
        raise InputError(f"{name} compares completions of one prompt: data.group must be 2 or more")


@dataclasses.dataclass(frozen=True)
class Grpo(PolicyGradient):
    """Group-relative policy optimisation (Shao et al. 2024): a completion is compared with others of its prompt.

    Its advantage is its reward less the group's mean, in deviations of the group. The loss is the mean over the tokens
    of a completion, then over completions; `kl` weighs the divergence from the reference, in the loss, as `estimator`
    has it.
    """

    clip_low: Share = 0.2
    clip_high: NonNegative = 0.2
    kl: NonNegative = 0.04
    estimator: KlEstimator = K3()

    def kl_estimator(self):
        return self.estimator

    def check_sizes(self, group, completions):
        check_group(self, group)

    def credit(self, rollout, coefficient):
        self.check_sizes(rollout.group, len(rollout.reward_B))
        reward = rollout.grouped(rollout.reward_B)
        advantage_B = self.scaled((reward - reward.mean(1, keepdims=True)).reshape(-1), rollout)
        return Credit(advantage_B[:, None] * rollout.weight_BT, np.zeros_like(rollout.weight_BT), coefficient)

    def scaled(self, advantage_B: np.ndarray, rollout: Rollout) -> np.ndarray:
        return advantage_B / (rollout.spread_B() + 1e-4)

    def shares(self, weight_BT: jax.Array, frozen: Any) -> jax.Array:
        """[B, T]: how much each token counts."""
        return weight_BT / jnp.maximum(weight_BT.sum(1), 1)[:, None]

    def lose(self, read, kl_BT, batch, frozen):
        weight_BT = batch["weight_BT"]
        ratio_BT = jnp.exp(read.logp_BT - batch["old_BT"])
        loss_BT, clipped_BT = clipped(ratio_BT, batch["advantage_BT"], self.clip_low, self.clip_high)
        loss_BT = loss_BT + self.kl * kl_BT
        loss = (loss_BT * self.shares(weight_BT, frozen)).sum()
        return dict(loss=loss), ((clipped_BT * weight_BT).sum(), weight_BT.sum())


@dataclasses.dataclass(frozen=True)
class DrGrpo(Grpo):
    """GRPO done right (Liu et al. 2025): no division by the deviation, nor by the completion's own length.

    Each token counts alike, whatever completion it is in: the loss is a sum over them, divided by `max_tokens`.
    """

    kl: NonNegative = 0.0

    def scaled(self, advantage_B, rollout):
        return advantage_B

    def shares(self, weight_BT, frozen):
        return weight_BT / frozen["max_tokens"]


@dataclasses.dataclass(frozen=True)
class Dapo(Grpo):
    """DAPO's loss (Yu et al. 2025): a wider clip above than below, and the mean over all tokens of a batch."""

    clip_high: NonNegative = 0.28
    kl: NonNegative = 0.0

    def shares(self, weight_BT, frozen):
        return weight_BT

    def counted(self, weight_BT):
        return weight_BT.sum(1)


# --------------------------------------------------------------------------------------------------- whole completions


@dataclasses.dataclass(frozen=True)
class Reinforce(PolicyGradient):
    """REINFORCE (Williams 1992): a completion is one action, and the baseline is the rollout's mean.

    The divergence from the reference is part of the reward (`kl`). Completions of an earlier policy count by their
    ratio, clipped.
    """

    kl: Divergence = FixedKl()
    clip: Share = 0.2

    def first_coefficient(self):
        return self.kl.coefficient

    def check_sizes(self, group, completions):
        if completions < 2:
            raise InputError(
                "Reinforce compares a completion with the rollout's mean: data.batch x data.batches must be 2 or more"
            )

    def credit(self, rollout, coefficient):
        self.check_sizes(rollout.group, len(rollout.reward_B))
        score_B = rollout.reward_B - coefficient * rollout.divergence_B
        advantage_B = score_B - self.baseline(rollout, score_B)
        after = self.kl.after(coefficient, float(rollout.divergence_B.mean()))
        return Credit(advantage_B[:, None] * rollout.weight_BT, np.zeros_like(rollout.weight_BT), after)

    def baseline(self, rollout: Rollout, score_B: np.ndarray) -> Any:
        return score_B.mean()

    def lose(self, read, kl_BT, batch, frozen):
        weight_BT = batch["weight_BT"]
        row_B = self.counted(weight_BT)
        ratio_B = jnp.exp(((read.logp_BT - batch["old_BT"]) * weight_BT).sum(1))
        advantage_B = (batch["advantage_BT"] * weight_BT).sum(1) / jnp.maximum(weight_BT.sum(1), 1)
        loss_B, clipped_B = clipped(ratio_B, advantage_B, self.clip, self.clip)
        return dict(loss=(loss_B * row_B).sum()), ((clipped_B * row_B).sum(), row_B.sum())


@dataclasses.dataclass(frozen=True)
class Rloo(Reinforce):
    """REINFORCE leave-one-out (Ahmadian et al. 2024): the baseline is the mean of the prompt's other completions."""

    def check_sizes(self, group, completions):
        check_group(self, group)

    def baseline(self, rollout, score_B):
        score = rollout.grouped(score_B)
        return ((score.sum(1, keepdims=True) - score) / (score.shape[1] - 1)).reshape(-1)


OBJECTIVES = dict(Grpo=Grpo, DrGrpo=DrGrpo, Dapo=Dapo, Reinforce=Reinforce, Rloo=Rloo)

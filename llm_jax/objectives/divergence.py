"""The divergence of a policy from its reference: what it costs in reward, and how a loss estimates it."""

from __future__ import annotations

import abc
import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from llm_jax.core.parts import NonNegative, Part, Positive


class Divergence(Part):
    """How much a nat of divergence from the reference costs in reward."""

    coefficient: float

    def after(self, coefficient: float, nats: float) -> float:
        """The coefficient of the next rollout, where a completion of this one diverged by so many nats on average."""
        return coefficient


@dataclasses.dataclass(frozen=True)
class FixedKl(Divergence):
    """Always the same."""

    coefficient: NonNegative = 0.05


@dataclasses.dataclass(frozen=True)
class AdaptiveKl(Divergence):
    """Rises while completions diverge by more than `target` nats, and falls while by less (Ziegler et al. 2019)."""

    coefficient: NonNegative = 0.2
    target: Positive = 6.0
    gain: Positive = 0.1

    def after(self, coefficient, nats):
        return coefficient * (1 + self.gain * float(np.clip(nats / self.target - 1, -0.2, 0.2)))


DIVERGENCES = dict(FixedKl=FixedKl, AdaptiveKl=AdaptiveKl)


class KlEstimator(Part, abc.ABC):
    """How a loss estimates KL(policy || reference) at each token that the policy drew (Schulman 2020).

    What is said here of means holds while the policy is the one that drew the tokens: in the first update on a rollout.
    """

    exact: ClassVar[bool] = False  # whether it reads all tokens of the vocabulary, not only those drawn

    @abc.abstractmethod
    def __call__(
        self, logp_BT: jax.Array, reference_BT: jax.Array,
        logp_BTV: jax.Array | None = None, reference_BTV: jax.Array | None = None,
    ) -> jax.Array:  # fmt: skip
        """The estimate.

        Args:
          logp_BT: log-probability of each token drawn, under the policy.
          reference_BT: the same under the reference.
          logp_BTV: log-probability of every token of the vocabulary, under the policy; given if `exact`.
          reference_BTV: the same under the reference.

        Returns:
          [B, T] nats.
        """
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class K1(KlEstimator):
    """The log-ratio: unbiased, of either sign, with a large variance. As a loss its gradient is 0 on average."""

    def __call__(self, logp_BT, reference_BT, logp_BTV=None, reference_BTV=None):
        return logp_BT - reference_BT


@dataclasses.dataclass(frozen=True)
class K2(KlEstimator):
    """Half the squared log-ratio: its value is biased, its gradient is that of KL(policy || reference) on average."""

    def __call__(self, logp_BT, reference_BT, logp_BTV=None, reference_BTV=None):
        return (logp_BT - reference_BT) ** 2 / 2


@dataclasses.dataclass(frozen=True)
class K3(KlEstimator):
    """Never negative, and unbiased. As a loss its gradient is that of KL(reference || policy) on average."""

    def __call__(self, logp_BT, reference_BT, logp_BTV=None, reference_BTV=None):
        difference_BT = reference_BT - logp_BT
        return jnp.exp(difference_BT) - difference_BT - 1


@dataclasses.dataclass(frozen=True)
class ExactKl(KlEstimator):
    """The divergence itself, a sum over the vocabulary, whatever was drawn: value and gradient are exact.

    The reference is read in every step, which costs a forward pass and two arrays of [B, T, vocabulary].
    """

    exact: ClassVar[bool] = True

    def __call__(self, logp_BT, reference_BT, logp_BTV=None, reference_BTV=None):
        if logp_BTV is None or reference_BTV is None:
            raise TypeError("ExactKl needs logp_BTV and reference_BTV")
        return (jnp.exp(logp_BTV) * (logp_BTV - reference_BTV)).sum(-1)


KL_ESTIMATORS = dict(K1=K1, K2=K2, K3=K3, ExactKl=ExactKl)

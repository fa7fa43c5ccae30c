"""What it costs a policy to leave the reference: a part of the reward."""

from __future__ import annotations

import dataclasses

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

"""Learning-rate schedules."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from llm_jax.core.parts import Count, Part, Share


class Schedule(Part):
    """A share of the full learning rate for each step: `schedule.share(step, steps)`, from 0 to 1."""

    def share(self, step: jax.Array, steps: int) -> jax.Array:
        raise NotImplementedError


def _warm(step: jax.Array, warmup: int, then: jax.Array) -> jax.Array:
    """The first step has 1 / (warmup + 1) of the rate, not none of it."""
    return jnp.where(step < warmup, (step + 1.0) / (warmup + 1.0), then)


def _progress(step: jax.Array, warmup: int, steps: int) -> jax.Array:
    return jnp.clip((step - float(warmup)) / max(steps - warmup, 1), 0.0, 1.0)


@dataclasses.dataclass(frozen=True)
class Constant(Schedule):
    """Full rate after `warmup` steps."""

    warmup: Count = 0

    def share(self, step, steps):
        return _warm(step, self.warmup, jnp.ones_like(step))


@dataclasses.dataclass(frozen=True)
class Cosine(Schedule):
    """Warmup, then half a cosine down to `last` (Loshchilov & Hutter 2017)."""

    warmup: Count = 100
    last: Share = 0.1

    def share(self, step, steps):
        fall = 0.5 * (1 + jnp.cos(jnp.pi * _progress(step, self.warmup, steps)))
        return _warm(step, self.warmup, self.last + (1 - self.last) * fall)


@dataclasses.dataclass(frozen=True)
class Linear(Schedule):
    """Warmup, then a straight line down to `last`."""

    warmup: Count = 100
    last: Share = 0.0

    def share(self, step, steps):
        return _warm(step, self.warmup, 1 - (1 - self.last) * _progress(step, self.warmup, steps))


@dataclasses.dataclass(frozen=True)
class WarmupStableDecay(Schedule):
    """Warmup, full rate, then a straight line down to `last` over the final share `decay` of steps (Hu et al. 2024)."""

    warmup: Count = 100
    decay: Share = 0.2
    last: Share = 0.0

    def share(self, step, steps):
        begin = int(steps * (1 - self.decay))
        return _warm(step, self.warmup, 1 - (1 - self.last) * _progress(step, max(begin, self.warmup), steps))


SCHEDULES = dict(Constant=Constant, Cosine=Cosine, Linear=Linear, WarmupStableDecay=WarmupStableDecay)

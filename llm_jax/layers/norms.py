"""Normalisation over the last dimensions, in float32 whatever the input's dtype."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from llm_jax.core.dims import Fill, weigh
from llm_jax.core.parts import NonNegative, Number


class Norm(nn.Module):
    """`norm(x, letters)`: `letters` names the last dimensions, which are normalised together."""

    def __call__(self, x: jax.Array, letters: str = "D") -> jax.Array:
        return x


class NoNorm(Norm):
    """Leaves everything as it is."""


class RMSNorm(Norm):
    """Divides by the root mean square (Zhang & Sennrich 2019)."""

    epsilon: NonNegative = 1e-6
    scale: bool = True
    offset: Number = 0.0  # added to the scale, which then begins at 1 - offset (Gemma: 1)

    @nn.compact
    def __call__(self, x, letters="D"):
        wide, axes, sizes = _wide(x, letters)
        wide = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axes, keepdims=True) + self.epsilon)
        if self.scale:
            scale = weigh(self, "scale", letters, sizes, Fill(1.0 - self.offset), 1).astype(jnp.float32)
            wide = wide * _along(scale + self.offset, x.ndim)
        return wide.astype(x.dtype)


class LayerNorm(Norm):
    """Subtracts the mean and divides by the standard deviation (Ba et al. 2016)."""

    epsilon: NonNegative = 1e-5
    scale: bool = True
    bias: bool = True

    @nn.compact
    def __call__(self, x, letters="D"):
        wide, axes, sizes = _wide(x, letters)
        wide = wide - wide.mean(axes, keepdims=True)
        wide = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axes, keepdims=True) + self.epsilon)
        if self.scale:
            wide = wide * _along(weigh(self, "scale", letters, sizes, Fill(1.0), 1), x.ndim)
        if self.bias:
            wide = wide + _along(weigh(self, "bias", letters, sizes, Fill(0.0), 1), x.ndim)
        return wide.astype(x.dtype)


def _wide(x: jax.Array, letters: str) -> tuple[jax.Array, tuple[int, ...], dict[str, int]]:
    """`x` in float32, the axes that `letters` name, and their sizes."""
    axes = tuple(range(-len(letters), 0))
    return x.astype(jnp.float32), axes, dict(zip(letters, x.shape[axes[0] :], strict=True))


def _along(x: jax.Array, rank: int) -> jax.Array:
    return x.astype(jnp.float32).reshape((1,) * (rank - x.ndim) + x.shape)


NORMS = dict(NoNorm=NoNorm, RMSNorm=RMSNorm, LayerNorm=LayerNorm)

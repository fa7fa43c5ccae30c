"""Position encodings: how a model knows order.

A new encoding is one class that overrides the hook it needs, and one line in the table at the end.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Annotated

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from llm_jax.core.dims import Init, Normal, lookup, shard, weigh
from llm_jax.core.errors import InputError
from llm_jax.core.parts import Count, Part, Positive, Range, Size
from llm_jax.layers.tokens import Tokens


class Positions(nn.Module):
    """Three hooks, identity by default. The model calls `embed` and `bias` once, every attention calls `rotate`."""

    def embed(self, x_BTD: jax.Array, tokens: Tokens) -> jax.Array:
        return x_BTD

    def rotate(self, x: jax.Array, tokens: Tokens) -> jax.Array:
        """`x` is [B, T, ..., H]: queries or keys. Must not use parameters."""
        return x

    def bias(self, key_heads: int, group: int):
        """None, or a pytree with `between(queries, keys) -> [B, K, G, T, S]`, asked for the block at hand only."""
        return None

    def limit(self) -> int | None:
        """The number of positions there are, if it is bounded."""
        return None


class NoPositions(Positions):
    """Nothing: order is known only through the causal mask (Kazemnejad et al. 2023)."""


class Learned(Positions):
    """A learned vector for each of `length` positions (GPT-2, BERT).

    `offset` rows of the table come before them and are never read (RoBERTa's and BART's tables have 2).
    """

    length: Size = 512
    init: Init = Normal(0.02)
    offset: Count = 0

    @nn.compact
    def embed(self, x_BTD, tokens):
        if x_BTD.shape[1] > self.length:
            raise InputError(
                f"{x_BTD.shape[1]} tokens, but Learned(length={self.length}) has a vector for each of the "
                f"first {self.length} positions only: raise its length"
            )
        table_PD = weigh(self, "table", "PD", dict(P=self.offset + self.length, D=x_BTD.shape[-1]), self.init, 1)
        table_PD = shard(table_PD, "..")  # gathered over fsdp first, as in `Embed`
        position_BT = self.offset + jnp.clip(tokens.position_BT, 0, self.length - 1)
        return x_BTD + shard(lookup(table_PD, position_BT), "BTD").astype(x_BTD.dtype)

    def limit(self):
        return self.length


class Sinusoidal(Positions):
    """Fixed waves of geometrically spaced lengths (Vaswani et al. 2017, section 3.5; halves, not interleaved)."""

    def embed(self, x_BTD, tokens):
        cosine, sine = _waves(tokens.position_BT, _frequencies(x_BTD.shape[-1], 10_000.0))
        return x_BTD + jnp.concatenate([sine, cosine], -1).astype(x_BTD.dtype)


def _frequencies(width: int, theta: float) -> jax.Array:
    """[width / 2] radians a token, from 1 down to about 1 / theta."""
    if width % 2:
        raise InputError(f"waves come in pairs, so the width must be even, not {width}")
    return theta ** (-jnp.arange(width // 2, dtype=jnp.float32) * 2 / width)


def _waves(position_BT: jax.Array, frequencies: jax.Array) -> tuple[jax.Array, jax.Array]:
    angle = position_BT[..., None].astype(jnp.float32) * frequencies[None, None]
    return jnp.cos(angle), jnp.sin(angle)


# --------------------------------------------------------------------------------------------------------------- RoPE


class RopeScaling(Part):
    """How a rotary model is stretched past the `original` length that it was trained for."""

    def apply(self, frequencies: jax.Array, theta: float, width: int) -> jax.Array:
        raise NotImplementedError

    def magnitude(self) -> float:
        """A factor on queries and on keys."""
        return 1.0


@dataclasses.dataclass(frozen=True)
class LinearScaling(RopeScaling):
    """Positions divided by `factor` (Chen et al. 2023, position interpolation)."""

    factor: Positive = 1.0

    def apply(self, frequencies, theta, width):
        return frequencies / self.factor


@dataclasses.dataclass(frozen=True)
class NtkScaling(RopeScaling):
    """A larger base, so that slow waves stretch by `factor` and fast ones hardly ("NTK-aware", bloc97 2023)."""

    factor: Positive = 1.0

    def apply(self, frequencies, theta, width):
        if width == 2:
            raise InputError("NtkScaling keeps the fastest of several waves, but 2 features are one wave")
        return _frequencies(width, theta * self.factor ** (width / (width - 2)))


@dataclasses.dataclass(frozen=True)
class YarnScaling(RopeScaling):
    """Slow waves stretched, fast ones kept, a ramp between; sharper attention (Peng et al. 2023)."""

    factor: Positive = 1.0
    original: Size = 4096
    fast: Positive = 32.0  # turns within `original` above which a wave is kept
    slow: Positive = 1.0  # turns below which it is stretched by all of `factor`

    def apply(self, frequencies, theta, width):
        def pair(turns: float) -> float:
            return width * math.log(self.original / (turns * 2 * math.pi)) / (2 * math.log(theta))

        low = max(math.floor(pair(self.fast)), 0)
        high = min(math.ceil(pair(self.slow)), width - 1)
        ramp = (jnp.arange(width // 2, dtype=jnp.float32) - low) / max(high - low, 0.001)
        kept = 1 - jnp.clip(ramp, 0.0, 1.0)
        return frequencies / self.factor * (1 - kept) + frequencies * kept

    def magnitude(self):
        return 0.1 * math.log(self.factor) + 1 if self.factor > 1 else 1.0


@dataclasses.dataclass(frozen=True)
class Llama3Scaling(RopeScaling):
    """Llama 3.1's: by wavelength, kept below `original / high`, stretched above `original / low`, smooth between."""

    factor: Positive = 8.0
    low: Positive = 1.0
    high: Positive = 4.0
    original: Size = 8192

    def apply(self, frequencies, theta, width):
        turns = self.original * frequencies / (2 * math.pi)
        kept = jnp.clip((turns - self.low) / (self.high - self.low), 0.0, 1.0)
        return frequencies / self.factor * (1 - kept) + frequencies * kept


@dataclasses.dataclass(frozen=True)
class LongRopeScaling(RopeScaling):
    """Each wave divided by a number of its own, found by search; sharper attention (LongRoPE, Ding et al. 2024).

    Of a model that reads `factor` times `original` tokens, within the first `original`: `short` are the published
    numbers for texts that are no longer; () divides by none.
    """

    factor: Positive = 1.0
    original: Size = 4096
    short: tuple[Positive, ...] = ()

    def apply(self, frequencies, theta, width):
        if not self.short:
            return frequencies
        if len(self.short) != len(frequencies):
            raise InputError(f"LongRopeScaling.short has {len(self.short)} numbers for {len(frequencies)} waves")
        return frequencies / jnp.array(self.short, jnp.float32)

    def magnitude(self):
        return math.sqrt(1 + math.log(self.factor) / math.log(self.original)) if self.factor > 1 else 1.0


class Rope(Positions):
    """Each pair of features turns by an angle that grows with position (Su et al. 2021; halves, as in GPT-NeoX).

    `share` is the part of the head that turns (1: all of it; GPT-NeoX and Phi turn less).
    """

    theta: Positive = 10_000.0
    scaling: RopeScaling | None = None
    share: Annotated[float, Range(above=0, most=1)] = 1.0

    def rotate(self, x, tokens):
        width = int(x.shape[-1] * self.share)
        frequencies, magnitude = _frequencies(width, self.theta), 1.0
        if self.scaling is not None:
            frequencies = self.scaling.apply(frequencies, self.theta, width)
            magnitude = self.scaling.magnitude()
        cosine, sine = (
            magnitude * w.reshape(w.shape[:2] + (1,) * (x.ndim - 3) + w.shape[2:])
            for w in _waves(tokens.position_BT, frequencies)
        )
        turned, kept = x[..., :width].astype(jnp.float32), x[..., width:]
        a, b = jnp.split(turned, 2, -1)
        turned = jnp.concatenate([a * cosine - b * sine, b * cosine + a * sine], -1).astype(x.dtype)
        return jnp.concatenate([turned, kept], -1) if kept.shape[-1] else turned


# ----------------------------------------------------------------------------------------------------- biased scores


@flax.struct.dataclass
class Slopes:
    """Scores fall by `slope` a token of distance."""

    slope_KG: jax.Array

    def between(self, queries: Tokens, keys: Tokens) -> jax.Array:
        distance_BTS = jnp.abs(queries.position_BT[:, :, None] - keys.position_BT[:, None, :]).astype(jnp.float32)
        return -self.slope_KG[None, :, :, None, None].astype(jnp.float32) * distance_BTS[:, None, None]


class Alibi(Positions):
    """Scores fall linearly with distance, at a slope of its own for each head (Press et al. 2022)."""

    def bias(self, key_heads, group):
        heads = key_heads * group
        whole = 2 ** math.floor(math.log2(heads))  # the paper's rule for numbers that are no power of two
        slopes = [2 ** (-8 * i / whole) for i in range(1, whole + 1)]
        slopes += [2 ** (-4 * i / whole) for i in range(1, 2 * (heads - whole), 2)]
        return Slopes(jnp.asarray(slopes, jnp.float32).reshape(key_heads, group))


@flax.struct.dataclass
class Buckets:
    """A learned score for each bucket of distances: small ones alone, large ones together, on a log scale."""

    table_PKG: jax.Array
    both_ways: bool = flax.struct.field(pytree_node=False)
    farthest: int = flax.struct.field(pytree_node=False)

    def between(self, queries: Tokens, keys: Tokens) -> jax.Array:
        offset_BTS = keys.position_BT[:, None, :] - queries.position_BT[:, :, None]
        buckets, bucket_BTS = self.table_PKG.shape[0], jnp.zeros_like(offset_BTS)
        if self.both_ways:
            buckets //= 2
            bucket_BTS = jnp.where(offset_BTS > 0, buckets, 0)
            distance_BTS = jnp.abs(offset_BTS)
        else:
            distance_BTS = jnp.maximum(-offset_BTS, 0)
        alone = buckets // 2
        log_BTS = jnp.log(jnp.maximum(distance_BTS, alone).astype(jnp.float32) / alone)
        far_BTS = alone + (log_BTS / math.log(self.farthest / alone) * (buckets - alone)).astype(jnp.int32)
        bucket_BTS += jnp.where(distance_BTS < alone, distance_BTS, jnp.minimum(far_BTS, buckets - 1))
        return jnp.einsum("BTSKG->BKGTS", self.table_PKG[bucket_BTS].astype(jnp.float32))


class RelativeBias(Positions):
    """T5's learned bias, one table for all layers (Raffel et al. 2020, section 2.1)."""

    buckets: Size = 32
    farthest: Size = 128
    both_ways: bool = False
    init: Init = Normal(0.02)

    @nn.compact
    def bias(self, key_heads, group):
        alone = self.buckets // (4 if self.both_ways else 2)
        if not 0 < alone < self.farthest:
            raise InputError(
                f"RelativeBias(buckets={self.buckets}, farthest={self.farthest}) needs {4 if self.both_ways else 2} "
                f"buckets or more, and farthest above {alone}"
            )
        sizes = dict(P=self.buckets, K=key_heads, G=group)
        return Buckets(weigh(self, "table", "PKG", sizes, self.init, 1, role="bias"), self.both_ways, self.farthest)


SCALINGS = dict(
    LinearScaling=LinearScaling, NtkScaling=NtkScaling, YarnScaling=YarnScaling, Llama3Scaling=Llama3Scaling,
    LongRopeScaling=LongRopeScaling,
)  # fmt: skip

POSITIONS = dict(
    NoPositions=NoPositions, Learned=Learned, Sinusoidal=Sinusoidal, Rope=Rope, Alibi=Alibi, RelativeBias=RelativeBias,
)  # fmt: skip

"""Weights kept in 8 or 4 bits: codes and, for each block of them, a scale. They are read back where they are used."""

from __future__ import annotations

import dataclasses
from math import prod
from typing import Any

import jax
import jax.numpy as jnp

from llm_jax.core.errors import InputError
from llm_jax.core.parts import Part, Size

# The 16 quantiles of a normal variable, scaled to [-1, 1] (Dettmers et al. 2023, QLoRA, appendix E)
NORMAL_FLOAT = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip


@jax.tree_util.register_pytree_with_keys_class
@dataclasses.dataclass(frozen=True)
class Quantized:
    """An array as blocks of codes, [..., blocks, bytes], with a float32 scale for each, [..., blocks].

    The axes before the blocks are those that were there before `shape`: a stack's layers, which it cuts apart.
    """

    codes: Any
    scales: Any
    format: Format
    shape: tuple[int, ...]  # of what a cut holds
    dtype: Any = jnp.dtype(jnp.float32)  # in which it is read

    def tree_flatten_with_keys(self):
        keys = (jax.tree_util.DictKey(name) for name in ("codes", "scales"))
        return tuple(zip(keys, (self.codes, self.scales), strict=True)), (self.format, self.shape, self.dtype)

    @classmethod
    def tree_unflatten(cls, settings: Any, leaves: Any) -> Quantized:
        return cls(*leaves, *settings)

    def astype(self, dtype: Any) -> Quantized:
        """The same, to be read in another dtype: codes and scales stay as they are."""
        return dataclasses.replace(self, dtype=jnp.dtype(dtype))

    def read(self) -> jax.Array:
        """The array [..., *shape]."""
        wide = self.format.decode(self.codes) * self.scales[..., None]
        before = self.scales.shape[:-1]
        flat = wide.reshape((*before, -1))[..., : prod(self.shape)]
        return flat.reshape((*before, *self.shape)).astype(self.dtype)


def is_quantized(leaf: object) -> bool:
    return isinstance(leaf, Quantized)


def plain(leaf: Any) -> Any:
    """The array that a parameter is."""
    return leaf.read() if isinstance(leaf, Quantized) else leaf


class Format(Part):
    """How weights are kept: as codes of numbers up to `greatest`, and a scale that makes a block's greatest of it."""

    block: int

    def greatest(self) -> float:
        return 1.0

    def quantize(self, x: jax.Array, before: int = 0) -> Quantized:
        """The nearest codes of `x`, in blocks along the flattened axes after the first `before`; zeros fill the last.

        Raises:
          InputError: a block is no whole number of bytes.
        """
        if self.block % self.codes_a_byte():
            raise InputError(f"{type(self).__name__}: block={self.block} must be even: two codes make a byte")
        flat = x.astype(jnp.float32).reshape((*x.shape[:before], -1))
        missing = -flat.shape[-1] % self.block
        flat = jnp.pad(flat, [(0, 0)] * before + [(0, missing)])
        blocks = flat.reshape((*x.shape[:before], -1, self.block))
        scales = jnp.abs(blocks).max(-1) / self.greatest()
        codes = self.encode(blocks / jnp.where(scales == 0, 1.0, scales)[..., None])
        return Quantized(codes, scales, self, x.shape[before:])

    def codes_a_byte(self) -> int:
        return 1

    def encode(self, x: jax.Array) -> jax.Array:
        """The codes of numbers from -`greatest` to `greatest`."""
        raise NotImplementedError

    def decode(self, codes: jax.Array) -> jax.Array:
        """The numbers that codes stand for, in float32."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Int8(Format):
    """Whole numbers from -127 to 127 (Dettmers et al. 2022): off by half a scale at most."""

    block: Size = 64

    def greatest(self):
        return 127.0

    def encode(self, x):
        return jnp.round(x).astype(jnp.int8)

    def decode(self, codes):
        return codes.astype(jnp.float32)


@dataclasses.dataclass(frozen=True)
class Nf4(Format):
    """16 numbers that are equally likely where weights are normal, two codes a byte (Dettmers et al. 2023).

    Scales stay in float32: the paper quantises these as well, which saves 0.4 bits a weight.
    """

    block: Size = 64

    def codes_a_byte(self):
        return 2

    def encode(self, x):
        table = jnp.asarray(NORMAL_FLOAT, jnp.float32)
        codes = jnp.searchsorted((table[1:] + table[:-1]) / 2.0, x).astype(jnp.uint8)
        return codes[..., 0::2] * jnp.uint8(16) + codes[..., 1::2]

    def decode(self, codes):
        pairs = jnp.stack([codes // jnp.uint8(16), codes % jnp.uint8(16)], axis=-1)
        numbers = jnp.asarray(NORMAL_FLOAT, jnp.float32)[pairs]
        return numbers.reshape((*codes.shape[:-1], -1))


FORMATS = dict(Int8=Int8, Nf4=Nf4)

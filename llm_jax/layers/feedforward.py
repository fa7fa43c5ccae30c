"""What a block does to each token alone."""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from llm_jax.core.dims import Einsum, FanIn, Init
from llm_jax.core.parts import Part, Size
from llm_jax.layers.tokens import Tokens


class Activation(Part):
    """A function of each number alone."""

    def __call__(self, x: jax.Array) -> jax.Array:
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Relu(Activation):
    def __call__(self, x):
        return jax.nn.relu(x)


@dataclasses.dataclass(frozen=True)
class SquaredRelu(Activation):
    """So et al. 2021 (Primer)."""

    def __call__(self, x):
        return jnp.square(jax.nn.relu(x))


@dataclasses.dataclass(frozen=True)
class Gelu(Activation):
    """Hendrycks & Gimpel 2016: exact (erf), or GPT-2's tanh approximation."""

    tanh: bool = False

    def __call__(self, x):
        return jax.nn.gelu(x, approximate=self.tanh)


@dataclasses.dataclass(frozen=True)
class Silu(Activation):
    """x * sigmoid(x), also called swish."""

    def __call__(self, x):
        return jax.nn.silu(x)


class FeedForward(nn.Module):
    """Two projections around an activation (Vaswani et al. 2017).

    `at` says which slots hold tokens, for those who treat padding otherwise (`MoE`).
    """

    hidden: Size
    activation: Activation = Gelu()
    bias: bool = False
    init: Init = FanIn()
    out_init: Init = FanIn()

    @nn.compact
    def __call__(self, x_BTD: jax.Array, at: Tokens | None = None) -> jax.Array:
        h_BTF = self.activation(Einsum("BTD,DF->BTF", dict(F=self.hidden), self.bias, self.init, name="up")(x_BTD))
        return Einsum("BTF,FD->BTD", dict(D=x_BTD.shape[-1]), self.bias, self.out_init, name="down")(h_BTF)


class GatedFeedForward(FeedForward):
    """A second projection, activated, gates the first (Shazeer 2020)."""

    activation: Activation = Silu()

    @nn.compact
    def __call__(self, x_BTD, at=None):
        gate_BTF = Einsum("BTD,DF->BTF", dict(F=self.hidden), self.bias, self.init, name="gate")(x_BTD)
        up_BTF = Einsum("BTD,DF->BTF", dict(F=self.hidden), self.bias, self.init, name="up")(x_BTD)
        h_BTF = self.activation(gate_BTF) * up_BTF
        return Einsum("BTF,FD->BTD", dict(D=x_BTD.shape[-1]), self.bias, self.out_init, name="down")(h_BTF)


class SwiGLU(GatedFeedForward):
    """Gated by SiLU (Llama)."""


class GEGLU(GatedFeedForward):
    """Gated by GELU."""

    activation: Activation = Gelu()


ACTIVATIONS = dict(Relu=Relu, SquaredRelu=SquaredRelu, Gelu=Gelu, Silu=Silu)

FEEDFORWARDS = dict(FeedForward=FeedForward, GatedFeedForward=GatedFeedForward, SwiGLU=SwiGLU, GEGLU=GEGLU)

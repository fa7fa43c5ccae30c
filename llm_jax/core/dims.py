"""The alphabet: one capital letter per array dimension, project-wide.

A letter is in a variable's name (`q_BTKGH`), in an equation (`Einsum("BTD,DKGH->BTKGH", ...)`) and in the sharding
table `RULES`. Weight shape, fan-in, partitioning and adapters follow from the equation, so nobody writes them twice.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from math import prod
from typing import Any, Literal, cast, get_args

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from llm_jax.core.adapters import magnification
from llm_jax.core.errors import InputError
from llm_jax.core.parts import NonNegative, Number, Part, Share
from llm_jax.core.quantized import Quantized

LEGEND = dict(
    B="batch", T="query time", S="key time", D="model width", K="key heads", G="queries per key head", H="head width",
    F="hidden", E="experts", C="expert capacity", V="vocabulary", L="layers", P="positions", N="new tokens",
    R="rows of a stream", Y="pixel rows", X="pixel columns", A="channels of a pixel", O="classes",
    J="gates of a recurrent cell", M="decisions that predict a word", Z="rank of an adapter",
    Q="blocks of quantised weights",
)  # fmt: skip

RULES = dict(
    L=("stage",), B=("data", "fsdp"), C=("data", "fsdp"), T=("sequence",), E=("expert",),
    V=("tensor",), K=("tensor",), F=("tensor",), D=("fsdp",), Q=("fsdp",),
)  # fmt: skip  # letter -> the mesh axes that may split it


Mesh = jax.sharding.Mesh | jax.sharding.AbstractMesh


def partition(letters: str, shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """Which mesh axes split each dimension. An axis that a tensor already uses, or that does not divide, is skipped.

    So a tensor with one key head (multi-query attention) is copied over the tensor axis, as it must be.
    """
    taken: set[str] = set()
    spec = []
    for letter, size in zip(letters, shape, strict=True):
        here: list[str] = []
        for axis in RULES.get(letter, ()):
            parts = mesh.shape.get(axis, 1) * prod(mesh.shape[a] for a in here)
            if axis not in taken and mesh.shape.get(axis, 1) > 1 and size % parts == 0:
                here.append(axis)
        taken.update(here)
        spec.append(tuple(here) if len(here) > 1 else here[0] if here else None)
    return PartitionSpec(*spec)


def shard(x: jax.Array, letters: str) -> jax.Array:
    """Pins `x` to the mesh axes that its letters stand for ("." for a dimension kept whole); no mesh, no effect."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    return jax.lax.with_sharding_constraint(x, partition(letters, x.shape, mesh))


def contract(equation: str, a: jax.Array, b: jax.Array) -> jax.Array:
    """`einsum` of two arrays of one dtype, summed in float32 whatever that dtype is, forward and backward.

    The result is float32. Gradients are contracted in the operands' own dtype: with bfloat16 operands every product
    runs on the fast units and only sums are wide.
    """
    return _contract(equation, a, b)  # pyright: ignore[reportReturnType, reportCallIssue]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _contract(equation: str, a: jax.Array, b: jax.Array) -> jax.Array:
    inputs, out = equation.split("->")
    in_a, in_b = inputs.split(",")
    return _dot(in_a, in_b, out, a, b)


def _contract_forward(equation: str, a: jax.Array, b: jax.Array):
    return _contract(equation, a, b), (a, b)  # pyright: ignore[reportCallIssue]


def _contract_backward(equation: str, saved: tuple[jax.Array, jax.Array], d_out: jax.Array):
    a, b = saved
    inputs, out = equation.split("->")
    in_a, in_b = inputs.split(",")
    # the order of the operands matters for speed: as the second one, a large d_out is read as it lies in memory
    d_a = _dot(out, in_b, in_a, d_out.astype(b.dtype), b)
    d_b = _dot(in_a, out, in_b, a, d_out.astype(a.dtype))
    return d_a.astype(a.dtype), d_b.astype(b.dtype)


def _dot(in_a: str, in_b: str, out: str, a: jax.Array, b: jax.Array) -> jax.Array:
    """The contraction as one `dot_general`, and one transposition of its result at most.

    Without shared letters in the result it is a product of two matrices, and written so: XLA's CPU compiler then reads
    a transposed operand in place, where from more dimensions it would make a copy.
    """
    size = dict(zip(in_a, a.shape, strict=True)) | dict(zip(in_b, b.shape, strict=True))
    shared = [x for x in in_a if x in in_b and x in out]
    summed = [x for x in in_a if x in in_b and x not in out]
    only_a, only_b = [x for x in in_a if x not in in_b], [x for x in in_b if x not in in_a]
    axes_a, axes_b = _matrix(in_a, only_a, summed), _matrix(in_b, only_b, summed)
    if not shared and axes_a and axes_b:
        a, b = (x.reshape([prod(size[i] for i in rows), -1]) for x, (rows, _) in ((a, axes_a), (b, axes_b)))
        dimensions = (((axes_a[1],), (axes_b[1],)), ((), ()))
    else:
        dimensions = (
            ([in_a.index(x) for x in summed], [in_b.index(x) for x in summed]),
            ([in_a.index(x) for x in shared], [in_b.index(x) for x in shared]),
        )
    y = jax.lax.dot_general(a, b, dimensions, preferred_element_type=jnp.float32)
    made = shared + only_a + only_b
    return y.reshape([size[x] for x in made]).transpose([made.index(x) for x in out])


def _matrix(letters: str, free: list[str], summed: list[str]) -> tuple[list[str], int] | None:
    """How an operand is a matrix: the letters of its rows, and which axis is summed; None if the letters interleave."""
    if list(letters) == free + summed:
        return free, 1
    return (summed, 0) if list(letters) == summed + free else None


_contract.defvjp(_contract_forward, _contract_backward)


@jax.custom_vjp
def lookup(table_VD: jax.Array, ids_BT: jax.Array) -> jax.Array:
    """`table_VD[ids_BT]`, whose gradient is summed in float32: a frequent token would be lost in a bfloat16 sum."""
    return table_VD[ids_BT]


def _lookup_forward(table_VD: jax.Array, ids_BT: jax.Array):
    return table_VD[ids_BT], (table_VD, ids_BT)


def _lookup_backward(saved: tuple[jax.Array, jax.Array], d_BTD: jax.Array):
    table_VD, ids_BT = saved
    d_VD = jnp.zeros(table_VD.shape, jnp.float32).at[ids_BT].add(d_BTD.astype(jnp.float32))
    return d_VD.astype(table_VD.dtype), None


lookup.defvjp(_lookup_forward, _lookup_backward)


# -------------------------------------------------------------------------------------------------------- initialisers


class Init(Part):
    """How a weight begins: `draw(key, shape, fan_in)`."""

    def draw(self, key: jax.Array, shape: tuple[int, ...], fan_in: int) -> jax.Array:
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class FanIn(Init):
    """Normal with variance `scale`^2 / fan-in, so that a unit-variance input gives a `scale`^2-variance output."""

    scale: NonNegative = 1.0

    def draw(self, key, shape, fan_in):
        return self.scale * fan_in**-0.5 * jax.random.normal(key, shape)


@dataclasses.dataclass(frozen=True)
class Normal(Init):
    """Normal with one standard deviation everywhere (GPT-2: 0.02)."""

    deviation: NonNegative = 0.02

    def draw(self, key, shape, fan_in):
        return self.deviation * jax.random.normal(key, shape)


@dataclasses.dataclass(frozen=True)
class Fill(Init):
    """One number everywhere: 0 for biases (and residual branches that start as the identity), 1 for scales."""

    value: Number = 0.0

    def draw(self, key, shape, fan_in):
        return jnp.full(shape, self.value)


# ----------------------------------------------------------------------------------------------------------- parameters


Role = Literal["kernel", "table", "scale", "bias"]
"""What a model does with a parameter: contracts it, looks its rows up, multiplies each number by it, or adds it."""


@flax.struct.dataclass
class Lettered(nn.meta.AxisMetadata):
    """A parameter together with the letters of its dimensions, as a model's `init` returns it."""

    value: Any
    letters: str = flax.struct.field(pytree_node=False)
    active: float = flax.struct.field(pytree_node=False, default=1.0)  # the share of it that one token is worked with
    summed: str | None = flax.struct.field(pytree_node=False, default=None)  # an Einsum's kernel: the fan-in's letters
    role: Role = flax.struct.field(pytree_node=False, default="kernel")

    def unbox(self) -> Any:
        return self.value

    def replace_boxed(self, val: Any) -> Lettered:
        return dataclasses.replace(self, value=val)

    def add_axis(self, index: int, params: Any) -> Lettered:
        """With the letter `params[nn.PARTITION_NAME]` put before the one at `index`."""
        return dataclasses.replace(
            self, letters=self.letters[:index] + params[nn.PARTITION_NAME] + self.letters[index:]
        )

    def remove_axis(self, index: int, params: Any) -> Lettered:
        return dataclasses.replace(self, letters=self.letters[:index] + self.letters[index + 1 :])


def is_lettered(leaf: object) -> bool:
    return isinstance(leaf, Lettered)


class Einsum(nn.Module):
    """A learned contraction. The equation alone fixes the kernel's shape, fan-in and sharding.

    `Einsum("BTD,DKGH->BTKGH", dict(K=2, G=4, H=64))` maps [B, T, D] to [B, T, K, G, H].
    The result has the input's dtype; with `bias`, one number per output letter that the kernel brings.
    E is no fan-in, summed or not: experts are averaged.
    """

    equation: str
    sizes: Mapping[str, int]  # of the letters that the input does not fix
    bias: bool = False
    init: Init = FanIn()
    active: Share = 1.0  # the share of the kernel that one token is worked with

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        operands, out = self.equation.split("->")
        given, weight = operands.split(",")
        sizes = dict(zip(given, x.shape, strict=True)) | dict(self.sizes)
        summed = "".join(a for a in weight if a not in out and a != "E")
        fan_in = prod(sizes[a] for a in summed)
        kernel = weigh(self, "kernel", weight, sizes, self.init, fan_in, self.active, summed)
        y = contract(self.equation, x, kernel)
        if self.has_variable("params", "down"):
            y = self._adapted(y, x, kernel, summed)
        if self.bias:
            new = "".join(a for a in out if a in weight)
            bias = weigh(self, "bias", new, sizes, Fill(0.0), 1)
            y = y + jnp.expand_dims(bias, [i for i, a in enumerate(out) if a not in new]).astype(jnp.float32)
        return shard(y.astype(x.dtype), out)

    def _adapted(self, y: jax.Array, x: jax.Array, kernel: jax.Array, summed: str) -> jax.Array:
        """`y` with what the adapter beside the kernel adds, as a `Tuning` has put it there; the kernels stay apart."""
        operands, out = self.equation.split("->")
        given, weight = operands.split(",")
        experts, produced = (
            "".join(a for a in weight if (a == "E") == one and a not in summed) for one in (True, False)
        )
        kept = "".join(a for a in given if a not in summed)
        low = f"{experts}{kept}Z" if experts and experts not in given else f"{kept}Z"
        down, up = (self.get_variable("params", name) for name in ("down", "up"))
        x_low = contract(f"{given},{experts}{summed}Z->{low}", x, down).astype(x.dtype)
        y = y + contract(f"{low},{experts}Z{produced}->{out}", x_low, up)
        if not self.has_variable("params", "magnitude"):
            return y
        if experts and experts not in out:
            raise InputError(
                f"Dora cannot scale {self.equation}, which sums over experts: set dispatch=Capacity(), or use Lora"
            )
        norm, magnitude = (self.get_variable("params", name) for name in ("norm", "magnitude"))
        scale = magnification(kernel, down, up, norm, magnitude)
        return y * jnp.expand_dims(scale, [i for i, a in enumerate(out) if a not in experts + produced])


def weigh(
    module: nn.Module, name: str, letters: str, sizes: Mapping[str, int], init: Init, fan_in: int, active: float = 1.0,
    summed: str | None = None, role: Role | None = None,
) -> jax.Array:  # fmt: skip
    """A parameter of `module` whose shape and partitioning come from its letters. If it is quantised, it is read.

    Args:
      fan_in: how many products are summed with it: 1 for what is looked up, multiplied by or added.
      role: what the model does with it, by which optimisers go. None: its name says so, or else its fan-in does.
    """
    shape = tuple(sizes[a] for a in letters)
    known = role or cast(Role, name if name in get_args(Role) else "kernel" if fan_in > 1 else "scale")
    if module.has_variable("params", name) and isinstance(kept := module.get_variable("params", name), Quantized):
        return kept.read()

    def begin(key: jax.Array) -> Any:  # `param` takes the box off
        return Lettered(init.draw(key, shape, fan_in), letters, active, summed, known)

    return module.param(name, begin)


INITS = dict(FanIn=FanIn, Normal=Normal, Fill=Fill)

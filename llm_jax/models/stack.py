"""A stack repeats a pattern of blocks: as one scanned body (compiles once) or unrolled (faster on a CPU)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from llm_jax.core.auxiliary import ASIDE, heard, say
from llm_jax.core.dims import is_lettered
from llm_jax.core.parts import Range, transform
from llm_jax.layers.attention import View
from llm_jax.layers.block import Block, Caches

REMAT = dict(
    none=None,  # keep everything for the backward pass
    dots=jax.checkpoint_policies.dots_with_no_batch_dims_saveable,  # keep projections, compute the rest again
    full=jax.checkpoint_policies.nothing_saveable,  # keep each repeat's input only
)


class Pattern(nn.Module):
    """A few different blocks in a row, e.g. five local and one global."""

    blocks: tuple[Block, ...]

    @nn.compact
    def __call__(self, x_BTD: jax.Array, view: View, caches: tuple[Caches | None, ...]):
        after = []
        for i, (block, cache) in enumerate(zip(self.blocks, caches, strict=True)):
            here = dataclasses.replace(view, dropout_key=view.key(i))
            x_BTD, cache = block.copy(name=f"block_{i}")(x_BTD, here, cache)
            after.append(cache)
        return x_BTD, tuple(after)


Repeats = Annotated[int, Range(least=1, most=10_000)]  # each is traced or scanned, and has parameters


class Stack(nn.Module):
    """`repeats` copies of `pattern`, one after another. Parameters have a leading L axis, however they are run.

    Loop and scan share parameters, dropout and results; `auto` loops on a CPU and scans elsewhere.
    """

    pattern: Annotated[tuple[Block, ...], Range(least=1)]
    repeats: Repeats
    run: Literal["auto", "loop", "scan"] = "auto"
    remat: Literal["none", "dots", "full"] = "none"

    @nn.compact
    def __call__(self, x_BTD: jax.Array, view: View, caches: Any = None):
        def free(part: Any) -> Any:
            return part.clone(parent=None, name=None) if isinstance(part, nn.Module) else part

        pattern = Pattern(transform(self.pattern, free), parent=None)
        if self.is_initializing():
            layers = self.param("layers", self._init, pattern, x_BTD, view)
        else:
            layers = self.get_variable("params", "layers")

        def body(x_BTD: jax.Array, params: Any, caches: tuple[Caches | None, ...], number: jax.Array):
            here = dataclasses.replace(view, dropout_key=view.key(number))
            (x_BTD, after), said = pattern.apply({"params": params}, x_BTD, here, caches, mutable=[ASIDE])
            return x_BTD, after, heard(said)

        if self.remat != "none":
            body = jax.checkpoint(body, policy=REMAT[self.remat])
        if self.loops():
            after, said = [], []
            for i, params in enumerate(unstack(layers)):
                here = caches[i] if caches else (None,) * len(self.pattern)
                x_BTD, cache, aside = body(x_BTD, params, here, jnp.uint32(i))
                after.append(cache)
                said.append(aside)
            say(self, jax.tree.map(lambda *each: sum(each[1:], each[0]), *said))
            return x_BTD, tuple(after) if caches else None

        def step(x_BTD: jax.Array, each: Any):
            params, caches, number = each
            x_BTD, after, aside = body(x_BTD, params, caches, number)
            return x_BTD, (after, aside)

        each = (layers, caches or (None,) * len(self.pattern), jnp.arange(self.repeats, dtype=jnp.uint32))
        x_BTD, (after, said) = jax.lax.scan(step, x_BTD, each)
        say(self, jax.tree.map(lambda x: x.sum(0), said))
        return x_BTD, after if caches else None

    def _init(self, key: jax.Array, pattern: Pattern, x_BTD: jax.Array, view: View):
        def one(key: jax.Array):
            return pattern.init(key, x_BTD, view, (None,) * len(self.pattern))["params"]

        stacked = jax.vmap(one)(jax.random.split(key, self.repeats))
        return jax.tree.map(lambda leaf: leaf.add_axis(0, {nn.PARTITION_NAME: "L"}), stacked, is_leaf=is_lettered)

    def loops(self) -> bool:
        return self.run == "loop" or (self.run == "auto" and jax.default_backend() == "cpu")

    def empty_cache(self, batch: int, length: int, dtype, source: int = 0) -> Any:
        """Of the structure that `__call__` takes and returns: a cache per block, or the same stacked for the scan."""
        one = tuple(block.empty_cache(batch, length, dtype, source) for block in self.pattern)
        if self.loops():
            return (one,) * self.repeats
        return jax.tree.map(lambda x: jnp.broadcast_to(x[None], (self.repeats, *x.shape)), one)

    def prepared(self, params: Any) -> Any:
        """The parameters with each repeat's apart, where it loops: else every call would first cut them apart."""
        return {**params, "layers": tuple(apart(params["layers"]))} if self.loops() else params


def apart(layers: Any) -> list[Any]:
    """`unstack` of arrays at hand. One CPU device has them as views: they keep the stacked arrays, and copy nothing.

    XLA copies a slice that it multiplies, every time, so a generator needs each repeat's arrays by themselves.
    """
    devices = {device for leaf in jax.tree.leaves(layers) for device in leaf.devices()}
    if len(devices) > 1 or next(iter(devices)).platform != "cpu":
        return jax.jit(unstack)(layers)
    (device,), repeats = devices, jax.tree.leaves(layers)[0].shape[0]
    views = jax.tree.map(np.asarray, layers)
    return [jax.device_put(jax.tree.map(lambda x, i=i: x[i], views), device) for i in range(repeats)]


def unstack(layers: Any) -> list[Any]:
    """The parameters of each repeat. Split, not indexed: the gradient is one concatenation instead of a sum of pads."""
    if not isinstance(layers, Mapping):  # a generator has split them already, once for many steps
        return list(layers)
    leaves, tree = jax.tree.flatten(layers)
    repeats = leaves[0].shape[0]
    split = [[x.reshape(x.shape[1:]) for x in jax.lax.split(leaf, (1,) * repeats)] for leaf in leaves]
    return [tree.unflatten(each) for each in zip(*split, strict=True)]

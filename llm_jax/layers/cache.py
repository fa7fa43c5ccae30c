"""What attention remembers between calls. Passed and returned, never hidden in a module."""

from __future__ import annotations

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp

from llm_jax.layers.tokens import PADDING, Tokens


@flax.struct.dataclass
class Memory:
    """Keys and values, and where their tokens stand."""

    k_BSKH: jax.Array
    v_BSKH: jax.Array
    tokens: Tokens


@flax.struct.dataclass
class Cache:
    """Slots for the memory of one attention layer. A rolling cache overwrites the oldest slot.

    `reach` is how many of the latest tokens attention sees; None: all.

    Slots lie as [B, K, S, H], the order in which they are multiplied: from [B, S, K, H] every step would first copy
    the whole cache into it. What attention gets is the usual view, which costs nothing.
    """

    k_BKSH: jax.Array
    v_BKSH: jax.Array
    tokens: Tokens
    reach: int | None = flax.struct.field(pytree_node=False, default=None)
    rolling: bool = flax.struct.field(pytree_node=False, default=False)

    @classmethod
    def empty(cls, batch: int, length: int, key_heads: int, head: int, dtype, reach: int | None = None) -> Cache:
        """Room for `length` tokens, or for the `reach` latest where attention sees no more."""
        size = length if reach is None else min(length, reach)
        zeros = jnp.zeros((batch, key_heads, size, head), dtype)
        return cls(zeros, zeros, Tokens.none((batch, size)), reach, size < length)

    def longer(self, more: int) -> Cache:
        """With `more` slots, or as many as it has any use for: it rolls then. What is in it stays in its slot.

        The arrays may have axes before B (a scanned stack's layers).
        """
        if self.rolling:
            return self
        size = self.k_BKSH.shape[-2]
        added = more if self.reach is None else min(more, self.reach - size)

        def pad(x: jax.Array, axis: int, value: int = 0) -> jax.Array:
            widths = [(0, 0)] * x.ndim
            widths[axis] = (0, added)
            return jnp.pad(x, widths, constant_values=value)

        tokens = Tokens(pad(self.tokens.position_BT, -1), pad(self.tokens.segment_BT, -1, PADDING))
        return Cache(pad(self.k_BKSH, -2), pad(self.v_BKSH, -2), tokens, self.reach, added < more)

    def extend(self, new: Memory, start: int | jax.Array) -> tuple[Memory, Cache]:
        """What to attend to now that `new` tokens follow the `start` that came before, and the cache afterwards."""
        size, count = self.k_BKSH.shape[2], new.k_BSKH.shape[1]
        if not self.rolling:
            after = self._write(new, start)
            return after.memory(), after
        newest = jax.tree.map(lambda n: n[:, -size:], new)
        first = start + max(count - size, 0)
        after = self._write(newest, (first + jnp.arange(min(count, size), dtype=jnp.int32)) % size)
        if count == 1:  # the slot it overwrote had just gone out of sight
            return after.memory(), after
        return jax.tree.map(lambda old, n: jnp.concatenate([old, n], axis=1), self.memory(), new), after

    def memory(self) -> Memory:
        return Memory(self.k_BKSH.swapaxes(1, 2), self.v_BKSH.swapaxes(1, 2), self.tokens)

    def _write(self, new: Memory, at: int | jax.Array) -> Cache:
        """With `new` in the slots `at`: a first slot, or one for each token."""

        def put(old: jax.Array, values: jax.Array, axis: int) -> jax.Array:
            if jnp.ndim(at) == 0:
                return jax.lax.dynamic_update_slice_in_dim(old, values, at, axis)
            return old.at[(slice(None),) * axis + (at,)].set(values)

        return dataclasses.replace(
            self,
            k_BKSH=put(self.k_BKSH, new.k_BSKH.swapaxes(1, 2), 2),
            v_BKSH=put(self.v_BKSH, new.v_BSKH.swapaxes(1, 2), 2),
            tokens=jax.tree.map(lambda old, n: put(old, n, 1), self.tokens, new.tokens),
        )

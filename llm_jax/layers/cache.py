"""What attention remembers between calls. Passed and returned, never hidden in a module."""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp

from llm_jax.layers.tokens import Tokens


@flax.struct.dataclass
class Memory:
    """Keys and values, and where their tokens stand."""

    k_BSKH: jax.Array
    v_BSKH: jax.Array
    tokens: Tokens


@flax.struct.dataclass
class Cache:
    """Slots for the memory of one attention layer. A rolling cache overwrites the oldest slot."""

    slots: Memory
    rolling: bool = flax.struct.field(pytree_node=False, default=False)

    @classmethod
    def empty(cls, batch: int, length: int, key_heads: int, head: int, dtype, reach: int | None = None) -> Cache:
        """Room for `length` tokens, or for the `reach` latest where attention sees no more."""
        rolling = reach is not None and reach < length
        size = reach if rolling and reach is not None else length
        zeros = jnp.zeros((batch, size, key_heads, head), dtype)
        return cls(Memory(zeros, zeros, Tokens.none((batch, size))), rolling)

    def extend(self, new: Memory, start: int | jax.Array) -> tuple[Memory, Cache]:
        """What to attend to now that `new` tokens follow the `start` that came before, and the cache afterwards."""
        if not self.rolling:
            slots = jax.tree.map(lambda old, n: jax.lax.dynamic_update_slice_in_dim(old, n, start, axis=1), self.slots, new)
            return slots, self.replace(slots=slots)
        size, count = self.slots.k_BSKH.shape[1], new.k_BSKH.shape[1]
        newest = jax.tree.map(lambda n: n[:, -size:], new)
        first = start + max(count - size, 0)
        at = (first + jnp.arange(min(count, size), dtype=jnp.int32)) % size
        slots = jax.tree.map(lambda old, n: old.at[:, at].set(n), self.slots, newest)
        after = self.replace(slots=slots)
        if count == 1:  # the slot it overwrote had just gone out of sight
            return slots, after
        both = jax.tree.map(lambda old, n: jnp.concatenate([old, n], axis=1), self.slots, new)
        return both, after

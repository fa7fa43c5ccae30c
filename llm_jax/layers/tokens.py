"""Where tokens stand. Positions and masks ask this, and nothing else, about a batch."""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp

PADDING = -1  # the segment of a slot that holds no token


@flax.struct.dataclass
class Tokens:
    """Each token's position in its document, and which document of the row it belongs to (`PADDING`: none)."""

    position_BT: jax.Array
    segment_BT: jax.Array

    @classmethod
    def of(cls, shape: tuple[int, ...]) -> Tokens:
        """One document a row, from its first token."""
        position_BT = jnp.broadcast_to(jnp.arange(shape[1], dtype=jnp.int32)[None], shape)
        return cls(position_BT, jnp.zeros(shape, jnp.int32))

    @classmethod
    def none(cls, shape: tuple[int, ...]) -> Tokens:
        """Slots that hold nothing yet."""
        return cls(jnp.zeros(shape, jnp.int32), jnp.full(shape, PADDING, jnp.int32))

    def cut(self, start: int, stop: int) -> Tokens:
        return Tokens(self.position_BT[:, start:stop], self.segment_BT[:, start:stop])

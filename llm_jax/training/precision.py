"""Which dtype computes. Parameters, optimiser state, norms, softmax, logits and losses stay in float32."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp

from llm_jax.core.parts import Part


@dataclasses.dataclass(frozen=True)
class Precision(Part):
    """The step casts the parameters to `compute` once; gradients are summed in float32."""

    compute: Literal["float32", "bfloat16"] = "float32"

    def cast(self, params: Any) -> Any:
        return jax.tree.map(lambda x: x.astype(self.dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, params)

    @property
    def dtype(self) -> Any:
        return jnp.dtype(self.compute)

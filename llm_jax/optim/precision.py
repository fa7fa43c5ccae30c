"""Which dtype computes. Parameters, optimiser state, norms, softmax, logits and losses stay in float32."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp

from llm_jax.core.parts import Part
from llm_jax.core.quantized import is_quantized


@dataclasses.dataclass(frozen=True)
class Precision(Part):
    """The step casts the parameters to `compute` once; gradients are summed in float32.

    Off the CPU, JAX multiplies float32 matrices in fewer bits (TF32 on a GPU, bfloat16 on a TPU), and sums in float32;
    `JAX_DEFAULT_MATMUL_PRECISION=highest` takes all of them, which is slower.
    """

    compute: Literal["float32", "bfloat16"] = "float32"

    def cast(self, params: Any) -> Any:
        def one(x: Any) -> Any:
            return x.astype(self.dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x

        return jax.tree.map(one, params, is_leaf=is_quantized)

    @property
    def dtype(self) -> Any:
        return jnp.dtype(self.compute)

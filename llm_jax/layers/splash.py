"""Splash attention: how our masks, segments and shardings are said to the Pallas kernel that JAX ships for TPUs."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

from llm_jax.core.dims import partition
from llm_jax.layers.masks import Band
from llm_jax.layers.scoring import Scoring
from llm_jax.layers.tokens import PADDING

LANES = 128  # of a TPU's vectors: blocks are multiples of them


def attend(
    q_BTKGH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, scoring: Scoring, block: int, interpret: bool
) -> jax.Array:
    """[B, T, K, G, H]. On a mesh each device works on its own rows and heads."""
    band = scoring.mask.band()
    assert band is not None, "refused before"
    here = functools.partial(
        _attend, band=band, scale=scoring.scale, soft_cap=scoring.soft_cap, block=block, interpret=interpret
    )
    operands = (q_BTKGH, k_BSKH, v_BSKH, scoring.queries.segment_BT, scoring.keys.segment_BT)
    mesh = jax.sharding.get_abstract_mesh()
    if not mesh.empty and mesh.size > 1:
        letters = ("B.KGH", "B.KH", "B.KH", "B.", "B.")
        specs = tuple(partition(a, x.shape, mesh) for a, x in zip(letters, operands, strict=True))
        here = jax.shard_map(here, mesh=mesh, in_specs=specs, out_specs=specs[0], check_vma=False)
    return here(*operands)


def _attend(
    q_BTKGH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, q_segment_BT: jax.Array, k_segment_BS: jax.Array, *,
    band: Band, scale: float, soft_cap: float, block: int, interpret: bool,
) -> jax.Array:  # fmt: skip
    batch, length, key_heads, group, head = q_BTKGH.shape
    rows, columns = _blocks(length, block), _blocks(k_BSKH.shape[1], block)
    q_BTNH = (q_BTKGH.astype(jnp.float32) * scale).astype(q_BTKGH.dtype).reshape(batch, length, -1, head)
    kernel: Any = kernels.make_splash_mha(
        masks.MultiHeadMask([_mask(band, rows[0], columns[0])] * (key_heads * group)),
        head_shards=1, q_seq_shards=1, block_sizes=_sizes(rows[1], columns[1]),
        attn_logits_soft_cap=soft_cap or None, interpret=interpret,
    )  # fmt: skip
    segments = kernels.SegmentIds(_pad(q_segment_BT, rows[0], PADDING), _pad(k_segment_BS, columns[0], PADDING))
    o_BNTH = jax.vmap(kernel)(
        _pad(q_BTNH, rows[0]).swapaxes(1, 2), _pad(k_BSKH, columns[0]).swapaxes(1, 2),
        _pad(v_BSKH, columns[0]).swapaxes(1, 2), segments,
    )  # fmt: skip
    o_BTKGH = o_BNTH.swapaxes(1, 2)[:, :length].reshape(q_BTKGH.shape)
    # to the kernel padding is a document too, and who sees nothing gets the mean of everything
    same_BTS = q_segment_BT[:, :, None] == k_segment_BS[:, None, :]
    seen_BT = same_BTS.any(-1) & (q_segment_BT != PADDING)
    return jnp.where(seen_BT[:, :, None, None, None], o_BTKGH, 0)


def _mask(band: Band, length: int, source: int) -> masks.Mask:
    back, ahead = band
    if math.isinf(back) and math.isinf(ahead):
        return masks.FullMask((length, source))
    if math.isinf(back) and ahead == 0:
        return masks.CausalMask((length, source))
    window = tuple(None if math.isinf(x) else int(x) for x in band)
    return masks.LocalMask((length, source), (window[0], window[1]), 0)


def _blocks(length: int, block: int) -> tuple[int, int]:
    """A length of whole blocks that holds `length`, and their size."""
    size = min(block, math.ceil(length / LANES) * LANES)
    return math.ceil(length / size) * size, size


def _sizes(rows: int, columns: int) -> kernels.BlockSizes:
    return kernels.BlockSizes(
        block_q=rows, block_kv=columns, block_kv_compute=columns, block_q_dkv=rows, block_kv_dkv=columns,
        block_kv_dkv_compute=columns, block_q_dq=rows, block_kv_dq=columns,
    )  # fmt: skip


def _pad(x: jax.Array, length: int, value: int = 0) -> jax.Array:
    """`x` with its second axis filled up."""
    return jnp.pad(x, [(0, 0), (0, length - x.shape[1])] + [(0, 0)] * (x.ndim - 2), constant_values=value)

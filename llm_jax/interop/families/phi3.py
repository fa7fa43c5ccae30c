"""Phi-3 and Phi-4 (Abdin et al. 2024): Llama with fused projections. Phi-4-mini turns a part of each head only; it, and
Phi-3 with 128k tokens, is scaled by LongRoPE, of which the waves for the original context are read."""

from __future__ import annotations

from llm_jax.core.errors import InputError
from llm_jax.interop.configs import decoders, rope
from llm_jax.interop.configs.decoders import LAYER
from llm_jax.interop.family import Config, Family, activation, gated, need
from llm_jax.interop.weights import Names, Theirs
from llm_jax.layers.attention import Attention
from llm_jax.layers.block import Block
from llm_jax.layers.norms import RMSNorm
from llm_jax.layers.positions import LongRopeScaling
from llm_jax.models.decoder import Decoder
from llm_jax.models.model import Model

QKV = ("KGH", "KH", "KH")


def model(config: Config) -> Decoder:
    norm = RMSNorm(float(config.get("rms_norm_eps", 1e-5)))
    positions = rope.rope(config, partly=True)
    if not isinstance(positions.scaling, LongRopeScaling | None):
        raise InputError("config.json has a rope_scaling, but of this family only longrope, or none, is covered")
    mask = decoders.mask_of(config.get("sliding_window"))
    ffn = gated(need(config, "intermediate_size"), activation(config, "hidden_act", "silu"))
    attention = Attention(**decoders.heads(config), mask=mask)
    block = Block(attention, ffn, norm, dropout=float(config.get("resid_pdrop") or 0.0))
    found = decoders.decoder(config, [block] * need(config, "num_hidden_layers"), positions, norm, tied=False)
    return found.clone(embed=found.embed.clone(dropout=float(config.get("embd_pdrop") or 0.0)))


def config(model: Model) -> dict:
    found = decoders.settings(model)
    mask = decoders.first_block(model).attention.mask
    original = (found["rope_scaling"] or {}).get("original_max_position_embeddings", model.limit())
    return found | dict(sliding_window=decoders.window_of(mask), original_max_position_embeddings=original)


def names(model: Model) -> Names:
    fused = {
        f"block.attention.{part}.kernel": Theirs(LAYER + "self_attn.qkv_proj.weight", f"{QKV[i]} D", QKV, i)
        for i, part in enumerate(("query", "key", "value"))
    } | {
        f"block.ffn.{part}.kernel": Theirs(LAYER + "mlp.gate_up_proj.weight", "F D", ("F", "F"), i)
        for i, part in enumerate(("gate", "up"))
    }
    return dict(decoders.NAMES) | fused


PHI3 = Family(("Phi3ForCausalLM",), model, config, names, decoders.IGNORED, decoders.COPIES, decoders.PREFIX)

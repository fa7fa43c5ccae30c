"""OLMo 2 (OLMo Team 2024): norms after each branch, and over all queries and all keys together."""

from __future__ import annotations

from llm_jax.interop.configs import decoders, rope
from llm_jax.interop.configs.decoders import LAYER
from llm_jax.interop.family import Config, Family, activation, gated, need, setting
from llm_jax.interop.weights import Names, Theirs
from llm_jax.layers.attention import Attention
from llm_jax.layers.block import Block, OutNorm
from llm_jax.layers.norms import RMSNorm
from llm_jax.models.decoder import Decoder
from llm_jax.models.model import Model


def model(config: Config) -> Decoder:
    norm = RMSNorm(float(config.get("rms_norm_eps", 1e-5)))
    bias = setting(config, "attention_bias", True, False, default=False)
    attention = Attention(**decoders.heads(config), bias=bias, out_bias=bias, norm=norm, norm_over="heads")
    ffn = gated(need(config, "intermediate_size"), activation(config, "hidden_act", "silu"))
    blocks = [Block(attention, ffn, norm, OutNorm())] * need(config, "num_hidden_layers")
    return decoders.decoder(config, blocks, rope.rope(config), norm, tied=False)


def config(model: Model) -> dict:
    return decoders.settings(model) | dict(attention_bias=decoders.first_block(model).attention.bias)


def names(model: Model) -> Names:
    return dict(decoders.NAMES) | {
        "block.attention.query_norm.scale": Theirs(LAYER + "self_attn.q_norm.weight", "KGH"),
        "block.attention.key_norm.scale": Theirs(LAYER + "self_attn.k_norm.weight", "KH"),
        "block.attention_out_norm.scale": Theirs(LAYER + "post_attention_layernorm.weight", "D"),
        "block.ffn_out_norm.scale": Theirs(LAYER + "post_feedforward_layernorm.weight", "D"),
    }


OLMO2 = Family(("Olmo2ForCausalLM",), model, config, names, decoders.IGNORED, decoders.COPIES, decoders.PREFIX)

"""Llama 2 and 3 (Touvron et al. 2023; Dubey et al. 2024) and what was built like them, such as SmolLM2."""

from __future__ import annotations

from llm_jax.interop.configs import decoders, rope
from llm_jax.interop.family import Config, Family, activation, gated, need, setting
from llm_jax.layers.attention import Attention
from llm_jax.layers.block import Block
from llm_jax.layers.norms import RMSNorm
from llm_jax.models.decoder import Decoder
from llm_jax.models.model import Model


def model(config: Config) -> Decoder:
    setting(config, "rope_interleaved", None, False)
    norm = RMSNorm(float(config.get("rms_norm_eps", 1e-6)))
    bias = setting(config, "attention_bias", True, False, default=False)
    ffn_bias = setting(config, "mlp_bias", True, False, default=False)
    attention = Attention(**decoders.heads(config), bias=bias, out_bias=bias)
    ffn = gated(need(config, "intermediate_size"), activation(config, "hidden_act", "silu"), ffn_bias)
    blocks = [Block(attention, ffn, norm)] * need(config, "num_hidden_layers")
    return decoders.decoder(config, blocks, rope.rope(config), norm, tied=False)


def config(model: Model) -> dict:
    block = decoders.first_block(model)
    biases = dict(attention_bias=block.attention.bias, mlp_bias=block.ffn.bias)
    return decoders.divisible(decoders.settings(model) | biases)


LLAMA = Family(("LlamaForCausalLM",), model, config, decoders.names, decoders.IGNORED, decoders.COPIES, decoders.PREFIX)

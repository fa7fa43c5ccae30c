"""Mistral 7B (Jiang et al. 2023): Llama with a sliding window and no biases."""

from __future__ import annotations

from llm_jax.interop.configs import decoders, rope
from llm_jax.interop.family import Config, Family, activation, gated, need
from llm_jax.layers.attention import Attention
from llm_jax.layers.block import Block
from llm_jax.layers.norms import RMSNorm
from llm_jax.models.decoder import Decoder
from llm_jax.models.model import Model

WINDOW = 4096  # where config.json does not say


def model(config: Config) -> Decoder:
    norm = RMSNorm(float(config.get("rms_norm_eps", 1e-6)))
    mask = decoders.mask_of(config.get("sliding_window", WINDOW))
    ffn = gated(need(config, "intermediate_size"), activation(config, "hidden_act", "silu"))
    blocks = [Block(Attention(**decoders.heads(config), mask=mask), ffn, norm)] * need(config, "num_hidden_layers")
    return decoders.decoder(config, blocks, rope.rope(config), norm, tied=False)


def config(model: Model) -> dict:
    window = decoders.window_of(decoders.first_block(model).attention.mask)
    return decoders.settings(model) | dict(sliding_window=window)


MISTRAL = Family(
    ("MistralForCausalLM",), model, config, decoders.names, decoders.IGNORED, decoders.COPIES, decoders.PREFIX
)

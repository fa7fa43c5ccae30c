"""Qwen 2 and 2.5 (Qwen Team 2024): Llama with biases on queries, keys and values, and windows on the upper layers.
Qwen 3 (Qwen Team 2025), dense: without them, but with normalised queries and keys."""

from __future__ import annotations

from typing import Any

from llm_jax.core.errors import InputError
from llm_jax.interop.configs import decoders, rope
from llm_jax.interop.family import Config, Family, activation, blocks_of, expect, gated, need, setting
from llm_jax.layers.attention import Attention
from llm_jax.layers.block import Block
from llm_jax.layers.feedforward import FeedForward
from llm_jax.layers.norms import RMSNorm
from llm_jax.models.decoder import Decoder
from llm_jax.models.model import Model


def qwen2(config: Config) -> Decoder:
    return _model(config, dict(bias=True), _dense(config))


def qwen3(config: Config) -> Decoder:
    bias = setting(config, "attention_bias", True, False, default=False)
    norm = RMSNorm(float(config.get("rms_norm_eps", 1e-6)))
    head = config.get("head_dim") or 128
    return _model(config, dict(bias=bias, out_bias=bias, norm=norm, head=head), _dense(config))


def _dense(config: Config) -> FeedForward:
    return gated(need(config, "intermediate_size"), activation(config, "hidden_act", "silu"))


def _model(config: Config, attention: dict[str, Any], ffn: FeedForward) -> Decoder:
    norm = RMSNorm(float(config.get("rms_norm_eps", 1e-6)))
    blocks = [
        Block(Attention(**decoders.heads(config) | attention, mask=decoders.mask_of(window)), ffn, norm)
        for window in _windows(config)
    ]
    return decoders.decoder(config, blocks, rope.rope(config), norm, tied=False)


def _windows(config: Config) -> list[int | None]:
    """The window of each layer."""
    window = config.get("sliding_window", 4096) if config.get("use_sliding_window", False) else None
    layers, first = need(config, "num_hidden_layers"), config.get("max_window_layers", 28)
    upper = "full_attention" if window is None else "sliding_attention"
    usual = [upper if i >= first else "full_attention" for i in range(layers)]
    slides = decoders.layer_types(config, usual)
    if any(slides) and window is None:
        raise InputError("config.json has layers of sliding_attention, but no sliding_window, or it is not to be used")
    return [window if here else None for here in slides]


def config2(model: Model) -> dict:
    blocks = blocks_of(expect(model, Decoder, "model").stack)
    windows = [decoders.window_of(block.attention.mask) for block in blocks]
    window = next((w for w in windows if w is not None), None)
    return decoders.settings(model) | dict(
        use_sliding_window=window is not None,
        sliding_window=window,
        layer_types=["full_attention" if w is None else "sliding_attention" for w in windows],
    )


def config3(model: Model) -> dict:
    return config2(model) | dict(attention_bias=decoders.first_block(model).attention.bias)


QWEN2 = Family(
    ("Qwen2ForCausalLM",), qwen2, config2, decoders.names, decoders.IGNORED, decoders.COPIES, decoders.PREFIX
)
QWEN3 = Family(
    ("Qwen3ForCausalLM",), qwen3, config3, decoders.names, decoders.IGNORED, decoders.COPIES, decoders.PREFIX
)

"""Gemma (Gemma Team 2024a): Llama with scales that are stored less 1, larger embeddings, and GELU gates.
Gemma 2 (2024b): norms on both sides of a branch, capped scores, every other layer a window.
Gemma 3's text models (2025): normalised queries and keys, a global layer in six, which has a rotary base of its own."""

from __future__ import annotations

from typing import Any

from llm_jax.interop.configs import decoders, rope
from llm_jax.interop.configs.decoders import LAYER
from llm_jax.interop.family import ACTIVATIONS, Config, Family, activation, blocks_of, expect, gated, need, setting
from llm_jax.interop.weights import Names, Theirs
from llm_jax.layers.attention import Attention
from llm_jax.layers.block import Block, SandwichNorm
from llm_jax.layers.feedforward import Activation, FeedForward
from llm_jax.layers.masks import Mask
from llm_jax.layers.norms import RMSNorm
from llm_jax.layers.positions import Rope
from llm_jax.models.decoder import Decoder
from llm_jax.models.model import Model

GELU = "gelu_pytorch_tanh"


def _norm(config: Config) -> RMSNorm:
    return RMSNorm(float(config.get("rms_norm_eps", 1e-6)), offset=1.0)


def _attention(config: Config, mask: Mask, scalar: float | None = None, **more: Any) -> Attention:
    """Scores are divided by the root of `scalar`: by default the width of a head, as everywhere."""
    setting(config, "use_bidirectional_attention", None, False)
    bias = setting(config, "attention_bias", True, False, default=False)
    heads = decoders.heads({"head_dim": 256} | dict(config))
    scale = None if scalar in (None, heads["head"]) else scalar**-0.5
    return Attention(**heads, mask=mask, bias=bias, out_bias=bias, scale=scale, **more)


def _decoder(config: Config, blocks: list[Block], positions: Rope, soft_cap: float | None = None) -> Decoder:
    scale, norm = need(config, "hidden_size") ** 0.5, _norm(config)
    return decoders.decoder(config, blocks, positions, norm, tied=True, scale=scale, soft_cap=float(soft_cap or 0.0))


def _ffn(config: Config, act: Activation) -> FeedForward:
    return gated(need(config, "intermediate_size"), act)


def gemma(config: Config) -> Decoder:
    setting(config, "hidden_activation", None, GELU)
    # in the first releases "gelu" means the approximation
    act = ACTIVATIONS[GELU] if config.get("hidden_act") == "gelu" else activation(config, "hidden_act", GELU)
    block = Block(_attention(config, decoders.mask_of(None)), _ffn(config, act), _norm(config))
    return _decoder(config, [block] * need(config, "num_hidden_layers"), rope.rope(config))


def gemma2(config: Config) -> Decoder:
    act, scalar = activation(config, "hidden_activation", GELU), config.get("query_pre_attn_scalar", 256)
    soft_cap = float(config.get("attn_logit_softcapping", 50.0) or 0.0)
    blocks = [
        Block(_attention(config, mask, scalar, soft_cap=soft_cap), _ffn(config, act), _norm(config), SandwichNorm())
        for mask in _masks(config, every=2)
    ]
    return _decoder(config, blocks, rope.rope(config), config.get("final_logit_softcapping", 30.0))


def gemma3(config: Config) -> Decoder:
    setting(config, "attn_logit_softcapping", None)
    act, scalar = activation(config, "hidden_activation", GELU), config.get("query_pre_attn_scalar", 256)
    norm, (local, whole) = _norm(config), _ropes(config)
    blocks = [
        Block(
            _attention(config, mask, scalar, norm=norm), _ffn(config, act), norm, SandwichNorm(),
            positions=local if decoders.window_of(mask) else None,
        )
        for mask in _masks(config, every=config.get("sliding_window_pattern", 6))
    ]  # fmt: skip
    return _decoder(config, blocks, whole, config.get("final_logit_softcapping"))


def _masks(config: Config, every: int) -> list[Mask]:
    """The mask of each layer: by default one in `every` is global."""
    layers = need(config, "num_hidden_layers")
    usual = ["sliding_attention" if (i + 1) % every else "full_attention" for i in range(layers)]
    window = config.get("sliding_window", 4096)
    return [decoders.mask_of(need(dict(sliding_window=window), "sliding_window") if slides else None)
            for slides in decoders.layer_types(config, usual)]  # fmt: skip


def _ropes(config: Config) -> tuple[Rope, Rope]:
    """Of the local and of the global layers."""
    given = config.get("rope_parameters") or {}
    local = dict(rope_theta=config.get("rope_local_base_freq") or 10_000.0) | (given.get("sliding_attention") or {})
    whole = dict(rope_theta=config.get("rope_theta") or 1e6) | (given.get("full_attention") or {})
    return rope.read(local, config), rope.read(whole | (config.get("rope_scaling") or {}), config)


def config1(model: Model) -> dict:
    return decoders.settings(model) | dict(attention_bias=decoders.first_block(model).attention.bias)


def config2(model: Model) -> dict:
    whole, first = expect(model, Decoder, "model"), decoders.first_block(model)
    found = decoders.divisible(config1(model))
    masks = [block.attention.mask for block in blocks_of(whole.stack)]
    windows = [decoders.window_of(mask) for mask in masks]
    attention = first.attention
    return found | dict(
        hidden_activation=found.pop("hidden_act"),
        query_pre_attn_scalar=attention.head if attention.scale is None else round(attention.scale**-2),
        sliding_window=next((w for w in windows if w is not None), None),
        layer_types=["full_attention" if w is None else "sliding_attention" for w in windows],
        final_logit_softcapping=whole.head.soft_cap or None,
        attn_logit_softcapping=attention.soft_cap or None,
    )


def config3(model: Model) -> dict:
    found = config2(model)
    blocks = blocks_of(expect(model, Decoder, "model").stack)
    local = next((block.positions for block in blocks if block.positions is not None), Rope())
    theta = expect(local, Rope, "the positions of a local layer").theta
    return found | dict(rope_local_base_freq=theta)


def names(model: Model) -> Names:
    """Of Gemma 2 and 3, whose branches end in a norm too."""
    return dict(decoders.NAMES) | {
        "block.attention_out_norm.scale": Theirs(LAYER + "post_attention_layernorm.weight", "D"),
        "block.ffn_norm.scale": Theirs(LAYER + "pre_feedforward_layernorm.weight", "D"),
        "block.ffn_out_norm.scale": Theirs(LAYER + "post_feedforward_layernorm.weight", "D"),
    }


_REST = (decoders.IGNORED, decoders.COPIES, decoders.PREFIX)
GEMMA = Family(("GemmaForCausalLM",), gemma, config1, decoders.names, *_REST)
GEMMA2 = Family(("Gemma2ForCausalLM",), gemma2, config2, names, *_REST)
GEMMA3 = Family(("Gemma3ForCausalLM",), gemma3, config3, names, *_REST)

"""Qwen 3's mixtures of experts (Qwen Team 2025): the dense model, with a router and experts in each block."""

from __future__ import annotations

from llm_jax.interop.configs import decoders, rope
from llm_jax.interop.configs.decoders import LAYER
from llm_jax.interop.family import Config, Family, activation, activation_name, expect, need, setting
from llm_jax.interop.weights import Names, Theirs
from llm_jax.layers.attention import Attention
from llm_jax.layers.block import Block
from llm_jax.layers.moe import MoE
from llm_jax.layers.norms import RMSNorm
from llm_jax.models.decoder import Decoder
from llm_jax.models.model import Model

EXPERT = LAYER + "mlp.experts.{expert}."


def model(config: Config) -> Decoder:
    setting(config, "decoder_sparse_step", 1, default=1)
    setting(config, "mlp_only_layers", None, [])
    window = config.get("sliding_window", 4096) if config.get("use_sliding_window", False) else None
    norm = RMSNorm(float(config.get("rms_norm_eps", 1e-6)))
    bias = setting(config, "attention_bias", True, False, default=False)
    attention = Attention(
        **decoders.heads(config), mask=decoders.mask_of(window), bias=bias, out_bias=bias, norm=norm
    )  # fmt: skip
    experts = config.get("num_local_experts") or need(config, "num_experts")  # transformers 5 writes the former
    ffn = MoE(
        need(config, "moe_intermediate_size"), activation(config, "hidden_act", "silu"),
        experts=experts, top_k=need(config, "num_experts_per_tok"),
        normalize=setting(config, "norm_topk_prob", True, False, default=False),
        balance=float(config.get("router_aux_loss_coef", 0.001)), z=0.0,
    )  # fmt: skip
    blocks = [Block(attention, ffn, norm)] * need(config, "num_hidden_layers")
    return decoders.decoder(config, blocks, rope.rope(config), norm, tied=False)


def config(model: Model) -> dict:
    block = decoders.first_block(model)
    ffn = expect(block.ffn, MoE, "model.stack.pattern.0.ffn")
    window = decoders.window_of(block.attention.mask)
    return decoders.shared(model, ffn) | dict(
        hidden_act=activation_name(ffn.activation),
        moe_intermediate_size=ffn.hidden,
        num_experts=ffn.experts,
        num_experts_per_tok=ffn.top_k,
        norm_topk_prob=ffn.normalize,
        router_aux_loss_coef=ffn.balance,
        attention_bias=block.attention.bias,
        use_sliding_window=window is not None,
        sliding_window=window,
    )


def names(model: Model) -> Names:
    return dict(decoders.NAMES) | {
        "block.ffn.router.kernel": Theirs(LAYER + "mlp.gate.weight", "E D"),
        "block.ffn.gate.kernel": Theirs(EXPERT + "gate_proj.weight", "F D"),
        "block.ffn.up.kernel": Theirs(EXPERT + "up_proj.weight", "F D"),
        "block.ffn.down.kernel": Theirs(EXPERT + "down_proj.weight", "D F"),
    }


QWEN3_MOE = Family(("Qwen3MoeForCausalLM",), model, config, names, decoders.IGNORED, decoders.COPIES, decoders.PREFIX)

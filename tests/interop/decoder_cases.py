"""Configurations of the published decoders, as transformers spells them: chosen by hand, and drawn."""

from __future__ import annotations

import random
from typing import Any

VOCABULARY = 61
BASE: dict[str, Any] = dict(
    vocab_size=VOCABULARY, hidden_size=30, intermediate_size=22, num_hidden_layers=2, num_attention_heads=3,
    num_key_value_heads=1, max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2,
)  # fmt: skip
GPT2 = dict(vocab_size=VOCABULARY, n_embd=30, n_layer=2, n_head=3, n_positions=64, bos_token_id=1, eos_token_id=2)


def rope(kind: str = "default", theta: float = 5000.0, **more: Any) -> dict[str, Any]:
    return dict(rope_parameters=dict(rope_type=kind, rope_theta=theta, **more))


LLAMA3 = dict(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=16)
YARN = dict(factor=4.0, original_max_position_embeddings=16, beta_fast=8.0, beta_slow=2.0)
EXPERTS = dict(  # sizes that torch can group
    num_experts=4, num_experts_per_tok=2, moe_intermediate_size=12, hidden_size=32, num_attention_heads=4
)
PATTERN = ["sliding_attention", "sliding_attention", "full_attention"]
TWO_BASES = dict(
    rope_parameters=dict(
        full_attention=dict(rope_type="linear", factor=4.0, rope_theta=1e5),
        sliding_attention=dict(rope_type="default", rope_theta=50.0),
    )
)

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-3.1": ("llama", BASE | dict(head_dim=12, num_hidden_layers=3) | rope("llama3", **LLAMA3)),
    "llama-linear-biases": ("llama", BASE | dict(attention_bias=True, mlp_bias=True) | rope("linear", factor=3.0)),
    "llama-yarn-tied": ("llama", BASE | dict(tie_word_embeddings=True, num_key_value_heads=3) | rope("yarn", **YARN)),
    "mistral-window": ("mistral", BASE | dict(head_dim=8, sliding_window=4, num_attention_heads=6, hidden_size=40)),
    "mistral-whole": ("mistral", BASE | dict(sliding_window=None, hidden_act="gelu")),
    "mistral-tied-odd": (
        "mistral", BASE | dict(hidden_size=35, num_attention_heads=5, num_key_value_heads=5, head_dim=14,
                               sliding_window=6, tie_word_embeddings=True)),
    "qwen2": ("qwen2", BASE | dict(tie_word_embeddings=True)),
    "qwen2-upper-windows": (
        "qwen2", BASE | dict(use_sliding_window=True, sliding_window=4, max_window_layers=1, rms_norm_eps=1e-5)
    ),
    "qwen2-linear-odd": ("qwen2", BASE | dict(hidden_size=42, num_attention_heads=7) | rope("linear", factor=2.0)),
    "qwen3": ("qwen3", BASE | dict(head_dim=12, attention_bias=True)),
    "qwen3-tied-mix": (
        "qwen3", BASE | dict(head_dim=8, num_hidden_layers=3, layer_types=PATTERN, use_sliding_window=True,
                             sliding_window=5, tie_word_embeddings=True)),
    "qwen3-odd": ("qwen3", BASE | dict(num_attention_heads=5, num_key_value_heads=5, head_dim=6)),
    "qwen3-experts": ("qwen3_moe", BASE | EXPERTS | dict(norm_topk_prob=True, num_hidden_layers=3)),
    "qwen3-experts-window": (
        "qwen3_moe", BASE | EXPERTS | dict(attention_bias=True, use_sliding_window=True, sliding_window=5)),
    "qwen3-experts-tied": (
        "qwen3_moe", BASE | EXPERTS | dict(num_experts=5, num_experts_per_tok=3, num_key_value_heads=2, head_dim=6,
                                           norm_topk_prob=False, tie_word_embeddings=True)),
    "phi3": ("phi3", BASE | dict(sliding_window=5)),
    "phi3-partial": (
        "phi3", BASE | dict(hidden_size=48, num_key_value_heads=3) | rope(partial_rotary_factor=0.5)
    ),
    "phi3-tied-odd": (
        "phi3", BASE | dict(hidden_size=40, num_attention_heads=5, num_key_value_heads=5, tie_word_embeddings=True)),
    "gemma": ("gemma", BASE | dict(head_dim=12)),
    "gemma-untied-biases": ("gemma", BASE | dict(head_dim=8, attention_bias=True, tie_word_embeddings=False)),
    "gemma-odd": ("gemma", BASE | dict(num_attention_heads=5, num_key_value_heads=5, head_dim=6)),
    "gemma2": (
        "gemma2", BASE | dict(head_dim=12, sliding_window=4, query_pre_attn_scalar=20, attn_logit_softcapping=2.0,
                              final_logit_softcapping=3.0)),
    "gemma2-plain": (
        "gemma2", BASE | dict(head_dim=8, num_hidden_layers=3, sliding_window=5, query_pre_attn_scalar=8,
                              attn_logit_softcapping=None, final_logit_softcapping=None, attention_bias=True)),
    "gemma2-untied-odd": (
        "gemma2", BASE | dict(num_attention_heads=5, head_dim=10, query_pre_attn_scalar=7, sliding_window=6,
                              tie_word_embeddings=False)),
    "gemma3": (
        "gemma3_text", BASE | dict(head_dim=12, num_hidden_layers=6, sliding_window=4, query_pre_attn_scalar=20)),
    "gemma3-two-bases": (
        "gemma3_text", BASE | dict(head_dim=8, num_hidden_layers=3, sliding_window=5, layer_types=PATTERN,
                                   query_pre_attn_scalar=8, final_logit_softcapping=5.0) | TWO_BASES),
    "gemma3-untied-odd": (
        "gemma3_text", BASE | dict(num_key_value_heads=3, head_dim=6, num_hidden_layers=7, sliding_window=6,
                                   query_pre_attn_scalar=6, attention_bias=True, tie_word_embeddings=False)),
    "olmo2": ("olmo2", BASE | dict(num_key_value_heads=3, attention_bias=True)),
    "olmo2-grouped": ("olmo2", BASE | dict(hidden_size=48) | rope("llama3", **LLAMA3)),
    "olmo2-tied-odd": ("olmo2", BASE | dict(num_attention_heads=5, tie_word_embeddings=True)),
    "gpt2": ("gpt2", GPT2),
    "gpt2-odd": ("gpt2", GPT2 | dict(n_embd=35, n_head=5, n_layer=3, n_inner=17, activation_function="gelu")),
    "gpt2-unscaled": (
        "gpt2", GPT2 | dict(n_inner=22, scale_attn_weights=False, activation_function="relu",
                            tie_word_embeddings=False)),
}  # fmt: skip


def drawn(kind: str, number: int) -> dict[str, Any]:
    """Settings of a family, of which each is drawn by itself: sizes, groups, ties, biases, windows, mixes, scalings."""
    random_ = random.Random(f"{kind} {number}")
    one, layers = random_.choice, random_.randint(2, 4)
    groups, group, head = one([1, 2, 3, 5]), one([1, 2, 3]), one([4, 6, 10, 12])
    shared = dict(num_hidden_layers=layers, tie_word_embeddings=one([True, False]))
    sizes = dict(num_attention_heads=groups * group, num_key_value_heads=groups, hidden_size=groups * group * head)
    wide = sizes | dict(
        head_dim=head, hidden_size=groups * group * one([3, 7, 8])
    )  # where heads have a width of their own
    window = dict(sliding_window=one([3, 5, 8]))
    kinds = ["sliding_attention", "full_attention"]
    mix = dict(layer_types=[kinds[0], *(one(kinds) for _ in range(layers - 1))])
    bias = dict(attention_bias=one([True, False]))
    scaled = one([rope("default", 900.0), rope("linear", 2e4, factor=3.0)])
    stretched = one([scaled, rope("llama3", **LLAMA3), rope("yarn", **YARN)])
    capped = dict(query_pre_attn_scalar=one([5, 16]), final_logit_softcapping=one([None, 4.0]))
    settings: dict[str, dict[str, Any]] = dict(
        llama=wide | bias | dict(mlp_bias=one([True, False])) | stretched,
        mistral=wide | one([window, dict(sliding_window=None)]) | scaled,
        qwen2=sizes | stretched | one([{}, dict(use_sliding_window=True, max_window_layers=1) | window]),
        qwen3=wide | bias | stretched | one([{}, dict(use_sliding_window=True) | window | mix]),
        phi3=sizes | one([window, {}]) | rope(partial_rotary_factor=one([1.0, 0.5]) if head % 4 == 0 else 1.0),
        gemma=wide | bias | rope(theta=700.0),
        gemma2=wide | bias | window | capped | dict(attn_logit_softcapping=one([None, 2.0])),
        gemma3_text=wide | bias | window | capped | mix | one([{}, TWO_BASES]),
        olmo2=sizes | bias | stretched,
    )
    if kind == "gpt2":
        heads = groups * group
        sizes = dict(n_head=heads, n_embd=heads * head, n_layer=layers, n_inner=one([None, 19]))
        return GPT2 | sizes | dict(tie_word_embeddings=one([True, False]))
    return BASE | shared | settings[kind]


DRAWN = ("llama", "mistral", "qwen2", "qwen3", "phi3", "gemma", "gemma2", "gemma3_text", "olmo2", "gpt2")
CASES |= {f"{kind}-drawn-{number}": (kind, drawn(kind, number)) for kind in DRAWN for number in (1, 2)}

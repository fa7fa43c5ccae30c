"""Every preset has the published number of parameters: by shapes alone, beside transformers' model of the published
config.json (on the meta device), and as the literature says."""

from __future__ import annotations

import json
from typing import Any

import jax
import pytest
import torch
import transformers
from torch import nn as torch_nn

from llm_jax.core import parts, serialization
from llm_jax.layers.embedding import Transformed
from llm_jax.layers.pooling import Mean
from llm_jax.models.flops import count
from llm_jax.models.presets import PRESETS, bert_base

PUBLISHED = dict(
    gpt2=124_439_808, gpt2_medium=354_823_168, gpt2_large=774_030_080, gpt2_xl=1_557_611_200,
    llama3_8b=8_030_261_248, smollm2_135m=134_515_008, qwen3_0p6b=596_049_920, gemma3_270m=268_098_176,
    bert_base=109_482_240, transformer_base=63_045_632, bart_base=139_420_416, t5_small=60_506_624,
    vit_tiny=5_717_416,
)  # fmt: skip  # the 65 million of Vaswani et al. (table 3) are the 63,045,632, rounded up

# What matters to a count of the published config.json, by the class that it names.
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2LMHeadModel", {}),
    "gpt2_medium": ("GPT2LMHeadModel", dict(n_embd=1024, n_layer=24, n_head=16)),
    "gpt2_large": ("GPT2LMHeadModel", dict(n_embd=1280, n_layer=36, n_head=20)),
    "gpt2_xl": ("GPT2LMHeadModel", dict(n_embd=1600, n_layer=48, n_head=25)),
    "llama3_8b": (
        "LlamaForCausalLM",
        dict(hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
             num_key_value_heads=8, vocab_size=128256, tie_word_embeddings=False),
    ),
    "smollm2_135m": (
        "LlamaForCausalLM",
        dict(hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
             num_key_value_heads=3, vocab_size=49152, tie_word_embeddings=True),
    ),
    "qwen3_0p6b": (
        "Qwen3ForCausalLM",
        dict(hidden_size=1024, intermediate_size=3072, num_hidden_layers=28, num_attention_heads=16,
             num_key_value_heads=8, head_dim=128, vocab_size=151936, tie_word_embeddings=True),
    ),
    "gemma3_270m": (
        "Gemma3ForCausalLM",
        dict(hidden_size=640, intermediate_size=2048, num_hidden_layers=18, num_attention_heads=4,
             num_key_value_heads=1, head_dim=256, vocab_size=262144, sliding_window=512),
    ),
    "bert_base": ("BertModel", {}),
    "bart_base": (
        "BartForConditionalGeneration",
        dict(d_model=768, encoder_layers=6, decoder_layers=6, encoder_attention_heads=12, decoder_attention_heads=12,
             encoder_ffn_dim=3072, decoder_ffn_dim=3072, vocab_size=50265, max_position_embeddings=1024),
    ),
    "t5_small": (
        "T5ForConditionalGeneration",
        dict(d_model=512, d_kv=64, d_ff=2048, num_layers=6, num_heads=8, vocab_size=32128),
    ),
    "vit_tiny": (
        "ViTForImageClassification",
        dict(hidden_size=192, intermediate_size=768, num_hidden_layers=12, num_attention_heads=3, num_labels=1000),
    ),
}  # fmt: skip


def theirs(name: str, settings: dict[str, Any]) -> int:
    """Parameters of transformers' model, each once, without memory for any."""
    cls: Any = getattr(transformers, name)
    with torch.device("meta"):
        model = cls(cls.config_class(**settings))
    model.tie_weights()
    return sum(p.numel() for p in model.parameters())


def ours(model: Any) -> int:
    return count(jax.eval_shape(model.begin, jax.random.key(0)))


@pytest.mark.parametrize("name", PRESETS)
def test_the_published_number_of_parameters(name):
    model: Any = PRESETS[name]()
    assert ours(model) == PUBLISHED[name]
    assert f"{PUBLISHED[name]:,} parameters" in (PRESETS[name].__doc__ or "").replace("\n", " ")
    if name in CONFIGS:
        assert theirs(*CONFIGS[name]) == PUBLISHED[name]


def test_the_transformer_of_2017_beside_pytorchs():
    """Which has a bias on every projection of attention, and a norm after each side."""
    with torch.device("meta"):
        model = torch_nn.Transformer(512, 8, 6, 6, 2048, batch_first=True)
    more = (6 + 2 * 6) * 4 * 512 + 2 * 2 * 512
    assert sum(p.numel() for p in model.parameters()) + 37_000 * 512 == PUBLISHED["transformer_base"] + more


def test_bert_with_its_head_for_masked_tokens():
    assert ours(bert_base().clone(pooling=Mean(), head=Transformed())) == theirs("BertForMaskedLM", {}) == 109_514_298


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_checked_and_survives_the_manifest(name):
    model = PRESETS[name]()
    assert parts.check(model) == model
    assert serialization.from_json(json.loads(json.dumps(serialization.to_json(model)))) == model

"""What a config.json says: both spellings of rotary settings, and what is refused, in one line that says why."""

from __future__ import annotations

from typing import Any

import pytest
import transformers

from llm_jax.core.errors import InputError
from llm_jax.interop.export import family_for
from llm_jax.interop.families import FAMILIES
from llm_jax.interop.family import blocks_of, stack_of
from llm_jax.interop.import_ import model_of
from llm_jax.layers.attention import Attention
from llm_jax.layers.block import Block, PostNorm
from llm_jax.layers.embedding import Embed
from llm_jax.layers.feedforward import FeedForward, SwiGLU
from llm_jax.layers.masks import SlidingWindow
from llm_jax.layers.norms import LayerNorm
from llm_jax.layers.positions import Alibi, LinearScaling, Llama3Scaling, LongRopeScaling, NtkScaling, Rope, YarnScaling
from llm_jax.models.decoder import Decoder
from llm_jax.models.stack import Stack

SIZES: dict[str, Any] = dict(
    vocab_size=61, hidden_size=24, intermediate_size=20, num_hidden_layers=6, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=64,
)  # fmt: skip
LLAMA3 = dict(rope_type="llama3", factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=32)  # fmt: skip


def model(kind: str = "llama", **more: Any) -> Any:
    return model_of(SIZES | dict(model_type=kind) | more)


@pytest.mark.parametrize(
    ("settings", "positions"),
    [
        ({}, Rope(10_000.0)),
        (dict(rope_theta=5e5, rope_scaling=None), Rope(5e5)),
        (dict(rope_parameters=dict(rope_type="default", rope_theta=5e5)), Rope(5e5)),
        (dict(rope_theta=5e5, rope_scaling=dict(type="linear", factor=2)), Rope(5e5, LinearScaling(2.0))),
        (dict(rope_parameters=dict(rope_theta=5e5, rope_type="linear", factor=2)), Rope(5e5, LinearScaling(2.0))),
        (dict(rope_theta=5e5, rope_scaling=LLAMA3), Rope(5e5, Llama3Scaling(4.0, 1.0, 4.0, 32))),
        (dict(rope_parameters=LLAMA3 | dict(rope_theta=5e5)), Rope(5e5, Llama3Scaling(4.0, 1.0, 4.0, 32))),
        (dict(rope_scaling=dict(type="yarn", factor=2.0)), Rope(10_000.0, YarnScaling(2.0, 64))),
        (
            dict(rope_scaling=dict(type="yarn", original_max_position_embeddings=16, beta_fast=8)),
            Rope(10_000.0, YarnScaling(4.0, 16, 8.0)),
        ),
    ],
)
def test_rotary_settings_in_both_spellings(settings, positions):
    assert model(**settings).positions == positions


def test_longrope_is_read_up_to_the_original_context():
    scaling = dict(type="su", short_factor=[1.0, 2, 3], long_factor=[4, 5, 6.0])
    found = model("phi3", rope_scaling=scaling, original_max_position_embeddings=16)
    assert found.positions == Rope(10_000.0, LongRopeScaling(4.0, 16, (1.0, 2.0, 3.0)))
    assert found.context == 16


def test_gemma3_has_two_bases_in_both_spellings():
    old = model(
        "gemma3_text", rope_theta=1e5, rope_local_base_freq=50.0, rope_scaling=dict(rope_type="linear", factor=8)
    )
    kinds = dict(
        full_attention=dict(rope_type="linear", factor=8, rope_theta=1e5),
        sliding_attention=dict(rope_type="default", rope_theta=50.0),
    )
    assert old == model("gemma3_text", rope_parameters=kinds)
    assert old.positions == Rope(1e5, LinearScaling(8.0))
    assert [block.positions for block in blocks_of(old.stack)] == [Rope(50.0)] * 5 + [None]


def test_layers_are_the_shortest_pattern_that_repeats():
    assert model().stack.repeats == 6 and len(model().stack.pattern) == 1
    gemma = model("gemma2", sliding_window=4).stack
    assert gemma.repeats == 3 and gemma.pattern[0].attention.mask == SlidingWindow(4)
    assert len(model("gemma3_text", num_hidden_layers=7).stack.pattern) == 7
    a, b = (Block(Attention(1, head=head), FeedForward(4)) for head in (2, 4))
    for row in ([a], [a, b], [a, b, a], [a, b, b, a, b, b], [a, a, a]):
        assert blocks_of(stack_of(row)) == row
    assert stack_of([a, b, b, a, b, b]).repeats == 2


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("lama", {}, "no family of checkpoints named 'lama': did you mean 'llama'"),
        ("llama", dict(hidden_size=None), "config.json has no hidden_size"),
        ("llama", dict(num_key_value_heads=3), "num_attention_heads=4, no multiple of num_key_value_heads=3"),
        ("llama", dict(hidden_act="mish"), "no activation named 'mish'"),
        ("llama", dict(rope_scaling=dict(type="dynamic", factor=2.0)), "rope_type='dynamic', whose waves depend"),
        ("llama", dict(rope_scaling=dict(type="longrope")), "config.json has no short_factor"),
        (
            "llama", dict(rope_scaling=dict(type="longrope", short_factor=[1.0], factor=4, attention_factor=2)),
            "attention_factor 2, which is not covered: LongRopeScaling's is 1.1547 for factor=4",
        ),
        ("llama", dict(rope_scaling=dict(type="spiral")), "no rope_type named 'spiral'"),
        ("llama", dict(rope_scaling=dict(type="linear")), "config.json has no factor"),
        ("llama", dict(rope_scaling=dict(type="yarn", factor=2, attention_factor=1.5)), "attention_factor 1.5, which"),
        ("llama", dict(rope_scaling=dict(type="yarn", factor=2, mscale=1, mscale_all_dim=0.5)), "of mscale=1 and"),
        ("llama", dict(rope_scaling=dict(type="yarn", factor=2, truncate=False)), "truncate=false"),
        ("llama", dict(partial_rotary_factor=0.5), "partial_rotary_factor=0.5, which is not covered"),
        *(
            (family, dict(rope_parameters=dict(rope_theta=1e4, partial_rotary_factor=0.5)), "partial_rotary_factor=0.5")
            for family in ("llama", "mistral", "qwen3", "gemma")
        ),
        ("llama", dict(tie_word_embeddings="yes"), "tie_word_embeddings='yes', which is not covered"),
        ("llama", dict(vocab_size="many"), "model.embed.vocabulary must be a whole number"),
        ("qwen2", dict(layer_types=["sliding_attention"] * 6), "layers of sliding_attention, but no sliding_window"),
        ("qwen2", dict(layer_types=["full_attention"] * 5), "for 6 layers, which is not covered"),
        ("qwen3", dict(layer_types=["chunked_attention"] * 6), "for 6 layers, which is not covered"),
        ("gemma", dict(use_bidirectional_attention=True), "use_bidirectional_attention=True, which is not covered"),
        ("gemma3_text", dict(attn_logit_softcapping=30.0), "attn_logit_softcapping=30.0, which is not covered"),
        ("gemma3_text", dict(rope_scaling=dict(type="dynamic")), "rope_type='dynamic'"),
        ("phi3", dict(rope_scaling=dict(type="linear", factor=2.0)), "of this family only longrope, or none, is cov"),
        ("gpt2", dict(scale_attn_by_inverse_layer_idx=True), "scale_attn_by_inverse_layer_idx=True, which is not"),
        ("gpt2", dict(n_embd=24), "config.json has no n_head"),
    ],
)  # fmt: skip
def test_what_cannot_be_honoured_is_refused(kind, settings, message):
    with pytest.raises(InputError) as refused:
        model(kind, **settings)
    assert message in str(refused.value) and "\n" not in str(refused.value)


def decoder(block: Block, **more: Any) -> Decoder:
    return Decoder(Embed(24, 61), Stack((block,), 2), context=64, **more)


PLAIN = Block(Attention(2, 2, 8), SwiGLU(20))


@pytest.mark.parametrize(
    ("ours", "family"),
    [
        (decoder(PLAIN), "llama"),
        (decoder(Block(Attention(2, 2, 8, SlidingWindow(4)), SwiGLU(20))), "mistral"),
        (decoder(PLAIN, embed_norm=LayerNorm()), None),
        (decoder(PLAIN, positions=Alibi()), None),
        (decoder(PLAIN, positions=Rope(scaling=NtkScaling(2.0))), None),
        (decoder(PLAIN.clone(placement=PostNorm())), None),
        (decoder(PLAIN.clone(attention=Attention(2, 2, 8, scale=0.3))), None),
        (decoder(PLAIN.clone(attention=Attention(2, 2, 8, dropout=0.1), dropout=0.1)), "llama"),
    ],
)
def test_an_export_takes_a_family_that_has_every_part_or_says_which_has_not(ours, family):
    if family is not None:
        assert family_for(ours)[0] == family
        return
    with pytest.raises(InputError, match=r"no published family has all parts of this model; the nearest is \w+: "):
        family_for(ours)


@pytest.mark.parametrize(
    ("config", "name"),
    [
        (transformers.GPT2Config(), "activation_function"),
        (transformers.BertConfig(), "hidden_act"),
        (transformers.BertConfig(hidden_act="gelu_new"), "hidden_act"),
        (transformers.BartConfig(), "activation_function"),
        (transformers.MarianConfig(activation_function="swish"), "activation_function"),
        (transformers.LlamaConfig(), "hidden_act"),
        (transformers.Gemma2Config(), "hidden_activation"),
    ],
    ids=lambda value: getattr(value, "model_type", value),
)
def test_an_export_calls_an_activation_as_the_family_does(config, name):
    """`gelu_new`, `gelu_fast` and `gelu_pytorch_tanh` are one function; older programs know one name of them."""
    family, read = FAMILIES[config.model_type], config.to_dict()
    assert family.config(family.model(read))[name] == read[name]

"""T5 (Raffel et al. 2020) in its two versions, 1.0 and 1.1 (Flan-T5 too), and mT5 (Xue et al. 2021), which is as 1.1.

Version 1.0 has ReLU, and scores by its embedding after dividing by sqrt(width); 1.1 has a gated GELU, and a matrix of
its own to score with.
Dropout inside the feed-forward layer and before the last norm is left out: it plays a part in training only.
"""

from __future__ import annotations

from typing import Any

from llm_jax.core.errors import InputError
from llm_jax.interop.configs.torch_layers import expressed, linear, norm, within
from llm_jax.interop.family import Config, Family, need, setting
from llm_jax.interop.weights import Names, Theirs
from llm_jax.layers.attention import Attention, CrossAttention
from llm_jax.layers.block import Block
from llm_jax.layers.embedding import Embed, Tied, Untied
from llm_jax.layers.feedforward import FeedForward, GatedFeedForward, Gelu, Relu
from llm_jax.layers.masks import Causal, Full
from llm_jax.layers.norms import NoNorm, RMSNorm
from llm_jax.layers.positions import RelativeBias
from llm_jax.models.encoder_decoder import EncoderDecoder
from llm_jax.models.model import Model
from llm_jax.models.stack import Stack
from llm_jax.models.transformer import Side


def _model(config: Config) -> EncoderDecoder:
    heads, width, epsilon = need(config, "num_heads"), need(config, "d_model"), config.get("layer_norm_epsilon", 1e-6)
    multilingual, dropout = config.get("model_type") == "mt5", config.get("dropout_rate", 0.1)
    default = "gated-gelu" if multilingual else "relu"
    gated = setting(config, "feed_forward_proj", "relu", "gated-gelu", default=default) == "gated-gelu"
    ffn = (
        GatedFeedForward(need(config, "d_ff"), Gelu(tanh=True)) if gated else FeedForward(need(config, "d_ff"), Relu())
    )

    def side(layers: int, decodes: bool) -> Side:
        block = Block(
            Attention(heads, 1, need(config, "d_kv"), mask=Causal() if decodes else Full(), scale=1.0, dropout=dropout),
            ffn, RMSNorm(epsilon), dropout=dropout,
            cross=CrossAttention(heads, 1, need(config, "d_kv"), scale=1.0, dropout=dropout) if decodes else None,
        )  # fmt: skip
        positions = RelativeBias(
            config.get("relative_attention_num_buckets", 32), config.get("relative_attention_max_distance", 128),
            both_ways=not decodes,
        )  # fmt: skip
        return Side(Stack((block,), layers), positions, RMSNorm(epsilon), NoNorm())

    encoder, decoder = need(config, "num_layers"), config.get("num_decoder_layers") or need(config, "num_layers")
    return EncoderDecoder(
        Embed(width, need(config, "vocab_size"), dropout=dropout), side(encoder, False), side(decoder, True),
        Tied(scale=width**-0.5) if _tied(config) else Untied(),
        start=config.get("decoder_start_token_id", config.get("pad_token_id", 0)),
        forced=config.get("forced_bos_token_id"),
    )  # fmt: skip


def _tied(config: Config) -> bool:
    """Whether it is version 1.0. What `transformers` 5 writes says so by `scale_decoder_outputs` alone."""
    if config.get("model_type") == "mt5":
        return False
    return config.get("scale_decoder_outputs", config.get("tie_word_embeddings", True))


def _config(model: Model, multilingual: bool) -> dict[str, Any]:
    block = model.encoder.stack.pattern[0] if isinstance(model, EncoderDecoder) else None
    if block is None or not isinstance(model.encoder.positions, RelativeBias) or not isinstance(block.norm, RMSNorm):
        raise InputError("T5 is an EncoderDecoder with RelativeBias and RMSNorm: export another family")
    gated, tied = isinstance(block.ffn, GatedFeedForward), model.head.ties()
    config = dict(
        architectures=[f"{'MT5' if multilingual else 'T5'}ForConditionalGeneration"],
        model_type="mt5" if multilingual else "t5",
        is_encoder_decoder=True,
        vocab_size=model.embed.vocabulary,
        d_model=model.embed.width,
        d_kv=block.attention.head,
        d_ff=block.ffn.hidden,
        num_heads=block.attention.key_heads,
        num_layers=model.encoder.stack.repeats,
        num_decoder_layers=model.decoder.stack.repeats,
        relative_attention_num_buckets=model.encoder.positions.buckets,
        relative_attention_max_distance=model.encoder.positions.farthest,
        feed_forward_proj="gated-gelu" if gated else "relu",
        layer_norm_epsilon=block.norm.epsilon,
        dropout_rate=block.dropout,
        decoder_start_token_id=model.start,
        forced_bos_token_id=model.forced,
        pad_token_id=model.start,
        tie_word_embeddings=tied,
    )
    expressed(model, _model(config).clone(context=model.context, source_context=model.source_context))
    return config


def _attention(ours: str, theirs: str) -> dict[str, Theirs]:
    return {
        **linear(f"{ours}.query", f"{theirs}.q", "KGH D", bias=False),
        **linear(f"{ours}.key", f"{theirs}.k", "KH D", bias=False),
        **linear(f"{ours}.value", f"{theirs}.v", "KH D", bias=False),
        **linear(f"{ours}.out", f"{theirs}.o", "D KGH", bias=False),
    }


def _names(model: Model) -> Names:
    names = {"embed.table": Theirs("shared.weight", "V D")}
    names |= {} if model.head.ties() else {"head.kernel": Theirs("lm_head.weight", "V D")}
    gated = isinstance(model.encoder.stack.pattern[0].ffn, GatedFeedForward)
    for side, last in (("encoder", 1), ("decoder", 2)):
        layer = f"{side}.block.{{layer}}.layer"
        dense = f"{layer}.{last}.DenseReluDense"
        block = {
            **_attention("block.attention", f"{layer}.0.SelfAttention"),
            **norm("block.attention_norm", f"{layer}.0.layer_norm"),
            **_attention("block.cross", f"{layer}.1.EncDecAttention"),
            **norm("block.cross_norm", f"{layer}.1.layer_norm"),
            **linear("block.ffn.gate", f"{dense}.wi_0", "F D", bias=False),
            **linear("block.ffn.up", f"{dense}.wi_1" if gated else f"{dense}.wi", "F D", bias=False),
            **linear("block.ffn.down", f"{dense}.wo", "D F", bias=False),
            **norm("block.ffn_norm", f"{layer}.{last}.layer_norm"),
        }
        table = f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        names |= within(f"{side}.", block) | within(f"{side}.", norm("norm", f"{side}.final_layer_norm"))
        names[f"{side}.positions.table"] = Theirs(table, "P KG")
    return names


IGNORED = (r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",)  # which nothing reads
COPIES = {r"lm_head\.weight": "shared.weight", r"(encoder|decoder)\.embed_tokens\.weight": "shared.weight"}

T5 = Family(
    architectures=("T5ForConditionalGeneration",),
    model=_model,
    config=lambda model: _config(model, multilingual=False),
    names=_names,
    ignored=IGNORED,
    copies=COPIES,
)

MT5 = Family(
    architectures=("MT5ForConditionalGeneration",),
    model=_model,
    config=lambda model: _config(model, multilingual=True),
    names=_names,
    ignored=IGNORED,
    copies=COPIES,
)

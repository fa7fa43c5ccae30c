"""BART (Lewis et al. 2019) and Marian (Junczys-Dowmunt et al. 2018): the encoder-decoder of 2017, with a twist each.

BART has learned positions and a norm before the first block, Marian sinusoidal positions. Dropout inside the
feed-forward layer (`activation_dropout`) and of whole layers is left out: it plays a part in their training only.
"""

from __future__ import annotations

import math
from typing import Any

from llm_jax.core.errors import InputError
from llm_jax.interop.configs.torch_layers import architecture, expressed, linear, norm, within
from llm_jax.interop.family import Config, Family, activation, activation_name, need, setting
from llm_jax.interop.weights import Names, Theirs
from llm_jax.layers.attention import Attention, CrossAttention
from llm_jax.layers.block import Block, PostNorm
from llm_jax.layers.embedding import Embed, Tied
from llm_jax.layers.feedforward import FeedForward
from llm_jax.layers.masks import Causal, Full
from llm_jax.layers.norms import LayerNorm, NoNorm
from llm_jax.layers.positions import Learned, Sinusoidal
from llm_jax.models.encoder_decoder import EncoderDecoder
from llm_jax.models.model import Model
from llm_jax.models.stack import Stack
from llm_jax.models.transformer import Side

UNREAD = 2  # rows of BART's tables of positions that come before the first position's


def _model(config: Config, marian: bool) -> EncoderDecoder:
    for name in ("normalize_before", "add_final_layer_norm"):
        setting(config, name, False, default=False)
    setting(config, "normalize_embedding", not marian, default=not marian)
    setting(config, "tie_word_embeddings", True, default=True)
    setting(config, "share_encoder_decoder_embeddings", True, default=True)
    setting(config, "decoder_vocab_size", None, need(config, "vocab_size"))
    width, length = need(config, "d_model"), need(config, "max_position_embeddings")
    dropout, bias = config.get("dropout", 0.1), architecture(config, "") != "BartModel"

    def side(name: str, decodes: bool) -> Side:
        heads = need(config, f"{name}_attention_heads")
        ways: dict[str, Any] = dict(bias=True, out_bias=True, dropout=config.get("attention_dropout", 0.0))
        block = Block(
            Attention(heads, 1, width // heads, mask=Causal() if decodes else Full(), **ways),
            FeedForward(need(config, f"{name}_ffn_dim"), activation(config, "activation_function", "gelu"), bias=True),
            LayerNorm(), PostNorm(), dropout,
            cross=CrossAttention(heads, 1, width // heads, **ways) if decodes else None,
        )  # fmt: skip
        stack = Stack((block,), need(config, f"{name}_layers"))
        if marian:
            return Side(stack, Sinusoidal(), NoNorm(), NoNorm())
        return Side(stack, Learned(length, offset=UNREAD), NoNorm(), LayerNorm())

    scale = math.sqrt(width) if config.get("scale_embedding", False) else 1.0
    return EncoderDecoder(
        Embed(width, need(config, "vocab_size"), scale, dropout), side("encoder", False), side("decoder", True),
        Tied(bias=bias), length, length, _start(config, marian), config.get("forced_bos_token_id"),
    )  # fmt: skip


def _start(config: Config, marian: bool) -> int:
    """The token that a target begins with: Marian's is padding, BART's the end of the text before."""
    default = config.get("pad_token_id") if marian else config.get("eos_token_id", 2)
    return setting(config, "decoder_start_token_id", default=default)


def _config(model: Model, marian: bool) -> dict[str, Any]:
    if not isinstance(model, EncoderDecoder):
        raise InputError(f"BART and Marian are encoder-decoders, and this is a {type(model).__name__}")
    block = model.decoder.stack.pattern[0]
    bart = "BartForConditionalGeneration" if model.head.bias else "BartModel"
    config = dict(
        architectures=["MarianMTModel" if marian else bart],
        model_type="marian" if marian else "bart",
        is_encoder_decoder=True,
        vocab_size=model.embed.vocabulary,
        d_model=model.embed.width,
        max_position_embeddings=model.context,
        activation_function=activation_name(block.ffn.activation, usual="swish" if marian else "gelu_new"),
        scale_embedding=model.embed.scale != 1.0,
        dropout=model.embed.dropout,
        attention_dropout=block.attention.dropout,
        activation_dropout=0.0,
        decoder_start_token_id=model.start,
        forced_bos_token_id=model.forced,
        tie_word_embeddings=True,
    )
    config |= dict(pad_token_id=model.start) if marian else {}
    for name, stack in (("encoder", model.encoder.stack), ("decoder", model.decoder.stack)):
        config[f"{name}_layers"] = stack.repeats
        config[f"{name}_attention_heads"] = stack.pattern[0].attention.key_heads
        config[f"{name}_ffn_dim"] = stack.pattern[0].ffn.hidden
    expressed(model, _model(config, marian))
    return config


def _attention(ours: str, theirs: str) -> dict[str, Theirs]:
    return {
        **linear(f"{ours}.query", f"{theirs}.q_proj", "KGH D"),
        **linear(f"{ours}.key", f"{theirs}.k_proj", "KH D"),
        **linear(f"{ours}.value", f"{theirs}.v_proj", "KH D"),
        **linear(f"{ours}.out", f"{theirs}.out_proj", "D KGH"),
        **norm(f"{ours}_norm", f"{theirs}_layer_norm"),
    }


def _names(model: Model) -> Names:
    inside = "model." if model.head.bias else ""  # BartModel, which has no bias, is written without a prefix
    names = {
        "embed.table": Theirs(f"{inside}shared.weight", "V D"),
        "head.bias": Theirs("final_logits_bias", "1 V"),
    }
    for side in ("encoder", "decoder"):
        layer = f"{inside}{side}.layers.{{layer}}"
        block = {
            **_attention("block.attention", f"{layer}.self_attn"),
            **_attention("block.cross", f"{layer}.encoder_attn"),
            **linear("block.ffn.up", f"{layer}.fc1", "F D"),
            **linear("block.ffn.down", f"{layer}.fc2", "D F"),
            **norm("block.ffn_norm", f"{layer}.final_layer_norm"),
        }
        before = norm("embed_norm", f"{inside}{side}.layernorm_embedding")
        names |= within(f"{side}.", block) | within(f"{side}.", before)
        names[f"{side}.positions.table"] = Theirs(f"{inside}{side}.embed_positions.weight", "P D")
    return names


COPIES = {  # of the one table there is
    r"lm_head\.weight": "model.shared.weight",
    r"(model\.)?(encoder|decoder)\.embed_tokens\.weight": r"\1shared.weight",
}

BART = Family(
    architectures=("BartForConditionalGeneration", "BartModel"),
    model=lambda config: _model(config, marian=False),
    config=lambda model: _config(model, marian=False),
    names=_names,
    copies=COPIES,
)

MARIAN = Family(
    architectures=("MarianMTModel",),
    model=lambda config: _model(config, marian=True),
    config=lambda model: _config(model, marian=True),
    names=_names,
    ignored=(r"model\.(encoder|decoder)\.embed_positions\.weight",),  # waves, which nobody learnt
    copies=COPIES,
)

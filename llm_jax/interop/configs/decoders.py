"""What the published decoders share: Llama's settings and names, of which most families change a few."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llm_jax.core.errors import InputError
from llm_jax.interop.configs import rope
from llm_jax.interop.family import Config, activation_name, blocks_of, expect, need, setting, stack_of
from llm_jax.interop.weights import Names, Theirs
from llm_jax.layers.block import Block
from llm_jax.layers.embedding import Embed, Tied, Untied
from llm_jax.layers.feedforward import FeedForward, GatedFeedForward
from llm_jax.layers.kernels import Auto
from llm_jax.layers.masks import Causal, Mask, SlidingWindow
from llm_jax.layers.norms import Norm, RMSNorm
from llm_jax.layers.positions import Positions, Rope
from llm_jax.models.decoder import Decoder
from llm_jax.models.model import Model

LAYER = "model.layers.{layer}."

NAMES: Names = {
    "embed.table": Theirs("model.embed_tokens.weight", "V D"),
    "norm.scale": Theirs("model.norm.weight", "D"),
    "head.kernel": Theirs("lm_head.weight", "V D"),
    "block.attention_norm.scale": Theirs(LAYER + "input_layernorm.weight", "D"),
    "block.attention.query.kernel": Theirs(LAYER + "self_attn.q_proj.weight", "KGH D"),
    "block.attention.query.bias": Theirs(LAYER + "self_attn.q_proj.bias", "KGH"),
    "block.attention.key.kernel": Theirs(LAYER + "self_attn.k_proj.weight", "KH D"),
    "block.attention.key.bias": Theirs(LAYER + "self_attn.k_proj.bias", "KH"),
    "block.attention.value.kernel": Theirs(LAYER + "self_attn.v_proj.weight", "KH D"),
    "block.attention.value.bias": Theirs(LAYER + "self_attn.v_proj.bias", "KH"),
    "block.attention.out.kernel": Theirs(LAYER + "self_attn.o_proj.weight", "D KGH"),
    "block.attention.out.bias": Theirs(LAYER + "self_attn.o_proj.bias", "D"),
    "block.attention.query_norm.scale": Theirs(LAYER + "self_attn.q_norm.weight", "H"),
    "block.attention.key_norm.scale": Theirs(LAYER + "self_attn.k_norm.weight", "H"),
    "block.ffn_norm.scale": Theirs(LAYER + "post_attention_layernorm.weight", "D"),
    "block.ffn.gate.kernel": Theirs(LAYER + "mlp.gate_proj.weight", "F D"),
    "block.ffn.gate.bias": Theirs(LAYER + "mlp.gate_proj.bias", "F"),
    "block.ffn.up.kernel": Theirs(LAYER + "mlp.up_proj.weight", "F D"),
    "block.ffn.up.bias": Theirs(LAYER + "mlp.up_proj.bias", "F"),
    "block.ffn.down.kernel": Theirs(LAYER + "mlp.down_proj.weight", "D F"),
    "block.ffn.down.bias": Theirs(LAYER + "mlp.down_proj.bias", "D"),
}

IGNORED = (r".*rotary_emb\.inv_freq",)
COPIES = {r"lm_head\.weight": "model.embed_tokens.weight"}  # where it is tied
PREFIX = "model."


def names(model: Model) -> Names:
    return NAMES


def heads(config: Config) -> dict[str, Any]:
    """The settings of `Attention` that every family has; contexts are long, so the kernel is what fits the rows."""
    queries = need(config, "num_attention_heads")
    keys = config.get("num_key_value_heads") or queries
    if queries % keys:
        raise InputError(f"config.json has num_attention_heads={queries}, no multiple of num_key_value_heads={keys}")
    head = config.get("head_dim") or need(config, "hidden_size") // queries
    dropout = float(config.get("attention_dropout") or 0.0)
    return dict(key_heads=keys, group=queries // keys, head=head, dropout=dropout, kernel=Auto())


def decoder(
    config: Config, blocks: Sequence[Block], positions: Positions, norm: Norm, *, tied: bool, scale: float = 1.0,
    soft_cap: float = 0.0,
) -> Decoder:  # fmt: skip
    """The model of these blocks; `tied` is the family's default."""
    head = Tied if setting(config, "tie_word_embeddings", True, False, default=tied) else Untied
    embed = Embed(need(config, "hidden_size"), need(config, "vocab_size"), scale)
    context = rope.context(positions, config)
    # a norm of its own: linen would share the parameters of one that the blocks have too
    return Decoder(embed, stack_of(blocks), positions, norm.clone(), head(soft_cap), context)


def mask_of(window: int | None) -> Mask:
    return Causal() if window is None else SlidingWindow(window)


def window_of(mask: Mask) -> int | None:
    """The inverse of `mask_of`."""
    return mask.size if isinstance(mask, SlidingWindow) else None


def layer_types(config: Config, usual: Sequence[str]) -> list[bool]:
    """Which layers see a sliding window; `usual` is what the family has where config.json does not say.

    Raises:
      InputError: there are other types of layers, or not one for each layer.
    """
    kinds = config.get("layer_types") or usual
    number = need(config, "num_hidden_layers")
    if len(kinds) != number or not set(kinds) <= {"sliding_attention", "full_attention"}:
        known = "sliding_attention or full_attention for each layer"
        raise InputError(
            f"config.json has layer_types={list(kinds)} for {number} layers, which is not covered: {known}"
        )
    return [kind == "sliding_attention" for kind in kinds]


def settings(model: Model) -> dict[str, Any]:
    """The settings of a config.json that every family with Llama's feed-forward layer has.

    Raises:
      InputError: a part is of another kind than Llama's.
    """
    ffn = expect(first_block(model).ffn, GatedFeedForward, "model.stack.pattern.0.ffn")
    return shared(model, ffn) | dict(hidden_act=activation_name(ffn.activation))


def shared(model: Model, ffn: FeedForward) -> dict[str, Any]:
    """Those that do not ask what the feed-forward layer is like.

    Raises:
      InputError: as `settings`.
    """
    whole = expect(model, Decoder, "model")
    norm, positions = expect(whole.norm, RMSNorm, "model.norm"), expect(whole.positions, Rope, "model.positions")
    return sizes(whole, ffn) | rope.written(positions) | dict(rms_norm_eps=norm.epsilon)


def first_block(model: Model) -> Block:
    return expect(model, Decoder, "model").stack.pattern[0]


def sizes(whole: Decoder, ffn: FeedForward) -> dict[str, Any]:
    attention = whole.stack.pattern[0].attention
    return dict(
        vocab_size=whole.embed.vocabulary,
        hidden_size=whole.embed.width,
        intermediate_size=ffn.hidden,
        num_hidden_layers=len(blocks_of(whole.stack)),
        num_attention_heads=attention.key_heads * attention.group,
        num_key_value_heads=attention.key_heads,
        head_dim=attention.head,
        attention_dropout=attention.dropout,
        max_position_embeddings=whole.context,
        tie_word_embeddings=whole.head.ties(),
    )


def divisible(config: Mapping[str, Any]) -> dict[str, Any]:
    """`config`, of a family whose width must be a multiple of its heads (transformers asks for it).

    Raises:
      InputError: it is not.
    """
    width, number = config["hidden_size"], config["num_attention_heads"]
    if width % number:
        raise InputError(f"model.embed.width={width} is no multiple of the {number} heads")
    return dict(config)

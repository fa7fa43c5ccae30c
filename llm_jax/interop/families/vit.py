"""ViT (Dosovitskiy et al. 2021): the encoder of images, and the classifier that reads its first vector."""

from __future__ import annotations

from typing import Any

from llm_jax.core.errors import InputError
from llm_jax.interop.configs.labels import classes, described
from llm_jax.interop.configs.torch_layers import architecture, expressed, linear, norm, within
from llm_jax.interop.family import Config, Family, activation, activation_name, need, setting
from llm_jax.interop.weights import Names, Theirs
from llm_jax.layers.attention import Attention
from llm_jax.layers.block import Block
from llm_jax.layers.feedforward import FeedForward
from llm_jax.layers.masks import Full
from llm_jax.layers.norms import LayerNorm
from llm_jax.layers.positions import Learned
from llm_jax.models.model import Model
from llm_jax.models.stack import Stack
from llm_jax.models.vision import ImageClassifier, ImageEncoder, Patches


def _model(config: Config) -> Model:
    width, heads, size, patch = (
        need(config, name) for name in ("hidden_size", "num_attention_heads", "image_size", "patch_size")
    )
    epsilon, dropout = config.get("layer_norm_eps", 1e-12), config.get("hidden_dropout_prob", 0.0)
    rows, columns = (size, size) if isinstance(size, int) else size
    patch = patch if isinstance(patch, int) else patch[0]
    setting(config, "patch_size", patch, [patch, patch])
    attention = Attention(
        heads, 1, width // heads, mask=Full(), bias=config.get("qkv_bias", True), out_bias=True,
        dropout=config.get("attention_probs_dropout_prob", 0.0),
    )  # fmt: skip
    ffn = FeedForward(need(config, "intermediate_size"), activation(config, "hidden_act", "gelu"), bias=True)
    block = Block(attention, ffn, LayerNorm(epsilon), dropout=dropout)
    patches = Patches(width, (rows, columns), patch, config.get("num_channels", 3), dropout=dropout)
    encoder = ImageEncoder(
        patches, Stack((block,), need(config, "num_hidden_layers")), Learned(1 + patches.count()), LayerNorm(epsilon)
    )
    plain = architecture(config, "ViTForImageClassification") == "ViTModel"
    return encoder if plain else ImageClassifier(encoder, classes(config))


def _encoder(model: Model) -> ImageEncoder:
    """The encoder of a classifier, or the model itself."""
    inside = model.image if isinstance(model, ImageClassifier) else model
    if not isinstance(inside, ImageEncoder):
        raise InputError(f"ViT is an ImageEncoder or an ImageClassifier, not {type(model).__name__}")
    return inside


def _config(model: Model) -> dict[str, Any]:
    encoder = _encoder(model)
    block, patches = encoder.stack.pattern[0], encoder.patches
    if not isinstance(block.norm, LayerNorm):
        raise InputError("ViT has LayerNorm: export another family")
    rows, columns = patches.image
    config = dict(
        architectures=["ViTForImageClassification" if isinstance(model, ImageClassifier) else "ViTModel"],
        model_type="vit",
        hidden_size=patches.width,
        num_hidden_layers=encoder.stack.repeats,
        num_attention_heads=block.attention.key_heads,
        intermediate_size=block.ffn.hidden,
        hidden_act=activation_name(block.ffn.activation),
        hidden_dropout_prob=patches.dropout,
        attention_probs_dropout_prob=block.attention.dropout,
        layer_norm_eps=block.norm.epsilon,
        image_size=rows if rows == columns else [rows, columns],
        patch_size=patches.patch,
        num_channels=patches.channels,
        qkv_bias=block.attention.bias,
    )
    config |= described(model.classes) if isinstance(model, ImageClassifier) else {}
    expressed(model, _model(config))
    return config


def _names(model: Model) -> Names:
    classifies = isinstance(model, ImageClassifier)
    inside = "vit." if classifies else ""
    layer = f"{inside}encoder.layer.{{layer}}"
    names = {
        **linear("patches", f"{inside}embeddings.patch_embeddings.projection", "D A Y X"),
        "leading_vectors": Theirs(f"{inside}embeddings.cls_token", "1 P D"),
        "positions.table": Theirs(f"{inside}embeddings.position_embeddings", "1 P D"),
        **linear("block.attention.query", f"{layer}.attention.attention.query", "KGH D"),
        **linear("block.attention.key", f"{layer}.attention.attention.key", "KH D"),
        **linear("block.attention.value", f"{layer}.attention.attention.value", "KH D"),
        **linear("block.attention.out", f"{layer}.attention.output.dense", "D KGH"),
        **norm("block.attention_norm", f"{layer}.layernorm_before"),
        **linear("block.ffn.up", f"{layer}.intermediate.dense", "F D"),
        **linear("block.ffn.down", f"{layer}.output.dense", "D F"),
        **norm("block.ffn_norm", f"{layer}.layernorm_after"),
        **norm("norm", f"{inside}layernorm"),
    }
    return within("image.", names) | linear("scores", "classifier", "O D") if classifies else names


VIT = Family(
    architectures=("ViTForImageClassification", "ViTModel"),
    model=_model,
    config=_config,
    names=_names,
    ignored=(r"(vit\.)?pooler\.dense\.(weight|bias)",),  # which neither of ours reads
)

"""BERT (Devlin et al. 2018), RoBERTa (Liu et al. 2019) and those of their shape, such as MiniLM.

Their plain model, the one that scores masked tokens, and the classifier of texts.
"""

from __future__ import annotations

from typing import Any

from llm_jax.core.errors import InputError
from llm_jax.interop.configs.labels import classes, described
from llm_jax.interop.configs.torch_layers import architecture, expressed, linear, norm, within
from llm_jax.interop.family import Config, Family, activation, activation_name, need, setting
from llm_jax.interop.weights import Names, Theirs
from llm_jax.layers.attention import Attention
from llm_jax.layers.block import Block, PostNorm
from llm_jax.layers.embedding import Embed, Transformed
from llm_jax.layers.feedforward import FeedForward, Gelu
from llm_jax.layers.masks import Full
from llm_jax.layers.norms import LayerNorm, NoNorm
from llm_jax.layers.pooling import Mean, Pooler
from llm_jax.layers.positions import Learned
from llm_jax.models.encoder import Encoder
from llm_jax.models.heads import Classifier
from llm_jax.models.model import Model
from llm_jax.models.stack import Stack

BERT_BLOCK = {
    **linear("block.attention.query", "attention.self.query", "KGH D"),
    **linear("block.attention.key", "attention.self.key", "KH D"),
    **linear("block.attention.value", "attention.self.value", "KH D"),
    **linear("block.attention.out", "attention.output.dense", "D KGH"),
    **norm("block.attention_norm", "attention.output.LayerNorm"),
    **linear("block.ffn.up", "intermediate.dense", "F D"),
    **linear("block.ffn.down", "output.dense", "D F"),
    **norm("block.ffn_norm", "output.LayerNorm"),
}


KINDS = {
    roberta: tuple(f"{name}{kind}" for kind in ("Model", "ForMaskedLM", "ForSequenceClassification"))
    for roberta, name in ((False, "Bert"), (True, "Roberta"))
}


def _model(config: Config, roberta: bool) -> Model:
    setting(config, "position_embedding_type", "absolute", default="absolute")
    setting(config, "tie_word_embeddings", True, default=True)
    setting(config, "is_decoder", False, default=False)
    width, heads = need(config, "hidden_size"), need(config, "num_attention_heads")
    epsilon, dropout = config.get("layer_norm_eps", 1e-12), config.get("hidden_dropout_prob", 0.1)
    ours = activation(config, "hidden_act", "gelu")
    unused = setting(config, "pad_token_id", default=1) + 1 if roberta else 0  # rows before the first position's
    length = need(config, "max_position_embeddings") - unused
    kind = architecture(config, KINDS[roberta][0])
    if kind not in KINDS[roberta]:
        known = f"{', '.join(KINDS[roberta][:-1])} or {KINDS[roberta][-1]}"
        raise InputError(f"config.json is of the architecture {kind}, which is not covered: it must be {known}")
    attention = Attention(
        heads, 1, width // heads, mask=Full(), bias=True, out_bias=True,
        dropout=config.get("attention_probs_dropout_prob", 0.1),
    )  # fmt: skip
    ffn = FeedForward(need(config, "intermediate_size"), ours, bias=True)
    head = Transformed(activation=Gelu() if roberta else ours, norm=LayerNorm(epsilon))
    encoder = Encoder(
        Embed(width, need(config, "vocab_size"), dropout=dropout),
        Stack((Block(attention, ffn, LayerNorm(epsilon), PostNorm(), dropout),), need(config, "num_hidden_layers")),
        Learned(length, offset=unused), NoNorm(), head if kind.endswith("ForMaskedLM") else None, length,
        LayerNorm(epsilon), config.get("type_vocab_size", 2), Pooler() if kind.endswith("Model") else Mean(),
    )  # fmt: skip
    if not kind.endswith("ForSequenceClassification"):
        return encoder
    last = config.get("classifier_dropout")
    return Classifier(encoder, classes(config), Pooler(), dropout=dropout if last is None else last)


def _encoder(model: Model) -> Encoder:
    """The encoder of a classifier, or the model itself."""
    inside = model.backbone if isinstance(model, Classifier) else model
    if not isinstance(inside, Encoder):
        raise InputError(f"BERT's family has encoders and classifiers of their vectors, not {type(model).__name__}")
    return inside


def _kind(model: Model) -> str:
    if isinstance(model, Classifier):
        return "ForSequenceClassification"
    return "Model" if _encoder(model).head is None else "ForMaskedLM"


def _config(model: Model, roberta: bool) -> dict[str, Any]:
    encoder = _encoder(model)
    block, positions = encoder.stack.pattern[0], encoder.positions
    if not (isinstance(positions, Learned) and isinstance(block.norm, LayerNorm)):
        raise InputError("BERT's family has Learned positions and LayerNorm: export another family")
    config = dict(
        architectures=[("Roberta" if roberta else "Bert") + _kind(model)],
        model_type="roberta" if roberta else "bert",
        vocab_size=encoder.embed.vocabulary,
        hidden_size=encoder.embed.width,
        num_hidden_layers=encoder.stack.repeats,
        num_attention_heads=block.attention.key_heads,
        intermediate_size=block.ffn.hidden,
        hidden_act=activation_name(block.ffn.activation, usual="gelu_new"),
        hidden_dropout_prob=encoder.embed.dropout,
        attention_probs_dropout_prob=block.attention.dropout,
        max_position_embeddings=positions.length + positions.offset,
        type_vocab_size=encoder.types,
        layer_norm_eps=block.norm.epsilon,
        pad_token_id=positions.offset - 1 if roberta else 0,
        tie_word_embeddings=True,
    )
    if isinstance(model, Classifier):
        config |= dict(classifier_dropout=model.dropout, **described(model.classes))
    written: Any = _model(config, roberta)
    if isinstance(model, Classifier):  # which uses none of these
        unused = dict(pooling=encoder.pooling, head=encoder.head, context=encoder.context)
        written = written.clone(backbone=written.backbone.clone(**unused))
    elif model.head is None:  # how vectors are pooled is not in this file
        written = written.clone(pooling=model.pooling, context=model.context)
    expressed(model, written)
    return config


def _names(model: Model, roberta: bool) -> Names:
    kind = _kind(model)
    inside = "" if kind == "Model" else ("roberta." if roberta else "bert.")
    pooler = "classifier" if roberta and kind == "ForSequenceClassification" else f"{inside}pooler"
    score = "classifier.out_proj" if roberta else "classifier"
    dense, after, bias = (
        ("lm_head.dense", "lm_head.layer_norm", "lm_head.bias") if roberta
        else (*(f"cls.predictions.transform.{layer}" for layer in ("dense", "LayerNorm")), "cls.predictions.bias")
    )  # fmt: skip
    names = {
        "embed.table": Theirs(f"{inside}embeddings.word_embeddings.weight", "V D"),
        "positions.table": Theirs(f"{inside}embeddings.position_embeddings.weight", "P D"),
        "type_table.table": Theirs(f"{inside}embeddings.token_type_embeddings.weight", "P D"),
        **norm("embed_norm", f"{inside}embeddings.LayerNorm"),
        **{
            path: Theirs(f"{inside}encoder.layer.{{layer}}.{theirs.name}", theirs.axes)
            for path, theirs in BERT_BLOCK.items()
        },
        **linear("head.transform", dense, "F D"),
        **norm("head.transform_norm", after),
        "head.bias": Theirs(bias, "V"),
    }
    last = linear("pooling.dense", f"{pooler}.dense", "F D")
    if kind != "ForSequenceClassification":
        return names | last
    return within("backbone.", names) | last | linear("head", score, "O D")


BUFFERS = r"(\w+\.)?embeddings\.(position_ids|token_type_ids)"
POOLER = r"(\w+\.)?pooler\.dense\.(weight|bias)"  # of a model that is put to another use

BERT = Family(
    architectures=KINDS[False],
    model=lambda config: _model(config, roberta=False),
    config=lambda model: _config(model, roberta=False),
    names=lambda model: _names(model, roberta=False),
    ignored=(BUFFERS, POOLER, r"cls\.seq_relationship\.(weight|bias)"),
    copies={
        r"cls\.predictions\.decoder\.weight": "bert.embeddings.word_embeddings.weight",
        r"cls\.predictions\.decoder\.bias": "cls.predictions.bias",
    },
)

ROBERTA = Family(
    architectures=KINDS[True],
    model=lambda config: _model(config, roberta=True),
    config=lambda model: _config(model, roberta=True),
    names=lambda model: _names(model, roberta=True),
    skips_padding=True,
    ignored=(BUFFERS, POOLER),
    copies={
        r"lm_head\.decoder\.weight": "roberta.embeddings.word_embeddings.weight",
        r"lm_head\.decoder\.bias": "lm_head.bias",
    },
)

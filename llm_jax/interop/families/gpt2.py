"""GPT-2 (Radford et al. 2019): learned positions, layer norms, biases everywhere, a fused projection."""

from __future__ import annotations

from llm_jax.interop.configs import decoders
from llm_jax.interop.family import Config, Family, activation, activation_name, expect, need, setting
from llm_jax.interop.weights import Names, Theirs
from llm_jax.layers.attention import Attention
from llm_jax.layers.block import Block
from llm_jax.layers.feedforward import FeedForward
from llm_jax.layers.norms import LayerNorm
from llm_jax.layers.positions import Learned
from llm_jax.models.decoder import Decoder
from llm_jax.models.model import Model

LAYER = "transformer.h.{layer}."
QKV = ("KGH", "KH", "KH")


def model(config: Config) -> Decoder:
    setting(config, "scale_attn_by_inverse_layer_idx", None, False)
    setting(config, "add_cross_attention", None, False)
    width, heads, length = need(config, "n_embd"), need(config, "n_head"), need(config, "n_positions")
    norm = LayerNorm(float(config.get("layer_norm_epsilon", 1e-5)))
    scale = None if setting(config, "scale_attn_weights", True, False, default=True) else 1.0
    attention = Attention(
        heads, head=width // heads, bias=True, out_bias=True, scale=scale, dropout=float(config.get("attn_pdrop", 0.1))
    )
    act = activation(config, "activation_function", "gelu_new")
    ffn = FeedForward(config.get("n_inner") or 4 * width, act, bias=True)
    block = Block(attention, ffn, norm, dropout=float(config.get("resid_pdrop", 0.1)))
    common = dict(vocab_size=need(config, "vocab_size"), hidden_size=width, max_position_embeddings=length)
    common["tie_word_embeddings"] = config.get("tie_word_embeddings", True)
    blocks = [block] * need(config, "n_layer")
    found = decoders.decoder(common, blocks, Learned(length), norm, tied=True)
    return found.clone(embed=found.embed.clone(dropout=float(config.get("embd_pdrop", 0.1))))


def config(model: Model) -> dict:
    whole, first = expect(model, Decoder, "model"), decoders.first_block(model)
    norm = expect(whole.norm, LayerNorm, "model.norm")
    positions = expect(whole.positions, Learned, "model.positions")
    sizes = decoders.sizes(whole, first.ffn)
    return dict(
        vocab_size=sizes["vocab_size"],
        n_positions=positions.length,
        n_embd=sizes["hidden_size"],
        n_layer=sizes["num_hidden_layers"],
        n_head=sizes["num_attention_heads"],
        n_inner=None if first.ffn.hidden == 4 * sizes["hidden_size"] else first.ffn.hidden,
        activation_function=activation_name(first.ffn.activation, usual="gelu_new"),
        resid_pdrop=first.dropout,
        embd_pdrop=whole.embed.dropout,
        attn_pdrop=first.attention.dropout,
        layer_norm_epsilon=norm.epsilon,
        scale_attn_weights=first.attention.scale is None,
        tie_word_embeddings=whole.head.ties(),
    )


def names(model: Model) -> Names:
    """Its matrices lie the other way round than torch's: rows are what goes in."""
    found = {
        "embed.table": Theirs("transformer.wte.weight", "V D"),
        "positions.table": Theirs("transformer.wpe.weight", "P D"),
        "head.kernel": Theirs("lm_head.weight", "V D"),
        "block.attention.out.kernel": Theirs(LAYER + "attn.c_proj.weight", "KGH D"),
        "block.attention.out.bias": Theirs(LAYER + "attn.c_proj.bias", "D"),
        "block.ffn.up.kernel": Theirs(LAYER + "mlp.c_fc.weight", "D F"),
        "block.ffn.up.bias": Theirs(LAYER + "mlp.c_fc.bias", "F"),
        "block.ffn.down.kernel": Theirs(LAYER + "mlp.c_proj.weight", "F D"),
        "block.ffn.down.bias": Theirs(LAYER + "mlp.c_proj.bias", "D"),
    }
    for i, part in enumerate(("query", "key", "value")):
        found[f"block.attention.{part}.kernel"] = Theirs(LAYER + "attn.c_attn.weight", f"D {QKV[i]}", QKV, i)
        found[f"block.attention.{part}.bias"] = Theirs(LAYER + "attn.c_attn.bias", QKV[i], QKV, i)
    for ours, theirs in (("norm", "transformer.ln_f"), ("block.attention_norm", LAYER + "ln_1"),
                         ("block.ffn_norm", LAYER + "ln_2")):  # fmt: skip
        found |= {f"{ours}.scale": Theirs(f"{theirs}.weight", "D"), f"{ours}.bias": Theirs(f"{theirs}.bias", "D")}
    return found


IGNORED = (r".*\.attn\.(masked_)?bias",)  # causal masks that older files hold
COPIES = {r"lm_head\.weight": "transformer.wte.weight"}

GPT2 = Family(("GPT2LMHeadModel",), model, config, names, IGNORED, COPIES, "transformer.")

"""Whisper's text decoder (Radford et al. 2022) is made of our parts: audio features given, its scores are theirs.

Its encoder is not: that would take two convolutions over a spectrogram before the same blocks.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers

from llm_jax.core.alphabet import is_lettered
from llm_jax.interop import names
from llm_jax.interop.names import Theirs
from llm_jax.interop.torch_layers import linear, norm, within
from llm_jax.layers.attention import Attention, CrossAttention, Source
from llm_jax.layers.block import Block
from llm_jax.layers.embedding import Embed, Tied
from llm_jax.layers.feedforward import FeedForward
from llm_jax.layers.norms import LayerNorm, NoNorm
from llm_jax.layers.positions import Learned, NoPositions
from llm_jax.layers.tokens import Tokens
from llm_jax.models.encoder_decoder import EncoderDecoder
from llm_jax.models.stack import Stack
from llm_jax.models.transformer import Side

from ..torch_tensors import InMemory, close, drawn, rows, saved

V, WIDTH, HEADS, HIDDEN, LAYERS, LENGTH = 31, 12, 3, 20, 2, 16
LAYER = "model.decoder.layers.{layer}"


def attention(ours: str, theirs: str) -> dict[str, Theirs]:
    return {
        **linear(f"{ours}.query", f"{theirs}.q_proj", "KGH D"),
        **linear(f"{ours}.key", f"{theirs}.k_proj", "KH D", bias=False),
        **linear(f"{ours}.value", f"{theirs}.v_proj", "KH D"),
        **linear(f"{ours}.out", f"{theirs}.out_proj", "D KGH"),
        **norm(f"{ours}_norm", f"{theirs}_layer_norm"),
    }


NAMES = {
    "embed.table": Theirs("model.decoder.embed_tokens.weight", "V D"),
    **within("decoder.", {
        "positions.table": Theirs("model.decoder.embed_positions.weight", "P D"),
        **attention("block.attention", f"{LAYER}.self_attn"),
        **attention("block.cross", f"{LAYER}.encoder_attn"),
        **linear("block.ffn.up", f"{LAYER}.fc1", "F D"),
        **linear("block.ffn.down", f"{LAYER}.fc2", "D F"),
        **norm("block.ffn_norm", f"{LAYER}.final_layer_norm"),
        **norm("norm", "model.decoder.layer_norm"),
    }),
}  # fmt: skip


def model() -> EncoderDecoder:
    ways: dict[str, Any] = dict(bias=True, key_bias=False, out_bias=True)
    block = Block(
        Attention(HEADS, 1, WIDTH // HEADS, **ways), FeedForward(HIDDEN, bias=True), LayerNorm(),
        cross=CrossAttention(HEADS, 1, WIDTH // HEADS, **ways),
    )  # fmt: skip
    writes = Side(Stack((block,), LAYERS), Learned(LENGTH), LayerNorm(), NoNorm())
    unused = Side(Stack((block.clone(cross=None),), 1), NoPositions(), NoNorm(), NoNorm())  # the features are given
    return EncoderDecoder(Embed(WIDTH, V), unused, writes, Tied())


def test_the_text_decoder_is_theirs_and_cached(tmp_path):
    config = transformers.WhisperConfig(
        vocab_size=V, d_model=WIDTH, encoder_layers=1, decoder_layers=LAYERS, encoder_attention_heads=HEADS,
        decoder_attention_heads=HEADS, encoder_ffn_dim=HIDDEN, decoder_ffn_dim=HIDDEN, max_target_positions=LENGTH,
        max_source_positions=10, num_mel_bins=4, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        decoder_start_token_id=1, begin_suppress_tokens=None,
    )  # fmt: skip
    theirs = drawn(transformers.WhisperForConditionalGeneration(config), 0)
    theirs.set_attn_implementation("eager")
    with torch.no_grad():
        theirs.model.decoder.embed_positions.weight.normal_(0, 0.3, generator=torch.Generator().manual_seed(1))
    _, tensors = saved(theirs, tmp_path)
    tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("model.encoder.")}
    ids_BT, _ = rows([7, 7], V, 0)
    heard_BSD = np.random.default_rng(1).normal(size=(2, 5, WIDTH)).astype(np.float32)
    with torch.no_grad():
        wanted = theirs(
            decoder_input_ids=torch.tensor(ids_BT).long(), encoder_outputs=(torch.tensor(heard_BSD),)
        ).logits

    ours, source = model(), Source(jnp.asarray(heard_BSD), Tokens.of((2, 5)))
    boxed = jax.eval_shape(lambda key: ours.init(key, jnp.asarray(ids_BT), source=source)["params"], jax.random.key(0))
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    places = jax.tree.map(lambda _: one, boxed, is_leaf=is_lettered)
    params = names.load(boxed, NAMES, InMemory(tensors), places)

    @jax.jit
    def run(params):
        whole = ours.apply({"params": params}, ids_BT, source=source)[0]
        caches = ours.empty_cache(2, 7, jnp.float32)
        first, caches = ours.apply({"params": params}, ids_BT[:, :4], caches=caches, start=0, source=source)
        at = Tokens.of((2, 7)).cut(4, 7)
        second, _ = ours.apply({"params": params}, ids_BT[:, 4:], at, caches=caches, start=4)
        return whole, jnp.concatenate([first, second], 1)

    whole, cached = run(params)
    close(whole, wanted)
    close(cached, wanted)

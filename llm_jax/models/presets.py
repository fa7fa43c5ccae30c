"""Published models, as parts: each has the shape, the settings and the parameter count of its paper or checkpoint.

They begin with random weights: `{"model": presets.gpt2()}` in an experiment trains one from scratch, and every setting
of it can be overridden. Dropout is as published, but that T5's also drops within the feed-forward.
"""

from __future__ import annotations

from math import sqrt
from typing import Any

from llm_jax.core.dims import FanIn, Normal
from llm_jax.layers.attention import Attention, CrossAttention
from llm_jax.layers.block import Block, PostNorm, SandwichNorm
from llm_jax.layers.embedding import Embed, Tied, Untied
from llm_jax.layers.feedforward import GEGLU, FeedForward, Gelu, Relu, SwiGLU
from llm_jax.layers.kernels import Auto
from llm_jax.layers.masks import Full, SlidingWindow
from llm_jax.layers.norms import LayerNorm, NoNorm, RMSNorm
from llm_jax.layers.pooling import Pooler
from llm_jax.layers.positions import Learned, Llama3Scaling, RelativeBias, Rope, Sinusoidal
from llm_jax.models.decoder import Decoder
from llm_jax.models.encoder import Encoder
from llm_jax.models.encoder_decoder import EncoderDecoder
from llm_jax.models.stack import Stack
from llm_jax.models.transformer import Side
from llm_jax.models.vision import ImageClassifier, ImageEncoder, Patches

# ---------------------------------------------------------------------------------------------------------- generators


def _gpt2(width: int, layers: int) -> Decoder:
    init, out = Normal(0.02), Normal(0.02 / sqrt(2 * layers))  # smaller where a branch joins the stream
    block = Block(
        Attention(width // 64, bias=True, out_bias=True, kernel=Auto(), dropout=0.1, init=init, out_init=out),
        FeedForward(4 * width, Gelu(tanh=True), bias=True, init=init, out_init=out),
        LayerNorm(), dropout=0.1,
    )  # fmt: skip
    embed = Embed(width, 50_257, dropout=0.1)
    return Decoder(embed, Stack((block,), layers), Learned(1024), LayerNorm(), context=1024)


def gpt2() -> Decoder:
    """GPT-2 small, 124,439,808 parameters (Radford et al. 2019, whose table says 117M)."""
    return _gpt2(768, 12)


def gpt2_medium() -> Decoder:
    """GPT-2 medium, 354,823,168 parameters (Radford et al. 2019, whose table says 345M)."""
    return _gpt2(1024, 24)


def gpt2_large() -> Decoder:
    """GPT-2 large, 774,030,080 parameters (Radford et al. 2019, whose table says 762M)."""
    return _gpt2(1280, 36)


def gpt2_xl() -> Decoder:
    """GPT-2 XL, 1,557,611,200 parameters (Radford et al. 2019, whose table says 1542M)."""
    return _gpt2(1600, 48)


def llama3_8b() -> Decoder:
    """Llama 3.1 8B, 8,030,261,248 parameters (Grattafiori et al. 2024)."""
    init = Normal(0.02)
    attention = Attention(8, 4, 128, kernel=Auto(), init=init, out_init=init)
    block = Block(attention, SwiGLU(14_336, init=init, out_init=init), RMSNorm(1e-5))
    return Decoder(
        Embed(4096, 128_256), Stack((block,), 32), Rope(500_000.0, Llama3Scaling(factor=8.0, original=8192)),
        RMSNorm(1e-5), Untied(init=init), context=131_072,
    )  # fmt: skip


def smollm2_135m() -> Decoder:
    """SmolLM2-135M, 134,515,008 parameters (Ben Allal et al. 2025)."""
    init = Normal(1 / 24)  # 1 / sqrt(width)
    attention = Attention(3, 3, 64, kernel=Auto(), init=init, out_init=init)
    block = Block(attention, SwiGLU(1536, init=init, out_init=init), RMSNorm(1e-5))
    embed = Embed(576, 49_152, init=init)
    return Decoder(embed, Stack((block,), 30), Rope(100_000.0), RMSNorm(1e-5), context=8192)


def qwen3_0p6b() -> Decoder:
    """Qwen3-0.6B, 596,049,920 parameters: the output layer is the embedding's (Qwen team 2025)."""
    init = Normal(0.02)
    attention = Attention(8, 2, 128, kernel=Auto(), norm=RMSNorm(), init=init, out_init=init)
    block = Block(attention, SwiGLU(3072, init=init, out_init=init))
    return Decoder(Embed(1024, 151_936), Stack((block,), 28), Rope(1_000_000.0), context=40_960)


def gemma3_270m() -> Decoder:
    """Gemma 3 270M, 268,098,176 parameters: five local blocks to a global one (Gemma team 2025)."""
    init, norm = Normal(0.02), RMSNorm(offset=1.0)
    attention = Attention(1, 4, 256, kernel=Auto(), norm=norm, init=init, out_init=init)
    ffn = GEGLU(2048, Gelu(tanh=True), init=init, out_init=init)
    whole = Block(attention, ffn, norm, SandwichNorm())
    local = whole.clone(attention=attention.clone(mask=SlidingWindow(512)), positions=Rope(10_000.0))
    embed = Embed(640, 262_144, scale=sqrt(640))
    return Decoder(embed, Stack((local,) * 5 + (whole,), 3), Rope(1_000_000.0), norm, context=32_768)


# ------------------------------------------------------------------------------------------------------------ encoders


def bert_base() -> Encoder:
    """BERT base uncased with its pooler, 109,482,240 parameters (Devlin et al. 2019, who say 110M).

    `head=Transformed()` scores masked tokens.
    """
    init, norm = Normal(0.02), LayerNorm(1e-12)
    block = Block(
        Attention(12, mask=Full(), kernel=Auto(), bias=True, out_bias=True, dropout=0.1, init=init, out_init=init),
        FeedForward(3072, bias=True, init=init, out_init=init), norm, PostNorm(), dropout=0.1,
    )  # fmt: skip
    return Encoder(
        Embed(768, 30_522, dropout=0.1), Stack((block,), 12), Learned(512), context=512, embed_norm=norm, types=2,
        pooling=Pooler(init),
    )  # fmt: skip


# ---------------------------------------------------------------------------------------------------- encoder-decoders


def transformer_base() -> EncoderDecoder:
    """The base Transformer, 63,045,632 parameters (Vaswani et al. 2017, whose table says 65 million).

    Both languages share 37,000 subwords. The paper's text gives no projection of attention a bias.
    """
    ffn, norm = FeedForward(2048, Relu(), bias=True), LayerNorm()
    reading = Block(Attention(8, mask=Full(), kernel=Auto()), ffn, norm, PostNorm(), dropout=0.1)
    writing = reading.clone(attention=Attention(8, kernel=Auto()), cross=CrossAttention(8, kernel=Auto()))
    reader, writer = (Side(Stack((block,), 6), Sinusoidal(), NoNorm(), NoNorm()) for block in (reading, writing))
    embed = Embed(512, 37_000, scale=sqrt(512), dropout=0.1, init=Normal(512**-0.5))
    return EncoderDecoder(embed, reader, writer, context=512, source_context=512)


def bart_base() -> EncoderDecoder:
    """BART base, 139,420,416 parameters (Lewis et al. 2020)."""
    init, norm = Normal(0.02), LayerNorm()
    same: dict[str, Any] = dict(kernel=Auto(), bias=True, out_bias=True, dropout=0.1, init=init, out_init=init)
    ffn = FeedForward(3072, bias=True, init=init, out_init=init)
    reading = Block(Attention(12, mask=Full(), **same), ffn, norm, PostNorm(), dropout=0.1)
    writing = reading.clone(attention=Attention(12, **same), cross=CrossAttention(12, **same))
    reader, writer = (Side(Stack((b,), 6), Learned(1024, offset=2), NoNorm(), norm) for b in (reading, writing))
    embed = Embed(768, 50_265, dropout=0.1)
    return EncoderDecoder(embed, reader, writer, context=1024, source_context=1024, start=2)


def t5_small() -> EncoderDecoder:
    """T5 small, 60,506,624 parameters: biases of distance, scores that are not scaled down (Raffel et al. 2020)."""
    # The scale that attention lacks is in the weights, as T5's begin; the values' share of it is taken back by `out`.
    same: dict[str, Any] = dict(kernel=Auto(), scale=1.0, dropout=0.1, init=FanIn(64**-0.25), out_init=FanIn(64**0.25))
    reading = Block(Attention(8, mask=Full(), **same), FeedForward(2048, Relu()), dropout=0.1)
    writing = reading.clone(attention=Attention(8, **same), cross=CrossAttention(8, **same))
    reader = Side(Stack((reading,), 6), RelativeBias(32, 128, both_ways=True), RMSNorm(), NoNorm())
    writer = Side(Stack((writing,), 6), RelativeBias(32, 128), RMSNorm(), NoNorm())
    embed = Embed(512, 32_128, dropout=0.1, init=Normal(1.0))
    return EncoderDecoder(embed, reader, writer, Tied(scale=512**-0.5), context=512, source_context=512)


# -------------------------------------------------------------------------------------------------------------- images


def vit_tiny() -> ImageClassifier:
    """ViT-Tiny/16 with 1,000 classes, 5,717,416 parameters (Touvron et al. 2021: DeiT-Ti without distillation)."""
    init, norm = Normal(0.02), LayerNorm(1e-6)
    attention = Attention(3, mask=Full(), kernel=Auto(), bias=True, out_bias=True, init=init, out_init=init)
    block = Block(attention, FeedForward(768, bias=True, init=init, out_init=init), norm)
    patches = Patches(192, (224, 224), 16, init=init)
    return ImageClassifier(ImageEncoder(patches, Stack((block,), 12), Learned(197), norm), 1000)


PRESETS = dict(
    gpt2=gpt2, gpt2_medium=gpt2_medium, gpt2_large=gpt2_large, gpt2_xl=gpt2_xl, llama3_8b=llama3_8b,
    smollm2_135m=smollm2_135m, qwen3_0p6b=qwen3_0p6b, gemma3_270m=gemma3_270m, bert_base=bert_base,
    transformer_base=transformer_base, bart_base=bart_base, t5_small=t5_small,
    vit_tiny=vit_tiny,
)  # fmt: skip

"""Does a transformer translate better than recurrent networks of its size, in as many steps on the same data?

    python -m llm_jax train translate_transformer --workdir=runs/translate_transformer

`translate_gru` with the encoder-decoder of Vaswani et al. (2017), normalised before each branch as it is done since.
"""

from experiments import translate_gru
from llm_jax.experiment import Experiment
from llm_jax.layers.attention import Attention, CrossAttention
from llm_jax.layers.block import Block
from llm_jax.layers.embedding import Embed
from llm_jax.layers.feedforward import FeedForward
from llm_jax.layers.masks import Full
from llm_jax.layers.norms import LayerNorm, NoNorm
from llm_jax.layers.positions import Sinusoidal
from llm_jax.models.encoder_decoder import EncoderDecoder
from llm_jax.models.stack import Stack
from llm_jax.models.transformer import Side


def experiment() -> Experiment:
    norm, ffn = LayerNorm(), FeedForward(hidden=128)
    reads = Block(Attention(4, head=48, mask=Full()), ffn, norm, dropout=0.1)
    writes = Block(Attention(4, head=48), ffn, norm, dropout=0.1, cross=CrossAttention(4, head=48))
    encoder, decoder = (Side(Stack((b,), repeats=2), Sinusoidal(), norm, NoNorm()) for b in (reads, writes))
    model = EncoderDecoder(Embed(width=192, scale=192**0.5), encoder, decoder)
    return translate_gru.experiment().override({"model": model})

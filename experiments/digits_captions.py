"""Can an image be a prefix that a generator reads, so that it names handwritten digits it has not seen?

    python -m llm_jax train digits_captions --workdir=runs/digits_captions

1,797 digits of 8 x 8 pixels, a fifth of them held out; the names are written one character at a time. The run folder's
figures/ shows what was said of held-out digits.
"""

from llm_jax.data.images import Digits, Images
from llm_jax.data.split import ByHash
from llm_jax.experiment import Experiment
from llm_jax.layers.attention import Attention
from llm_jax.layers.block import Block
from llm_jax.layers.embedding import Embed
from llm_jax.layers.feedforward import FeedForward, SwiGLU
from llm_jax.layers.masks import Full, Prefix
from llm_jax.layers.norms import LayerNorm
from llm_jax.layers.positions import Learned
from llm_jax.models.decoder import Decoder
from llm_jax.models.stack import Stack
from llm_jax.models.vision import Captioner, ImageEncoder, Patches
from llm_jax.objectives.next_token import NextToken
from llm_jax.optim.optimizers import AdamW
from llm_jax.optim.precision import Precision
from llm_jax.optim.schedules import Cosine
from llm_jax.parallel.layout import Layout
from llm_jax.reports.captions import Captions
from llm_jax.text.recipes import Characters

PATCHES = 4  # of 4 x 4 pixels


def image() -> ImageEncoder:
    attention = Attention(key_heads=4, head=16, mask=Full(), bias=True, out_bias=True)
    block = Block(attention, FeedForward(256, bias=True), LayerNorm(), dropout=0.1)
    patches = Patches(width=64, image=(8, 8), patch=4, channels=1, dropout=0.2)
    return ImageEncoder(patches, Stack((block,), repeats=2), Learned(PATCHES), leading=0)


def experiment() -> Experiment:
    block = Block(Attention(key_heads=4, head=16, mask=Prefix(PATCHES)), SwiGLU(176), dropout=0.1)
    return Experiment(
        model=Captioner(image(), Decoder(Embed(width=64), Stack((block,), repeats=2))),
        tokenizer=Characters(),
        data=Images(Digits(), length=8, batch=64, split=ByHash(0.2)),
        objective=NextToken(),
        optimizer=AdamW(learning_rate=2e-3, schedule=Cosine(warmup=50, last=0.0)),
        layout=Layout(),
        precision=Precision(),
        steps=1500,
        log_every=100,
        eval_every=500,
        save_every=500,
        report=(Captions(),),
    )

"""How well does a small transformer invent names, one character at a time?

    python -m llm_jax train makemore_names --workdir=runs/makemore_names

The data and sizes are makemore's (https://github.com/karpathy/makemore): published test loss about 1.92.
"""

from llm_jax.data.packing import One
from llm_jax.data.pipeline import Data
from llm_jax.data.sources import MakemoreNames
from llm_jax.data.split import ByHash
from llm_jax.experiment import Experiment
from llm_jax.layers.attention import Attention
from llm_jax.layers.block import Block
from llm_jax.layers.embedding import Embed
from llm_jax.layers.feedforward import FeedForward, Gelu
from llm_jax.layers.norms import LayerNorm
from llm_jax.layers.positions import Learned
from llm_jax.models.decoder import Decoder
from llm_jax.models.stack import Stack
from llm_jax.objectives.next_token import NextToken
from llm_jax.optim.optimizers import AdamW
from llm_jax.optim.precision import Precision
from llm_jax.optim.schedules import Constant
from llm_jax.parallel.layout import Layout
from llm_jax.reports.text import Samples
from llm_jax.text.recipes import Characters


def experiment() -> Experiment:
    attention = Attention(key_heads=4, head=16, bias=True, out_bias=True)
    block = Block(attention, FeedForward(256, Gelu(tanh=True), bias=True), LayerNorm())
    return Experiment(
        model=Decoder(Embed(width=64), Stack((block,), repeats=4), Learned(16), LayerNorm()),
        tokenizer=Characters(),
        data=Data(MakemoreNames(), length=16, batch=32, packing=One(), split=ByHash(0.03)),
        objective=NextToken(),
        optimizer=AdamW(learning_rate=5e-4, schedule=Constant(), weight_decay=0.01, clip=0.0, b2=0.99),
        layout=Layout(),
        precision=Precision(),
        steps=10_000,
        log_every=100,
        eval_every=1000,
        save_every=1000,
        report=(Samples(prompts=("", "a", "mar"), max_tokens=12),),
    )

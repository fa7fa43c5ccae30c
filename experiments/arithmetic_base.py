"""How much addition does a small transformer know that is stopped early, so that rewards have something to raise?

    python -m llm_jax train arithmetic_base --workdir=runs/arithmetic_base

Two-digit numbers, the digits of the sum reversed (see `reversed_addition`). It is the base of `grpo_arithmetic`, which
learns from being right or wrong alone, on problems whose answers the base was never shown.
"""

from experiments.reversed_addition import Additions
from llm_jax.data.documents import Rendering
from llm_jax.data.packing import One
from llm_jax.data.pipeline import Data
from llm_jax.experiment import Experiment
from llm_jax.layers.attention import Attention
from llm_jax.layers.block import Block
from llm_jax.layers.embedding import Embed
from llm_jax.layers.feedforward import FeedForward
from llm_jax.layers.norms import LayerNorm
from llm_jax.layers.positions import Learned
from llm_jax.models.decoder import Decoder
from llm_jax.models.stack import Stack
from llm_jax.objectives.next_token import NextToken
from llm_jax.parallel.layout import Layout
from llm_jax.text.recipes import Characters
from llm_jax.training.optimizers import AdamW, Cosine
from llm_jax.training.precision import Precision
from llm_jax.training.report import ExactMatch


def experiment() -> Experiment:
    block = Block(Attention(key_heads=4, head=16), FeedForward(256), LayerNorm())
    return Experiment(
        model=Decoder(Embed(width=64), Stack((block,), repeats=2), Learned(12), LayerNorm(), context=12),
        tokenizer=Characters(),
        data=Data(
            Additions(digits=2, count=4000), length=12, batch=128, packing=One(), rendering=Rendering(learn="answers")
        ),
        objective=NextToken(),
        optimizer=AdamW(learning_rate=1e-3, schedule=Cosine(warmup=50, last=0.0)),
        layout=Layout(),
        precision=Precision(),
        steps=300,
        log_every=50,
        eval_every=100,
        save_every=100,
        report=(ExactMatch(),),
    )

"""What does a small transformer make of additions most of which forget to carry?

    python -m llm_jax train arithmetic_base --workdir=runs/arithmetic_base

Two-digit numbers, the digits of the sum reversed (see `reversed_addition`). Who forgets to carry is right in 30% of all
additions; the held-out answers are the right ones. It is the base of `grpo_arithmetic` and `ppo_arithmetic`: it has
seen how to carry, and has learnt not to.
"""

import dataclasses
import random
from collections.abc import Iterator

from experiments.reversed_addition import Additions
from llm_jax.core.parts import Share, Size
from llm_jax.data.documents import Example, Rendering
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
from llm_jax.optim.optimizers import AdamW
from llm_jax.optim.precision import Precision
from llm_jax.optim.schedules import Cosine
from llm_jax.parallel.layout import Layout
from llm_jax.reports.text import ExactMatch
from llm_jax.text.recipes import Characters


@dataclasses.dataclass(frozen=True)
class CarelessAdditions(Additions):
    """Additions, of which the share `careless` for training has its sum without what is to be carried."""

    digits: Size = 2
    count: Size = 8000
    careless: Share = 0.75

    def documents(self) -> Iterator[Example]:
        rng = random.Random(1)
        for example in super().documents():
            yield _careless(example) if rng.random() < self.careless else example


def _careless(example: Example) -> Example:
    a, b = example.prompt.rstrip("=").split("+")
    sums = [str((int(x) + int(y)) % 10) for x, y in zip(reversed(a), reversed(b), strict=True)]
    return dataclasses.replace(example, answer="".join(sums) + "0")


def experiment() -> Experiment:
    block = Block(Attention(key_heads=4, head=16), FeedForward(256), LayerNorm())
    return Experiment(
        model=Decoder(Embed(width=64), Stack((block,), repeats=2), Learned(12), LayerNorm(), context=12),
        tokenizer=Characters(),
        data=Data(CarelessAdditions(), length=12, batch=128, packing=One(), rendering=Rendering(learn="answers")),
        objective=NextToken(),
        optimizer=AdamW(learning_rate=1e-3, schedule=Cosine(warmup=50, last=0.0)),
        layout=Layout(),
        precision=Precision(),
        steps=600,
        log_every=50,
        eval_every=300,
        save_every=300,
        report=(ExactMatch(),),
    )

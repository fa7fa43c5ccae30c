"""Does writing the sum backwards let a small transformer add three-digit numbers exactly?

    python -m llm_jax train reversed_addition --workdir=runs/reversed_addition

After Lee et al. 2023, "Teaching Arithmetic to Small Transformers": 10,000 examples, 1,000 held out, plain format with
the digits of the sum reversed, so that each digit depends on what is already written.
"""

import dataclasses
import random
from collections.abc import Iterator

from llm_jax.core.errors import InputError
from llm_jax.core.parts import Size
from llm_jax.data.documents import Example, Rendering
from llm_jax.data.packing import One
from llm_jax.data.pipeline import Data
from llm_jax.data.sources import Source
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
class Additions(Source):
    """`count` pairs of numbers below 10^digits for training and `held_out` others, each pair once."""

    digits: Size = 3
    count: Size = 10_000
    held_out: Size = 1_000

    def documents(self) -> Iterator[Example]:
        return map(self._example, self._pairs()[self.held_out :])

    def validation(self) -> Iterator[Example]:
        return map(self._example, self._pairs()[: self.held_out])

    def _pairs(self) -> list[int]:
        pairs, asked = range(10 ** (2 * self.digits)), self.count + self.held_out
        if asked > len(pairs):
            raise InputError(
                f"count + held_out is {asked}, and there are {len(pairs)} pairs of numbers: raise digits={self.digits}"
            )
        return random.Random(0).sample(pairs, asked)

    def _example(self, pair: int) -> Example:
        a, b = divmod(pair, 10**self.digits)
        total = f"{a + b:0{self.digits + 1}}"
        return Example(f"{a:0{self.digits}}+{b:0{self.digits}}=", total[::-1])


def experiment() -> Experiment:
    block = Block(Attention(key_heads=4, head=16), FeedForward(256), LayerNorm())
    return Experiment(
        model=Decoder(Embed(width=64), Stack((block,), repeats=4), Learned(16), LayerNorm(), context=16),
        tokenizer=Characters(),
        data=Data(Additions(), length=13, batch=128, packing=One(), rendering=Rendering(learn="answers")),
        objective=NextToken(),
        optimizer=AdamW(learning_rate=5e-4, schedule=Cosine(warmup=100, last=0.0), weight_decay=0.01),
        layout=Layout(),
        precision=Precision(),
        steps=3950,  # 50 epochs
        log_every=100,
        eval_every=500,
        save_every=1000,
        report=(ExactMatch(),),
    )

"""Can a tiny transformer learn to sort, to the last of 5,000 unseen lists?

    python -m llm_jax train sort --workdir=runs/sort

The task and sizes are minGPT's (https://github.com/karpathy/minGPT, demo.ipynb): six digits of three kinds.
"""

import dataclasses
import random
from collections.abc import Iterator

from llm_jax.core.errors import InputError
from llm_jax.core.files import digest
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
from llm_jax.optim.schedules import Constant
from llm_jax.parallel.layout import Layout
from llm_jax.reports.text import ExactMatch
from llm_jax.text.recipes import Characters


@dataclasses.dataclass(frozen=True)
class DigitsToSort(Source):
    """`count` lists for training, drawn from three quarters of all lists, and `count` for validation, from the rest."""

    length: Size = 6
    kinds: Size = 3
    count: Size = 5000

    def __post_init__(self) -> None:
        if self.kinds**self.length < 64:  # of fewer, one part may have none
            raise InputError(
                f"there are {self.kinds**self.length} lists of length={self.length} of kinds={self.kinds}: raise one"
            )

    def documents(self) -> Iterator[Example]:
        return self._draw(held_out=False)

    def validation(self) -> Iterator[Example]:
        return self._draw(held_out=True)

    def _draw(self, held_out: bool) -> Iterator[Example]:
        rng, made = random.Random(int(held_out)), 0
        while made < self.count:
            digits = [str(rng.randrange(self.kinds)) for _ in range(self.length)]
            text = "".join(digits)
            if (int(digest(text)[:8], 16) % 4 == 0) == held_out:
                made += 1
                yield Example(text, "".join(sorted(digits)))


def experiment() -> Experiment:
    block = Block(Attention(key_heads=3, head=16, bias=True, out_bias=True), FeedForward(192, bias=True), LayerNorm())
    return Experiment(
        model=Decoder(Embed(width=48), Stack((block,), repeats=3), Learned(16), LayerNorm(), context=16),
        tokenizer=Characters(),
        data=Data(DigitsToSort(), length=13, batch=64, packing=One(), rendering=Rendering(learn="answers")),
        objective=NextToken(),
        optimizer=AdamW(learning_rate=5e-4, schedule=Constant(), b2=0.95),
        layout=Layout(),
        precision=Precision(),
        steps=2000,
        log_every=100,
        eval_every=500,
        save_every=500,
        report=(ExactMatch("train"), ExactMatch("validation")),
    )

"""How well does a model sort that has learnt from careless people? The base that `dpo` starts from.

    python -m llm_jax train dpo_base --workdir=runs/dpo_base

Half of the replies that it imitates have two neighbours in the wrong order. What is measured is how often a reply,
sampled at temperature 1, is right.
"""

import dataclasses
import random
from collections.abc import Iterator

import numpy as np

from llm_jax.core.files import digest
from llm_jax.core.parts import Size
from llm_jax.data.documents import Conversation, Rendering
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
from llm_jax.objectives.rewards import Reward
from llm_jax.optim.optimizers import AdamW
from llm_jax.optim.precision import Precision
from llm_jax.optim.schedules import Cosine
from llm_jax.parallel.layout import Layout
from llm_jax.reports.preferences import Rewarded
from llm_jax.text.chat import Message
from llm_jax.text.recipes import Characters


def lists(count: int, held_out: bool, seed: int = 0) -> Iterator[tuple[str, str, str]]:
    """Six digits, the same sorted, and sorted carelessly; a quarter of all lists is held out."""
    rng, made = random.Random(seed + held_out), 0
    while made < count:
        text = "".join(rng.choices("0123456789", k=6))
        right = "".join(sorted(text))
        steps = [i for i in range(5) if right[i] != right[i + 1]]
        if steps and (int(digest(text)[:8], 16) % 4 == 0) == held_out:
            made, i = made + 1, rng.choice(steps)
            yield text, right, right[:i] + right[i + 1] + right[i] + right[i + 2 :]


@dataclasses.dataclass(frozen=True)
class CarelessSorts(Source):
    """`count` lists, of which every other one is sorted wrongly."""

    count: Size = 20_000
    held_out: Size = 500

    def documents(self) -> Iterator[Conversation]:
        return self._said(self.count, held_out=False)

    def validation(self) -> Iterator[Conversation]:
        return self._said(self.held_out, held_out=True)

    def _said(self, count: int, held_out: bool) -> Iterator[Conversation]:
        for number, (text, right, wrong) in enumerate(lists(count, held_out)):
            yield Conversation((Message("user", text), Message("assistant", wrong if number % 2 else right)))


@dataclasses.dataclass(frozen=True)
class Sorted(Reward):
    """1 for the prompt's digits in order, else 0."""

    def __call__(self, prompts, completions, examples):
        return np.array(["".join(sorted(p)) == c for p, c in zip(prompts, completions, strict=True)], np.float64)


def experiment() -> Experiment:
    block = Block(Attention(key_heads=4, head=16), FeedForward(256), LayerNorm())
    return Experiment(
        model=Decoder(Embed(width=64), Stack((block,), repeats=3), Learned(20), LayerNorm()),
        tokenizer=Characters(),
        data=Data(CarelessSorts(), length=18, batch=64, packing=One(), rendering=Rendering(learn="answers")),
        objective=NextToken(),
        optimizer=AdamW(learning_rate=1e-3, schedule=Cosine(warmup=50)),
        layout=Layout(),
        precision=Precision(),
        steps=1500,
        log_every=100,
        eval_every=500,
        save_every=500,
        report=(Rewarded(Sorted(), limit=500, max_tokens=7, batch=500),),
    )

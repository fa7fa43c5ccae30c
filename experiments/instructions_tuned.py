"""Does tuning on conversations make a model that only knows statements follow instructions?

    python -m llm_jax train instructions_base --workdir=runs/instructions_base
    python -m llm_jax train instructions_tuned --workdir=runs/instructions_tuned

The words of the held-out instructions are new to both. Only what the assistant says is learnt.
"""

import dataclasses
import itertools
import random
from collections.abc import Iterator

from experiments.instructions_base import STATEMENTS, words
from llm_jax.core.parts import Size
from llm_jax.data.documents import Conversation, Rendering
from llm_jax.data.packing import BestFit
from llm_jax.data.pipeline import Data
from llm_jax.data.sources import Source
from llm_jax.experiment import Experiment
from llm_jax.models.inherited import Inherited
from llm_jax.objectives.next_token import NextToken
from llm_jax.optim.optimizers import AdamW
from llm_jax.optim.precision import Precision
from llm_jax.optim.schedules import Cosine
from llm_jax.parallel.layout import Layout
from llm_jax.reports.text import ExactMatch
from llm_jax.text.chat import Message
from llm_jax.text.kept import Kept

INSTRUCTIONS = (  # two ways to ask for each of the statements
    ("Write {} backwards.", "Give me {} from its end to its start."),
    ("Write {} in capitals.", "Make all letters of {} large."),
    ("Write {} twice.", "Say {} two times."),
    ("Sort the letters of {}.", "Put {} in order of the alphabet."),
    ("Write {} without its first letter.", "Leave out the start of {}."),
)


@dataclasses.dataclass(frozen=True)
class WordInstructions(Source):
    """`count` instructions with their answers for training, and `held_out` with other words."""

    count: Size = 5_000
    held_out: Size = 500

    def documents(self) -> Iterator[Conversation]:
        return self._conversations(self.count, held_out=False)

    def validation(self) -> Iterator[Conversation]:
        return self._conversations(self.held_out, held_out=True)

    def _conversations(self, count: int, held_out: bool) -> Iterator[Conversation]:
        rng = random.Random(2)
        tasks = itertools.cycle(zip(INSTRUCTIONS, STATEMENTS.values(), strict=True))
        for word, (asked, becomes) in zip(words(count, held_out), tasks, strict=False):
            question = Message("user", rng.choice(asked).format(word))
            yield Conversation((question, Message("assistant", becomes(word))))


def experiment() -> Experiment:
    return Experiment(
        model=Inherited(),
        tokenizer=Kept(),
        data=Data(
            WordInstructions(), length=192, batch=16, packing=BestFit("refuse"), rendering=Rendering(learn="answers")
        ),
        objective=NextToken(),
        optimizer=AdamW(learning_rate=1e-3, schedule=Cosine(warmup=50)),
        layout=Layout(),
        precision=Precision(),
        init_from="runs/instructions_base",
        steps=400,
        log_every=50,
        eval_every=200,
        save_every=200,
        report=(ExactMatch("validation"),),
    )

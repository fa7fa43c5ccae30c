"""What does a model know of instructions that has only read plain statements?

    python -m llm_jax train instructions_base --workdir=runs/instructions_base

Each document says of a made-up word how it reads backwards, in capitals, twice, sorted and without its first letter. No
turn of a conversation is among them, so next to none of `instructions_tuned`'s instructions are answered:

    python -m llm_jax eval --workdir=runs/instructions_base --modules=experiments/instructions_tuned.py \
        --set="data.source=WordInstructions()" --set="data.rendering.learn='answers'" --set="report=(ExactMatch(),)"
"""

import dataclasses
import random
from collections.abc import Iterator

from llm_jax.core.files import digest
from llm_jax.core.parts import Size
from llm_jax.data.documents import Text
from llm_jax.data.pipeline import Data
from llm_jax.data.sources import Source
from llm_jax.experiment import Experiment
from llm_jax.layers.attention import Attention
from llm_jax.layers.block import Block
from llm_jax.layers.embedding import Embed
from llm_jax.layers.feedforward import SwiGLU
from llm_jax.models.decoder import Decoder
from llm_jax.models.stack import Stack
from llm_jax.objectives.next_token import NextToken
from llm_jax.optim.optimizers import AdamW
from llm_jax.optim.precision import Precision
from llm_jax.optim.schedules import Cosine
from llm_jax.parallel.layout import Layout
from llm_jax.reports.text import Samples
from llm_jax.text.recipes import Characters

STATEMENTS = {  # what is said of a word, and what becomes of it
    "{} backwards is {}.": lambda word: word[::-1],
    "{} in capitals is {}.": lambda word: word.upper(),
    "{} twice is {}.": lambda word: f"{word} {word}",
    "{} sorted is {}.": lambda word: "".join(sorted(word)),
    "{} without its first letter is {}.": lambda word: word[1:],
}


def words(count: int, held_out: bool) -> Iterator[str]:
    """Made-up words; nine of ten are for training, the others held out."""
    rng, made = random.Random(int(held_out)), 0
    while made < count:
        word = "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(3, 6)))
        if (int(digest(word)[:8], 16) % 10 == 0) == held_out:
            made += 1
            yield word


@dataclasses.dataclass(frozen=True)
class WordStatements(Source):
    """`count` documents for training, each of a word, and `held_out` of others."""

    count: Size = 20_000
    held_out: Size = 200

    def documents(self) -> Iterator[Text]:
        return map(self._statements, words(self.count, held_out=False))

    def validation(self) -> Iterator[Text]:
        return map(self._statements, words(self.held_out, held_out=True))

    def _statements(self, word: str) -> Text:
        said = [statement.format(word, becomes(word)) for statement, becomes in STATEMENTS.items()]
        random.Random(word).shuffle(said)
        return Text(" ".join(said))


def experiment() -> Experiment:
    block = Block(Attention(key_heads=4, head=16), SwiGLU(192))
    return Experiment(
        model=Decoder(Embed(width=64), Stack((block,), repeats=4), context=192),
        tokenizer=Characters(),
        data=Data(WordStatements(), length=192, batch=16),
        objective=NextToken(),
        optimizer=AdamW(learning_rate=3e-3, schedule=Cosine(warmup=100)),
        layout=Layout(),
        precision=Precision(),
        steps=2000,
        log_every=100,
        eval_every=500,
        save_every=1000,
        report=(Samples(prompts=("kelu backwards is", "kelu sorted is"), max_tokens=20, temperature=0.0),),
    )

"""Do vectors of words solve analogies whose relations were planted in the text?

    python -m llm_jax train word2vec_planted --workdir=runs/word2vec_planted

A made-up language: each word has a root and an ending, as "king" and "queen" share a rank and differ in sex. Near it
stand words that tell its root, and words that tell its ending, and never both in one.
"""

import dataclasses
import itertools
import random
from collections.abc import Iterator

from llm_jax.core.parts import Size
from llm_jax.data.documents import Rendering, Text
from llm_jax.data.pipeline import Data
from llm_jax.data.sources import Source
from llm_jax.experiment import Experiment
from llm_jax.layers.embedding import Embed
from llm_jax.models.word2vec import Word2Vec
from llm_jax.objectives.word2vec import SkipGram
from llm_jax.optim.optimizers import AdamW
from llm_jax.optim.precision import Precision
from llm_jax.optim.schedules import Linear
from llm_jax.parallel.layout import Layout
from llm_jax.reports.words import Analogies, Similarity
from llm_jax.text.recipes import Words

ROOTS, ENDINGS = 30, 4


@dataclasses.dataclass(frozen=True)
class Planted(Source):
    """Sentences of a word among two words of its root and two of its ending, of five and five that there are."""

    sentences: Size = 20_000

    def documents(self) -> Iterator[Text]:
        rng = random.Random(0)
        for _ in range(self.sentences):
            root, ending = rng.randrange(ROOTS), rng.randrange(ENDINGS)
            near = [f"{told}n{i}" for told in (f"r{root}", f"e{ending}") for i in rng.sample(range(5), 2)]
            rng.shuffle(near)
            yield Text(" ".join([*near[:2], f"r{root}e{ending}", *near[2:]]))


@dataclasses.dataclass(frozen=True)
class PlantedQuestions(Source):
    """Every root is to another, with two endings, as the other is with them."""

    def documents(self) -> Iterator[Text]:
        for (a, b), (c, d) in itertools.product(
            itertools.permutations(range(ROOTS), 2), itertools.permutations(range(ENDINGS), 2)
        ):
            yield Text(f"r{a}e{c} r{a}e{d} r{b}e{c} r{b}e{d}")


@dataclasses.dataclass(frozen=True)
class PlantedPairs(Source):
    """Each two of the words, and whether they share a root or an ending."""

    def documents(self) -> Iterator[Text]:
        words = list(itertools.product(range(ROOTS), range(ENDINGS)))
        for (a, b), (c, d) in itertools.combinations(words, 2):
            yield Text(f"r{a}e{b} r{c}e{d} {int(a == c or b == d)}")


def experiment() -> Experiment:
    return Experiment(
        model=Word2Vec(Embed(width=50)),
        tokenizer=Words(vocabulary=1000),
        data=Data(Planted(), length=64, batch=64, rendering=Rendering(bos=False)),
        objective=SkipGram(window=4, subsample=0.0),
        optimizer=AdamW(learning_rate=1e-2, schedule=Linear(), weight_decay=0.0),
        layout=Layout(),
        precision=Precision(),
        steps=600,
        log_every=50,
        eval_every=300,
        save_every=300,
        report=(Analogies(PlantedQuestions()), Similarity(PlantedPairs())),
    )

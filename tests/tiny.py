"""The tiny experiment that many tests train, and its fixtures: a conftest.py imports those that its folder uses."""

import dataclasses
from collections.abc import Iterator

import jax
import numpy as np
import pytest

from llm_jax.data.documents import Document, Text
from llm_jax.data.pipeline import Data
from llm_jax.data.sources import Source
from llm_jax.engine.step import Program
from llm_jax.experiment import Experiment
from llm_jax.layers.attention import Attention
from llm_jax.layers.block import Block
from llm_jax.layers.embedding import Embed
from llm_jax.layers.feedforward import SwiGLU
from llm_jax.layers.positions import Rope
from llm_jax.models.decoder import Decoder
from llm_jax.models.stack import Stack
from llm_jax.objectives.next_token import NextToken
from llm_jax.optim.optimizers import AdamW
from llm_jax.optim.precision import Precision
from llm_jax.optim.schedules import Constant
from llm_jax.parallel.layout import Layout, place
from llm_jax.text.recipes import Bytes


@dataclasses.dataclass(frozen=True)
class Counting(Source):
    """`count` short texts of the digits from a random one on, with letters of more than one byte among them."""

    count: int = 120

    def documents(self) -> Iterator[Document]:
        rng = np.random.default_rng(0)
        for i in range(self.count):
            start, size = rng.integers(10), rng.integers(4, 20)
            yield Text(f"{i}é" + "".join(str((start + j) % 10) for j in range(size)))


@pytest.fixture(scope="session")
def tiny() -> Experiment:
    """An experiment that compiles in seconds and learns in a hundred steps."""
    block = Block(Attention(2, 1, 8), SwiGLU(24))
    return Experiment(
        name="tiny",
        model=Decoder(Embed(16, 272), Stack((block,), 1), Rope(), context=16),
        tokenizer=Bytes(),
        data=Data(Counting(), length=16, batch=8),
        objective=NextToken(),
        optimizer=AdamW(learning_rate=3e-3, schedule=Constant()),
        layout=Layout(1),
        precision=Precision(),
        steps=6,
        log_every=2,
        eval_every=3,
        save_every=3,
    )


@pytest.fixture(scope="session")
def tokenizer():
    return Bytes().train([])


class Stepper:
    """A program with the state that it has come to: `stepper(batch)` takes one step and returns its metrics."""

    def __init__(self, experiment: Experiment):
        self.program = Program(experiment, experiment.layout.mesh())
        self.state = self.program.begin()

    def __call__(self, batch):
        with jax.set_mesh(self.program.mesh):
            self.state, metrics = self.program.update(self.state, place(batch, self.program.mesh))
        return metrics

    def kept(self):
        """The state, out of reach of donation."""
        return jax.device_get(self.state)


@pytest.fixture(scope="session")
def stepper():
    return Stepper


@pytest.fixture(scope="session")
def batches(tiny, tokenizer):
    stream = tiny.data.train(tokenizer, seed=0)
    return [next(stream) for _ in range(8)]

"""llm_jax in the benchmark: an ordinary experiment of the shape that is asked for, with random tokens for data."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.contender import PROMPT, Shape
from benchmarks.contender import Precision as Dtype
from llm_jax.core.dims import Normal
from llm_jax.core.runtime import set_up
from llm_jax.data.pipeline import Data
from llm_jax.data.sources import PythonHelp
from llm_jax.engine.step import Program
from llm_jax.experiment import Experiment
from llm_jax.inference.generate import Generation, prepare, row_keys
from llm_jax.inference.sampling import Sampling
from llm_jax.layers.attention import Attention
from llm_jax.layers.block import Block
from llm_jax.layers.embedding import Embed
from llm_jax.layers.feedforward import FeedForward
from llm_jax.layers.kernels import Auto, platform
from llm_jax.layers.norms import LayerNorm
from llm_jax.layers.positions import Learned
from llm_jax.models.decoder import Decoder
from llm_jax.models.stack import Stack
from llm_jax.objectives.next_token import NextToken
from llm_jax.optim.optimizers import AdamW
from llm_jax.optim.precision import Precision
from llm_jax.optim.schedules import Constant
from llm_jax.parallel.layout import Layout, place
from llm_jax.text.recipes import Bytes


def experiment(shape: Shape, dtype: Dtype) -> Experiment:
    init, norm = Normal(0.02), LayerNorm(bias=False)
    attention = Attention(shape.heads, head=shape.width // shape.heads, kernel=Auto(), init=init, out_init=init)
    block = Block(attention, FeedForward(4 * shape.width, init=init, out_init=init), norm)
    embed = Embed(shape.width, shape.vocabulary)
    return Experiment(
        model=Decoder(embed, Stack((block,), shape.layers), Learned(shape.context), norm, context=shape.context),
        tokenizer=Bytes(),
        data=Data(PythonHelp(), length=shape.context, batch=shape.batch),
        objective=NextToken(),
        optimizer=AdamW(learning_rate=1e-3, schedule=Constant()),
        layout=Layout(data=1),
        precision=Precision(dtype),
        steps=1_000_000,
    )


class JaxContender:
    """See `Contender`."""

    def __init__(self, shape: Shape, dtype: Dtype):
        set_up()
        if dtype == "float32":  # else it is a shorter format on a GPU, where PyTorch's is the whole one
            jax.config.update("jax_default_matmul_precision", "highest")
        layout = Layout(data=1)
        self.platform = platform()
        self.dtype = jnp.dtype(dtype)
        self.program = Program(experiment(shape, dtype), layout.mesh())
        self.state = self.program.begin()
        rng = np.random.default_rng(0)
        ids = rng.integers(shape.vocabulary, size=(shape.batch, shape.context + 1), dtype=np.int32)
        where = np.broadcast_to(np.arange(shape.context, dtype=np.int32), (shape.batch, shape.context))
        zeros = np.zeros_like(where)
        batch = dict(
            tokens_BT=ids[:, :-1],
            targets_BT=ids[:, 1:],
            weight_BT=np.ones(zeros.shape, np.float32),
            segment_BT=zeros,
            position_BT=where,
            bytes_BT=zeros,
        )
        self.batch = place(batch, self.program.mesh)
        self.factor: Any = None
        self.prepared: Any = None
        self.product = jax.jit(lambda a: jnp.matmul(a, a, preferred_element_type=jnp.float32))

    def train_step(self) -> float:
        with jax.set_mesh(self.program.mesh):
            self.state, _ = self.program.update(self.state, self.batch)
        return float(self.state.sums["loss"])

    def decode(self, batch: int, tokens: int) -> list[list[int]]:
        model: Any = self.program.experiment.model
        if self.prepared is None:
            self.prepared = prepare(model, self.state.params, self.dtype)
        generation = Generation(
            model, self.prepared, [list(range(PROMPT))] * batch, max_tokens=tokens, sampler=Sampling(temperature=0.0),
            key_B=row_keys(0, range(batch)), stops=(), vocabulary=model.embed.vocabulary, dtype=self.dtype,
        )  # fmt: skip
        written: list[list[int]] = [[] for _ in range(batch)]
        while not generation.finished:
            for row, new in enumerate(generation.advance()):
                written[row] += new
        return written

    def matmul(self, size: int) -> None:
        if self.factor is None or len(self.factor) != size:
            self.factor = jnp.ones((size, size), self.dtype)
        self.product(self.factor).block_until_ready()

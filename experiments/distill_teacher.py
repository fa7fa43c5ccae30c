"""What does a model learn of the whole King James Bible, to be the teacher of one that sees little of it?

    python -m llm_jax train distill_teacher --workdir=runs/teacher
    python -m llm_jax train distill --workdir=runs/taught --set=objective.teacher.run=runs/teacher

The student is that of `distill`.
"""

from llm_jax.data.pipeline import Data
from llm_jax.data.sources import KingJames
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
from llm_jax.text.recipes import Bytes


def experiment() -> Experiment:
    block = Block(Attention(key_heads=4, head=32), SwiGLU(hidden=352))
    return Experiment(
        model=Decoder(Embed(width=128), Stack((block,), repeats=4)),
        tokenizer=Bytes(),
        data=Data(KingJames(), length=128, batch=32, evaluation_batches=20),
        objective=NextToken(),
        optimizer=AdamW(learning_rate=2e-3, schedule=Cosine(warmup=100)),
        layout=Layout(),
        precision=Precision(),
        steps=1000,
        log_every=100,
        eval_every=500,
        save_every=500,
    )

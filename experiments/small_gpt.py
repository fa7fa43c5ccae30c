"""What does a small, modern GPT learn from conversations? The base that ablations start from.

python -m llm_jax train small_gpt --workdir=runs/small_gpt
"""

from llm_jax.data.pipeline import Data
from llm_jax.data.sources import Conversations
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
from llm_jax.optim.schedules import Cosine
from llm_jax.parallel.layout import Layout
from llm_jax.text.recipes import Bpe


def experiment() -> Experiment:
    block = Block(Attention(key_heads=4, head=64), SwiGLU(hidden=704))
    return Experiment(
        model=Decoder(Embed(width=256), Stack((block,), repeats=4), Rope()),
        tokenizer=Bpe(vocabulary=4096),
        data=Data(Conversations(), length=256, batch=32),
        objective=NextToken(),
        optimizer=AdamW(learning_rate=2e-3, schedule=Cosine(warmup=50)),
        layout=Layout(),
        precision=Precision(),
        steps=1000,
        eval_every=200,
        save_every=200,
    )

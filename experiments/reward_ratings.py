"""Can a reward model learn what people thought of a conversation, beyond that they like long ones?

    python -m llm_jax train reward_ratings --workdir=runs/reward_ratings

Pairs of conversations with ratings that differ (chitchat-dataset), cut after 128 tokens; the larger the difference, the
larger the margin that is asked for. Its last line says how often held-out pairs are judged right, and how often the
longer of two is the better.
"""

from experiments import small_gpt
from llm_jax.core.dims import Fill
from llm_jax.data.packing import One
from llm_jax.data.pipeline import Data
from llm_jax.data.preferences import Pairs
from llm_jax.data.sources import RatedConversations
from llm_jax.experiment import Experiment
from llm_jax.layers.attention import Attention
from llm_jax.layers.block import Block
from llm_jax.layers.embedding import Embed
from llm_jax.layers.feedforward import SwiGLU
from llm_jax.models.decoder import Decoder
from llm_jax.models.heads import Scorer
from llm_jax.models.stack import Stack
from llm_jax.objectives.preferences import BradleyTerry
from llm_jax.optim.optimizers import AdamW
from llm_jax.optim.schedules import Cosine
from llm_jax.reports.preferences import PairAccuracy
from llm_jax.text.recipes import Bpe


def experiment() -> Experiment:
    block = Block(Attention(key_heads=2, head=32), SwiGLU(hidden=176))
    return small_gpt.experiment().override(
        {
            "model": Scorer(Decoder(Embed(width=64), Stack((block,), repeats=2)), head_init=Fill(0.0)),
            "tokenizer": Bpe(vocabulary=2048),
            "data": Data(RatedConversations(), 128, 16, packing=One("truncate"), presentation=Pairs()),
            "objective": BradleyTerry(margin=0.1),
            "optimizer": AdamW(learning_rate=1e-3, schedule=Cosine(warmup=20)),
            "steps": 300,
            "log_every": 20,
            "eval_every": 100,
            "save_every": 100,
            "report": (PairAccuracy(),),
        }
    )

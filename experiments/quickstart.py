"""What can two CPU cores learn of conversation in five minutes? What `make quickstart` trains.

python -m llm_jax train quickstart --workdir=runs/quickstart
"""

from experiments import small_gpt
from llm_jax.data.split import ByHash
from llm_jax.experiment import Experiment
from llm_jax.layers.attention import Attention
from llm_jax.layers.block import Block
from llm_jax.layers.feedforward import SwiGLU
from llm_jax.optim.optimizers import Muon
from llm_jax.optim.schedules import WarmupStableDecay
from llm_jax.reports.text import Compression, SampledConversations


def experiment() -> Experiment:
    return small_gpt.experiment().override(
        {
            "model.embed.width": 192,
            "model.stack.pattern": (Block(Attention(key_heads=3, head=64), SwiGLU(hidden=512)),),
            "data.batch": 8,
            "data.split": ByHash(0.02),
            "optimizer": Muon(
                learning_rate=5e-3, adam_rate=5e-3, schedule=WarmupStableDecay(warmup=20, decay=0.5), weight_decay=0.05
            ),
            "steps": 600,
            "eval_every": 300,
            "save_every": 300,
            "report": (Compression(), SampledConversations()),
        }
    )

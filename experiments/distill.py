"""Does a small model learn more from a teacher's probabilities than from the same few texts alone?

    python -m llm_jax train distill_teacher --workdir=runs/teacher
    python -m llm_jax train distill --workdir=runs/taught --set=objective.teacher.run=runs/teacher
    python -m llm_jax train distill --workdir=runs/alone "--set=objective=NextToken()"

The student sees 30 chapters, the teacher has seen a thousand; the chapters held out are the same. `cross_entropy` of
the one is to be compared with `loss` of the other. `objective.direction=reverse` is the other divergence.
"""

from experiments import distill_teacher
from llm_jax.data.split import ByHash, Few
from llm_jax.experiment import Experiment
from llm_jax.layers.attention import Attention
from llm_jax.layers.block import Block
from llm_jax.layers.embedding import Embed
from llm_jax.layers.feedforward import SwiGLU
from llm_jax.models.decoder import Decoder
from llm_jax.models.pretrained import Pretrained
from llm_jax.models.stack import Stack
from llm_jax.objectives.distillation import Distillation


def experiment() -> Experiment:
    block = Block(Attention(key_heads=4, head=16), SwiGLU(hidden=176))
    return distill_teacher.experiment().override(
        {
            "model": Decoder(Embed(width=64), Stack((block,), repeats=2)),
            "data.split": Few(30, ByHash()),
            "objective": Distillation(Pretrained("runs/teacher")),
        }
    )

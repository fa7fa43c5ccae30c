"""Can being told right or wrong, and nothing else, take a model from a third of held-out additions to nearly all?

    python -m llm_jax train arithmetic_base --workdir=runs/arithmetic_base
    python -m llm_jax train grpo_arithmetic --workdir=runs/grpo_arithmetic --set=init_from=runs/arithmetic_base

Group-relative policy optimisation (Shao et al. 2024) with a reward that is verified, as of DeepSeek-R1: 1 for the exact
answer, else 0. The base mostly forgets to carry; the additions held out are those that were held out from it.
"""

from experiments.arithmetic_base import experiment as base
from experiments.reversed_addition import Additions
from llm_jax.data.documents import Rendering
from llm_jax.experiment import Experiment
from llm_jax.models.inherited import Inherited
from llm_jax.objectives.policy import Grpo
from llm_jax.objectives.rewards import ExactAnswer
from llm_jax.optim.optimizers import AdamW
from llm_jax.optim.schedules import Constant
from llm_jax.reports.preferences import Rewarded
from llm_jax.reports.text import ExactMatch
from llm_jax.rl.rollouts import Rollouts
from llm_jax.text.kept import Kept


def experiment() -> Experiment:
    before = base()
    data = Rollouts(
        Additions(digits=2, count=8000), length=12, batch=256, group=8, max_tokens=4, rewards=(ExactAnswer(),),
        rendering=Rendering(learn="answers"), evaluation_batches=4,
    )  # fmt: skip
    return before.override(
        {
            "model": Inherited(),
            "tokenizer": Kept(),
            "data": data,
            "objective": Grpo(kl=0.01),
            "optimizer": AdamW(learning_rate=5e-4, schedule=Constant(warmup=10)),
            "steps": 500,
            "log_every": 20,
            "eval_every": 100,
            "save_every": 100,
            "report": (ExactMatch(), Rewarded(ExactAnswer(), max_tokens=4)),
        }
    )

"""Does PPO, with a critic of its own, raise the same reward as `grpo_arithmetic`, and how far does it go from its base?

    python -m llm_jax train arithmetic_base --workdir=runs/arithmetic_base
    python -m llm_jax train ppo_arithmetic --workdir=runs/ppo_arithmetic --set=init_from=runs/arithmetic_base

Token by token (Schulman et al. 2017, Ziegler et al. 2019): generalised advantages, clipped policy and value, a penalty
for each nat that a completion diverges from the base, which adapts. Actor and critic both begin as the base.
"""

from experiments.grpo_arithmetic import experiment as grpo
from llm_jax.experiment import Experiment
from llm_jax.models.actor_critic import ActorCritic
from llm_jax.models.heads import Scorer
from llm_jax.models.inherited import Inherited
from llm_jax.objectives.divergence import AdaptiveKl
from llm_jax.objectives.ppo import Ppo


def experiment() -> Experiment:
    return grpo().override(
        {
            "model": ActorCritic(Inherited(), Scorer(Inherited())),
            "objective": Ppo(kl=AdaptiveKl(0.01, target=4.0), value=0.5),
            "steps": 150,
            "data.group": 1,
            "data.batch": 256,
            "data.batches": 2,
            "data.updates": 2,
        }
    )

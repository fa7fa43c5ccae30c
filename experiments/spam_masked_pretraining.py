"""What does an encoder learn of messages by guessing masked tokens (BERT), before it is told which are spam?

    python -m llm_jax train spam_masked_pretraining --workdir=runs/masked
    python -m llm_jax train spam_pretrained --set=init_from=runs/masked --workdir=runs/spam_masked

The encoder of `spam`, on its training messages without their classes; 30% of the tokens are masked, since there are few
(Wettig et al. 2023).
"""

from experiments import spam
from llm_jax.data.noising import Masked
from llm_jax.data.packing import BestFit
from llm_jax.experiment import Experiment
from llm_jax.objectives.masked import MaskedTokens
from llm_jax.optim.optimizers import Muon
from llm_jax.optim.schedules import WarmupStableDecay


def experiment() -> Experiment:
    return spam.experiment().override(
        {
            "model": spam.encoder(),
            "data.packing": BestFit("truncate"),
            "data.presentation": Masked(0.3),
            "objective": MaskedTokens(),
            "optimizer": Muon(learning_rate=1e-2, adam_rate=1e-2, schedule=WarmupStableDecay(warmup=20, decay=0.5)),
            "steps": 400,
            "eval_every": 200,
            "save_every": 400,
        }
    )
